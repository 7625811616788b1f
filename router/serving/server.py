"""`python -m router serve`, and what the proxy shares: an application on a socket, until it is told to stop."""

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
from typing import Annotated, Any, NamedTuple, TypeVar

import uvicorn
from jinja2 import TemplateError, TemplateSyntaxError
from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from starlette.types import ASGIApp

from router.command import first_word, parse_settings
from router.engine.load import chat_tokens
from router.routed import RoutedModel
from router.routed.commands import RoutedSettings, depth_for, load_routed, said_of
from router.serving.app import RowMaker, Service, make_app
from router.serving.batcher import LOGGER, Batcher, BatchLimits, LoadBudget
from router.serving.connection import connections_of
from router.serving.gate import Guard
from router.serving.metrics import RowMetrics
from router.serving.page import Page
from router.serving.protocol import Budgets
from router.validation import SETTINGS, InputError, Positive, explain

KEY_VARIABLE = "COLA_ROUTER_API_KEY"
"""Environment variable of the key that clients must send; unset: none."""
MAX_TIMEOUT = 86400.0
"""Longest time limits, seconds: a day."""
Seconds = Annotated[float, Field(gt=0, le=MAX_TIMEOUT)]
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
        raise _taken(host, port, error) from error
    return bound


def _taken(host: str, port: int, error: OSError) -> InputError:
    return InputError(f"port: expected a free one at {host}, got {port} ({error.strerror})")


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


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT: then takes no more requests, and gives those that run some time to end."""

    def __init__(
        self,
        app: ASGIApp,
        close: Callable[[], object],
        *,
        shutdown_seconds: float,
        client_seconds: float,
        ready: Callable[[], None] = lambda: None,
        log_level: str = "info",
    ) -> None:
        """Prepare.

        Args:
            app: the application.
            close: lets it take no more requests and fail those that run; called once their time is up.
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
        self._close, self._seconds, self._ready = close, shutdown_seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, and wait for those that run, but not for ever."""
        timer = asyncio.get_running_loop().call_later(self._seconds, self._close)
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
class ListenSettings(RoutedSettings):
    """What server and proxy both want to know. A key for clients is taken from the environment: COLA_ROUTER_API_KEY.

    Attributes:
        host: address to listen at; other machines reach 0.0.0.0 or this machine's own.
        port: port; 0: any free one, which is printed.
        name: the model's name for clients; unset: the base model's, of a directory its last part.
        chat_template: Jinja file in place of the tokenizer's chat template; a proxy's backends need the same one.
        max_batch: most prompts that are read together, and in a server most choices that generate together.
        max_batch_tokens: most tokens of the prompts read together, padding included.
        max_body_bytes: largest body of a request.
        request_timeout: longest that a request may take, seconds.
        client_timeout: longest wait for a client, seconds: for a request's headers, for its body, for an answer to be
            read.
        shutdown_timeout: how long running requests may take to end when the server is told to stop, seconds.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    name: str | None = None
    chat_template: Path | None = None
    max_batch: Positive = 32
    max_batch_tokens: Positive = 16384
    max_body_bytes: Positive = 2**20
    request_timeout: Seconds = 300.0
    client_timeout: Seconds = 30.0
    shutdown_timeout: Annotated[float, Field(ge=0, le=MAX_TIMEOUT)] = 30.0

    @property
    def batch_limits(self) -> BatchLimits:
        """How many prompts are read together."""
        return BatchLimits(self.max_batch, self.max_batch_tokens)

    def guard(self, base_model: str, key: str | None) -> Guard:
        """Return what the gate asks for.

        Args:
            base_model: the base model that the router names.
            key: what clients must send; None: nothing.
        """
        base = self.model or base_model
        name = self.name or (os.path.basename(os.path.abspath(base)) if Path(base).is_dir() else base)
        return Guard(name, self.request_timeout, self.client_timeout, self.max_body_bytes, key)


ListensT = TypeVar("ListensT", bound=ListenSettings)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ServeSettings(ListenSettings):
    """Settings of `python -m router serve`.

    Attributes:
        busy_budget: mean depth under load, layers; needs a budget, from which it falls as requests queue up.
        busy_queue: waiting choices at which busy_budget is reached.
        max_tokens: most tokens that a request may generate for a choice.
        max_queue: most choices that wait; more are refused with status 429.
        page: serve a page for people at `/`, and its data at `/status`.
    """

    busy_budget: float | None = None
    busy_queue: Positive = 32
    max_tokens: Positive = 1024
    max_queue: Positive = 256
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
    serve("serve", "Serve a routed model to OpenAI's clients.", ServeSettings, argv, _made)


