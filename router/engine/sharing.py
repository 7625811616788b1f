"""A layer run on what follows shared tokens, with the keys and values of these supplied.

An attention layer hands its keys and values to the cache that the model passes down, and goes on with what the cache
returns. An object in the cache's place can note them, or put others in front; so no family needs code of its own.
Where a layer keeps its cache, and whether this gives what the whole layer gives, is found out on the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from router.engine.capture import Arguments, LayerCall, LayerCapture

REFUSALS = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a layer raises that wants another cache, or arguments of another shape."""


@dataclass(frozen=True)
class KeyValues:
    """What a layer's attention makes of tokens.

    Attributes:
        keys: `[batch, heads, tokens, d_key]`, or without the batch dimension.
        values: `[batch, heads, tokens, d_value]`, likewise.
    """

    keys: Float[Tensor, "*batch heads tokens d_key"]
    values: Float[Tensor, "*batch heads tokens d_value"]

    def map(self, function: Callable[[Tensor], Tensor]) -> KeyValues:
        """Return the same with a function applied to both."""
        return KeyValues(function(self.keys), function(self.values))

    def row(self, row: int, length: int) -> KeyValues:
        """Return the first `length` tokens' of one row of a batch, copied."""
        return self.map(lambda tensor: tensor[row, :, :length].clone())


def stacked(memories: Sequence[KeyValues | None]) -> KeyValues | None:
    """Return the keys and values of single rows as one batch, or None where there are none."""
    given = [memory for memory in memories if memory is not None]
    if not given:
        return None
    if all(memory is given[0] for memory in given):
        return given[0].map(lambda tensor: tensor.expand(len(given), *tensor.shape))
    return KeyValues(torch.stack([one.keys for one in given]), torch.stack([one.values for one in given]))


class _Exchange:
    """Stands in the cache's place for one call of one layer.

    Attributes:
        made: keys and values that the layer made itself.
    """

    def __init__(self, before: KeyValues | None = None) -> None:
        self.made: KeyValues | None = None
        self._before = before

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Do as `transformers.Cache.update`: take what the layer made, return what its attention shall see."""
        if self.made is not None:
            raise ValueError("layer: expected one attention, got two")
        self.made = KeyValues(keys, values)
        if self._before is None:
            return keys, values
        return torch.cat([self._before.keys, keys], dim=2), torch.cat([self._before.values, values], dim=2)


class SharedLayers:
    """Runs layers once on shared tokens, then on what follows them.

    Attributes:
        supported: whether that gives what the whole layer gives, for every layer.
        reach: tokens of the longest row for which that was tried or follows; None: any. Attention that looks no further
            than a window does the same on shorter rows as without one, so rows longer than each window are tried,
            where that costs little; elsewhere only rows within the window share tokens.
    """

    def __init__(self, capture: LayerCapture, num_layers: int) -> None:
        """Try every layer on two rows."""
        self._capture = capture
        tried, self.reach = _lengths(capture.spans)
        # A hook that moves weights expects each forward that it began to come to its end; a layer's own mask counts
        # places in the whole row.
        self.supported = not (capture.has_placement_hooks or capture.has_own_masks)
        if self.supported:
            check = _Check(capture, tried)
            self.supported = all(self._passes(check, layer) for layer in range(num_layers))

    def may_share(self, tokens: int) -> bool:
        """Whether rows of at most so many tokens may share their first."""
        return self.supported and (self.reach is None or tokens <= self.reach)

    def record(self, layer: int, hidden: Tensor, call: LayerCall) -> tuple[Tensor, KeyValues]:
        """Run a layer; returns its output `[batch, tokens, d_model]` and the keys and values that it made."""
        exchange = _Exchange()
        output = self._capture.run_layer(layer, hidden, self._capture.with_cache(layer, call, exchange))
        if exchange.made is None:
            raise ValueError("layer: expected keys and values handed to the cache, got none")
        return output, exchange.made

    def run(self, layer: int, hidden: Tensor, call: LayerCall, before: KeyValues | None) -> Tensor:
        """Run a layer on tokens, on all of a row or on those behind others whose keys and values are given."""
        if before is not None:
            call = self._capture.with_cache(layer, call, _Exchange(before))
        return self._capture.run_layer(layer, hidden, call)

    def _passes(self, check: _Check, layer: int) -> bool:
        if self._capture.cache_slot(layer) is None:
            return False
        try:
            return check.passes(self, layer)
        except REFUSALS:
            return False


LONGEST_TRIAL = 1100
"""Tokens of the longest row that is tried."""


def _lengths(spans: Sequence[int]) -> tuple[int, int | None]:
    """Return the tokens of the longer row to try, and the reach, for windows of some lengths."""
    tried = 8 + max((span for span in spans if span + 8 <= LONGEST_TRIAL), default=1)
    return tried, min((span for span in spans if span + 8 > LONGEST_TRIAL), default=None)


class _Check:
    """Two rows, one two tokens shorter, that begin with the same 4, run whole and in parts."""

    SHARED = 4

    def __init__(self, capture: LayerCapture, length: int) -> None:
        self._capture = capture
        self._lengths = (length, length - 2)
        width = length + 1  # one column of padding, so that there is a mask
        row = torch.arange(width, device=capture.device)
        tokens = (
            torch.stack([1 + 7 * row, torch.where(row < self.SHARED, 1 + 7 * row, 2 + 5 * row)]) % capture.vocabulary
        )
        mask = (row < torch.tensor(self._lengths, device=capture.device)[:, None]).long()
        captured = capture.capture(tokens * mask, row * mask, mask)
        self._hidden = captured.hidden[:, : width - 1]
        self._arguments = Arguments(captured.calls, capture)

    def passes(self, layers: SharedLayers, layer: int) -> bool:
        """Whether a layer's outputs in parts are those of the whole layer."""
        hidden, shared = self._hidden, self.SHARED
        length = hidden.shape[1]
        call = self._arguments.tokens(layer, (0, 1), 0, length)
        whole = self._capture.run_layer(layer, hidden, call)
        front_call = self._arguments.tokens(layer, (0,), 0, shared)
        front, made = layers.record(layer, hidden[:1, :shared], front_call)
        before = made.map(lambda t: t.expand(2, *t.shape[1:]))
        tail_call = self._arguments.tokens(layer, (0, 1), shared, length)
        tail = layers.run(layer, hidden[:, shared:], tail_call, before)
        real = [slice(shared, count) for count in self._lengths]
        return _alike(front[0], whole[0, :shared], hidden[0, :shared]) and all(
            _alike(tail[i, : r.stop - shared], whole[i, r], hidden[i, r]) for i, r in enumerate(real)
        )


def _alike(part: Tensor, whole: Tensor, before: Tensor) -> bool:
    """Whether two outputs of a layer agree at every token, measured by what the layer changes there.

    By the median over features: a few features of large models are a thousand times the others.
    """
    if part.shape != whole.shape:
        return False
    error = (part.float() - whole.float()).abs().median(dim=-1).values
    change = (whole.float() - before.float()).abs().median(dim=-1).values
    bound = 1e-3 if whole.dtype == torch.float32 else 0.02
    return bool((error <= bound * change).all())
