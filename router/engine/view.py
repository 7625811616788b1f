"""The chain view: a new, shallow model that runs a chain of another model's layers.

The original is never changed: the view has copies of all its modules, and shares every parameter with it. Every
position of the chain has its own layer object with its own cache slot, so `generate`, sampling, streaming and key/value
caches are the library's own and right for skipped, repeated and reordered layers.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.copies import REGISTRIES, deep_copy, with_layers
from router.engine.decoder import Decoder, find_decoder

CACHED_VIEWS = 64
"""Views kept for each model; the least recently used one goes first."""
_Views = OrderedDict[Chain, tuple["Makeup", PreTrainedModel]]
_views: weakref.WeakKeyDictionary[PreTrainedModel, _Views] = weakref.WeakKeyDictionary()
_views_lock = threading.Lock()
_classes: dict[type[Any], type[Any]] = {}


class ViewOfModel(nn.Module):
    """What a view's class adds to the model's own: what would reach the original through shared weights is refused."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Allow what leaves every weight where it is (`to` its own device and dtype), and refuse the rest.

        Raises:
            ValueError: where a weight would be moved or cast.
        """
        for tensor in (*self.parameters(recurse), *self.buffers(recurse)):
            changed = fn(tensor.new_empty(0))
            if (changed.device, changed.dtype) != (tensor.device, tensor.dtype):
                raise ValueError(
                    f"view: expected its weights to stay {tensor.dtype} on {tensor.device}, for they are the original "
                    f"model's; got {changed.dtype} on {changed.device}: move or cast the original, then make the view"
                )
        return self

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Module:
        """Refuse, for the embeddings are the original's.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "view: expected its embeddings to stay as they are, for they are the original model's; "
            "resize the original, then make the view"
        )


def _view_class(base: type[Any]) -> type[Any]:
    """Return the class of views of a model, of the model's own name: the library knows models by it."""
    if issubclass(base, ViewOfModel):
        return base
    if base not in _classes:
        _classes[base] = type(base.__name__, (ViewOfModel, base), {"__module__": base.__module__})
    return _classes[base]


def chain_view(model: PreTrainedModel, chain: Chain, *, fresh: bool = False) -> PreTrainedModel:
    """Return a model that runs `chain` and shares every parameter with `model`.

    The view's class is a subclass of the original's with its name, so all of `transformers` works on it. It is made of
    what the model is now. Views are cached: the same chain of a model that has not been changed since gives the same
    object, whose configuration is not to be changed.

    Args:
        model: a decoder-only model (or one with a text decoder inside).
        chain: a chain over the model's layers.
        fresh: make a view of the caller's own, outside the cache.

    Raises:
        ValueError: where the chain is for another number of layers, the layers are not found, or a hybrid model would
            be left without any attention layer.
    """
    if fresh:
        return _make_view(model, chain)
    now = Makeup(model)
    with _views_lock:
        views = _views.setdefault(model, OrderedDict())
        made, view = views.get(chain, (None, None))
        if view is None or made != now:
            view = _make_view(model, chain)
            views[chain] = now, view
            if len(views) > CACHED_VIEWS:
                views.popitem(last=False)
        views.move_to_end(chain)
        return view


class Makeup:
    """What a model is made of at a moment: its modules, parameters, hooks, settings, each as an object.

    Two are equal where nothing was replaced, added, removed or switched in between; what is changed in place is shared
    with the views, which follow it.
    """

    __slots__ = ("_parts",)

    def __init__(self, model: nn.Module) -> None:
        """Look at a model."""
        parts = [tuple(vars(settings).values()) for settings in _settings(model)]
        stack, seen = [model], set[int]()
        while stack:
            module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            own = module.__dict__
            parts.append(tuple(own.values()))
            parts += [tuple(own[name].values()) for name in REGISTRIES if own.get(name)]
            stack.extend(child for child in own["_modules"].values() if child is not None)
        self._parts = parts

    def __eq__(self, other: object) -> bool:
        """Whether nothing was changed between the two moments."""
        if not isinstance(other, Makeup) or len(self._parts) != len(other._parts):
            return False
        pairs = zip(self._parts, other._parts, strict=True)
        return all(len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def _settings(model: nn.Module) -> list[Any]:
    """Return a model's configuration, those inside it, and its generation settings."""
    found = []
    waiting = [getattr(model, "config", None)]
    while waiting:
        config = waiting.pop()
        if config is not None:
            found.append(config)
            waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    generation = getattr(model, "generation_config", None)
    return found if generation is None else [*found, generation]


def _make_view(model: PreTrainedModel, chain: Chain) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"model: expected a transformers model, got {type(model).__name__}; pass the model that was compiled or "
            "wrapped, as it was before"
        )
    decoder = find_decoder(model)
    if chain.num_layers != decoder.num_layers:
        raise ValueError(f"chain: expected num_layers={decoder.num_layers} as in the model, got {chain.num_layers}")
    _check_attention(decoder, chain)
    layers = [deep_copy(decoder.layers[layer], {}, position) for position, layer in enumerate(chain.layers)]
    view = with_layers(model, decoder, layers, chain.layers)
    _own_the_rest(view, decoder)
    view.__class__ = _view_class(type(model))
    return view


def _own_the_rest(view: PreTrainedModel, decoder: Decoder) -> None:
    """Copy what stands beside the layers, and let the layers read the view's configuration, not the model's."""
    memo: dict[int, nn.Module] = {}
    owner: nn.Module = view
    for name in (*decoder.path, decoder.name):
        for other, child in owner._modules.items():
            if child is not None and other != name:
                owner._modules[other] = deep_copy(child, memo)
        if name != decoder.name:
            owner = owner.get_submodule(name)
    config = owner.__dict__.get("config")
    for module in owner.get_submodule(decoder.name).modules():
        if module.__dict__.get("config") is decoder.config:
            module.__dict__["config"] = config


def _check_attention(decoder: Decoder, chain: Chain) -> None:
    """Refuse chains of a hybrid model without any attention layer: its cache counts tokens in those alone."""
    types = getattr(decoder.config, "layer_types", None)
    if not types:
        return
    counting = {i for i, kind in enumerate(types) if kind.endswith("attention") and kind != "linear_attention"}
    if counting and not counting & set(chain.layers):
        raise ValueError(
            f"chain {chain}: expected at least one attention layer (of {sorted(counting)}), the cache needs its length"
        )
