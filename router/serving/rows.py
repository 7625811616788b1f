"""Rows while they generate: what each wants, what it has got, and the library's two hooks that serve all at once."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria
from transformers.convert_slow_tokenizer import bytes_to_unicode

from router.chain import Chain
from router.serving.protocol import ApiError

BROKEN = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""
ALPHABET = {character: byte for byte, character in bytes_to_unicode().items()}
"""The byte that each character stands for in the names of a byte-level vocabulary."""
BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")
"""A byte's name in vocabularies of other kinds."""
LEAST_LOGPROB = -9999.0
"""Said of tokens of no probability, as OpenAI's interface does: JSON has no infinity."""


def bytes_of(name: str, text: str) -> bytes | None:
    """Return the bytes of a token; None: they cannot be told.

    Args:
        name: the tokenizer's name of it.
        text: what the tokenizer decodes it to, where `BROKEN` stands for bytes that are no character by themselves.
    """
    if BROKEN not in text:
        return text.encode()
    if (byte := BYTE_NAME.fullmatch(name)) is not None:
        return bytes.fromhex(byte[1])
    known = bytes(ALPHABET[character] for character in name) if ALPHABET.keys() >= set(name) else b""
    return known if known.decode(errors="replace") == text else None


class TextStream:
    """Turns tokens into pieces of text that can be shown at once, since later tokens do not change them.

    All pieces together are the text of all tokens, special ones left out, up to the first stop string.

    Attributes:
        stopped: whether a stop string has come; it and what follows are in no piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        """Begin at an empty text."""
        self.stopped = False
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        # Decoders treat a text's first token in their own way (its leading space). So the tokens of the last piece
        # are decoded again before the new ones, and what they gave is left out.
        self._window: list[int] = []
        self._shown = 0
        self._before = ""
        self._held = ""

    def push(self, token: int) -> str:
        """Return the text that a token makes certain; often none."""
        self._window.append(token)
        whole = self._decode(self._window)
        if whole == self._before or whole.endswith(BROKEN):
            return ""
        return self._release(self._advance(whole))

    def flush(self) -> str:
        """Return what is left once no more tokens come: beginnings of stop strings, broken characters."""
        rest = self._release(self._advance(self._decode(self._window)))
        if self.stopped:
            return rest
        held, self._held = self._held, ""
        return rest + held

    def _advance(self, whole: str) -> str:
        """Take the window's new text, and go on from the tokens that gave it."""
        tokens = self._window[self._shown :]
        # Some decoders break a whole run of bytes for a wrong one; what was shown stays.
        new = whole[len(self._before) :] if whole.startswith(self._before) else self._decode(tokens)
        self._window = tokens
        self._shown = len(self._window)
        self._before = self._decode(self._window)
        return new

    def _decode(self, tokens: list[int]) -> str:
        # Cleaning up changes text that was shown already (" ." to ".").
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, new: str) -> str:
        """Hold back what may become a stop string; cut at the one that is complete first, of those the longest."""
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        held = next((n for n in range(longest, 0, -1) if self._begins_a_stop(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _begins_a_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are picked.

    Attributes:
        temperature: 0: always the likeliest token.
        top_p: share of probability from which is drawn: the fewest likeliest tokens that have it.
        key: where the row's random numbers come from.
    """

    temperature: float
    top_p: float
    key: bytes

    @classmethod
    def of(cls, temperature: float, top_p: float, seed: int | None, choice: int) -> Sampling:
        """Return the settings of a prompt's choice; without a seed its draws are its own.

        Choice i of a seed is the same whether the prompt comes alone or in a list, and whatever `n` is.
        """
        key = secrets.token_bytes(16) if seed is None else f"{seed}/{choice}".encode()
        return cls(temperature, top_p, key)

    def uniform(self, step: int) -> float:
        """Return the random number in [0, 1) of a step.

        It is a hash of key and step, not the next number of a generator: so a step that is run again (a batch that was
        halved) draws the same, on any device and with any version of torch.
        """
        digest = hashlib.blake2b(step.to_bytes(8, "big"), key=self.key[:64], digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(
    scores: Float[Tensor, "rows vocabulary"], settings: Sequence[Sampling], steps: Sequence[int]
) -> Int[Tensor, " rows"]:
    """Draw a token for each row.

    By the inverse of the distribution function, in the order of the vocabulary: one random number a token, where noise
    for each token of the vocabulary would be the greater part of a small model's step. In double precision: rounding
    that differs between batches moves a draw only where the random number falls within it.

    Args:
        scores: logits, each row's greatest one finite.
        settings: each row's settings; temperatures above 0.
        steps: tokens that each row has.
    """
    device = scores.device
    column = {"dtype": torch.float64, "device": device}
    temperatures = torch.tensor([[one.temperature] for one in settings], **column)  # type: ignore[arg-type]
    logits = scores.double()
    shares = torch.softmax((logits - logits.max(1, keepdim=True).values) / temperatures, 1)
    for row, one in enumerate(settings):
        if one.top_p < 1:
            shares[row] = _nucleus(shares[row], one.top_p)
    bounds = shares.cumsum(1)
    uniforms = [[one.uniform(step)] for one, step in zip(settings, steps, strict=True)]
    drawn = torch.tensor(uniforms, **column)  # type: ignore[arg-type]
    # The first token whose bound lies above; the last bound does, since the random number is below 1.
    return torch.searchsorted(bounds, drawn * bounds[:, -1:], right=True)[:, 0]


def _nucleus(shares: Float[Tensor, " vocabulary"], top_p: float) -> Float[Tensor, " vocabulary"]:
    """Return shares with 0 for all but the fewest likeliest tokens that have `top_p` together (at least one)."""
    ordered, order = shares.sort(descending=True, stable=True)
    kept = ordered.cumsum(0) - ordered < top_p
    kept[0] = True
    return torch.where(torch.empty_like(kept).scatter_(0, order, kept), shares, 0.0)


@dataclass(frozen=True)
class TokenScore:
    """How likely a generated token was, by the chain's logits before temperature and `top_p`.

    Attributes:
        token: its id.
        logprob: its log-probability, nats.
        likeliest: ids and log-probabilities of the likeliest tokens, best first.
    """

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: Float[Tensor, " vocabulary"], token: int, alternatives: int) -> TokenScore:
        """Return a token's score; `alternatives`: how many of the likeliest are named."""
        logprobs = logits.float().log_softmax(0).clamp(min=LEAST_LOGPROB)
        best = logprobs.topk(alternatives)
        return cls(token, float(logprobs[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


@dataclass(frozen=True)
class Piece:
    """Text that a row has added.

    Attributes:
        row: the row.
        text: what it adds; None: the row has ended, with a reason or an error.
        scores: how likely the tokens since the last piece were, where that was asked for.
    """

    row: Row
    text: str | None
    scores: tuple[TokenScore, ...] = ()


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
        alternatives: likeliest tokens to score beside each token; None: no scores are kept.
        stop: why it is to end early, said by others: nobody waits for it, or the server stops; None: it is not.
        chain: the chain that the router has picked; None: not yet.
        in_scope: whether the prompt is in the router's scope, as far as is known.
        one_token: whether the text ends after its first token (`Decision.one_token`), as far as is known.
        tokens: tokens generated, the one that ended it included.
        scores: how likely they were, where asked for; that which ends a text has none.
        answer: text so far.
        reason: why it ended; None: it has not, or failed.
        error: why it failed; None: it has not.
        submitted: when it began to wait, seconds of `time.monotonic`, as for the next two.
        first_token: when its first token came; None: none has.
        last_token: when its latest token came; None: none has.
    """

    index: int
    prompt: tuple[int, ...]
    new_tokens: int
    sampling: Sampling
    text: TextStream
    budget: float | None = None
    streaming: bool = False
    post: Callable[[Piece], None] = lambda _: None
    alternatives: int | None = None
    stop: ApiError | None = None
    chain: Chain | None = None
    in_scope: bool = True
    one_token: bool = False
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    answer: str = ""
    reason: Literal["stop", "length"] | None = None
    error: ApiError | None = None
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    last_token: float | None = None
    _scores_told: int = 0

    @property
    def text_ids(self) -> tuple[int, ...]:
        """Token ids of the prompt and of what has been generated."""
        return (*self.prompt, *self.tokens)

    @property
    def left(self) -> int:
        """Tokens that it may still generate."""
        return (1 if self.one_token else self.new_tokens) - len(self.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.reason is not None or self.error is not None

    @property
    def fault(self) -> ApiError | None:
        """Why it has no whole answer: its error, or why it was given up; None: it has one, or goes on."""
        return None if self.reason is not None else self.error or self.stop

    @property
    def live(self) -> bool:
        """Whether tokens are still wanted."""
        return not self.ended and self.stop is None

    def take(self, token: int, ends: AbstractSet[int]) -> None:
        """Add a token; `ends`: the tokens that end a text."""
        self.tokens.append(token)
        self.last_token = time.monotonic()
        self.first_token = self.last_token if self.first_token is None else self.first_token
        if token in ends:
            self.scores = self.scores[: len(self.tokens) - 1]
            self._end("stop", self.text.flush())
            return
        piece = self.text.push(token)
        if self.text.stopped:
            self._end("stop", piece)
        elif not self.left:
            self._end("stop" if self.one_token else "length", piece + self.text.flush())
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
        self.post(Piece(self, None, self._new_scores()))

    def _say(self, piece: str) -> None:
        self.answer += piece
        if piece and self.streaming:
            self.post(Piece(self, piece, self._new_scores()))

    def _new_scores(self) -> tuple[TokenScore, ...]:
        new, self._scores_told = tuple(self.scores[self._scores_told :]), len(self.scores)
        return new


class Progress(StoppingCriteria):  # type: ignore[misc]
    """Hands each row its token, and tells the library which rows have ended, or that all are to pause.

    Attributes:
        rows: the batch's rows.
    """

    def __init__(
        self, rows: Sequence[Row], ends: AbstractSet[int], pauses: Callable[[int], bool] = lambda _: False
    ) -> None:
        """Begin before the first token.

        Args:
            rows: the batch's rows.
            ends: the tokens that end a text.
            pauses: says after so many tokens whether the batch is to pause.
        """
        self.rows, self._number, self._ends, self._pauses = list(rows), 0, ends, pauses

    def __call__(self, input_ids: Int[Tensor, "rows tokens"], _scores: object, **_: object) -> Bool[Tensor, " rows"]:
        """Return which rows have ended, or all where the batch pauses."""
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if row.live:
                row.take(token, self._ends)
        self._number += 1
        paused = self._pauses(self._number)
        return torch.tensor([paused or not row.live for row in self.rows], device=input_ids.device)


class Picks(LogitsProcessor):  # type: ignore[misc]
    """Turns each row's logits into ones whose greatest is at the token that the row's settings pick.

    So rows of different settings, and of different numbers of tokens, share a batch under the library's greedy search.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Pick for a batch."""
        self._rows = list(rows)

    def __call__(
        self, _ids: Int[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Return the logits; rows that are drawn have one finite value left."""
        self._fail_broken(scores)
        live = [(i, row) for i, row in enumerate(self._rows) if row.live]
        tokens: dict[int, int] = {}
        if drawn := [(i, row) for i, row in live if row.sampling.temperature > 0]:
            places, rows = [i for i, _ in drawn], [row for _, row in drawn]
            picked = draw(scores[places], [row.sampling for row in rows], [len(row.tokens) for row in rows])
            tokens = dict(zip(places, picked.tolist(), strict=True))
        for i, row in live:
            if row.alternatives is not None:
                token = tokens[i] if i in tokens else int(scores[i].argmax())
                # In its place: a batch that failed after this is read again, and scores the token again.
                row.scores[len(row.tokens) :] = [TokenScore.of(scores[i], token, row.alternatives)]
        if tokens:
            index = torch.tensor(list(tokens), device=scores.device)
            scores[index] = -torch.inf
            scores[index, torch.tensor(list(tokens.values()), device=scores.device)] = 0.0
        return scores

    def _fail_broken(self, scores: Tensor) -> None:
        """Fail rows whose logits are no numbers (overflow in half precision): the greatest would be anything."""
        for row, good in zip(self._rows, scores.max(1).values.isfinite().tolist(), strict=True):
            if not good:
                row.fail(ApiError(500, "the model's numbers overflowed at this prompt", code="overflow"))