def _made(settings: ServeSettings, key: str | None) -> Served:
    routed = load_routed(settings)
    try:
        service = make_service(settings, routed, key)
    except ValueError as error:
        raise InputError(explain(error) if isinstance(error, ValidationError) else str(error)) from error
    told = said_of(routed.router, routed.operation)
    return Served(service.guard.name, told, make_app(service), service.batcher.close)


class Served(NamedTuple):
    """What is served under which name, what closes it, and in words how much depth it spends."""

    name: str
    told: str
    app: ASGIApp
    close: Callable[[], object]


def serve(
    command: str,
    description: str,
    kind: type[ListensT],
    argv: Sequence[str],
    make: Callable[[ListensT, str | None], Served],
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        command: its name behind `python -m router`.
        description: what it does.
        kind: its settings.
        argv: the words behind its name.
        make: returns what is served, of settings and what clients must send; None: nothing.

    Raises:
        InputError: at bad settings, an address that cannot be listened at, an empty key, or as `make` does.
    """
    settings, _ = parse_settings(kind, first_word(argv, "router"), f"router {command}", description)
    key = read_key()
    with bind(settings.host, settings.port) as bound:  # before a model is loaded, which takes time
        warn_if_open(settings.host, bound, key)
        made = make(settings, key)

        def ready() -> None:
            print(f"serving {made.name} at {url_of(bound)}/v1 ({made.told})", flush=True)

        server = Server(
            made.app,
            made.close,
            shutdown_seconds=settings.shutdown_timeout,
            client_seconds=settings.client_timeout,
            ready=ready,
        )
        try:
            bound.listen()
        except OSError as error:  # another process bound it at the same time, and was faster
            raise _taken(settings.host, settings.port, error) from error
        server.run(sockets=[bound])


def make_service(settings: ServeSettings, routed: RoutedModel, key: str | None) -> Service:
    """Return what the application serves.

    Raises:
        ValueError: where settings do not fit the model.
    """
    set_template(routed, settings.chat_template)
    budgets = budgets_for(settings, routed)
    rows = RowMaker(routed, max_tokens=settings.max_tokens, max_rows=settings.max_queue, budgets=budgets)
    if settings.busy_budget is not None:
        routed.router.require_accuracy(settings.busy_budget, settings.allow_loss)
    load = LoadBudget(routed.budget, settings.busy_budget, settings.busy_queue)
    batcher = Batcher(routed, load=load, limits=settings.batch_limits, max_queue=settings.max_queue)
    guard = settings.guard(routed.router.config.base_model, key)
    page = None
    if settings.page:
        page = Page(guard.name, routed, batcher, max_tokens=settings.max_tokens, allow_loss=settings.allow_loss)
    metrics = RowMetrics(batcher, routed.router.config.num_layers)
    return Service(guard, rows, batcher, metrics, page)


def budgets_for(settings: ListenSettings, routed: RoutedModel) -> Budgets:
    """Return which mean depths requests may ask for.

    Raises:
        InputError: where the latency profile is none, or is of another model or device.
    """
    find_depth = None
    if settings.latency_profile is not None:
        find_depth = depth_for(settings.latency_profile, routed)
        find_depth(1.0)  # a profile in which time does not grow with depth is refused now
    return Budgets(routed.router, settings.allow_loss, find_depth)


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


def set_template(routed: RoutedModel, path: Path | None) -> None:
    """Give a routed model's tokenizer the chat template of a file; None: it keeps its own.

    Raises:
        InputError: where it is no text file, or no template.
    """
    if path is None:
        return
    assert routed.tokenizer is not None
    try:
        routed.tokenizer.chat_template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"chat_template: expected a text file, got {str(path)!r} ({error})") from error
    try:
        chat_tokens(routed.tokenizer, [{"role": "user", "content": "?"}])
    except TemplateSyntaxError as error:
        raise InputError(f"chat_template: expected Jinja, got an error in {path}: {error}") from error
    except (TemplateError, TypeError, ValueError):
        return  # it may take other chats
