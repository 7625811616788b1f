"""Between the event loop and the worker: a request's rows, and what comes back of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

from starlette.requests import Request

from router.serving.batcher import Batcher
from router.serving.decoding import Piece, Row
from router.serving.errors import ApiError

Result = TypeVar("Result")


class ClientLeftError(Exception):
    """The client has closed its connection; nobody reads an answer."""


class Exchange:
    """A request's rows while they wait and run, seen from the event loop.

    Attributes:
        rows: the rows, in the order of the request's choices.
    """

    def __init__(self, batcher: Batcher, rows: Sequence[Row], deadline: float) -> None:
        """Let rows wait for the worker.

        Args:
            batcher: the worker.
            rows: the rows.
            deadline: when the request is given up, in seconds of the event loop's clock.

        Raises:
            ApiError: as `Batcher.submit` does.
        """
        self.rows = list(rows)
        self._batcher, self._deadline = batcher, deadline
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
                raise ApiError(504, "the request took too long", code="timeout") from None
            if piece.row.error is not None:
                raise piece.row.error
            left -= piece.text is None
            yield piece


async def unless_left(request: Request, work: Awaitable[Result]) -> Result:
    """Return what work returns; its request's body has been read.

    Raises:
        ClientLeftError: where the client leaves before; the work is cancelled.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
