"""What a model is made of at a moment, so that what was made of it can be told from what would be made of it now."""

from __future__ import annotations

import copy
import functools
import operator
import types
import weakref
from collections import OrderedDict
from typing import Any

from torch import nn

REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
"""What decides what a module computes, by name in its registries."""
HOLDERS = {OrderedDict, functools.partial, types.FunctionType, types.MethodType}
"""What may hold the whole model: hooks, their registries, and a `forward` that accelerate or a compiler put there."""


class Makeup:
    """What a model is made of at a moment: its modules, parameters, hooks, settings, each as an object.

    Two are equal where nothing was replaced, added, removed or switched in between; what is changed in place is shared
    with the views, which follow it.
    """

    __slots__ = ("_parts",)

    def __init__(self, model: nn.Module) -> None:
        """Look at a model."""
        parts: list[Any] = []
        for settings in _settings(model):
            parts += vars(settings).values()
        stack: list[nn.Module | None] = [model]
        seen: set[nn.Module | None] = {None}
        while stack:
            module = stack.pop()
            if module in seen:
                continue
            seen.add(module)
            own = module.__dict__
            parts += own.values()
            for name in REGISTRIES:
                if registry := own.get(name):
                    parts += registry.values()
            stack += own["_modules"].values()
            parts.append(None)  # ends what is the module's
        self._parts = parts

    def weakly(self) -> Makeup:
        """Return the same, equal to this one, for a memory that is to keep no model alive."""
        same = copy.copy(self)
        same._parts = [_weak(part) for part in self._parts]
        return same

    def __eq__(self, other: object) -> bool:
        """Whether nothing was changed between the two moments."""
        if not isinstance(other, Makeup) or len(self._parts) != len(other._parts):
            return False
        if all(map(operator.is_, self._parts, other._parts)):
            return True
        return all(_same(one, two) for one, two in zip(self._parts, other._parts, strict=True) if one is not two)

    __hash__ = None  # type: ignore[assignment]


_MODULES = object()
"""In the place of a registry of modules, which are parts as well."""


def _weak(part: Any) -> Any:
    """Return a part, or a weak reference in place of what may hold the whole model."""
    if isinstance(part, nn.Module) or (type(part) in HOLDERS and part != {}):
        return weakref.ref(part)
    if type(part) is dict and any(isinstance(one, nn.Module) for one in part.values()):
        return _MODULES
    return part


def _same(one: Any, two: Any) -> bool:
    """Whether one of two parts stands weakly for the other."""
    return any(
        (type(weak) is weakref.ref and weak() is part) or (weak is _MODULES and type(part) is dict)
        for weak, part in ((one, two), (two, one))
    )


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
