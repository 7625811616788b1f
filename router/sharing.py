"""Tokens that many rows begin with: few-shot examples, a system prompt."""

from __future__ import annotations

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
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if _shareable(row) >= LEAST_TOKENS:
            groups.setdefault(row.tokens[:LEAST_TOKENS], []).append(i)
    found = []
    for members in groups.values():
        # What the first and the last in the order of the dictionary share, all between them share.
        texts = [rows[i].tokens for i in members]
        first, last = min(texts), max(texts)
        pairs = enumerate(zip(first, last, strict=False))
        common = next((i for i, (one, other) in pairs if one != other), len(first))
        length = min(common, *(_shareable(rows[i]) for i in members))
        mean = sum(map(len, texts)) / len(texts)
        if len(members) > 1 and length >= LEAST_SHARE * mean:
            found.append(SharedPrefix(tuple(members), length))
    return found


def _shareable(row: Row) -> int:
    """Return how many of a row's first tokens are plain prompt that nothing is read from."""
    most = min([len(row.tokens) - 1, *row.readout])
    plain = zip(row.positions[:most], row.segments[:most], strict=True)
    return next((i for i, (position, segment) in enumerate(plain) if position != i or segment), most)
