"""The worker: one thread that takes waiting rows, reads their prompts once, and generates chain by chain.

There is no continuous batching: the library's `generate` runs a batch to its end, so what arrives meanwhile waits for
the next one. What a batch's rows want apart from each other (sampling, length, stop strings, being abandoned) does not
keep them apart; their chains do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from router.base_model import context_of
from router.chain import Chain
from router.routed import RoutedModel
from router.routed.grouping import by_chain
from router.routed.runner import Reading
from router.serving.decoding import Picks, Progress, Row, Step
from router.serving.errors import ApiError, internal
from router.serving.load import LoadBudget
from router.serving.planning import BatchLimits, batch_of, partners_matter, within
from router.tokens import left_padded
from router.view import shallow_copy

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
