"""One chain for good: written as a standard checkpoint, which stock transformers loads without this package.

    export_chain(model, tokenizer, Chain.parse("0-24,28-29", 30), Path("runs/short"))
    AutoModelForCausalLM.from_pretrained("runs/short")

Repeated layers become layers of their own, so the checkpoint has as many layers as the chain is deep, and everything
that takes the base model takes it: inference servers, converters, quantisers. It is checked before it gets its name
(`router.export.check`); what a family's configuration cannot say is refused (`router.layer_config`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from router.base_model import DTYPES
from router.chain import Chain
from router.command import InputError, one_line
from router.decoder import find_decoder
from router.durable import fsync, read_json, writable_directory, write_json, write_text
from router.export.card import describe_export, export_card
from router.export.check import LIBRARY_ERRORS, Exported, check_checkpoint
from router.fingerprint import model_fingerprint
from router.layer_config import chain_config
from router.routed import RoutedModel
from router.view import chain_view

CHAIN_FILE, CARD_FILE = "chain.json", "README.md"
_PLACE = ("name_or_path", "is_local", "local_files_only")
"""Settings of a tokenizer that say where it was loaded from."""
_QUANTISED = ("hf_quantizer", "is_quantized", "quantization_method")
_QUANTISED_CONFIG = ("quantization_config", "_is_quantized", "_model_name_or_path")


@dataclass(frozen=True)
class StockModel:
    """How the library knows a model.

    Attributes:
        auto: the class whose `from_pretrained` loads it.
        kind: the model's own class.
    """

    auto: Any
    kind: type[PreTrainedModel]


def export_chain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None,
    chain: Chain,
    folder: Path,
    *,
    base_model: str | None = None,
    revision: str | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a chain as a checkpoint of its own, in the model's dtype, and check that it is the chain to the bit.

    The checkpoint is written and checked beside `folder` and then renamed, so it is complete or absent. The disk needs
    room for it, the memory for the model, its repeated layers once more, and then the checkpoint that is checked.

    Args:
        model: the base model, or a routed one, in evaluation mode, its weights whole on one device.
        tokenizer: goes along, with its chat template; a processor does as well; None: nothing does.
        chain: any chain over the model's layers.
        folder: where the checkpoint goes; absent or empty.
        base_model: name of the base model for the model card; None: what it was loaded from.
        revision: its hub revision.
        max_shard_size: size of a file of weights at most, as `save_pretrained` takes it.

    Returns:
        The folder.

    Raises:
        InputError: where the folder holds something, the model is quantised, split or no stock model, the family
            cannot say the chain in its configuration, or the checkpoint differs from the chain. Nothing is left then.
    """
    folder = free_folder(folder)
    stock = _stock_model(model)
    _check_weights(model)
    exported = _exported(model, chain, stock)
    with _aside(folder) as aside:
        try:
            weights = _separate_weights(exported)
            exported.written.save_pretrained(aside, state_dict=weights, max_shard_size=max_shard_size)
            del weights
            if tokenizer is not None:
                _save_tokenizer(tokenizer, aside)
        except LIBRARY_ERRORS as error:
            raise InputError(f"chain {chain}: expected a model that can be saved, got {one_line(error)}") from error
        verified = check_checkpoint(exported, stock.auto, aside)
        about = describe_export(
            chain,
            exported.written,
            base_model=base_model or model.name_or_path or None,
            revision=revision,
            fingerprint=model_fingerprint(model),
            verified=verified,
        )
        card = export_card(chain, about, stock.auto.__name__, has_tokenizer=tokenizer is not None)
        write_json(aside / CHAIN_FILE, about)
        write_text(aside / CARD_FILE, card)
    return folder


def free_folder(folder: Path) -> Path:
    """Return the folder, which must be absent or empty, in a directory that can be written.

    Raises:
        InputError: where it is not.
    """
    folder = Path(os.path.abspath(folder.expanduser()))  # not resolved: what the folder's name stands for stays
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InputError(f"out: expected a folder that is absent or empty, got {str(folder)!r}")
    writable_directory(folder.parent, "out")
    return folder


def _stock_model(model: PreTrainedModel) -> StockModel:
    """Return how the library loads a model.

    Raises:
        InputError: where it has no such model, or this one runs code of its own.
    """
    for auto, mapping in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        kind = mapping.get(type(model.config), None)
        if kind is not None and (type(model) is kind or (isinstance(model, RoutedModel) and isinstance(model, kind))):
            return StockModel(auto, kind)
    raise InputError(
        "model: expected a class that transformers' AutoModelForCausalLM or AutoModelForImageTextToText loads, "
        f"got {type(model).__name__}"
    )


def _check_weights(model: PreTrainedModel) -> None:
    """Refuse weights that cannot be written as they are.

    Raises:
        InputError: where they are quantised, adapters, on several devices, not loaded, or the model is in training.
    """
    quantised = getattr(model.config, "quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    method = getattr(method, "value", method)
    if (quantised is not None or getattr(model, "hf_quantizer", None) is not None) and method != "gguf":
        raise InputError(f"model: expected weights that are not quantised, got quantisation by {method}")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("model: expected adapters merged into the weights, got a model with adapters beside them")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise InputError(f"model: expected all weights on one device, got {', '.join(devices)}")
    if model.dtype not in DTYPES.values():
        raise InputError(f"model: expected weights in {', '.join(DTYPES)}, got {model.dtype}")
    if model.training:
        raise InputError("model: expected it in evaluation mode, got training mode; call model.eval()")


def _exported(model: PreTrainedModel, chain: Chain, stock: StockModel) -> Exported:
    """Return views of the chain, of the library's class even where the model is a routed one.

    Raises:
        InputError: where `chain_view` or `chain_config` refuses the chain.
    """
    try:
        decoder = find_decoder(model)
        view, written = (chain_view(model, chain, fresh=True) for _ in range(2))
    except ValueError as error:
        raise InputError(str(error)) from error
    for one in (view, written):
        one.__class__ = stock.kind
    written.config = chain_config(model.config, chain)
    _forget_quantisation(written)
    return Exported(chain, view, written, ".".join([*decoder.path, decoder.name]))


def _forget_quantisation(written: PreTrainedModel) -> None:
    """Take the marks of a GGUF file off a model that was unpacked from one; it could not be saved with them.

    Only the view and its own configuration carry them no more. Weights still packed would fail the check.
    """
    for holder, names in ((written, _QUANTISED), (written.config, _QUANTISED_CONFIG)):
        for name in names:
            vars(holder).pop(name, None)


def _separate_weights(exported: Exported) -> dict[str, Tensor]:
    """Return the weights by name; a layer that runs again gets a copy, in main memory, for files know no aliases."""
    layers = exported.chain.layers
    again = tuple(f"{exported.layers}.{i}." for i, layer in enumerate(layers) if layer in layers[:i])
    weights: dict[str, Tensor] = exported.written.state_dict()
    for name in weights if again else ():
        if name.startswith(again):
            weights[name] = weights[name].to("cpu", copy=True)
    return weights


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, folder: Path) -> None:
    """Write a tokenizer without what it remembers of the place that it was loaded from."""
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*_config.json"):
        content = read_json(path)
        kept = {name: value for name, value in content.items() if name not in _PLACE}
        if kept != content:
            write_json(path, kept)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder`; on success flush it to the disk and give it the name, else remove it."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        for path in (*aside.rglob("*"), aside):
            path.chmod(0o777 & ~umask if path.is_dir() else 0o666 & ~umask)  # some were made private
            fsync(path)
        aside.rename(folder)  # refused by the system where something has come into the folder since
        fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
