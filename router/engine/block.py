"""A block: rows of one batch with the arguments that the model hands to its layers for them.

What is computed of a part of a row stands in a tree over chain prefixes; a cache bounds the memory of all trees.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from router.engine.capture import (
    Arguments,
    Axes,
    Captured,
    LayerCall,
    LayerCapture,
    joined_captures,
    map_tensors,
    tensors_of,
)
from router.engine.inputs import widened
from router.engine.rows import Row, SharedPrefix, shared_prefixes
from router.engine.sharing import KeyValues


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a row, which run through a layer together.

    Attributes:
        row: index of the row among those captured.
        start: its first token.
        stop: one more than its last.
        prefix: index of the part with the shared tokens that stand before it, None where none do.
    """

    row: int
    start: int
    stop: int
    prefix: int | None = None

    @property
    def length(self) -> int:
        """Tokens."""
        return self.stop - self.start


class Block:
    """Rows, captured once; any subset of them can then be run through any layer.

    Attributes:
        rows: the rows.
        parts: for each row the part that is run for it (the whole row, or what follows the shared tokens), then the
            parts that rows share.
        roots: for each part the root of its tree of computed states (the first layer's input).
        executed: for each row, layers run so far; those of shared tokens are not counted again.
        arguments: the layers' arguments.
        additions: what the model adds to the input of the layer at a place of a chain, `[rows, tokens, d_model]`.
    """

    def __init__(self, capture: LayerCapture, rules: MaskRules, rows: Sequence[Row], *, share: bool = False) -> None:
        """Capture the rows.

        Args:
            capture: captures them.
            rules: the masks of packed rows.
            rows: the rows, at least one.
            share: whether tokens that rows begin with are to be run once for all of them.

        Raises:
            ValueError: where a row is packed and the model's masks cannot be rebuilt (`rules.can_pack`), or stands
                beside a row with pictures; or where the model hands pictures to its layers in a way of its own.
        """
        self.rows = list(rows)
        self.executed = [0] * len(rows)
        self._packed = any(row.is_packed for row in rows)
        self._capture = capture
        if self._packed and not rules.can_pack:
            raise ValueError(
                "rows: expected plain rows, this model's attention masks cannot be rebuilt for packed ones"
            )
        prepared = any(row.inputs for row in rows)
        if self._packed and prepared:
            raise ValueError("rows: expected plain rows beside those with pictures, got packed ones")
        # One column of padding more than the longest row: so the model always builds explicit masks. Without padding it
        # leaves them out or not as lengths and windows fall, and its arguments would change their number.
        width = max(len(row.tokens) for row in rows) + 1
        tokens = _padded([row.tokens for row in rows], width, capture.device)
        positions = _padded([row.positions for row in rows], width, capture.device)
        mask = _padded([[1] * len(row.tokens) for row in rows], width, capture.device)
        captured = self._prepared(tokens, mask) if prepared else capture.capture(tokens, positions, mask)
        calls, self.additions = captured.calls, captured.additions
        if self._packed:
            calls = self._with_packed_masks(calls, rules, positions, captured.hidden.dtype)
        self.arguments = Arguments(calls, capture, prepared=prepared)
        self.parts = _parts(self.rows, shared_prefixes(rows) if share else [])
        self.roots: list[StateNode] = []
        for part in reversed(self.parts):  # shared ones first
            shared = None if part.prefix is None else self.roots[len(self.parts) - 1 - part.prefix]
            state = captured.hidden[part.row, part.start : part.stop].clone()
            self.roots.append(StateNode(None, -1, state, shared))
        self.roots.reverse()

    def _prepared(self, tokens: Tensor, mask: Tensor) -> Captured:
        """Capture rows one by one with their own inputs: pictures of several sizes have no common tensor."""
        width = tokens.shape[1]
        captured = [
            self._capture.capture_prepared(tokens[i : i + 1], mask[i : i + 1], widened(row.inputs, width))
            for i, row in enumerate(self.rows)
        ]
        return joined_captures(captured, self._capture)

    def incoming(self, part: int, node: StateNode) -> Float[Tensor, "tokens ..."]:
        """Return a node's state as the next layer, or the head, gets it: with what the model itself adds there."""
        assert node.state is not None
        added, own = self.additions.get(node.depth), self.parts[part]
        return node.state if added is None else node.state + added[own.row, own.start : own.stop]

    def _with_packed_masks(
        self, captured: Sequence[LayerCall], rules: MaskRules, positions: Tensor, dtype: torch.dtype
    ) -> list[LayerCall]:
        segments = _padded([row.segments for row in self.rows], positions.shape[1], positions.device)
        lengths = torch.tensor([len(row.tokens) for row in self.rows], device=positions.device)
        visible = packed_visibility(segments, lengths)
        made: dict[int, Tensor] = {}
        calls = []
        for layer, call in enumerate(captured):
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


