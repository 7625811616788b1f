"""The base model by name: an offline asset, a local directory or a hub id."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.assets import model_directory
from data.catalogue import read_catalogue
from router.base_model import count_layers, load_base_model


def load_model(
    name: str, *, dtype: str = "float32", device: str = "auto", revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer.

    Args:
        name: a model of data/assets.json, a local directory, or a hub id.
        dtype: "float32", "bfloat16" or "float16".
        device: torch device, or "auto".
        revision: hub revision.

    Raises:
        InputError: where it cannot be loaded.
    """
    return load_base_model(_source(name), dtype=dtype, device=device, revision=revision)


def layers_of(name: str, revision: str | None = None) -> int:
    """Return the number of a base model's layers, without its weights; `name` and errors as in `load_model`."""
    return count_layers(_source(name), revision=revision)


def _source(name: str) -> str:
    """Return the directory of an offline asset, which is fetched if need be, or the name as it is."""
    _, assets = read_catalogue()
    return str(model_directory(name)) if name in assets else name
