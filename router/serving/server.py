"""`python -m router serve`: the application on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import uvicorn
from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from starlette.types import ASGIApp

from router.command import first_word, parse_settings
from router.routed import RoutedModel
from router.routed.commands import RoutedSettings, depth_for, load_routed, said_of
from router.serving.app import RowMaker, Service, make_app
from router.serving.batcher import LOGGER, Batcher, BatchLimits, LoadBudget
from router.serving.connection import connections_of
from router.serving.metrics import Metrics
from router.serving.page import Page
from router.validation import SETTINGS, InputError, Positive, explain

KEY_VARIABLE = "COLA_ROUTER_API_KEY"
"""Environment variable of the key that clients must send; unset: none."""
MAX_TIMEOUT = 86400.0
"""Longest time limits, seconds: a day."""
BACKSTOP_SECONDS = 5
"""Beyond the time that running requests have to end when the server stops: then connections are cut."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket of that address of this machine, on which a server listens later; port 0: any free one.

    Raises:
        InputError: where the address is not this machine's, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
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


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Return whether a request is logged: those of an open page, one each two seconds, are not."""
    return '"GET /status HTTP/1.1" 200' not in record.getMessage()


def _logs() -> dict[str, Any]:
    """Return uvicorn's logging with all of it on stderr: stdout says where the server is and nothing else."""
    logs: dict[str, Any] = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["filters"] = {"page": {"()": lambda: _worth_a_line}}
    logs["handlers"]["access"]["filters"] = ["page"]
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"
    logs["loggers"][LOGGER] = {"handlers": ["default"], "level": "INFO"}
    return logs


