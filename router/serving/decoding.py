"""Rows while they generate: what each wants, what it has got, and the library's two hooks that serve all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from router.chain import Chain
from router.serving.errors import ApiError
from router.serving.sampling import Sampling, draw
from router.serving.text import TextStream


@dataclass(frozen=True)
class Piece:
    """Text that a row has added.

    Attributes:
        row: the row.
        text: what it adds; None: the row has ended, with a reason or an error.
    """

    row: Row
    text: str | None


@dataclass(eq=False)
class Row:
    """One choice of one prompt: what was asked, and what has come of it.

    The worker alone changes it, but for `stop` and, before it waits, `post`; others may read what it says once it has
    ended.

    Attributes:
        index: its place among the request's choices.
        prompt: token ids.
        new_tokens: most tokens to generate.
        sampling: how tokens are picked.
        text: turns tokens into text.
        budget: mean depth wanted, layers; None: the server's.
        streaming: whether pieces of text are posted as they come, or the end only.
        post: takes pieces, on the worker's thread.
        stop: why it is to end early, said by others: nobody waits for it, or the server stops; None: it is not.
        chain: the chain that the router has picked; None: not yet.
        tokens: tokens generated, the one that ended it included.
        answer: text so far.
        reason: why it ended; None: it has not, or failed.
        error: why it failed; None: it has not.
    """

    index: int
    prompt: tuple[int, ...]
    new_tokens: int
    sampling: Sampling
    text: TextStream
    budget: float | None = None
    streaming: bool = False
    post: Callable[[Piece], None] = lambda _: None
    stop: ApiError | None = None
    chain: Chain | None = None
    tokens: list[int] = field(default_factory=list)
    answer: str = ""
    reason: Literal["stop", "length"] | None = None
    error: ApiError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.reason is not None or self.error is not None

    @property
    def live(self) -> bool:
        """Whether tokens are still wanted."""
        return not self.ended and self.stop is None

    def take(self, token: int, ends: AbstractSet[int]) -> None:
        """Add a token; `ends`: the tokens that end a text."""
        self.tokens.append(token)
        if token in ends:
            self._end("stop", self.text.flush())
            return
        piece = self.text.push(token)
        if self.text.stopped:
            self._end("stop", piece)
        elif len(self.tokens) == self.new_tokens:
            self._end("length", piece + self.text.flush())
        else:
            self._say(piece)

    def fail(self, error: ApiError) -> None:
        """End without an answer, unless it has ended."""
        if not self.ended:
            self.error = self.stop or error
            self.post(Piece(self, None))

    def _end(self, reason: Literal["stop", "length"], last: str) -> None:
        self._say(last)
        # The last text may have completed a stop string.
        self.reason = "stop" if self.text.stopped else reason
        self.post(Piece(self, None))

    def _say(self, piece: str) -> None:
        self.answer += piece
        if piece and self.streaming:
            self.post(Piece(self, piece))


class Step:
    """How far a batch is; what `Picks` and `Progress` share.

    A batch that goes on after a failure first repeats the tokens that its rows have already: they are forced.

    Attributes:
        rows: the batch's rows.
        number: tokens generated in this run of the batch.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Begin before the first token."""
        self.rows, self.number = list(rows), 0


class Picks(LogitsProcessor):  # type: ignore[misc]
    """Turns each row's logits into ones whose greatest is at the token that the row's settings pick.

    So rows of different settings share a batch under the library's greedy search.
    """

    def __init__(self, step: Step) -> None:
        """Pick for a batch."""
        self._step = step

    def __call__(
        self, _ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Return the logits; rows that are drawn or repeated have one finite value left."""
        number, rows = self._step.number, self._step.rows
        self._fail_broken(scores)
        tokens = {i: row.tokens[number] for i, row in enumerate(rows) if number < len(row.tokens)}
        drawn = [i for i, row in enumerate(rows) if i not in tokens and row.live and row.sampling.temperature > 0]
        if drawn:
            picked = draw(scores[drawn], [rows[i].sampling for i in drawn], number)
            tokens |= zip(drawn, picked.tolist(), strict=True)
        if tokens:
            index = torch.tensor(list(tokens), device=scores.device)
            scores[index] = -torch.inf
            scores[index, torch.tensor(list(tokens.values()), device=scores.device)] = 0.0
        return scores

    def _fail_broken(self, scores: Tensor) -> None:
        """Fail rows whose logits are no numbers (overflow in half precision): the greatest would be anything."""
        for row, good in zip(self._step.rows, scores.max(1).values.isfinite().tolist(), strict=True):
            if not good:
                row.fail(ApiError(500, "the model's numbers overflowed at this prompt", code="overflow"))


class Progress(StoppingCriteria):  # type: ignore[misc]
    """Hands each row its token, and tells the library which rows have ended."""

    def __init__(self, step: Step, ends: AbstractSet[int]) -> None:
        """Follow a batch; `ends`: the tokens that end a text."""
        self._step, self._ends = step, ends

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], _scores: object, **_: object) -> Bool[Tensor, " rows"]:
        """Return which rows have ended."""
        rows, number = self._step.rows, self._step.number
        for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
            if number >= len(row.tokens) and row.live:
                row.take(token, self._ends)
        self._step.number += 1
        return torch.tensor([not row.live for row in rows], device=input_ids.device)
