"""A block: rows of one batch with the arguments that the model hands to its layers for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from router.capture import Axes, LayerCall, LayerCapture, map_tensors, tensors_of
from router.rows import Row
from router.states import StateNode


class Block:
    """Rows, captured once; any subset of them can then be run through any layer.

    Attributes:
        rows: the rows.
        roots: for each row the root of its tree of computed states (the first layer's input).
        executed: for each row, layers run so far.
    """

    def __init__(self, capture: LayerCapture, rules: MaskRules, rows: Sequence[Row]) -> None:
        """Capture the rows.

        Raises:
            ValueError: where a row is packed and the model's masks cannot be rebuilt (`rules.can_pack`).
        """
        self.rows = list(rows)
        self.executed = [0] * len(rows)
        self._packed = any(row.is_packed for row in rows)
        self._capture = capture
        if self._packed and not rules.can_pack:
            raise ValueError(
                "rows: expected plain rows, this model's attention masks cannot be rebuilt for packed ones"
            )
        # One column of padding more than the longest row: so the model always builds explicit masks. Without padding it
        # leaves them out or not as lengths and windows fall, and its arguments would change their number.
        width = max(len(row.tokens) for row in rows) + 1
        tokens = _padded([row.tokens for row in rows], width, capture.device)
        positions = _padded([row.positions for row in rows], width, capture.device)
        mask = _padded([[1] * len(row.tokens) for row in rows], width, capture.device)
        captured = capture.capture(tokens, positions, mask)
        self._calls = captured.calls
        if self._packed:
            self._calls = self._with_packed_masks(rules, positions, captured.hidden.dtype)
        self.roots = [StateNode(None, -1, captured.hidden[i, : len(row.tokens)].clone()) for i, row in enumerate(rows)]

    def _with_packed_masks(self, rules: MaskRules, positions: Tensor, dtype: torch.dtype) -> list[LayerCall]:
        segments = _padded([row.segments for row in self.rows], positions.shape[1], positions.device)
        lengths = torch.tensor([len(row.tokens) for row in self.rows], device=positions.device)
        visible = packed_visibility(segments, lengths)
        made: dict[int, Tensor] = {}
        calls = []
        for layer, call in enumerate(self._calls):
            axes = iter(self._capture.axes(layer))
            rule = rules.allowed(layer, int(positions.max()) + 1)
            if id(rule) not in made:
                inside = rule[positions[:, :, None], positions[:, None, :]]
                allowed = visible & inside | torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
                additive = torch.zeros(allowed.shape, dtype=dtype, device=positions.device)
                made[id(rule)] = additive.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
            mask = made[id(rule)]
            calls.append(map_tensors(call, lambda t, axes=axes, mask=mask: mask if is_mask(next(axes)) else t))
        return calls

    def call_for(self, layer: int, rows: Sequence[int], width: int) -> LayerCall:
        """Return a layer's arguments for the given rows, cut to `width` tokens."""
        axes = iter(self._capture.axes(layer))
        index = torch.tensor(rows, device=self._capture.device)
        return map_tensors(self._calls[layer], lambda tensor: _take(tensor, next(axes), index, width))


class MaskRules:
    """Which position may look at which, for each layer, read from the masks that the model itself builds."""

    def __init__(self, capture: LayerCapture, num_layers: int) -> None:
        """Find out whether every layer gets exactly one mask, shared by its heads, and no other position bias."""
        self._capture = capture
        self._num_layers = num_layers
        self._length = 0
        self._rules: list[Bool[Tensor, "length length"]] = []
        self.can_pack = all(
            sum(is_mask(axes) for axes in capture.axes(layer)) == 1 for layer in range(num_layers)
        ) and self._build(8)

    def allowed(self, layer: int, length: int) -> Bool[Tensor, "length length"]:
        """Return whether a query at position i may read a key at position j, `[length, length]` or larger."""
        if length > self._length:
            self._build(length)
        return self._rules[layer]

    def _build(self, length: int) -> bool:
        device = self._capture.device
        tokens = torch.zeros(1, length + 1, dtype=torch.long, device=device)
        mask = torch.ones_like(tokens)
        mask[:, -1] = 0
        # The padding stands at position 0: models with learned positions have none beyond their limit.
        positions = torch.arange(length + 1, device=device)[None] % length
        captured = self._capture.capture(tokens, positions, mask)
        rules, made = [], {}
        for layer, call in enumerate(captured.calls):
            if call.kwargs.get("alibi") is not None:
                return False
            axes = self._capture.axes(layer)
            given = next(t for t, a in zip(tensors_of(call), axes, strict=True) if is_mask(a))
            # A mask by head is a bias; a boolean one outside SDPA is not added, so ours would mean something else.
            if given.shape[:2] != (1, 1) or (given.dtype == torch.bool and self._capture.attention != "sdpa"):
                return False
            if id(given) not in made:
                cut = given[0, 0, :length, :length]
                made[id(given)] = cut if cut.dtype == torch.bool else cut > torch.finfo(cut.dtype).min / 2
            rules.append(made[id(given)])
        self._rules, self._length = rules, length
        return True


def is_mask(axes: Axes) -> bool:
    """Whether a captured tensor with these axes is an attention mask `[batch, heads, tokens, tokens]`."""
    return axes.get(2) == axes.get(3) == "tokens"


def packed_visibility(segments: Tensor, lengths: Tensor) -> Bool[Tensor, "batch tokens tokens"]:
    """Return which token may look at which: at itself and earlier ones of its own segment and of segment 0."""
    width = segments.shape[1]
    order = torch.arange(width, device=segments.device)
    key, query = segments[:, None, :], segments[:, :, None]
    real = (order < lengths[:, None])[:, None, :]
    return ((key == query) | (key == 0)) & (order[None, None, :] <= order[None, :, None]) & real


def _padded(lists: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    return torch.tensor([[*values, *[0] * (width - len(values))] for values in lists], device=device)


def _take(tensor: Tensor, axes: Axes, rows: Tensor, width: int) -> Float[Tensor, ...]:
    for axis, kind in axes.items():
        tensor = tensor.index_select(axis, rows) if kind == "batch" else tensor.narrow(axis, 0, width)
    return tensor
