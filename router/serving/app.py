"""The FastAPI application: OpenAI's routes over a batcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from router.serving.answers import Answer, ChatAnswer, CompletionAnswer, stream
from router.serving.batcher import Batcher
from router.serving.decoding import Piece, Row
from router.serving.errors import ApiError, internal
from router.serving.exchange import ClientLeftError, Exchange, unless_left
from router.serving.gate import Gate, refused
from router.serving.prompts import RowMaker
from router.serving.protocol import Asked, AskedT, ChatAsked, CompletionAsked, parse

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
