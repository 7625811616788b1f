"""The FastAPI application: OpenAI's routes over a batcher."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedTokenizerBase

from router.engine.load import chat_tokens, context_of, prompt_tokens
from router.routed import RoutedModel
from router.serving.batcher import Batcher, Gate, Piece, Row, Sampling, refused
from router.serving.protocol import (
    ApiError,
    Asked,
    AskedT,
    ChatAsked,
    ClientLeftError,
    CompletionAsked,
    Exchange,
    Message,
    bad,
    internal,
    parse,
    unless_left,
)
from router.validation import InputError

JOIN_SECONDS = 30.0
"""How long the worker may take to end its step when the server stops."""
SPARE_SECONDS = 10.0
"""Beyond a request's time: to send what was generated to a client that is slow to read."""


@dataclass(frozen=True)
class Service:
    """What the application serves.

    Attributes:
        name: the model's name for clients.
        rows: makes rows of requests.
        batcher: generates them.
        request_timeout: longest that a request may take, seconds.
        max_body_bytes: largest body, bytes.
        key: what clients must send; None: nothing.
    """

    name: str
    rows: RowMaker
    batcher: Batcher
    request_timeout: float = 300.0
    max_body_bytes: int = 2**20
    key: str | None = None


def make_app(service: Service) -> FastAPI:
    """Return the application; the batcher starts and stops with it.

    There is no page of documentation: it would come from elsewhere.
    """
    batcher = service.batcher

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.close()
        await asyncio.to_thread(batcher.join, JOIN_SECONDS)

    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, debug=False
    )
    seconds = service.request_timeout + SPARE_SECONDS
    app.add_middleware(Gate, key=service.key, max_body_bytes=service.max_body_bytes, seconds=seconds)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(ClientLeftError, _left)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    routes = _Routes(service)
    for path, handler, method in (
        ("/v1/completions", routes.completions, "POST"),
        ("/v1/chat/completions", routes.chat, "POST"),
        ("/v1/models", routes.models, "GET"),
        ("/v1/models/{name:path}", routes.model, "GET"),
        ("/health", routes.health, "GET"),
    ):
        app.add_api_route(path, handler, methods=[method], response_model=None)
    return app


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service, self._created = service, int(time.time())

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, CompletionAsked, self._service.rows.of_completion, CompletionAnswer)

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, ChatAsked, self._service.rows.of_chat, ChatAnswer)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, name: str) -> Response:
        self._check_model(name)
        return JSONResponse(self._model())

    async def health(self) -> Response:
        """Say whether the worker runs, and how busy it is."""
        batcher = self._service.batcher
        said = {
            "status": "ok" if batcher.alive else "stopped",
            "ready": batcher.alive,
            "waiting": batcher.waiting,
            "running": batcher.running,
            "budget": batcher.budget,
        }
        return JSONResponse(said, 200 if batcher.alive else 503)

    async def _generate(
        self, request: Request, kind: type[AskedT], make: Callable[[AskedT], list[Row]], answer_kind: type[Answer]
    ) -> Response:
        deadline = asyncio.get_running_loop().time() + self._service.request_timeout
        asked = parse(kind, await _body(request, deadline))
        self._check_model(asked.model)
        rows = await asyncio.to_thread(make, asked)
        answer = answer_kind(self._service.name, asked.n)
        exchange = Exchange(self._service.batcher, rows, deadline)
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
        events = stream(answer, exchange.rows, _after(first, pieces), include_usage=include_usage)
        return _Events(events, exchange)

    def _check_model(self, name: str) -> None:
        if name != self._service.name:
            message = f"model: expected {self._service.name!r}, got {name[:80]!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _model(self) -> dict[str, Any]:
        return {"id": self._service.name, "object": "model", "created": self._created, "owned_by": "cola-router"}


class _Events(StreamingResponse):
    """Server-sent events; rows that are left when it ends, because the client has gone, are given up."""

    def __init__(self, events: AsyncIterator[bytes], exchange: Exchange) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.abandon()


async def _body(request: Request, deadline: float) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Other types are what a web page may send to any server unasked.
        raise ApiError(415, f"Content-Type: expected application/json, got {kind[:60]!r}", code="unsupported_type")
    try:
        async with asyncio.timeout_at(deadline):
            return await request.body()
    except TimeoutError:
        raise ApiError(408, "body: expected it in time, got a part", headers={"Connection": "close"}) from None


async def _finish(exchange: Exchange) -> None:
    async for _ in exchange.pieces():
        pass


async def _after(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refused(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException | HTTPException)
    say = {404: "no such route", 405: f"{request.method} is not for this route"}
    message = say.get(error.status_code, str(error.detail))
    return refused(ApiError(error.status_code, message, headers=error.headers))


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)


async def _failed(_request: Request, _error: Exception) -> Response:
    return refused(internal())


# What clients get: OpenAI's objects, with the chain and depth of each choice beside them.


