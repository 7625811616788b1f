"""The application on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp

from router.command import first_word, parse_settings
from router.latency import budget_for
from router.routed import RoutedModel
from router.routed.commands import RoutedSettings, load_routed
from router.serving.batcher import LOGGER, Batcher
from router.validation import InputError

if TYPE_CHECKING:
    from router.serving.app import Service


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


# Shallower under load: the budget falls as requests queue up.


@dataclass(frozen=True)
class LoadBudget:
    """A mean depth that falls linearly with the number of choices that wait.

    Attributes:
        calm: mean depth, layers, while none waits; None: whatever the model is set to, at any load.
        busy: mean depth, layers, from `busy_queue` waiting choices on; None: `calm` at any load.
        busy_queue: waiting choices at which `busy` is reached.
    """

    calm: float | None = None
    busy: float | None = None
    busy_queue: int = 1

    def __post_init__(self) -> None:
        """Refuse what does not fall."""
        if self.busy_queue < 1:
            raise ValueError(f"busy_queue: expected at least 1, got {self.busy_queue}")
        if self.busy is None:
            return
        if self.calm is None:
            raise ValueError("busy_budget: expected a budget beside it, from which to fall, got none")
        if self.busy > self.calm:
            raise ValueError(f"busy_budget: expected at most the budget of {self.calm}, got {self.busy}")

    def at(self, waiting: int) -> float | None:
        """Return the mean depth, layers, for a batch that leaves `waiting` choices behind."""
        if self.calm is None or self.busy is None:
            return self.calm
        share = min(1.0, waiting / self.busy_queue)
        return self.busy if share == 1 else self.calm - share * (self.calm - self.busy)


# Serve a routed model to OpenAI's clients.


KEY_VARIABLE = "COLA_ROUTER_API_KEY"
"""Environment variable of the key that clients must send; unset: none."""
MAX_TIMEOUT = 86400.0
"""Longest time limits, seconds: a day."""


@dataclass(frozen=True)
class ServeSettings(RoutedSettings):
    """Settings of `python -m router serve`. A key for clients is taken from the environment: COLA_ROUTER_API_KEY.

    Attributes:
        busy_budget: mean depth under load, layers; needs a budget, from which it falls as requests queue up.
        busy_queue: waiting choices at which busy_budget is reached.
        host: address to listen at; other machines reach 0.0.0.0 or this machine's own.
        port: port; 0: any free one, which is printed.
        name: the model's name for clients; unset: the base model's, of a directory its last part.
        chat_template: Jinja file in place of the tokenizer's chat template.
        max_batch: most choices that generate together.
        max_batch_tokens: most tokens of the prompts read together, padding included.
        max_tokens: most tokens that a request may generate for a choice.
        max_queue: most choices that wait; more are refused with status 429.
        max_body_bytes: largest body of a request.
        request_timeout: longest that a request may take, seconds.
        shutdown_timeout: how long running requests may take to end when the server is told to stop, seconds.
    """

    busy_budget: float | None = None
    busy_queue: int = 32
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    chat_template: Path | None = None
    max_batch: int = 16
    max_batch_tokens: int = 16384
    max_tokens: int = 1024
    max_queue: int = 256
    max_body_bytes: int = 2**20
    request_timeout: float = 300.0
    shutdown_timeout: float = 30.0

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other or are out of their bounds."""
        super().__post_init__()
        counts = ("busy_queue", "max_batch", "max_batch_tokens", "max_tokens", "max_queue", "max_body_bytes")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0..65535, got {self.port}")
        if not 0 < self.request_timeout <= MAX_TIMEOUT:
            raise ValueError(f"request_timeout: expected seconds in 0..{MAX_TIMEOUT:.0f}, got {self.request_timeout}")
        if not 0 <= self.shutdown_timeout <= MAX_TIMEOUT:
            raise ValueError(f"shutdown_timeout: expected seconds in 0..{MAX_TIMEOUT:.0f}, got {self.shutdown_timeout}")
        if self.busy_budget is not None and self.budget is None and self.latency_factor is None:
            raise ValueError("busy_budget: expected a budget or latency_factor beside it, got none")


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: at bad input, a port in use, or packages that are not there.
    """
    description = "Serve a routed model to OpenAI's clients."
    settings, _ = parse_settings(ServeSettings, first_word(argv, "router"), "router serve", description)
    require_packages()
    key = read_key()
    from router.serving.server import bind

    with bind(settings.host, settings.port) as bound:  # before the model is loaded, which takes time
        if key is None and not _only_here(bound):
            print(
                f"warning: {settings.host} can be reached from elsewhere, and there is no key; set {KEY_VARIABLE}",
                file=sys.stderr,
                flush=True,
            )
        run(settings, load_routed(settings), bound, key)


def run(settings: ServeSettings, routed: RoutedModel, bound: socket.socket, key: str | None) -> None:
    """Serve a routed model on a socket until SIGTERM or SIGINT.

    Raises:
        InputError: where settings do not fit the model.
    """
    from router.serving.app import make_app
    from router.serving.server import Server, url_of

    try:
        service = make_service(settings, routed, key)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error

    def ready() -> None:
        budget = service.batcher.budget
        depth = "the router's own depth" if budget is None else f"a mean depth of {budget:g} layers"
        depth = "its guaranteed depth" if settings.guaranteed else depth
        print(f"serving {service.name} at {url_of(bound)}/v1 ({depth})", flush=True)

    server = Server(make_app(service), service.batcher, shutdown_seconds=settings.shutdown_timeout, ready=ready)
    server.run(sockets=[bound])


def make_service(settings: ServeSettings, routed: RoutedModel, key: str | None) -> Service:
    """Return what the application serves.

    Raises:
        ValueError: where settings do not fit the model.
    """
    from router.serving.app import RowMaker, Service
    from router.serving.batcher import Batcher, BatchLimits
    from router.serving.server import LoadBudget

    tokenizer = routed.tokenizer
    assert tokenizer is not None
    if settings.chat_template is not None:
        tokenizer.chat_template = _text(settings.chat_template)
    depth_for = _depth_for(settings, routed)
    if depth_for is not None:
        depth_for(1.0)  # reads the file, so that one of another model or device is refused now
    rows = RowMaker(routed, tokenizer, max_tokens=settings.max_tokens, max_rows=settings.max_queue, depth_for=depth_for)
    load = LoadBudget(None if settings.guaranteed else routed.budget, settings.busy_budget, settings.busy_queue)
    limits = BatchLimits(settings.max_batch, settings.max_batch_tokens)
    batcher = Batcher(routed, load=load, limits=limits, max_queue=settings.max_queue)
    base = settings.base_model or routed.router.config.base_model
    name = settings.name or (Path(base).name if Path(base).is_dir() else base)
    return Service(name, rows, batcher, settings.request_timeout, settings.max_body_bytes, key)


def _depth_for(settings: ServeSettings, routed: RoutedModel) -> Callable[[float], float] | None:
    if settings.latency_profile is None:
        return None
    prints, dtype = routed.router.config.fingerprints, str(routed.dtype).removeprefix("torch.")
    path, kind = settings.latency_profile, routed.device.type
    return lambda factor: budget_for(path, factor, prints, kind, dtype)


def require_packages() -> None:
    """Refuse to go on without the packages of the extra `serve`.

    Raises:
        InputError: where one is not installed.
    """
    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"serve: expected {name}, got an installation without it: pip install 'cola-router[serve]'"
            )


def read_key() -> str | None:
    """Return the key that clients must send, from the environment; None: there is none.

    Raises:
        InputError: where it is empty, which would shut nobody out.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise InputError(f"{KEY_VARIABLE}: expected a key, or the variable unset, got an empty one")
    return None if key is None else key.strip()


def _only_here(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"chat_template: expected a text file, got {str(path)!r} ({error})") from error
