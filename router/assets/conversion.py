"""Conversion of a GGUF model to a folder of safetensors with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from router.assets.catalogue import Model
from router.base_model import DTYPES


def convert(model: Model, gguf: Path, folder: Path) -> None:
    """Write a GGUF model as safetensors in the model's dtype; in that dtype the logits stay the same to the bit.

    Args:
        model: which dtype, and what the tokenizer needs.
        gguf: the file.
        folder: where model and tokenizer go; it exists.

    Raises:
        OSError: where a file cannot be read or written.
        ValueError: where the file's architecture is unknown to transformers.
    """
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=DTYPES[model.dtype])
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _forget_quantisation(network)
        network.config._name_or_path = model.name
        network.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    _restore_steps(model, tokenizer)
    tokenizer.model_max_length = network.config.max_position_embeddings
    for key in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def _restore_steps(model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the steps back that transformers' reader of GGUF drops from the tokenizer."""
    backend = tokenizer.backend_tokenizer
    if model.split_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    if model.compose:
        backend.normalizer = normalizers.NFC()


def _forget_quantisation(network: Any) -> None:
    """Remove the marks of a dequantised GGUF model, for which `save_pretrained` refuses it."""
    for holder, names in (
        (network, ("hf_quantizer", "is_quantized", "quantization_method")),
        (network.config, ("quantization_config", "_is_quantized", "_model_name_or_path")),
    ):
        for name in names:
            if name in vars(holder):
                delattr(holder, name)
