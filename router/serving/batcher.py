"""The worker: one thread that takes waiting rows, reads their prompts once, and generates chain by chain.

Batches are continuous: a call of the library's `generate` pauses at the next token where somebody waits or a row has
ended; new rows are read, join those of their chain, and all go on from their keys and values. Chains take turns. What
rows want apart from each other (sampling, length, stop strings, being abandoned) does not keep them apart; their chains
do. Models whose caches cannot be joined (`groups.can_pause`) run a batch to its end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Int
from pydantic import model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from router.chain import Chain
from router.decision import Operation
from router.engine.copies import shallow_copy
from router.engine.load import context_of, left_padded, padding_token
from router.routed import RoutedModel
from router.routed.model import Reading
from router.routed.options import grouped
from router.serving.groups import Group, alike, can_pause
from router.serving.protocol import ApiError, internal
from router.serving.rows import Picks, Progress, Row
from router.validation import SETTINGS, Positive

LOGGER = "router.serving"
"""Name of the server's log; no prompt is in it."""
log = logging.getLogger(LOGGER)

FILL_SECONDS = 0.005
"""How long a batch that is not full waits for more rows."""
TURN = 2
"""Tokens that the rows of a chain generate before those of another have their turn."""


@dataclass(frozen=True, config=SETTINGS)
class LoadBudget:
    """A mean depth that falls linearly with the number of choices that wait.

    Attributes:
        calm: mean depth, layers, while none waits; None: whatever the model is set to, at any load.
        busy: mean depth, layers, from `busy_queue` waiting choices on; None: `calm` at any load.
        busy_queue: waiting choices at which `busy` is reached.
    """

    calm: float | None = None
    busy: float | None = None
    busy_queue: Positive = 1

    @model_validator(mode="after")
    def _falls(self) -> LoadBudget:
        if self.busy is not None and (self.calm is None or self.busy > self.calm):
            raise ValueError(f"busy_budget: expected at most the budget of {self.calm}, got {self.busy}")
        return self

    def at(self, waiting: int) -> float | None:
        """Return the mean depth, layers, for a batch that leaves `waiting` choices behind."""
        if self.calm is None or self.busy is None:
            return self.calm
        share = min(1.0, waiting / self.busy_queue)
        return self.busy if share == 1 else self.calm - share * (self.calm - self.busy)


@dataclass(frozen=True, config=SETTINGS)
class BatchLimits:
    """How large a batch may be.

    Attributes:
        rows: most rows that generate at a time, of all chains together.
        prompt_tokens: most tokens of its prompts, padding included; a single prompt may be longer.
    """

    rows: Positive = 32
    prompt_tokens: Positive = 16384


@runtime_checkable
class HasPrompt(Protocol):
    """What waits with a prompt, token ids."""

    @property
    def prompt(self) -> tuple[int, ...]: ...  # noqa: D102


Waiting = TypeVar("Waiting", bound=HasPrompt)


def batch_of(waiting: Sequence[Waiting], limits: BatchLimits) -> list[Waiting]:
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
        if alike(len(lead.prompt), len(row.prompt)) and (len(taken) + 1) * wider <= limits.prompt_tokens:
            taken.append(row)
            width = wider
    return taken


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


