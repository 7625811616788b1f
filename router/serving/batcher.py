"""The worker: one thread that takes waiting rows, reads their prompts once, and generates chain by chain.

There is no continuous batching: the library's `generate` runs a batch to its end, so what arrives meanwhile waits for
the next one. What a batch's rows want apart from each other (sampling, length, stop strings, being abandoned) does not
keep them apart; their chains do.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from router.chain import Chain
from router.engine.load import context_of, left_padded
from router.engine.view import shallow_copy
from router.routed import RoutedModel
from router.routed.model import Reading, by_chain
from router.serving.app import TextStream
from router.serving.protocol import ApiError, internal
from router.serving.server import LoadBudget

LOGGER = "router.serving"
"""Name of the server's log; no prompt is in it."""
log = logging.getLogger(LOGGER)

FILL_SECONDS = 0.005
"""How long a batch that is not full waits for more rows."""


class Batcher:
    """Rows wait here until the worker generates them; safe to call from any thread.

    The model's own generation settings (temperature, repetition penalty, ...) do not count: a request says all. Its
    special tokens do.
    """

    def __init__(
        self, routed: RoutedModel, *, load: LoadBudget, limits: BatchLimits | None = None, max_queue: int = 256
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            routed: the routed model, which is not changed.
            load: the budget of rows without one of their own.
            limits: how large a batch may be.
            max_queue: most rows that wait.

        Raises:
            ValueError: where a budget was not measured in training, or a limit is out of its bounds.
        """
        if max_queue < 1:
            raise ValueError(f"max_queue: expected at least 1, got {max_queue}")
        for budget in (load.calm, load.busy):
            routed.router.head.offset_for(budget)
        limits = limits or BatchLimits()
        if partners_matter(routed):
            limits = BatchLimits(1, limits.prompt_tokens)
        self.limits, self.max_queue = limits, max_queue
        self._load = load
        self._positions = context_of(routed)
        self._routed = shallow_copy(routed)
        self._routed.generation_config = _special_tokens(routed)
        self._ends = _ends(routed)
        self._changed = threading.Condition()
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the worker runs and takes rows."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows of the present batch that have not ended."""
        return sum(row.live for row in self._running)

    @property
    def budget(self) -> float | None:
        """Mean depth, layers, that a batch would be given now; None: the router's own choice."""
        return self._load.at(self.waiting)

    def submit(self, rows: Sequence[Row]) -> None:
        """Let rows wait; each posts an end.

        Raises:
            ApiError: 429 where too many wait, 503 where the worker does not run.
        """
        with self._changed:
            if not self.alive:
                raise _stopping()
            if len(self._waiting) + len(rows) > self.max_queue:
                message = f"too many requests: expected at most {self.max_queue} choices that wait, try again later"
                raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
            self._waiting.extend(rows)
            self._changed.notify_all()

    def abandon(self, rows: Sequence[Row]) -> None:
        """Give rows up, nobody waits for them: they leave the queue, those that run end at their next token."""
        with self._changed:
            for row in rows:
                row.stop = ApiError(499, "the client has left", code="abandoned")
            self._waiting = [row for row in self._waiting if row.stop is None]

    def close(self) -> None:
        """Take no more rows, and fail those that are here; those that run end at their next token."""
        with self._changed:
            self._closed = True
            for row in self._running:
                row.stop = _stopping()
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for row in left:
            row.fail(_stopping())

    def join(self, seconds: float) -> bool:
        """Wait for the worker to end after `close`; returns whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while rows := self._next():
            began = time.perf_counter()
            self._halving(rows, self._serve)
            for row in rows:  # every row ends, whatever happened
                row.fail(internal())
            log.debug("batch: %d rows, %.3f s, %d wait", len(rows), time.perf_counter() - began, self.waiting)

    def _next(self) -> list[Row]:
        """Wait for rows and return the next batch, their budgets set; none where the server stops."""
        with self._changed:
            self._running = []
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._changed.wait_for(lambda: len(self._waiting) >= self.limits.rows or self._closed, FILL_SECONDS)
                if self._closed:
                    return []
                if self._waiting:  # none are left where all were given up meanwhile
                    break
            self._running = batch_of(self._waiting, self.limits)
            taken = set(self._running)
            self._waiting = [row for row in self._waiting if row not in taken]
            budget = self._load.at(len(self._waiting))
            for row in self._running:
                row.budget = budget if row.budget is None else row.budget
            return self._running

    def _halving(self, rows: Sequence[Row], work: Callable[[Sequence[Row]], None]) -> None:
        """Do work for rows together; where it fails, for each half: memory may do then, and one bad row fails alone."""
        try:
            work(rows)
            return
        except Exception as error:
            full, alone = isinstance(error, torch.OutOfMemoryError), len(rows) == 1
            level = logging.ERROR if alone else logging.WARNING
            log.log(level, "a batch of %d failed: %s", len(rows), type(error).__name__, exc_info=alone)
        # Here, where the exception is gone and with it what its frames held.
        if full and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if alone:
            rows[0].fail(_out_of_memory() if full else internal())
            return
        middle = (len(rows) + 1) // 2
        for half in (rows[:middle], rows[middle:]):
            self._halving(half, work)

    def _serve(self, rows: Sequence[Row]) -> None:
        """Read the rows' prompts, each once, and generate chain by chain, that of the oldest row first."""
        prompts = list(dict.fromkeys((row.prompt, row.budget) for row in rows))
        reading = self._routed.read(*left_padded([prompt for prompt, _ in prompts], self._routed.device))
        chosen = self._routed.decide(reading, [budget for _, budget in prompts])
        places = {prompt: place for place, prompt in enumerate(prompts)}
        for row in rows:
            # A row that is served again keeps its chain, since it may have said something.
            row.chain = row.chain or chosen[places[row.prompt, row.budget]].chain
        at = {row: places[row.prompt, row.budget] for row in rows}
        for chain, members in by_chain([cast(Chain, row.chain) for row in rows]).items():
            for part in within([rows[member] for member in members], self._positions):
                self._halving(part, partial(self._generate, chain, reading, at))

    def _generate(self, chain: Chain, reading: Reading, at: Mapping[Row, int], rows: Sequence[Row]) -> None:
        """Generate rows of one chain, which end on the way."""
        rows = [row for row in rows if row.live]
        if not rows:
            return
        step = Step(rows)
        self._routed.generate_as(
            chain,
            reading.select([at[row] for row in rows]),
            max_new_tokens=max(row.new_tokens for row in rows),
            do_sample=False,
            logits_processor=LogitsProcessorList([Picks(step)]),
            stopping_criteria=StoppingCriteriaList([Progress(step, self._ends)]),
        )


def _out_of_memory() -> ApiError:
    return ApiError(503, "not enough memory for this request", code="out_of_memory")


def _stopping() -> ApiError:
    return ApiError(503, "the server stops", code="stopping", headers={"Retry-After": "10"})


def _ends(routed: RoutedModel) -> frozenset[int]:
    """Return the tokens that end a text: the model's."""
    found = routed.generation_config.eos_token_id
    if found is None:
        found = routed.config.get_text_config(decoder=True).eos_token_id
    return frozenset() if found is None else frozenset(found if isinstance(found, list) else [found])


def _special_tokens(routed: RoutedModel) -> GenerationConfig:
    """Return generation settings that say nothing but which tokens are special."""
    own, ends = routed.generation_config, sorted(_ends(routed))
    # What follows a row's end is not looked at, so any token will do where there is no padding.
    padding = own.pad_token_id if own.pad_token_id is not None else ends[0] if ends else 0
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=ends or None, pad_token_id=padding)


