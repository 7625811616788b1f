"""The server's application: OpenAI's routes over a batcher, prompts as rows, rows as answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from jinja2 import TemplateError

from router.engine.load import chat_tokens, context_of, prompt_tokens
from router.routed import RoutedModel
from router.serving.answers import Answer, Events, stream
from router.serving.batcher import Batcher
from router.serving.gate import Guard, check_model, guarded_app, read_body, unless_left
from router.serving.metrics import RowMetrics
from router.serving.page import Page
from router.serving.protocol import ApiError, Asked, AskedT, Budgets, ChatAsked, CompletionAsked, Message, bad, parse
from router.serving.rows import BROKEN, Piece, Row, Sampling, TextStream, bytes_of

JOIN_SECONDS = 30.0
"""How long the worker may take to end its step when the server stops."""
DEFAULT_NEW_TOKENS = 16
"""Tokens generated for a completion that does not say, as in OpenAI's interface."""


@dataclass(frozen=True)
class Service:
    """What the application serves.

    Attributes:
        guard: what the gate asks for, and the model's name.
        rows: makes rows of requests.
        batcher: generates them.
        metrics: what is counted of them.
        page: the page for people and its data; None: there is none.
    """

    guard: Guard
    rows: RowMaker
    batcher: Batcher
    metrics: RowMetrics
    page: Page | None = None

    @property
    def observers(self) -> list[Callable[[Row], None]]:
        """What is called with each row once, on the event loop, when nobody waits for it any more."""
        return [self.metrics.observe, *([] if self.page is None else [self.page.recent.observe])]


def make_app(service: Service) -> FastAPI:
    """Return the application; the batcher starts and stops with it."""
    batcher = service.batcher

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.close()
        await asyncio.to_thread(batcher.join, JOIN_SECONDS)

    app = guarded_app(service.guard, _Routes(service), lifespan)
    if service.page is not None:
        service.page.add_to(app)
    service.metrics.add_to(app)
    return app


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, CompletionAsked, self._service.rows.of_completion)

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, ChatAsked, self._service.rows.of_chat)

    async def health(self) -> Response:
        """Say whether the worker runs, how busy it is, and how many choices it routed."""
        batcher = self._service.batcher
        said = {
            "status": "ok" if batcher.alive else "stopped",
            "ready": batcher.alive,
            "waiting": batcher.waiting,
            "running": batcher.running,
            "budget": batcher.budget,
            "routed": batcher.routed,
            "out_of_scope": batcher.out_of_scope,
        }
        return JSONResponse(said, 200 if batcher.alive else 503)

    async def _generate(self, request: Request, kind: type[AskedT], make: Callable[[AskedT], list[Row]]) -> Response:
        deadline = asyncio.get_running_loop().time() + self._service.guard.request_timeout
        asked = await read_body(request, functools.partial(parse, kind))
        check_model(self._service.guard.name, asked.model)
        rows, maker = await asyncio.to_thread(make, asked), self._service.rows
        answer = Answer(self._service.guard.name, asked, maker.token_text, maker.token_bytes)
        exchange = Exchange(self._service.batcher, rows, deadline, self._service.observers)
        try:
            if asked.stream:
                return await self._stream(request, asked, answer, exchange)
            await unless_left(request, _finish(exchange))
            return JSONResponse(answer.whole(rows))
        except BaseException:
            exchange.abandon()
            raise

    async def _stream(self, request: Request, asked: Asked, answer: Answer, exchange: Exchange) -> Response:
        """Wait for the first piece, so that what fails before has a status of its own; then stream."""
        pieces = exchange.pieces()
        first = await unless_left(request, anext(pieces))
        include_usage = asked.stream_options is not None and asked.stream_options.include_usage
        events = stream(answer, exchange.rows, first, pieces, include_usage=include_usage)
        left = AsyncExitStack()
        left.callback(exchange.abandon)
        headers = {"Cache-Control": "no-cache", "Content-Type": "text/event-stream; charset=utf-8"}
        return Events(events, left, 200, headers)


async def _finish(exchange: Exchange) -> None:
    async for _ in exchange.pieces():
        pass


