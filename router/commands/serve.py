"""Serve a routed model to OpenAI's clients."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from router.command import InputError, first_word, parse_settings
from router.latency_file import budget_for
from router.routed import RoutedModel
from router.routed.settings import RoutedSettings, load_routed

if TYPE_CHECKING:
    from router.serving.app import Service

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
    from router.serving.app import Service
    from router.serving.batcher import Batcher
    from router.serving.load import LoadBudget
    from router.serving.planning import BatchLimits
    from router.serving.prompts import RowMaker

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
