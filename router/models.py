"""The base model by name: a local directory, an offline asset or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from router.assets.catalogue import read_catalogue
from router.assets.wheels import model_directory
from router.base_model import count_layers, load_base_model, stored_dtype
from router.command import InputError


def load_model(
    name: str, *, dtype: str = "float32", device: str = "auto", revision: str | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer.

    Args:
        name: a local directory, a model of router/assets/assets.json, or a hub id. What begins with `.`, `/` or `~`
            is a directory; so is any other name where there is one, as in all of the library.
        dtype: "float32", "bfloat16" or "float16".
        device: torch device, or "auto".
        revision: hub revision.
        options: passed on to `from_pretrained`, for example `attn_implementation` or `device_map`.

    Raises:
        InputError: where it cannot be loaded, or the name is both an offline asset's and a directory's.
    """
    return load_base_model(_source(name), dtype=dtype, device=device, revision=revision, **options)


def layers_of(name: str, revision: str | None = None) -> int:
    """Return the number of a base model's layers, without its weights; `name` and errors as in `load_model`."""
    return count_layers(_source(name), revision=revision)


def dtype_of(name: str, revision: str | None = None) -> str:
    """Return the dtype that a base model is stored in, by its configuration, or float32; errors as `load_model`."""
    return stored_dtype(_source(name), revision=revision)


def _source(name: str) -> str:
    """Return the directory of an offline asset, which is fetched if need be, or the name as it is."""
    _, assets = read_catalogue()
    if name not in assets:
        return name
    if Path(name).exists():
        raise InputError(f"model: expected ./{name} for the directory here, or another folder for the asset, got both")
    return str(model_directory(name))