class Closes(Protocol):
    """What a server tells to give up its running requests."""

    def close(self) -> None:
        """Take no more requests, and fail those that run."""


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT: then takes no more requests, and gives those that run some time to end."""

    def __init__(
        self,
        app: ASGIApp,
        batcher: Closes,
        *,
        shutdown_seconds: float,
        client_seconds: float,
        ready: Callable[[], None] = lambda: None,
        log_level: str = "info",
    ) -> None:
        """Prepare.

        Args:
            app: the application.
            batcher: what works for it, closed once their time is up.
            shutdown_seconds: how long running requests may take to end; then they are answered with an error.
            client_seconds: how long the server waits for a client.
            ready: called once requests are taken.
            log_level: what uvicorn logs; bodies and headers are in no level's lines.
        """
        cut = int(shutdown_seconds) + BACKSTOP_SECONDS
        config = uvicorn.Config(
            app,
            http=connections_of(client_seconds),
            ws="none",
            lifespan="on",
            log_level=log_level,
            log_config=_logs(),
            timeout_graceful_shutdown=cut,
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


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
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
        client_timeout: longest wait for a client, seconds: for a request's headers, for its body, for an answer to be
            read.
        shutdown_timeout: how long running requests may take to end when the server is told to stop, seconds.
        page: serve a page for people at `/`, and its data at `/status`.
    """

    busy_budget: float | None = None
    busy_queue: Positive = 32
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    name: str | None = None
    chat_template: Path | None = None
    max_batch: Positive = 16
    max_batch_tokens: Positive = 16384
    max_tokens: Positive = 1024
    max_queue: Positive = 256
    max_body_bytes: Positive = 2**20
    request_timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] = 300.0
    client_timeout: Annotated[float, Field(gt=0, le=MAX_TIMEOUT)] = 30.0
    shutdown_timeout: Annotated[float, Field(ge=0, le=MAX_TIMEOUT)] = 30.0
    page: bool = True

    @model_validator(mode="after")
    def _falls_from_a_budget(self) -> ServeSettings:
        if self.busy_budget is not None and self.budget is None and self.latency_factor is None:
            raise ValueError("busy_budget: expected a budget or latency_factor beside it, got none")
        return self


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: at bad input, or a port in use.
    """
    description = "Serve a routed model to OpenAI's clients."
    settings, _ = parse_settings(ServeSettings, first_word(argv, "router"), "router serve", description)
    key = read_key()
    with bind(settings.host, settings.port) as bound:  # before the model is loaded, which takes time
        warn_if_open(settings.host, bound, key)
        routed = load_routed(settings)
        run(settings, routed, bound, key)


def run(settings: ServeSettings, routed: RoutedModel, bound: socket.socket, key: str | None) -> None:
    """Serve a routed model on a socket until SIGTERM or SIGINT.

    Raises:
        InputError: where settings do not fit the model.
    """
    try:
        service = make_service(settings, routed, key)
    except ValueError as error:
        raise InputError(explain(error) if isinstance(error, ValidationError) else str(error)) from error

    depth = said_of(routed.router, routed.operation)
    told = f"serving {service.name} at {url_of(bound)}/v1 ({depth})"
    serve_on(bound, make_app(service), service.batcher, told, settings.shutdown_timeout, settings.client_timeout)


def serve_on(
    bound: socket.socket, app: ASGIApp, worker: Closes, told: str, shutdown_seconds: float, client_seconds: float
) -> None:
    """Serve an application on a socket until SIGTERM or SIGINT.

    Args:
        bound: the socket.
        app: the application.
        worker: what works for it.
        told: printed once requests are taken.
        shutdown_seconds: as of `Server`, as the next.
        client_seconds: how long the server waits for a client.
    """

    def ready() -> None:
        print(told, flush=True)

    server = Server(app, worker, shutdown_seconds=shutdown_seconds, client_seconds=client_seconds, ready=ready)
    server.run(sockets=[bound])


def make_service(settings: ServeSettings, routed: RoutedModel, key: str | None) -> Service:
    """Return what the application serves.

    Raises:
        ValueError: where settings do not fit the model.
    """
    if settings.chat_template is not None:
        assert routed.tokenizer is not None
        routed.tokenizer.chat_template = read_template(settings.chat_template)
    find_depth = None
    if settings.latency_profile is not None:
        find_depth = depth_for(settings.latency_profile, routed)
        find_depth(1.0)  # reads the file, so that one of another model or device is refused now
    rows = RowMaker(
        routed,
        max_tokens=settings.max_tokens,
        max_rows=settings.max_queue,
        allow_loss=settings.allow_loss,
        depth_for=find_depth,
    )
    if settings.busy_budget is not None:
        routed.router.require_accuracy(settings.busy_budget, settings.allow_loss)
    load = LoadBudget(routed.budget, settings.busy_budget, settings.busy_queue)
    limits = BatchLimits(settings.max_batch, settings.max_batch_tokens)
    batcher = Batcher(routed, load=load, limits=limits, max_queue=settings.max_queue)
    name = settings.name or name_for(settings.model or routed.router.config.base_model)
    page = None
    if settings.page:
        page = Page(name, routed, batcher, max_tokens=settings.max_tokens, allow_loss=settings.allow_loss)
    metrics = Metrics(batcher, routed.router.config.num_layers)
    return Service(
        name,
        rows,
        batcher,
        metrics,
        settings.request_timeout,
        settings.client_timeout,
        settings.max_body_bytes,
        key,
        page,
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


def warn_if_open(host: str, bound: socket.socket, key: str | None) -> None:
    """Say on stderr that other machines reach a server that asks for no key."""
    if key is None and not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
        told = f"warning: {host} can be reached from elsewhere, and there is no key; set {KEY_VARIABLE}"
        print(told, file=sys.stderr, flush=True)


def name_for(base: str) -> str:
    """Return the name under which clients know a base model where no other is set."""
    return Path(base).name if Path(base).is_dir() else base


def read_template(path: Path) -> str:
    """Return a chat template's text.

    Raises:
        InputError: where it is no text file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"chat_template: expected a text file, got {str(path)!r} ({error})") from error