# What every request passes first: the key, the size of its body, and a last limit on its time.


OPEN_PATHS = frozenset({"/health"})
"""Paths that need no key: load balancers ask there."""
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 64 * 2**20
"""How much of a body that is too large is read and thrown away, so that a client which sends it all reads why."""


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, key: str | None, max_body_bytes: int, seconds: float) -> None:
        """Stand before an application.

        Args:
            app: the application.
            key: what clients must send as `Authorization: Bearer`; None: nothing.
            max_body_bytes: largest body, bytes.
            seconds: longest that a request may take; one that takes longer is cut off (a client that does not read).
        """
        self._app, self._key = app, None if key is None else key.encode()
        self._max_body_bytes, self._seconds = max_body_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._knows(scope["path"], headers):
            refusal = ApiError(
                401,
                "Authorization: expected 'Bearer' and this server's key, got none or another",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refused(refusal)(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_body_bytes:
            if "expect" not in headers:  # such a client sends nothing before it is told to
                await _drain(receive)
            await refused(self._too_large())(scope, receive, send)
            return
        async with asyncio.timeout(self._seconds):
            await self._app(scope, self._limited(receive), send)

    def _knows(self, path: str, headers: Headers) -> bool:
        if self._key is None or path in OPEN_PATHS:
            return True
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # Headers are read as Latin-1; in constant time, so that how long it takes says nothing of the key.
        return hmac.compare_digest(sent.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"

    def _limited(self, receive: Receive) -> Receive:
        """Return a `receive` that raises once a body is too large, whatever its length was said to be."""
        got = 0

        async def limited() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._max_body_bytes:
                await _drain(receive)
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> ApiError:
        message = f"body: expected at most {self._max_body_bytes} bytes, got more"
        return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


def refused(error: ApiError) -> JSONResponse:
    """Return the answer to a request that is not served."""
    return JSONResponse(error.body, error.status, error.headers)


async def _drain(receive: Receive) -> None:
    """Read a body and forget it: closed before, the connection would be reset and the answer lost."""
    got = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while got < DRAIN_BYTES:
                message = await receive()
                got += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


# Which rows run together: the oldest first, with others of about its length.


SHORT = 64
"""Prompts of up to so many tokens go together whatever their lengths: padding costs little there."""
ALIKE = 2.0
"""Longer prompts go together up to this ratio of their lengths: at worst half of a batch is padding."""


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be.

    Attributes:
        rows: most rows.
        prompt_tokens: most tokens of its prompts, padding included; a single prompt may be longer.
    """

    rows: int = 16
    prompt_tokens: int = 16384

    def __post_init__(self) -> None:
        """Refuse empty batches."""
        for name, value in (("max_batch", self.rows), ("max_batch_tokens", self.prompt_tokens)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


def batch_of(waiting: Sequence[Row], limits: BatchLimits) -> list[Row]:
    """Return the rows to run next, of those that wait, the oldest first.

    The oldest leads; those behind it go with it where their prompts are about as long. One that is passed over is the
    oldest at the latest after as many batches as rows were before it.
    """
    lead = waiting[0]
    taken, width = [lead], len(lead.prompt)
    for row in waiting[1:]:
        wider = max(width, len(row.prompt))
        if len(taken) >= limits.rows:
            break
        if _alike(len(lead.prompt), len(row.prompt)) and (len(taken) + 1) * wider <= limits.prompt_tokens:
            taken.append(row)
            width = wider
    return taken


def _alike(one: int, other: int) -> bool:
    return max(one, other) <= max(SHORT, ALIKE * min(one, other))


def within(rows: Sequence[Row], positions: int | None) -> list[list[Row]]:
    """Split rows so that none is carried past the model's positions by another that generates longer.

    A row that has ended stays in its batch until all have, and its position grows on.

    Args:
        rows: rows that each fit alone.
        positions: the model's positions; None: without limit.
    """
    parts: list[list[Row]] = []
    for row in rows:
        for part in parts:
            together = [*part, row]
            longest, most = max(len(one.prompt) for one in together), max(one.new_tokens for one in together)
            if positions is None or longest + most <= positions:
                part.append(row)
                break
        else:
            parts.append([row])
    return parts


def partners_matter(model: PreTrainedModel) -> bool:
    """Whether a row's result depends on how long its batch's others are: positions scaled by the longest row."""
    parameters: dict[str, Any] = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [one.get("rope_type") for one in (parameters, *parameters.values()) if isinstance(one, dict)]
    return any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)


# Rows while they generate: what each wants, what it has got, and the library's two hooks that serve all at once.


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


# Drawing tokens row by row: rows of different settings share a batch, and none changes another's draws.


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


def draw(scores: Float[Tensor, "rows vocabulary"], settings: Sequence[Sampling], step: int) -> Int[Tensor, " rows"]:
    """Draw a token for each row.

    By the inverse of the distribution function, in the order of the vocabulary: one random number a token, where noise
    for each token of the vocabulary would be the greater part of a small model's step. In double precision: rounding
    that differs between batches moves a draw only where the random number falls within it.

    Args:
        scores: logits, each row's greatest one finite.
        settings: each row's settings; temperatures above 0.
        step: tokens drawn before.
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
    uniforms = torch.tensor([[one.uniform(step)] for one in settings], **column)  # type: ignore[arg-type]
    # The first token whose bound lies above; the last bound does, since the random number is below 1.
    return torch.searchsorted(bounds, uniforms * bounds[:, -1:], right=True)[:, 0]


def _nucleus(shares: Float[Tensor, " vocabulary"], top_p: float) -> Float[Tensor, " vocabulary"]:
    """Return shares with 0 for all but the fewest likeliest tokens that have `top_p` together (at least one)."""
    ordered, order = shares.sort(descending=True, stable=True)
    kept = ordered.cumsum(0) - ordered < top_p
    kept[0] = True
    return torch.where(torch.empty_like(kept).scatter_(0, order, kept), shares, 0.0)