def _parts(rows: Sequence[Row], prefixes: Sequence[SharedPrefix]) -> list[Part]:
    start, prefix = [0] * len(rows), dict[int, int]()
    for number, shared in enumerate(prefixes):
        for i in shared.rows:
            start[i], prefix[i] = shared.length, len(rows) + number
    own = [Part(i, start[i], len(row.tokens), prefix.get(i)) for i, row in enumerate(rows)]
    # What stands first in all of them is captured with the first.
    return own + [Part(shared.rows[0], 0, shared.length) for shared in prefixes]


class MaskRules:
    """Which position may look at which, for each layer, read from the masks that the model itself builds."""

    def __init__(self, capture: LayerCapture, num_layers: int) -> None:
        """Find out whether every layer gets exactly one mask, shared by its heads, and no other position bias."""
        self._capture = capture
        self._num_layers = num_layers
        self._length = 0
        self._rules: list[Bool[Tensor, "length length"]] = []
        one_each = all(sum(is_mask(axes) for axes in capture.axes(layer)) == 1 for layer in range(num_layers))
        self.can_pack = one_each and not capture.has_own_masks and self._build(8)

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


class StateNode:
    """What was computed of a part of a row after a prefix of a chain.

    Attributes:
        parent: the node of the prefix that is one layer shorter, None at the root.
        layer: the last layer of the prefix, -1 at the root.
        shared: the same prefix of the shared tokens that stand before this part, None where none do.
        state: output of that layer `[tokens, d_model]`, or None where it is not (or no longer) held.
        memory: keys and values that the layer made of the part's tokens (no batch dimension), or None; only those of
            shared tokens are held.
        children: nodes one layer longer, by layer.
        depth: layers of the prefix, 0 at the root.
    """

    __slots__ = ("children", "depth", "layer", "memory", "parent", "shared", "state")

    def __init__(
        self,
        parent: StateNode | None,
        layer: int,
        state: Float[Tensor, "tokens ..."] | None,
        shared: StateNode | None = None,
    ) -> None:
        """Make a node without children."""
        self.parent = parent
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.layer = layer
        self.shared = shared
        self.state = state
        self.memory: KeyValues | None = None
        self.children: dict[int, StateNode] = {}

    def child(self, layer: int) -> StateNode:
        """Return the node of the prefix extended by `layer`, made on first use."""
        node = self.children.get(layer)
        if node is None:
            shared = None if self.shared is None else self.shared.child(layer)
            node = self.children[layer] = StateNode(self, layer, None, shared)
        return node

    @property
    def nbytes(self) -> int:
        """Bytes of everything held; no tensor is a view of a larger one."""
        held = [self.state]
        if self.memory is not None:
            held += [self.memory.keys, self.memory.values]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def drop(self) -> None:
        """Hold nothing any more."""
        self.state = self.memory = None


class StateCache:
    """Keeps the most recently used nodes' tensors under a budget in bytes; roots are not counted and never dropped."""

    def __init__(self, budget: int) -> None:
        """Make an empty cache.

        Args:
            budget: bytes of states, keys and values to keep at most.

        Raises:
            ValueError: where the budget is negative.
        """
        if budget < 0:
            raise ValueError(f"state_bytes: expected at least 0, got {budget}")
        self.budget = budget
        self.bytes = 0
        self._used: OrderedDict[StateNode, int] = OrderedDict()

    def keep(self, node: StateNode) -> None:
        """Hold a node's tensors (or mark them as just used), and drop the least recently used ones over the budget."""
        if node.parent is None:
            return
        size = node.nbytes
        self.bytes += size - self._used.pop(node, 0)
        if size:
            self._used[node] = size
        while self.bytes > self.budget:
            oldest, freed = self._used.popitem(last=False)
            oldest.drop()
            self.bytes -= freed

    def release(self, node: StateNode) -> None:
        """Take a node out of the cache without dropping its tensors, while a run needs them."""
        self.bytes -= self._used.pop(node, 0)

    def clear(self) -> None:
        """Drop all."""
        for node in self._used:
            node.drop()
        self._used.clear()
        self.bytes = 0
