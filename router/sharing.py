"""Tokens that many rows begin with: few-shot examples, a system prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from router.rows import Row

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
    """Return how many of a row's first tokens are plain prompt that nothing is read from."""
    most = min([len(row.tokens) - 1, *row.readout])
    plain = zip(row.positions[:most], row.segments[:most], strict=True)
    return next((i for i, (position, segment) in enumerate(plain) if position != i or segment), most)
