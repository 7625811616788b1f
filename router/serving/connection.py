"""A connection to a client: uvicorn's HTTP/1.1, which by itself waits for a client for ever.

The parser is h11's, although httptools' is faster: h11 bounds what it keeps of headers that do not end (16 KiB).
"""

from __future__ import annotations

import asyncio
import functools
import resource
import sys
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SPARE_FILES = 64
"""Files that the process may open besides its connections."""


def connections_of(client_seconds: float) -> type[asyncio.Protocol]:
    """Return what uvicorn makes of each connection.

    Args:
        client_seconds: how long the server waits for a client, seconds.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if files == resource.RLIM_INFINITY else files - SPARE_FILES
    made = functools.partial(Connection, client_seconds=client_seconds, most=most)
    return cast("type[asyncio.Protocol]", made)  # uvicorn calls it and asks nothing else of it


class Connection(H11Protocol):
    """Closes a connection whose client keeps the server waiting.

    The application gives up bodies that do not come, since it can say so. Here it is the headers of a request, counted
    from the connection's start or the answer before; the rest of a body that nobody reads; and answers that the client
    does not read.
    """

    def __init__(self, *args: Any, client_seconds: float, most: int, **options: Any) -> None:
        """Prepare.

        Args:
            args: see uvicorn.
            client_seconds: how long the server waits for a client, seconds.
            most: most connections; more are closed as they come.
            options: see uvicorn.
        """
        super().__init__(*args, **options)
        self._seconds, self._most = client_seconds, most
        self._awaited: object = None
        self._reads: asyncio.TimerHandle | None = None
        self._writes: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever is not taken at once counts as not read
        if len(self.connections) > self._most:
            transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        for timer in (self._reads, self._writes):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._writes = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read all that was sent."""
        super().resume_writing()
        if self._writes is not None:
            self._writes.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless an answer has begun; the application is told that the client has gone."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _watch(self) -> None:
        """Wait for what the client owes: a request's headers, or the rest of a body whose answer it has."""
        awaited = None
        if self.conn.their_state is h11.IDLE or (
            self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete
        ):
            awaited = (self.cycle, self.conn.their_state)
        if awaited == self._awaited:
            return
        if self._reads is not None:
            self._reads.cancel()
        self._awaited, self._reads = awaited, None
        if awaited is not None:
            self._reads = self.loop.call_later(self._seconds, self.transport.close)
