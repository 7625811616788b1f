"""The application on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from router.command import InputError
from router.serving.batcher import LOGGER, Batcher

BACKSTOP_SECONDS = 5
"""Beyond the time that running requests have to end when the server stops: then connections are cut."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket of that address; a server listens on it later.

    Args:
        host: name or address of this machine.
        port: its port; 0: any free one.

    Raises:
        InputError: where the address is not this machine's, or the port is in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host: expected a name or address of this machine, got {host!r} ({error})") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"host: expected an address of this machine, got {host!r}") from error
        raise InputError(f"port: expected a free one at {host}, got {port} ({error.strerror})") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL under which clients of the same machine reach a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _logs() -> dict[str, Any]:
    """Return uvicorn's logging with all of it on stderr: stdout says where the server is and nothing else."""
    logs: dict[str, Any] = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"
    logs["loggers"][LOGGER] = {"handlers": ["default"], "level": "INFO"}
    return logs


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT: then takes no more requests, and gives those that run some time to end."""

    def __init__(
        self,
        app: ASGIApp,
        batcher: Batcher,
        *,
        shutdown_seconds: float,
        ready: Callable[[], None] = lambda: None,
        log_level: str = "info",
    ) -> None:
        """Prepare.

        Args:
            app: the application.
            batcher: its worker.
            shutdown_seconds: how long running requests may take to end; then they are answered with an error.
            ready: called once requests are taken.
            log_level: what uvicorn logs; bodies and headers are in no level's lines.
        """
        cut = int(shutdown_seconds) + BACKSTOP_SECONDS
        config = uvicorn.Config(
            app, ws="none", lifespan="on", log_level=log_level, log_config=_logs(), timeout_graceful_shutdown=cut
        )
        super().__init__(config)
        self._batcher, self._seconds, self._ready = batcher, shutdown_seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, and wait for those that run, but not for ever."""
        timer = asyncio.get_running_loop().call_later(self._seconds, self._batcher.close)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop at a signal, and at a second one at once; uvicorn's own would raise the signal again at the end."""

        def stop(_number: int, _frame: object) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        try:
            old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: someone else stops this server, by `should_exit`
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
