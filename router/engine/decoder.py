"""Where a model keeps its decoder layers: found by structure, never by a list of model names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from router.validation import InputError


@dataclass(frozen=True)
class Decoder:
    """The layers of a decoder-only model and the way to them.

    Attributes:
        path: attribute names from the model to the module that owns the layers, for example ("model",).
        owner: that module; its `config` is the text configuration.
        name: name of the layer list in the owner, for example "layers" or "h".
        layers: the decoder layers, in order.
        config: the text configuration, with `num_hidden_layers`.
    """

    path: tuple[str, ...]
    owner: nn.Module
    name: str
    layers: nn.ModuleList
    config: Any

    @property
    def num_layers(self) -> int:
        """Layers of the unedited model."""
        return len(self.layers)


def find_decoder(model: PreTrainedModel) -> Decoder:
    """Find the one `ModuleList` that holds the decoder layers of a model.

    It is the list with as many entries as the text configuration's `num_hidden_layers`, in the module that
    `get_decoder()` names or, failing that, anywhere in the model.

    Raises:
        InputError: where no list or more than one fits; the message says what was looked for and what was found.
    """
    config = model.config.get_text_config(decoder=True)
    expected = getattr(config, "num_hidden_layers", None)
    if not isinstance(expected, int) or expected < 1:
        raise InputError(f"{type(model).__name__}: expected a configuration with num_hidden_layers, got {expected!r}")
    shared = getattr(config, "num_kv_shared_layers", 0)
    if shared:
        raise InputError(
            f"{type(model).__name__}: expected layers that each compute their own keys and values, "
            f"got num_kv_shared_layers={shared}: such layers cannot be skipped or reordered"
        )
    places = [(path, module) for path, module in _lists(model) if len(module) == expected]
    decoder = model.get_decoder() if len(places) > 1 and hasattr(model, "get_decoder") else None
    if isinstance(decoder, nn.Module):
        for part in (decoder.children(), decoder.modules()):  # Llama4 names a module around the owner
            inside = {id(module) for module in part}
            places = [(name, module) for name, module in places if id(module) in inside] or places
    if len(places) > 1:  # rotary embeddings by base, which have no weights, can be as many as a chain's layers
        places = [(name, module) for name, module in places if any(True for _ in module.parameters())]
    if len(places) != 1:
        lists = ", ".join(f"{'.'.join(path)} ({len(module)})" for path, module in places or _lists(model))
        raise InputError(
            f"{type(model).__name__}: expected one ModuleList with num_hidden_layers={expected} entries, "
            f"found {lists or 'no ModuleList'}"
        )
    (*path, name), layers = places[0]
    owner = model.get_submodule(".".join(path))
    return Decoder(tuple(path), owner, name, layers, getattr(owner, "config", config))


def _lists(model: nn.Module) -> list[tuple[tuple[str, ...], nn.ModuleList]]:
    """Return every list of modules with the attribute names that lead to it."""
    found: list[tuple[tuple[str, ...], nn.ModuleList]] = []
    stack: list[tuple[tuple[str, ...], nn.Module]] = [((), model)]
    while stack:
        path, module = stack.pop()
        if isinstance(module, nn.ModuleList):
            found.append((path, module))
        stack += [((*path, name), child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What `forward` and `generate` call the cache: since transformers 5.24, and before."""


def cache_argument(model: nn.Module) -> str:
    """Return what a model's `forward` calls its cache."""
    new, old = CACHE_ARGUMENTS
    return new if new in inspect.signature(type(model).forward).parameters else old
