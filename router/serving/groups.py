"""Rows of one chain that generate together: they join, leave and go on between calls of the library's `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from router.chain import Chain
from router.serving.rows import Row

SHORT = 64
"""Rows of up to so many tokens go together whatever their lengths: padding costs little there."""
ALIKE = 2.0
"""Longer ones go together up to this ratio of their lengths: at worst half of a batch is padding."""


def alike(one: int, other: int) -> bool:
    """Whether rows of these lengths, tokens, may share a batch."""
    return max(one, other) <= max(SHORT, ALIKE * min(one, other))


def can_pause(model: PreTrainedModel) -> bool:
    """Whether rows may join a batch that runs, and leave it: keys and values of full or sliding attention alone.

    States along the row, and caches of other kinds, are left to one call of `generate`. On Apple's GPUs the library
    tells of an end one step late.
    """
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    kinds = {type(layer) for layer in cache.layers}
    plain = kinds <= {DynamicLayer, DynamicSlidingWindowLayer} and model._supports_default_dynamic_cache()
    return plain and model.device.type != "mps"


@dataclass(eq=False)
class Group:
    """Rows of one chain that generate together.

    Attributes:
        chain: the chain.
        rows: the rows.
        ids: their tokens, padded on the left, `[rows, tokens]`.
        mask: 1 for tokens, 0 for padding, of the same shape.
        cache: keys and values of all tokens but each row's last.
    """

    chain: Chain
    rows: list[Row]
    ids: Int[Tensor, "rows tokens"]
    mask: Int[Tensor, "rows tokens"]
    cache: Cache

    def takes(self, other: Group) -> bool:
        """Whether another group can join this one."""
        return self.chain == other.chain and alike(self.ids.shape[1], other.ids.shape[1])

    def join(self, other: Group) -> None:
        """Take in the rows of another group of the same chain, which is used up; where this fails, so is this one."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        own, its = self.cache, other.cache
        del self.cache, other.cache
        self.rows += other.rows
        self.ids, self.mask = (
            torch.cat([_widened(one, width, dim=1), _widened(two, width, dim=1)])
            for one, two in ((self.ids, other.ids), (self.mask, other.mask))
        )
        for layer, more in zip(own.layers, its.layers, strict=True):
            if not layer.is_initialized:  # it uses another layer's keys and values
                continue
            columns = max(layer.keys.shape[-2], more.keys.shape[-2])
            for name in ("keys", "values"):
                parts = [_widened(getattr(one, name), columns, dim=-2) for one in (layer, more)]
                setattr(layer, name, torch.cat(parts))
            _set_length(layer, width - 1)
        self.cache = own

    def grow(self, ids: Int[Tensor, "rows longer"]) -> None:
        """Take in what was generated: the same rows with more tokens at their ends."""
        self.mask = functional.pad(self.mask, (0, ids.shape[1] - self.ids.shape[1]), value=1)
        self.ids = ids

    def keep(self, places: Sequence[int]) -> None:
        """Let go of all rows but those at some places, and of the padding that only the others needed."""
        index = torch.tensor(places, device=self.ids.device)
        unused = int(self.mask[index].argmax(1).min())
        self.rows = [self.rows[place] for place in places]
        self.ids, self.mask = self.ids[index, unused:], self.mask[index, unused:]
        length = self.ids.shape[1] - 1
        for layer in self.cache.layers:
            if layer.is_initialized:
                columns = min(layer.keys.shape[-2], length)
                layer.keys = layer.keys[index.to(layer.keys.device), :, layer.keys.shape[-2] - columns :]
                layer.values = layer.values[index.to(layer.values.device), :, layer.values.shape[-2] - columns :]
                _set_length(layer, length)


def _widened(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Return a tensor padded with zeros in front of one dimension."""
    missing = width - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _set_length(layer: Any, length: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):  # which keeps the window's columns only
        layer.cumulative_length = length
