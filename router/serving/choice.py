"""Which of a proxy's chains a request takes: read from its prompt, or always the same one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from pydantic import ValidationError

from router.chain import Chain
from router.engine.load import chat_tokens, context_of, left_padded, prompt_tokens
from router.heads.budget import priced_choice
from router.heads.menu import MenuHead
from router.routed import RoutedModel
from router.routed.model import Reading
from router.serving.batcher import BatchLimits, batch_of, partners_matter
from router.serving.protocol import Budgets, DepthAsked, Message, bad, without_nulls
from router.validation import adapter

log = logging.getLogger("router.serving")


Reason = Literal["no_backend", "out_of_scope", "several_chains", "unread"]
"""Why full depth takes the place of another chain."""


@dataclass(frozen=True)
class Picked:
    """A request's chain.

    Attributes:
        chain: the chain, which has a backend.
        instead: why it is full depth in place of another chain; None: it was picked.
        layers_read: layers that ran to read its prompts, summed over their tokens.
        one_token: whether the text ends after its first token (`Decision.one_token`).
    """

    chain: Chain
    instead: Reason | None = None
    layers_read: int = 0
    one_token: bool = False


class Choice(Protocol):
    """What picks the chain of a request."""

    async def pick(self, asked: Mapping[str, Any], depth: DepthAsked, *, chat: bool) -> Picked:
        """Return one of the served chains.

        Args:
            asked: a request's body.
            depth: how much depth it asks for.
            chat: whether it holds messages or a prompt.

        Raises:
            ApiError: 400, where it cannot have that depth.
        """


@dataclass(frozen=True)
class StaticChoice:
    """Always the same chain; no model is needed.

    Attributes:
        chain: the chain.
    """

    chain: Chain

    async def pick(self, asked: Mapping[str, Any], depth: DepthAsked, *, chat: bool) -> Picked:  # noqa: ARG002
        """Return the chain; see `Choice.pick`."""
        for name, value in depth.model_dump(exclude_none=True).items():
            raise bad(name, "none where the choice is static", value)
        return Picked(self.chain)


@dataclass(eq=False)
class _Waiting:
    prompt: tuple[int, ...]
    budget: float | None
    chosen: asyncio.Future[Picked]


class RouterChoice:
    """The chain that a router picks for a prompt, of which it reads the first layers' output.

    Prompts that wait are read together. What the router cannot read takes full depth: several prompts of different
    chains, pictures and tools, chats that the template refuses, prompts beyond the model's positions.
    """

    def __init__(self, routed: RoutedModel, served: Sequence[Chain], limits: BatchLimits, budgets: Budgets) -> None:
        """Prepare; prompts are read while `running` is entered.

        Args:
            routed: the routed model with its tokenizer; the layers behind those that the router reads do not run.
            served: the chains that have a backend, the full one among them.
            limits: how many prompts are read together.
            budgets: which mean depths a request may ask for.
        """
        assert routed.tokenizer is not None
        self._routed, self._tokenizer, self._served = routed, routed.tokenizer, tuple(served)
        self._budgets = budgets
        self._limits = BatchLimits(1, limits.prompt_tokens) if partners_matter(routed) else limits
        self._most_prompts = limits.rows
        self._full = Chain.full(routed.router.config.num_layers)
        self._positions = context_of(routed)
        self._vocabulary: int = routed.get_input_embeddings().num_embeddings
        self._lock = threading.Lock()  # tokenizers keep state
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read prompts in the background."""
        reading = asyncio.create_task(self._read_on())
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def pick(self, asked: Mapping[str, Any], depth: DepthAsked, *, chat: bool) -> Picked:
        """Return the router's chain, or of those that are served the one that suits best; see `Choice.pick`."""
        budget = self._budgets.of(depth)
        prompts = await asyncio.to_thread(self.prompts_of, asked, chat)
        if not prompts:
            return Picked(self._full, "unread")
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(prompt, budget, loop.create_future()) for prompt in prompts]
        self._waiting += waiting
        self._arrived.set()
        try:
            picked = await asyncio.gather(*(one.chosen for one in waiting))
        finally:
            for one in waiting:
                one.chosen.cancel()
        read = sum(one.layers_read for one in picked)
        if len({(one.chain, one.one_token) for one in picked}) > 1:
            return Picked(self._full, "several_chains", read)
        return replace(picked[0], layers_read=read)

    def prompts_of(self, asked: Mapping[str, Any], chat: bool) -> list[tuple[int, ...]]:
        """Return the token ids of a request's prompts; none where the router cannot read them all."""
        try:
            with self._lock:
                prompts = self._chat(asked) if chat else self._plain(asked.get("prompt"))
        except Exception as error:  # templates raise what they like; the backend says what is wrong with a prompt
            log.debug("a prompt that cannot be read takes full depth: %s", type(error).__name__)
            return []
        good = 1 <= len(prompts) <= self._most_prompts and all(map(self._readable, prompts))
        return prompts if good else []

    def _chat(self, asked: Mapping[str, Any]) -> list[tuple[int, ...]]:
        if asked.get("tools"):
            return []
        try:
            messages: list[Message] = adapter(list[Message]).validate_python(without_nulls(asked.get("messages")))
        except ValidationError:
            return []
        said = [{"role": message.speaker, "content": message.text} for message in messages]
        return [chat_tokens(self._tokenizer, said)]

    def _plain(self, prompt: object) -> list[tuple[int, ...]]:
        if isinstance(prompt, str):
            return [prompt_tokens(self._tokenizer, prompt)]
        if not isinstance(prompt, list):
            return []
        if all(isinstance(token, int) for token in prompt):
            return [tuple(prompt)]
        return [one for part in prompt[: self._most_prompts + 1] for one in self._plain(part) or [()]]

    def _readable(self, prompt: tuple[int, ...]) -> bool:
        fits = self._positions is None or len(prompt) <= self._positions
        return bool(prompt) and fits and min(prompt) >= 0 and max(prompt) < self._vocabulary

    async def _read_on(self) -> None:
        while True:
            await self._arrived.wait()
            self._waiting = [one for one in self._waiting if not one.chosen.done()]
            if not self._waiting:
                self._arrived.clear()
                continue
            batch = batch_of(self._waiting, self._limits)
            taken = set(batch)
            self._waiting = [one for one in self._waiting if one not in taken]
            try:
                prompts, budgets = [one.prompt for one in batch], [one.budget for one in batch]
                picked = await asyncio.to_thread(self.read, prompts, budgets)
            except Exception as error:
                log.exception("%d prompts could not be read and take full depth: %s", len(batch), type(error).__name__)
                picked = [Picked(self._full, "unread")] * len(batch)
            for one, chosen in zip(batch, picked, strict=True):
                if not one.chosen.done():
                    one.chosen.set_result(chosen)

    def read(self, prompts: Sequence[tuple[int, ...]], budgets: Sequence[float | None]) -> list[Picked]:
        """Return the chain of each prompt, token ids, of those that are served.

        Args:
            prompts: the prompts.
            budgets: mean depth wanted for each, layers; None: what the routed model is set to.
        """
        reading = self._routed.read(*left_padded(prompts, self._routed.device))
        decided = self._routed.decide(reading, budgets)
        picked = [
            Picked(one.chain, None if one.in_scope else "out_of_scope", one_token=one.one_token) for one in decided
        ]
        if missing := [row for row, one in enumerate(picked) if one.chain not in self._served]:
            chains = self._in_place(reading, missing, [budgets[row] for row in missing])
            for row, chain in zip(missing, chains, strict=True):
                full = chain == self._full
                one_token = decided[row].one_token and not full
                picked[row] = Picked(chain, "no_backend" if full else None, one_token=one_token)
        return [replace(one, layers_read=reading.layers_of(row) * len(prompts[row])) for row, one in enumerate(picked)]

    def _in_place(self, reading: Reading, rows: Sequence[int], budgets: Sequence[float | None]) -> list[Chain]:
        """Return the served chain that a menu's values, less the budget's price of depth, put first; else the full one.

        A guarantee was made for the router's own chains, so with it only the full one takes their place.
        """
        routed, head = self._routed, self._routed.router.head
        if not isinstance(head, MenuHead):
            return [self._full] * len(rows)
        own = [routed.budget if budget is None else budget for budget in budgets]
        prices = torch.tensor([[head.offset_for(budget)] for budget in own])
        values, late = routed.values(reading, rows, self._served)
        depths = torch.tensor([float(chain.depth) for chain in self._served]).expand_as(values)
        best = [self._served[place] for place in priced_choice(values, depths, prices, late).tolist()]
        certified = [routed.guaranteed and budget is None for budget in budgets]
        return [self._full if kept else chain for kept, chain in zip(certified, best, strict=True)]
