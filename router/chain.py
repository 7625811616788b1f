"""The chain of layers: which decoder layers run, in which order. No torch here.

A chain is a finite, non-empty sequence of layer indices of a model with `num_layers` layers. The unedited model
is `Chain.full(n)`; layers may be skipped, repeated (alone or as a block) or moved (CoLa, arXiv 2507.07996).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

_ITEM = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})|\*([0-9]{1,9}))?")
MAX_DEPTH = 4096
"""Layers that a parsed text form may expand to: a typing slip must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A sequence of layer indices of a model with `num_layers` layers.

    Attributes:
        layers: layer indices in the order in which they run, each in 0..num_layers-1, at least one.
        num_layers: layers of the unedited model, at least 1.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    layers: tuple[int, ...]
    num_layers: int

    def __post_init__(self) -> None:
        """Refuse what is not a chain."""
        if not _is_int(self.num_layers) or self.num_layers < 1:
            raise ValueError(f"num_layers: expected an integer of at least 1, got {self.num_layers!r}")
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("layers: expected at least one layer index, got an empty chain")
        for position, layer in enumerate(self.layers):
            if not _is_int(layer) or not 0 <= layer < self.num_layers:
                raise ValueError(f"layers[{position}]: expected an integer in 0..{self.num_layers - 1}, got {layer!r}")

    @classmethod
    def full(cls, num_layers: int) -> Chain:
        """Return the unedited chain 0..num_layers-1."""
        return cls(tuple(range(num_layers)), num_layers)

    @property
    def depth(self) -> int:
        """Layers executed."""
        return len(self.layers)

    @property
    def is_full(self) -> bool:
        """Whether this is the unedited chain."""
        return self.layers == tuple(range(self.num_layers))

    @property
    def unedited_prefix(self) -> int:
        """Number e of layers 0..e-1 with which the chain begins, each once and in order, and which it runs no more."""
        e = 0
        while e < min(len(self.layers), self.num_layers) and self.layers[e] == e:
            e += 1
        return min([e, *self.layers[e:]])

    @property
    def edits(self) -> int:
        """Jumps: places where the next layer (or the end) is not the successor of the one before (or the start).

        0 for the full chain; one skipped block is one jump, a block that runs r more times is r jumps.
        """
        path = (-1, *self.layers, self.num_layers)
        return sum(after != before + 1 for before, after in pairwise(path))

    def skip(self, position: int, k: int) -> Chain:
        """Return the chain without its `k` entries from `position` on.

        Raises:
            ValueError: where the block leaves the chain, or nothing would be left.
        """
        self._check_block(position, k)
        if k == self.depth:
            raise ValueError(f"k: expected fewer than all {self.depth} entries of the chain, got {k}")
        return Chain(self.layers[:position] + self.layers[position + k :], self.num_layers)

    def repeat(self, position: int, k: int, times: int) -> Chain:
        """Return the chain with its block of `k` entries from `position` on run `times` more times.

        Raises:
            ValueError: where the block leaves the chain or `times` is below 1.
        """
        self._check_block(position, k)
        if not _is_int(times) or times < 1:
            raise ValueError(f"times: expected an integer of at least 1, got {times!r}")
        end = position + k
        return Chain(self.layers[:end] + self.layers[position:end] * times + self.layers[end:], self.num_layers)

    def move(self, position: int, k: int, to: int) -> Chain:
        """Return the chain with its block of `k` entries taken out and put in again before entry `to` of the rest.

        Raises:
            ValueError: where the block leaves the chain or `to` leaves the rest.
        """
        self._check_block(position, k)
        rest = self.layers[:position] + self.layers[position + k :]
        if not _is_int(to) or not 0 <= to <= len(rest):
            raise ValueError(f"to: expected an integer in 0..{len(rest)}, got {to!r}")
        block = self.layers[position : position + k]
        return Chain(rest[:to] + block + rest[to:], self.num_layers)

    def _check_block(self, position: int, k: int) -> None:
        if not _is_int(position) or not 0 <= position < self.depth:
            raise ValueError(f"position: expected an integer in 0..{self.depth - 1}, got {position!r}")
        if not _is_int(k) or not 1 <= k <= self.depth - position:
            raise ValueError(f"k: expected an integer in 1..{self.depth - position}, got {k!r}")

    def __str__(self) -> str:
        """Return the compact text form, for example `0-3,5*2,6-29`; `Chain.parse` reads it back."""
        runs = [(layer, len(list(group))) for layer, group in groupby(self.layers)]
        items: list[str] = []
        i = 0
        while i < len(runs):
            layer, times = runs[i]
            if times > 1:
                items.append(f"{layer}*{times}")
                i += 1
                continue
            stop = i
            while stop + 1 < len(runs) and runs[stop + 1] == (runs[stop][0] + 1, 1):
                stop += 1
            items.append(f"{layer}-{runs[stop][0]}" if stop > i else str(layer))
            i = stop + 1
        return ",".join(items)

    @classmethod
    def parse(cls, text: str, num_layers: int) -> Chain:
        """Read the text form: items joined by commas, each `a`, `a-b` (ascending) or `a*times`.

        Raises:
            ValueError: where an item is malformed or a layer is out of range.
        """
        layers: list[int] = []
        for item in text.split(","):
            match = _ITEM.fullmatch(item.strip(" "))
            if match is None:
                raise ValueError(
                    f"chain: expected items such as 4, 0-3 or 5*2 joined by commas, got {item!r} in {text!r}"
                )
            first, last, times = (None if group is None else int(group) for group in match.groups())
            assert first is not None
            if last is not None and last < first:
                raise ValueError(f"chain: expected an ascending range, got {item!r}")
            if times is not None and times < 1:
                raise ValueError(f"chain: expected at least one run, got {item!r}")
            size = times or (1 if last is None else last - first + 1)
            if len(layers) + size > MAX_DEPTH:
                raise ValueError(f"chain: expected at most {MAX_DEPTH} layers, got more in {text!r}")
            layers += [first] * size if last is None else range(first, last + 1)
        return cls(tuple(layers), num_layers)

    def to_json(self) -> list[int]:
        """Return the layer indices as a JSON list."""
        return list(self.layers)

    @classmethod
    def from_json(cls, value: object, num_layers: int) -> Chain:
        """Read a JSON list of layer indices.

        Raises:
            ValueError: where it is not a list of valid indices.
        """
        if not isinstance(value, list):
            raise ValueError(f"chain: expected a list of layer indices, got {value!r}")
        return cls(tuple(value), num_layers)

    def to_counts(self) -> tuple[int, ...]:
        """Return how often each layer runs, the per-layer form of Dr.LLM (arXiv 2510.12773).

        Raises:
            ValueError: where the order would be lost (a block repeat or a moved layer).
        """
        if any(after < before for before, after in pairwise(self.layers)):
            raise ValueError(f"chain {self}: expected layers in ascending order, per-layer counts would lose the order")
        counts = [0] * self.num_layers
        for layer in self.layers:
            counts[layer] += 1
        return tuple(counts)

    @classmethod
    def from_counts(cls, counts: Sequence[int]) -> Chain:
        """Return the chain that runs layer i `counts[i]` times in a row.

        Raises:
            ValueError: where a count is negative or all are zero.
        """
        for layer, count in enumerate(counts):
            if not _is_int(count) or count < 0:
                raise ValueError(f"counts[{layer}]: expected an integer of at least 0, got {count!r}")
        if sum(counts) > MAX_DEPTH:
            raise ValueError(f"counts: expected at most {MAX_DEPTH} layers in all, got {sum(counts)}")
        return cls(tuple(layer for layer, count in enumerate(counts) for _ in range(count)), len(counts))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