class Exchange:
    """A request's rows while they wait and run, seen from the event loop.

    Attributes:
        rows: the rows, in the order of the request's choices.
    """

    def __init__(
        self,
        batcher: Batcher,
        rows: Sequence[Row],
        deadline: float,
        observers: Sequence[Callable[[Row], None]] = (),
    ) -> None:
        """Let rows wait for the worker.

        Args:
            batcher: the worker.
            rows: the rows.
            deadline: when they are given up, in seconds of the event loop's clock.
            observers: called with each row once, when it has ended or is given up.

        Raises:
            ApiError: as `Batcher.submit` does; such rows are not observed.
        """
        self.rows = list(rows)
        self._batcher, self._deadline, self._observers = batcher, deadline, observers
        self._observed: set[Row] = set()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def post(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        for row in self.rows:
            row.post = post
        batcher.submit(self.rows)

    def abandon(self) -> None:
        """Give up rows that have not ended."""
        if any(not row.ended for row in self.rows):
            self._batcher.abandon(self.rows)
        for row in self.rows:
            self._observe(row)

    def _observe(self, row: Row) -> None:
        if row not in self._observed:
            self._observed.add(row)
            for observe in self._observers:
                observe(row)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield what the rows say, until all have ended.

        Raises:
            ApiError: a row's, where one fails; 504 where time is up.
        """
        left = len(self.rows)
        while left:
            try:
                async with asyncio.timeout_at(self._deadline):
                    piece = await self._pieces.get()
            except TimeoutError:
                late = ApiError(504, "the request took too long", code="timeout")
                self._batcher.abandon(self.rows, late)
                raise late from None
            if piece.text is None:
                self._observe(piece.row)
            if piece.row.error is not None:
                self._batcher.abandon(self.rows, piece.row.error)
                raise piece.row.error
            left -= piece.text is None
            yield piece


class RowMaker:
    """Makes rows of requests; safe for several threads."""

    def __init__(
        self,
        routed: RoutedModel,
        *,
        max_tokens: int,
        max_rows: int,
        budgets: Budgets,
    ) -> None:
        """Prepare.

        Args:
            routed: the routed model, with its tokenizer.
            max_tokens: most tokens that a request may generate for a choice.
            max_rows: most choices of a request.
            budgets: which mean depths a request may ask for.
        """
        assert routed.tokenizer is not None
        self._tokenizer, self._budgets = routed.tokenizer, budgets
        self._max_tokens, self._max_rows = max_tokens, max_rows
        self._positions = context_of(routed)
        self._vocabulary: int = routed.get_input_embeddings().num_embeddings
        self._lock = threading.Lock()  # tokenizers keep state

    def of_completion(self, asked: CompletionAsked) -> list[Row]:
        """Return a row for each choice of each prompt.

        Raises:
            ApiError: 400, where a prompt is empty, too long or no prompt, or a setting is out of its bounds.
        """
        self._check_rows(len(asked.prompt) * asked.n)
        prompts = [self._plain(prompt) if isinstance(prompt, str) else tuple(prompt) for prompt in asked.prompt]
        return self._rows(asked, prompts, "prompt", DEFAULT_NEW_TOKENS)

    def of_chat(self, asked: ChatAsked) -> list[Row]:
        """Return a row for each choice; errors as in `of_completion`, also where there is no chat template."""
        self._check_rows(asked.n)
        return self._rows(asked, [self._chat(asked.messages)], "messages", None)

    def token_text(self, token: int) -> str:
        """Return a token's own text, also that of special ones; its name where it is a part of a character."""
        with self._lock:
            name, text = self._names(token)
        return name if BROKEN in text else text

    def token_bytes(self, token: int) -> list[int] | None:
        """Return the bytes of a token's own text, also where it is a part of a character; None: they are not known."""
        with self._lock:
            found = bytes_of(*self._names(token))
        return None if found is None else list(found)

    def _names(self, token: int) -> tuple[str, str]:
        """Return the tokenizer's name of a token, and its text."""
        # Behind itself: some decoders take the leading space of a text's first token away.
        alone, twice = (
            str(self._tokenizer.decode([token] * times, clean_up_tokenization_spaces=False)) for times in (1, 2)
        )
        return str(self._tokenizer.convert_ids_to_tokens(token)), twice.removeprefix(alone)

    def _rows(self, asked: Asked, prompts: Sequence[tuple[int, ...]], param: str, default: int | None) -> list[Row]:
        budget, rows = self._budgets.of(asked), list[Row]()
        for prompt in prompts:
            new_tokens = self._new_tokens(asked, prompt, param, default)
            for choice in range(asked.n):
                sampling = Sampling.of(asked.temperature, asked.top_p, asked.seed, choice)
                text = TextStream(self._tokenizer, asked.stop)
                row = Row(len(rows), prompt, new_tokens, sampling, text, budget, asked.stream)
                row.alternatives = asked.alternatives
                rows.append(row)
        return rows

    def _check_rows(self, rows: int) -> None:
        if rows > self._max_rows:
            raise bad("n", f"at most {self._max_rows} choices of all prompts together", rows)

    def _plain(self, text: str) -> tuple[int, ...]:
        with self._lock:
            return prompt_tokens(self._tokenizer, text)

    def _chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if self._tokenizer.chat_template is None:
            raise bad("messages", "a model with a chat template (/v1/completions takes plain text)", "one without")
        said = [{"role": message.speaker, "content": message.text} for message in messages]
        try:
            with self._lock:
                return chat_tokens(self._tokenizer, said)
        except (TemplateError, TypeError, ValueError) as error:
            # Templates refuse what they cannot say, such as roles that do not alternate.
            raise ApiError(400, f"messages: the chat template refuses them: {error}", param="messages") from None

    def _new_tokens(self, asked: Asked, prompt: tuple[int, ...], param: str, default: int | None) -> int:
        """Return the most tokens to generate for a prompt, whose tokens are checked."""
        if not prompt:
            raise bad(param, "at least one token", "none")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < self._vocabulary:
                raise bad(param, f"token ids in 0..{self._vocabulary - 1}", token)
        if asked.new_tokens is not None and asked.new_tokens > self._max_tokens:
            raise bad("max_tokens", f"at most {self._max_tokens}", asked.new_tokens)
        room = self._max_tokens if self._positions is None else self._positions - len(prompt)
        wanted = asked.new_tokens or max(1, min(default or self._max_tokens, self._max_tokens, room))
        if wanted > room:
            raise ApiError(
                400,
                f"{param}: expected at most {self._positions} tokens with those to generate, "
                f"got {len(prompt)} and {wanted}",
                param=param,
                code="context_length_exceeded",
            )
        return wanted