class Answer(ABC):
    """Makes the objects of one request's answer.

    Attributes:
        kind: the object's name, whole and in chunks.
        prefix: what its id begins with.
    """

    kind: tuple[str, str]
    prefix: str

    def __init__(self, model: str, choices: int) -> None:
        """Begin an answer.

        Args:
            model: the served model's name.
            choices: choices of each prompt (`n`), which count its tokens once.
        """
        self._about = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._choices = choices

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the answer of rows that have ended."""
        choices = [self._choice(row, row.reason, self.said(row.answer)) for row in rows]
        return {**self._about, "object": self.kind[0], "choices": choices, "usage": self._usage(rows)}

    def chunk(self, row: Row, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return a chunk of one choice; `reason`: why it ended, in its last chunk."""
        return {**self._about, "object": self.kind[1], "choices": [self._choice(row, reason, said)]}

    def usage_chunk(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the chunk that counts tokens."""
        return {**self._about, "object": self.kind[1], "choices": [], "usage": self._usage(rows)}

    @abstractmethod
    def said(self, text: str) -> dict[str, Any]:
        """Return a choice's whole text as its fields."""

    @abstractmethod
    def added(self, text: str) -> dict[str, Any]:
        """Return a piece of a choice's text as its fields."""

    def opening(self) -> dict[str, Any] | None:
        """Return the fields of a choice's first chunk; None: it has none of its own."""
        return None

    def _choice(self, row: Row, reason: str | None, said: dict[str, Any]) -> dict[str, Any]:
        assert row.chain is not None
        routed = {"chain": str(row.chain), "depth": row.chain.depth}
        return {"index": row.index, **said, "logprobs": None, "finish_reason": reason, **routed}

    def _usage(self, rows: Sequence[Row]) -> dict[str, int]:
        prompts = sum(len(row.prompt) for row in rows[:: self._choices])
        generated = sum(len(row.tokens) for row in rows)
        return {"prompt_tokens": prompts, "completion_tokens": generated, "total_tokens": prompts + generated}


class CompletionAnswer(Answer):
    """The answer to POST /v1/completions."""

    kind = ("text_completion", "text_completion")
    prefix = "cmpl"

    def said(self, text: str) -> dict[str, Any]:
        """Return a choice's whole text as its fields."""
        return {"text": text}

    def added(self, text: str) -> dict[str, Any]:
        """Return a piece of a choice's text as its fields."""
        return {"text": text}


class ChatAnswer(Answer):
    """The answer to POST /v1/chat/completions."""

    kind = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl"

    def said(self, text: str) -> dict[str, Any]:
        """Return a choice's whole text as its fields."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def added(self, text: str) -> dict[str, Any]:
        """Return a piece of a choice's text as its fields."""
        return {"delta": {"content": text} if text else {}}

    def opening(self) -> dict[str, Any] | None:
        """Return the fields of a choice's first chunk: who speaks."""
        return {"delta": {"role": "assistant", "content": ""}}


async def stream(
    answer: Answer, rows: Sequence[Row], pieces: AsyncIterator[Piece], *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events; an error in mid-stream is the last one.

    Args:
        answer: makes the objects.
        rows: the request's rows.
        pieces: what they say.
        include_usage: whether a last chunk counts tokens.
    """
    opened: set[Row] = set()
    try:
        async for piece in pieces:
            opening = answer.opening()
            if opening is not None and piece.row not in opened:
                opened.add(piece.row)
                yield _event(answer.chunk(piece.row, opening))
            reason = piece.row.reason if piece.text is None else None
            yield _event(answer.chunk(piece.row, answer.added(piece.text or ""), reason))
    except ApiError as error:
        yield _event(error.body)
        return
    if include_usage:
        yield _event(answer.usage_chunk(rows))
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    # ASCII: some clients break lines at characters that JSON leaves as they are.
    return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode("ascii")


# Requests as rows: prompts become token ids, and what no row may be is refused before it waits.


DEFAULT_NEW_TOKENS = 16
"""Tokens generated for a completion that does not say, as in OpenAI's interface."""


class RowMaker:
    """Makes rows of requests; safe for several threads."""

    def __init__(
        self,
        routed: RoutedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        max_rows: int,
        depth_for: Callable[[float], float] | None = None,
    ) -> None:
        """Prepare.

        Args:
            routed: the routed model.
            tokenizer: its tokenizer.
            max_tokens: most tokens that a request may generate for a choice.
            max_rows: most choices of a request.
            depth_for: returns the mean depth, layers, that takes a latency (units of full depth's); None: unknown.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
        self._head = routed.router.head
        self._tokenizer = tokenizer
        self._max_tokens, self._max_rows, self._depth_for = max_tokens, max_rows, depth_for
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

    def _rows(self, asked: Asked, prompts: Sequence[tuple[int, ...]], param: str, default: int | None) -> list[Row]:
        budget, rows = self._budget(asked), list[Row]()
        for prompt in prompts:
            new_tokens = self._new_tokens(asked, prompt, param, default)
            for choice in range(asked.n):
                sampling = Sampling.of(asked.temperature, asked.top_p, asked.seed, choice)
                text = TextStream(self._tokenizer, asked.stop)
                rows.append(Row(len(rows), prompt, new_tokens, sampling, text, budget, asked.stream))
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
        said = [{"role": message.role, "content": message.content} for message in messages]
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

    def _budget(self, asked: Asked) -> float | None:
        """Return the mean depth that a request wants, layers; None: none of its own."""
        param, budget = "budget", asked.budget
        try:
            if asked.latency_factor is not None:
                param = "latency_factor"
                if self._depth_for is None:
                    raise bad(param, "a server with a latency_profile", "one without")
                budget = self._depth_for(asked.latency_factor)
            self._head.offset_for(budget)
        except (InputError, ValueError) as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        return budget


# A row's tokens as text, piece by piece: no broken characters, no part of a stop string.


BROKEN = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


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
