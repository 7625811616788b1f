"""What stands before every request to the server or the proxy: its gate, and errors as OpenAI's clients know them.

The gate bounds who comes (a key), how large and how late a body may be, and how long a request takes.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette import types
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from router.serving.protocol import ApiError, internal
from router.validation import shown

SPARE_SECONDS = 10.0
"""Beyond a request's time: to send what was generated to a client that is slow to read."""
OPEN_PATHS = frozenset({"/", "/health"})
"""Paths that need no key: the page, which holds no data and asks for the key; load balancers ask for the other."""
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 64 * 2**20
"""How much of a body that is too large is read and thrown away, so that a client which sends it all reads why."""

_READER = ThreadPoolExecutor(1, "bodies")
"""One thread: several would each keep the memory of the largest body that they have read."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Guard:
    """What is served by its name, and what a request is let in with.

    Attributes:
        name: the model's name for clients.
        request_timeout: longest that a request may take, seconds.
        client_timeout: how long a client is waited for, seconds.
        max_body_bytes: largest body, bytes.
        key: what clients must send; None: nothing.
    """

    name: str
    request_timeout: float
    client_timeout: float
    max_body_bytes: int
    key: str | None = field(default=None, repr=False)


class Routes(Protocol):
    """What server and proxy do each in a way of their own."""

    async def completions(self, request: Request) -> Response: ...  # noqa: D102

    async def chat(self, request: Request) -> Response: ...  # noqa: D102

    async def health(self) -> Response: ...  # noqa: D102


def guarded_app(
    guard: Guard, routes: Routes, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    """Return an application behind the gate, whose errors are OpenAI's and which lists its one model.

    There is no page of documentation: it would come from elsewhere.

    Args:
        guard: what the gate asks for.
        routes: what answers requests besides those for the list of models.
        lifespan: starts and stops what the application needs.
    """
    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, debug=False
    )
    app.add_middleware(Gate, guard=guard)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(ClientLeftError, _left)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    listed = {"id": guard.name, "object": "model", "created": int(time.time()), "owned_by": "cola-router"}

    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [listed]})

    async def model(name: str) -> Response:
        check_model(guard.name, name)
        return JSONResponse(listed)

    handlers: tuple[tuple[str, str, Callable[..., Awaitable[Response]]], ...] = (
        ("POST", "/v1/completions", routes.completions),
        ("POST", "/v1/chat/completions", routes.chat),
        ("GET", "/health", routes.health),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{name:path}", model),
    )
    for method, path, handler in handlers:
        app.add_api_route(path, handler, methods=[method], response_model=None)
    return app


def check_model(served: str, name: object) -> None:
    """Refuse another model's name than the served one.

    Raises:
        ApiError: 404.
    """
    if name != served:
        message = f"model: expected {served!r}, got {shown(name)}"
        raise ApiError(404, message, param="model", code="model_not_found")


async def read_body(request: Request, parse: Callable[[bytes], Result]) -> Result:
    """Return what a request's body says; `parse` reads it, beside the event loop since a large one takes a while.

    Raises:
        ApiError: 415 where it is no JSON; what the gate says of a body; what `parse` raises.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Other types are what a web page may send to any server unasked.
        raise ApiError(415, f"Content-Type: expected application/json, got {kind[:60]!r}", code="unsupported_type")
    return await asyncio.get_running_loop().run_in_executor(_READER, parse, await request.body())


async def unless_left(request: Request, work: Awaitable[Result]) -> Result:
    """Return what work returns; its request's body has been read.

    Raises:
        ClientLeftError: where the client leaves before; the work is cancelled.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leaving(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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


class Gate:
    """ASGI middleware that every request passes first: the key, its body's size and time, a last limit on its time."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        """Stand before an application; a client that does not read is cut off some seconds after the request's time."""
        self._app, self._key = app, None if guard.key is None else os.fsencode(guard.key)
        self._max_body_bytes, self._seconds = guard.max_body_bytes, guard.request_timeout + SPARE_SECONDS
        self._body_seconds = min(guard.client_timeout, guard.request_timeout)

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
        if length and "transfer-encoding" in headers:  # two programs could read such a request in two ways
            message = "Content-Length: expected none beside Transfer-Encoding, got one"
            await refused(ApiError(400, message, headers={"Connection": "close"}))(scope, receive, send)
            return
        if length.isdecimal() and int(length[:20]) > self._max_body_bytes:
            if "expect" not in headers:  # such a client sends nothing before it is told to
                await _drain(receive)
            await refused(self._too_large())(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds) as limit:
                await self._app(scope, self._limited(receive), send)
        except TimeoutError:  # uvicorn cuts the connection, since the answer is not complete
            if not limit.expired():
                raise

    def _knows(self, path: str, headers: Headers) -> bool:
        if self._key is None or path in OPEN_PATHS:
            return True
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # Headers are read as Latin-1; in constant time, so that how long it takes says nothing of the key.
        return hmac.compare_digest(sent.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"

    def _limited(self, receive: Receive) -> Receive:
        """Return a `receive` that raises once a body is late, or too large, whatever its length was said to be."""
        got, late, whole = 0, asyncio.get_running_loop().time() + self._body_seconds, False

        async def limited() -> types.Message:
            nonlocal got, whole
            try:
                async with asyncio.timeout_at(None if whole else late):
                    message = await receive()
            except TimeoutError:
                told = f"body: expected it within {self._body_seconds:g} seconds, got a part"
                raise ApiError(408, told, code="timeout", headers={"Connection": "close"}) from None
            whole = not message.get("more_body", False)
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


class ClientLeftError(Exception):
    """The client has closed its connection; nobody reads an answer."""
