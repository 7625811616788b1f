"""Loading of the frozen base model, from a local directory or from the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from router.command import InputError, one_line
from router.decoder import find_decoder

HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
"""Options of `from_pretrained` that say where files come from: they count for the tokenizer too."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base_model(
    name: str, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer in evaluation mode, with gradients off.

    Safetensors only, and no code from the model's repository runs, unless `options` say so.

    Args:
        name: a local directory, or a hub id such as "HuggingFaceTB/SmolLM2-135M-Instruct".
        dtype: one of `DTYPES`.
        device: torch device.
        revision: hub revision.
        options: passed on to `from_pretrained`, for example `attn_implementation`.

    Raises:
        InputError: where the directory, the hub id, the dtype or the device does not exist.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    device = resolve_device(device)
    source = _source(name)
    # Said outright: else the library asks on the terminal, and takes what is piped in for an answer.
    trusted = {"trust_remote_code": bool(options.get("trust_remote_code", False))}
    where = {option: options[option] for option in HUB_OPTIONS if option in options}
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file keeps our own lines, not the library's bars
    with _reading(name):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=DTYPES[dtype], revision=revision, **{"use_safetensors": True} | options | trusted
        )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, **where | trusted)
    if "device_map" not in options:
        model = model.to(device)
    return model.eval().requires_grad_(False), tokenizer


def count_layers(name: str, *, revision: str | None = None) -> int:
    """Return the number of a model's layers, from its configuration alone: no weights are read.

    Args:
        name: a local directory or a hub id.
        revision: hub revision.

    Raises:
        InputError: where there is no such model.
    """
    with _reading(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(_source(name), revision=revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return find_decoder(model).num_layers


def stored_dtype(name: str, *, revision: str | None = None) -> str:
    """Return the dtype that a model's configuration names, one of `DTYPES`, or float32; arguments as `count_layers`.

    Raises:
        InputError: where there is no such model.
    """
    with _reading(name):
        config = AutoConfig.from_pretrained(_source(name), revision=revision, trust_remote_code=False)
    found = config.dtype or getattr(config.get_text_config(decoder=True), "dtype", None)
    return next((word for word, dtype in DTYPES.items() if dtype == found), "float32")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"model: expected a local directory or a hub id that loads, got {name!r} ({one_line(error)})"
        ) from error


def _source(name: str) -> str:
    """Return what the library loads a model from: a directory's path, or the hub id as it is."""
    try:
        path = Path(name).expanduser()
        if not (name.startswith((".", "/", "~")) or Path(name).exists()):
            return name
    except (OSError, RuntimeError) as error:  # a name that is too long, or the home of nobody
        raise InputError(f"model: expected a local directory or a hub id, got {name!r} ({one_line(error)})") from error
    if not (path / "config.json").is_file():
        raise InputError(f"model: expected a directory with config.json, got {name!r}")
    return str(path)


def resolve_device(name: str) -> str:
    """Return a torch device for "auto" (CUDA where there is one, else CPU) or the given name.

    Raises:
        InputError: where the device does not exist here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: expected auto, cpu or a device of this machine, got {name!r}") from error
    return name


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has; None where it does not say."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None
