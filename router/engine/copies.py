"""Copies of a model's modules, and views made of them: registries of their own, parameters those of the model.

What is done to a copy (hooks, adapters, another child, training mode) does not reach the model.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from router.chain import Chain
from router.engine.decoder import Decoder, find_decoder
from router.engine.layer_config import write_entries
from router.validation import InputError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_classes: dict[type[Any], type[Any]] = {}

REGISTRIES = (
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
"""What torch keeps by name in a module."""
PLACES = ("layer_idx", "layer_id")
"""What a module calls the place of its layer, which is its cache slot (GPT-Neo: layer_id)."""
_OF_ONE_DEPTH = ("_cache", "_compiled_call", "_last_compile_config")
"""What generation leaves in a model: a static cache, and a compiled call of the model itself."""
_FIRST_SHARED = "first_kv_shared_layer_idx"
"""Where an owner of layers keeps the first one that would use another's keys and values (Gemma4)."""


def shallow_copy(module: ModuleT) -> ModuleT:
    """Return a copy of a module that shares parameters, buffers and children, with registries of its own.

    A compiled module's copy is not compiled, for what was compiled runs the module itself.
    """
    module = _uncompiled(module)
    clone = module.__class__.__new__(module.__class__)
    own = clone.__dict__
    own.update(module.__dict__)
    own.pop("_compiled_call_impl", None)
    for name in REGISTRIES:
        if (registry := own.get(name)) is not None:
            own[name] = registry.copy() if registry else type(registry)()  # most are empty, and copied in Python
    if "forward" in own or "_old_forward" in own:
        _rebind_forward(module, clone)
    return clone


def _uncompiled(module: ModuleT) -> ModuleT:
    """Return the module that `torch.compile(module)` wraps."""
    while type(module).__name__ == "OptimizedModule":  # its class is not imported: that takes seconds
        inner = module._modules["_orig_mod"]
        assert inner is not None
        module = inner  # type: ignore[assignment]
    return module


def _rebind_forward(module: nn.Module, clone: nn.Module) -> None:
    """Make instance-level `forward`s (accelerate's dispatch hooks, compiled ones) call the copy, not the original."""
    for name in ("forward", "_old_forward"):
        method = clone.__dict__.get(name)
        if method is not None:
            clone.__dict__[name] = _rebound(method, module, clone)


def _rebound(method: Callable[..., Any], module: nn.Module, clone: nn.Module) -> Callable[..., Any]:
    while (compiled := getattr(method, "_torchdynamo_orig_callable", None)) is not None:
        method = compiled
    if isinstance(method, types.MethodType) and method.__self__ is module:
        return types.MethodType(method.__func__, clone)
    if isinstance(method, functools.partial):
        args = tuple(clone if argument is module else argument for argument in method.args)
        partial = functools.partial(method.func, *args, **method.keywords)
        return functools.update_wrapper(partial, getattr(method, "__wrapped__", method))
    return method


def deep_copy(module: ModuleT, memo: dict[int, nn.Module], place: int | None = None) -> ModuleT:
    """Return a copy of a module and of all modules in it; parameters and buffers are shared.

    Args:
        module: the module.
        memo: copies by the id of their original, so that what stands in two places stays one.
        place: what the copies call the place of their layer; None: what the originals say.
    """
    if (known := memo.get(id(module))) is not None:
        return known  # type: ignore[return-value]
    clone = memo[id(module)] = shallow_copy(module)
    own = clone.__dict__
    for name, child in own["_modules"].items():
        if child is not None:
            own["_modules"][name] = deep_copy(child, memo, place)
    if place is not None:
        for name in PLACES:
            if name in own:
                own[name] = place
    return clone


def with_layers(
    model: PreTrainedModel, decoder: Decoder, layers: Sequence[nn.Module], sources: Sequence[int]
) -> PreTrainedModel:
    """Return a shallow copy of `model` whose decoder runs `layers`; entry i stands for original layer `sources[i]`."""
    memo: dict[int, Any] = {}
    copy.deepcopy(model.config, memo)
    configs = {id(model.config): memo[id(model.config)]}
    text = memo.get(id(decoder.config)) or copy.deepcopy(decoder.config, memo)
    if computed := write_entries(text, Chain(tuple(sources), decoder.num_layers)):
        # The copy says of the chain what its class computes from settings without words for it (Jamba).
        text.__class__ = type(type(text).__name__, (type(text),), computed | {"__module__": type(text).__module__})

    root = shallow_copy(model)
    module: nn.Module = root
    chain_of_owners = [module]
    for name in decoder.path:
        child = shallow_copy(module.get_submodule(name))
        module._modules[name] = child
        module = child
        chain_of_owners.append(child)
    module._modules[decoder.name] = nn.ModuleList(layers)
    if _FIRST_SHARED in module.__dict__:
        module.__dict__[_FIRST_SHARED] = len(layers)  # no layer uses another's keys and values (`find_decoder`)
    for owner in chain_of_owners:
        old = owner.__dict__.get("config")
        if old is not None:
            owner.__dict__["config"] = memo.get(id(old)) or configs.get(id(old)) or copy.deepcopy(old, memo)
    if "generation_config" in root.__dict__:
        root.__dict__["generation_config"] = copy.deepcopy(root.__dict__["generation_config"])
    for name in _OF_ONE_DEPTH:
        root.__dict__.pop(name, None)
    return root


