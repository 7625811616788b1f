"""The base model by name: an offline asset, a local directory or a hub id."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.assets import model_directory
from data.catalogue import read_catalogue
from router.base_model import load_base_model


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
    _, assets = read_catalogue()
    source = str(model_directory(name)) if name in assets else name
    return load_base_model(source, dtype=dtype, device=device, revision=revision)