class Batcher:
    """Rows wait here until the worker generates them; safe to call from any thread.

    The model's own generation settings (temperature, repetition penalty, ...) do not count: a request says all. Its
    special tokens do.

    Attributes:
        limits: how large a batch may be.
        max_queue: most rows that wait.
        routed: rows that have been given a chain.
        out_of_scope: how many of them run at full depth because their prompts are unlike those of training.
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
            ValueError: where a budget was not measured in training.
        """
        for budget in (load.calm, load.busy):
            routed.router.require(Operation(budget=budget))
        limits = limits or BatchLimits()
        if partners_matter(routed):
            limits = BatchLimits(1, limits.prompt_tokens)
        self.limits, self.max_queue = limits, max_queue
        self.routed = self.out_of_scope = 0
        self._load = load
        self._positions = context_of(routed)
        self._routed = shallow_copy(routed)
        self._routed.generation_config = _special_tokens(routed)
        self._ends = _ends(routed)
        self._changed = threading.Condition()
        self._pausing = can_pause(routed)
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._groups: deque[Group] = deque()
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
        """Rows that are read or generate and have not ended."""
        return sum(row.live for row in self._running)

    @property
    def budget(self) -> float | None:
        """Mean depth, layers, that a row would be given now; None: the router's own choice."""
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

    def abandon(self, rows: Sequence[Row], why: ApiError | None = None) -> None:
        """Give rows up, nobody waits for them: they leave the queue, those that run end at their next token.

        Args:
            rows: the rows.
            why: what is said of them, unless something was said before; None: that the client has left.
        """
        with self._changed:
            for row in rows:
                row.stop = row.stop or why or ApiError(499, "the client has left", code="abandoned")
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
        while (rows := self._next()) is not None:
            if rows:
                self._attempt(rows, self._admit)
            if self._groups:
                group = self._groups.popleft()
                self._attempt(group.rows, partial(self._go_on, group))
            self._forget()

    def _next(self) -> list[Row] | None:
        """Return waiting rows that there is room for, their budgets set; None where the server stops and none run.

        Where rows run it does not wait for more.
        """
        with self._changed:
            if not self._groups:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._changed.wait_for(lambda: len(self._waiting) >= self.limits.rows or self._closed, FILL_SECONDS)
                if self._closed:
                    return None
            if not self._has_room():
                return []
            limits = BatchLimits(self.limits.rows - self.running, self.limits.prompt_tokens)
            rows = batch_of(self._waiting, limits)
            taken = set(rows)
            self._running += rows
            self._waiting = [row for row in self._waiting if row not in taken]
            budget = self._load.at(len(self._waiting))
            for row in rows:
                row.budget = budget if row.budget is None else row.budget
            return rows

    def _has_room(self) -> bool:
        """Whether somebody waits who can be read now."""
        return bool(self._waiting) and self.running < self.limits.rows

    def _forget(self) -> None:
        """Fail rows that have left their group without an end: they were given up, or the server stops."""
        held = {row for group in self._groups for row in group.rows}
        for row in self._running:
            if row not in held:
                row.fail(internal())
        with self._changed:
            self._running = [row for row in self._running if row in held]

    def _attempt(self, rows: Sequence[Row], work: Callable[[Sequence[Row]], None]) -> None:
        """Do work for rows together; where it fails, begin anew with each half, so that one bad row fails alone."""
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
            memory = ApiError(503, "not enough memory for this request", code="out_of_memory")
            rows[0].fail(memory if full else internal())
            return
        rows, middle = list(rows), (len(rows) + 1) // 2
        for half in (rows[:middle], rows[middle:]):
            self._attempt(half, self._admit)

    def _admit(self, rows: Sequence[Row]) -> None:
        """Read rows, texts that are equal once, pick their chains, and generate each one's first token or more.

        A row that is read again, because its batch failed, keeps what it has said and its chain.
        """
        texts = list(dict.fromkeys((row.text_ids, row.budget) for row in rows))
        reading = self._routed.read(*left_padded([text for text, _ in texts], self._routed.device))
        places = {text: place for place, text in enumerate(texts)}
        at = {row: places[row.text_ids, row.budget] for row in rows}
        if any(row.chain is None for row in rows):
            chosen = self._routed.decide(reading, [budget for _, budget in texts])
            for row in rows:
                if row.chain is None:
                    one = chosen[at[row]]
                    row.chain, row.in_scope, row.one_token = one.chain, one.in_scope, one.one_token
                    self.routed += 1
                    self.out_of_scope += not one.in_scope
        chains = grouped([cast(Chain, row.chain) for row in rows])
        alone = len(chains) == 1 and not self._groups
        for chain, members in chains.items():
            for part in within([rows[member] for member in members], None if self._pausing else self._positions):
                begin = partial(self._begin, chain, reading, at, alone)
                self._attempt(part, begin)

    def _begin(self, chain: Chain, reading: Reading, at: Mapping[Row, int], alone: bool, rows: Sequence[Row]) -> None:
        """Generate the first tokens of rows of one chain that have been read: one token unless they are alone."""
        rows = [row for row in rows if row.live]
        if not rows:
            return
        own = reading.select([at[row] for row in rows])
        generate = partial(self._routed.generate_as, chain, own)
        ids, cache = self._generate(rows, generate, most=None if alone else 1)
        if not self._pausing:
            return
        group = Group(chain, list(rows), own.run.ids, own.run.mask, cache)
        group.grow(ids)
        self._put(group)

    def _go_on(self, group: Group, _rows: Sequence[Row]) -> None:
        """Let a group that paused, and its rows with it, generate on."""
        generate = partial(self._routed.continue_as, group.chain, group.ids, group.mask, group.cache)
        del group.cache  # where this fails, nothing else holds the memory
        ids, group.cache = self._generate(group.rows, generate, most=TURN if self._groups else None)
        group.grow(ids)
        self._put(group)

    def _put(self, group: Group) -> None:
        """Let rows that have ended leave a group, and the others wait for their turn, with those of their chain."""
        live = [place for place, row in enumerate(group.rows) if row.live]
        if not live:
            return
        if len(live) < len(group.rows):
            group.keep(live)
        other = next((one for one in self._groups if one.takes(group)), None)
        if other is None:
            self._groups.append(group)
            return
        self._groups.remove(other)
        self._attempt([*other.rows, *group.rows], partial(self._join, other, group))

    def _join(self, group: Group, other: Group, _rows: Sequence[Row]) -> None:
        """Let a group's rows, and those of another that it takes, generate on together."""
        group.join(other)
        self._groups.append(group)

    def _generate(
        self, rows: Sequence[Row], generate: Callable[..., Any], most: int | None
    ) -> tuple[Int[Tensor, "rows tokens"], Cache]:
        """Generate until a row ends, somebody waits who can be read, or each row has `most` more tokens.

        Batches that cannot pause run until all rows have ended.

        Args:
            rows: rows of one chain.
            generate: `generate_as` or `continue_as` of the routed model, for these rows.
            most: most tokens for each row; None: as many as the shortest still wants.

        Returns:
            All tokens, those before included, and keys and values of all but the last.
        """
        left = [row.left for row in rows]
        limit = min(left) if self._pausing else max(left)

        def pauses(number: int) -> bool:
            return self._has_room() or number == most or not all(row.live for row in rows)

        progress = Progress(rows, self._ends, pauses) if self._pausing else Progress(rows, self._ends)
        out = generate(
            max_new_tokens=limit,
            do_sample=False,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([Picks(rows)]),
            stopping_criteria=StoppingCriteriaList([progress]),
        )
        return out.sequences, out.past_key_values


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
    padding = padding_token(own.pad_token_id, ends)
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=ends or None, pad_token_id=padding)