def replace_head(view: PreTrainedModel, replace: Callable[[nn.Module], nn.Module]) -> PreTrainedModel:
    """Give a view of one's own another output embedding; a model that keeps it deeper down stays as it is.

    Args:
        view: the view, whose own registry of modules is changed; the original's is not.
        replace: makes the new module of the present one.
    """
    head = view.get_output_embeddings()
    for name, module in view._modules.items():
        if module is not None and module is head:
            view._modules[name] = replace(module)
    return view


class NoHead(nn.Module):
    """Stands for an output embedding whose logits nobody reads; some families ask for its weight's dtype."""

    def __init__(self, head: nn.Module) -> None:
        """Take the place of a head."""
        super().__init__()
        self.weight = getattr(head, "weight", None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what is given."""
        return hidden


def with_contiguous_head(view: PreTrainedModel) -> PreTrainedModel:
    """Give a view of one's own an output embedding, parameters shared, that reads contiguous states.

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


class ViewOfModel(nn.Module):
    """What a view's class adds to the model's own: what would reach the original through shared weights is refused."""

    _sources: tuple[int, ...]
    """For each position the layer of the original model, also where the view is one of a view."""

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

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save a view of a chain without repeats as the library does; of one with repeats files know no aliases.

        Raises:
            ValueError: where the chain runs a layer twice.
        """
        self._require_no_repeats()
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as `save_pretrained` saves; errors alike, before anything is asked of the hub."""
        self._require_no_repeats()
        return super().push_to_hub(*args, **kwargs)  # type: ignore[misc]

    def _require_no_repeats(self) -> None:
        if len(set(self._sources)) < len(self._sources):
            raise ValueError(
                "save_pretrained: expected a chain that runs no layer twice, got one with repeats, which share their "
                "weights; python -m router export (or router.routed.export.export_chain) writes it with weights of "
                "their own"
            )

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


def require_model(model: nn.Module) -> None:
    """Refuse what wraps a model (compiled, adapted, parallel): a view needs the model inside.

    Raises:
        InputError: naming what was given.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"model: expected a transformers model, got {type(model).__name__}; pass the model that was compiled or "
            "wrapped, as it was before"
        )


def unrouted(model: PreTrainedModel) -> PreTrainedModel:
    """Return the base model of a routed one, which generates by itself, with chains of its own; another as it is."""
    plain = getattr(model, "plain_model", None)
    return model if plain is None else plain()


def make_view(model: PreTrainedModel, chain: Chain, *, cached: bool = True) -> PreTrainedModel:
    """Return a view of a chain (`router.engine.view.chain_view`), whether or not the model runs chains rightly.

    Args:
        model: the model.
        chain: the chain.
        cached: whether it may run with a cache.

    Raises:
        ValueError: as in `chain_view`, but for what a trial finds.
    """
    require_model(model)
    decoder = find_decoder(model)
    if chain.num_layers != decoder.num_layers:
        raise ValueError(f"chain: expected num_layers={decoder.num_layers} as in the model, got {chain.num_layers}")
    if cached:
        _check_attention(decoder, chain)
    layers = [deep_copy(decoder.layers[layer], {}, position) for position, layer in enumerate(chain.layers)]
    view = with_layers(model, decoder, layers, chain.layers)
    _own_the_rest(view, decoder)
    view.__class__ = _view_class(type(model))
    sources = model._sources if isinstance(model, ViewOfModel) else range(chain.num_layers)
    view._sources = tuple(sources[layer] for layer in chain.layers)
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
    if not getattr(decoder.config, "layer_types", None):
        return
    slots = DynamicCache(config=decoder.config).layers
    counting = {i for i, slot in enumerate(slots) if hasattr(slot, "get_seq_length")}
    if counting and not counting & set(chain.layers):
        raise InputError(
            f"chain {chain}: expected at least one attention layer (of {sorted(counting)}), the cache needs its length"
        )
