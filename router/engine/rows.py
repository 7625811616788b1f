"""Token rows that the executor runs, and the tokens that many of them begin with (few-shot examples, a system prompt).

A row is plain, or packed: several continuations after one prompt in one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """One token whose log-probability is wanted.

    Attributes:
        index: index in the row of the token after which it would follow.
        token: its token id.
        group: the continuation that it belongs to.
    """

    index: int
    token: int
    group: int


@dataclass(frozen=True)
class Row:
    """Tokens in one row; those of segment 0 are seen by all later ones, those of another only by their own segment.

    Attributes:
        tokens: token ids.
        positions: position of each token in the text that it belongs to.
        segments: 0 for the prompt, 1.. for continuations.
        targets: the tokens to score.
        inputs: what the model takes besides tokens, such as `pixel_values`, of this row alone; empty: nothing.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    targets: tuple[Target, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse rows whose parts do not fit each other."""
        if not self.tokens:
            raise ValueError("tokens: expected at least one token, got an empty row")
        for name in ("positions", "segments"):
            if len(getattr(self, name)) != len(self.tokens):
                raise ValueError(f"{name}: expected {len(self.tokens)} entries, got {len(getattr(self, name))}")
        for target in self.targets:
            if not 0 <= target.index < len(self.tokens):
                raise ValueError(f"targets: expected an index below {len(self.tokens)}, got {target.index}")

    @property
    def is_packed(self) -> bool:
        """Whether more than the prompt's segment is there."""
        return any(self.segments)

    @property
    def readout(self) -> tuple[int, ...]:
        """Indices of the tokens whose logits the targets need, ascending, each once."""
        return tuple(sorted({target.index for target in self.targets}))


def plain_row(tokens: Sequence[int], targets: Sequence[Target] = ()) -> Row:
    """Return a row of one text."""
    return Row(tuple(tokens), tuple(range(len(tokens))), (0,) * len(tokens), tuple(targets))


def pack_row(prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> Row:
    """Return one row with the prompt and all continuations side by side, every continuation token a target.

    The last token of a continuation is only predicted, never read, so it takes no place in the row.

    Raises:
        ValueError: where the prompt or a continuation is empty.
    """
    _check(prompt, continuations)
    tokens, positions, segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    targets: list[Target] = []
    for group, continuation in enumerate(continuations):
        targets.append(Target(len(prompt) - 1, continuation[0], group))
        for offset, token in enumerate(continuation[:-1]):
            targets.append(Target(len(tokens), continuation[offset + 1], group))
            tokens.append(token)
            positions.append(len(prompt) + offset)
            segments.append(group + 1)
    return Row(tuple(tokens), tuple(positions), tuple(segments), tuple(targets))


def separate_rows(prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Row]:
    """Return one plain row for each continuation: the same targets as `pack_row`, for models that cannot pack.

    Raises:
        ValueError: where the prompt or a continuation is empty.
    """
    _check(prompt, continuations)
    rows = []
    for group, continuation in enumerate(continuations):
        tokens = (*prompt, *continuation[:-1])
        targets = [Target(len(prompt) - 1 + i, token, group) for i, token in enumerate(continuation)]
        rows.append(plain_row(tokens, targets))
    return rows


def _check(prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> None:
    if not prompt:
        raise ValueError("prompt: expected at least one token, got none")
    for group, continuation in enumerate(continuations):
        if not continuation:
            raise ValueError(f"continuations[{group}]: expected at least one token, got none")


LEAST_TOKENS = 16
"""Shared tokens below which a layer call of their own costs more than it saves."""
LEAST_SHARE = 0.25
"""Likewise, as a share of the rows' mean length."""


@dataclass(frozen=True)
class SharedPrefix:
    """Rows that begin with the same tokens.

    Attributes:
        rows: their indices, ascending, at least two.
        length: tokens that they share.
    """

    rows: tuple[int, ...]
    length: int


def shared_prefixes(rows: Sequence[Row]) -> list[SharedPrefix]:
    """Return the groups of rows that share enough of their first tokens; a row is in one group at most.

    Each row keeps at least one token of its own, and every token after which a target is read.
    """
    able = sorted((i for i, row in enumerate(rows) if _shareable(row) >= LEAST_TOKENS), key=lambda i: rows[i].tokens)
    # Neighbours in the order of the dictionary share most, and what two rows share, all between them share.
    common = [_common(rows[i], rows[j]) for i, j in itertools.pairwise(able)]
    most = [_shareable(rows[i]) for i in able]

    def split(start: int, stop: int) -> list[SharedPrefix]:
        """Return the groups among neighbours that save most: all of them, or what the two sides of a cut save."""
        if stop - start < 2:
            return []
        middle = (start + stop) // 2  # of equal places the middle one, so that halves are halved
        cut = min(range(start, stop - 1), key=lambda i: (common[i], abs(i - middle))) + 1
        parts = split(start, cut) + split(cut, stop)
        length = min(common[cut - 1], *most[start:stop])
        mean = sum(len(rows[i].tokens) for i in able[start:stop]) / (stop - start)
        enough = length >= LEAST_TOKENS and length >= LEAST_SHARE * mean
        if enough and length * (stop - start - 1) >= sum(part.length * (len(part.rows) - 1) for part in parts):
            return [SharedPrefix(tuple(sorted(able[start:stop])), length)]
        return parts

    return split(0, len(able))


def _common(one: Row, other: Row) -> int:
    """Return how many first tokens two rows share."""
    pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one.tokens), len(other.tokens)))


def _shareable(row: Row) -> int:
    """Return how many of a row's first tokens are plain prompt that nothing is read from; none beside pictures."""
    if row.inputs:
        return 0
    most = min([len(row.tokens) - 1, *row.readout])
    plain = zip(row.positions[:most], row.segments[:most], strict=True)
    return next((i for i, (position, segment) in enumerate(plain) if position != i or segment), most)
