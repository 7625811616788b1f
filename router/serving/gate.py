"""What every request passes first: the key, the size of its body, and a last limit on its time."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.serving.errors import ApiError

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
