"""Token rows that the executor runs, plain or packed: several continuations after one prompt in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    segments: tuple[int, ...]
    targets: tuple[Target, ...] = ()

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
