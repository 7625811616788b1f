"""The chain view: a new, shallow model that runs a chain of another model's layers.

The original is never changed: modules on the way to the layers are copied without their parameters, which are shared.
Every position of the chain has its own layer object with its own cache slot, so `generate`, sampling, streaming and
key/value caches are the library's own and right for skipped, repeated and reordered layers.
"""

from __future__ import annotations

import copy
import functools
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from router.chain import Chain
from router.engine.decoder import Decoder, find_decoder
from router.engine.layer_config import write_entries

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_OWN_DICTS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
PLACES = ("layer_idx", "layer_id")
"""What a module calls the place of its layer, which is its cache slot (GPT-Neo: layer_id)."""
CACHED_VIEWS = 64
"""Views kept for each model; the least recently used one goes first."""
_views: weakref.WeakKeyDictionary[PreTrainedModel, OrderedDict[object, PreTrainedModel]] = weakref.WeakKeyDictionary()
_views_lock = threading.Lock()


def chain_view(model: PreTrainedModel, chain: Chain, *, fresh: bool = False) -> PreTrainedModel:
    """Return a model that runs `chain` and shares every parameter with `model`.

    The view has the original's class, so all of `transformers` works on it. It stays valid as long as the original.
    Views are cached: the same chain of a model that has not been moved or switched since gives the same object, whose
    configuration is not to be changed.

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
    key = (chain, model.device, model.dtype, model.training, _attention(model), id(getattr(model, "_hf_hook", None)))
    with _views_lock:
        views = _views.setdefault(model, OrderedDict())
        view = views.get(key)
        if view is None:
            view = views[key] = _make_view(model, chain)
            if len(views) > CACHED_VIEWS:
                views.popitem(last=False)
        views.move_to_end(key)
        return view


def _attention(model: PreTrainedModel) -> str | None:
    return getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)


def _make_view(model: PreTrainedModel, chain: Chain) -> PreTrainedModel:
    decoder = find_decoder(model)
    if chain.num_layers != decoder.num_layers:
        raise ValueError(f"chain: expected num_layers={decoder.num_layers} as in the model, got {chain.num_layers}")
    _check_attention(decoder, chain)
    install_output_hooks(decoder)
    layers = [_at_position(decoder.layers[layer], position) for position, layer in enumerate(chain.layers)]
    return with_layers(model, decoder, layers, chain.layers)


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


def install_output_hooks(decoder: Decoder) -> None:
    """Install the library's hooks for `output_hidden_states` on the original, before any layer is copied.

    The library installs them once, on first use. Were that in a copy, shared modules would later carry them twice; in
    the original after copying, the copies would lack them.
    """
    if isinstance(decoder.owner, PreTrainedModel):
        maybe_install_capturing_hooks(decoder.owner)


def with_layers(
    model: PreTrainedModel, decoder: Decoder, layers: Sequence[nn.Module], sources: Sequence[int]
) -> PreTrainedModel:
    """Return a shallow copy of `model` whose decoder runs `layers`; entry i stands for original layer `sources[i]`."""
    memo: dict[int, Any] = {}
    copy.deepcopy(model.config, memo)
    configs = {id(model.config): memo[id(model.config)]}
    text = memo.get(id(decoder.config)) or copy.deepcopy(decoder.config, memo)
    write_entries(text, Chain(tuple(sources), decoder.num_layers))

    root = shallow_copy(model)
    module: nn.Module = root
    chain_of_owners = [module]
    for name in decoder.path:
        child = shallow_copy(module.get_submodule(name))
        module._modules[name] = child
        module = child
        chain_of_owners.append(child)
    module._modules[decoder.name] = nn.ModuleList(layers)
    for owner in chain_of_owners:
        old = owner.__dict__.get("config")
        if old is not None:
            owner.__dict__["config"] = memo.get(id(old)) or configs.get(id(old)) or copy.deepcopy(old, memo)
    if "generation_config" in root.__dict__:
        root.__dict__["generation_config"] = copy.deepcopy(root.__dict__["generation_config"])
    root.__dict__.pop("_cache", None)  # a static cache made for the original's depth
    return root


def replace_head(view: PreTrainedModel, replace: Callable[[nn.Module], nn.Module]) -> PreTrainedModel:
    """Give a view of one's own (`fresh`) another output embedding; a model that keeps it deeper down stays as it is.

    Args:
        view: the view, whose own registry of modules is changed; the original's is not.
        replace: makes the new module of the present one.
    """
    head = view.get_output_embeddings()
    for name, module in view._modules.items():
        if module is not None and module is head:
            view._modules[name] = replace(module)
    return view


def with_contiguous_head(view: PreTrainedModel) -> PreTrainedModel:
    """Give a view of one's own (`fresh`) an output embedding, parameters shared, that reads contiguous states.

    After a prompt the library passes it a slice of each row's last token. With strides of its own it is no matrix
    to torch's CPU kernels: they multiply row by row and copy the embedding for each (30 GB for 64 rows of a
    vocabulary of 152k, or a fall back to a kernel that takes a minute; half of a short prompt's time with one row).
    """
    return replace_head(view, _contiguous)


def _contiguous(head: nn.Module) -> nn.Module:
    clone = shallow_copy(head)
    # One row counts as contiguous whatever its strides, so `contiguous` would leave it as it is.
    whole = torch.contiguous_format
    clone.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(memory_format=whole), *inputs[1:]))
    return clone


def _at_position(layer: nn.Module, position: int) -> nn.Module:
    """Return a copy of a layer, parameters shared, whose place (its cache slot) is `position`."""
    clone = shallow_copy(layer)
    for name, child in layer._modules.items():
        if child is not None and any(place in module.__dict__ for module in child.modules() for place in PLACES):
            clone._modules[name] = _at_position(child, position)
    for place in PLACES:
        if place in clone.__dict__:
            clone.__dict__[place] = position
    return clone


def shallow_copy(module: ModuleT) -> ModuleT:
    """Return a copy of a module that shares parameters, buffers and children, with registries of its own."""
    clone = module.__class__.__new__(module.__class__)
    clone.__dict__.update(module.__dict__)
    for name in _OWN_DICTS:
        if name in clone.__dict__:
            clone.__dict__[name] = clone.__dict__[name].copy()
    _rebind_forward(module, clone)
    return clone


def _rebind_forward(module: nn.Module, clone: nn.Module) -> None:
    """Make instance-level `forward`s (accelerate's dispatch hooks) call the copy, not the original."""
    for name in ("forward", "_old_forward"):
        method = clone.__dict__.get(name)
        if method is not None:
            clone.__dict__[name] = _rebound(method, module, clone)


def _rebound(method: Callable[..., Any], module: nn.Module, clone: nn.Module) -> Callable[..., Any]:
    if isinstance(method, types.MethodType) and method.__self__ is module:
        return types.MethodType(method.__func__, clone)
    if isinstance(method, functools.partial):
        args = tuple(clone if argument is module else argument for argument in method.args)
        partial = functools.partial(method.func, *args, **method.keywords)
        return functools.update_wrapper(partial, getattr(method, "__wrapped__", method))
    return method
