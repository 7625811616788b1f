"""`python -m router proxy`: the router before stock engines, each of which serves one exported chain.

A request goes to the backend of the chain that its prompt takes, and its answer comes back as it is, but for the
model's name and two headers, `x-cola-chain` and `x-cola-depth`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from router.chain import Chain
from router.decision import Router
from router.routed.commands import load_routed, said_of
from router.routed.hub import router_folder
from router.serving.answers import Events, event
from router.serving.backends import Backends, Patience, Told, Upstream, read_backends
from router.serving.choice import Choice, RouterChoice, StaticChoice
from router.serving.gate import Guard, check_model, guarded_app, read_body, unless_left
from router.serving.metrics import ProxyMetrics
from router.serving.protocol import ApiError, depth_asked, read_object
from router.serving.server import ListenSettings, Seconds, Served, budgets_for, serve, set_template
from router.storage import load_router
from router.validation import SETTINGS, InputError, Positive

CHAT = "chat/completions"
CHAIN_HEADER, DEPTH_HEADER = "x-cola-chain", "x-cola-depth"
SENT_ON = ("accept", "traceparent", "tracestate", "x-request-id")
"""Headers of a request that a backend gets; keys and cookies are not among them."""
KEPT_BACK = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "server",
        "set-cookie",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of an answer that speak of the backend's connection and not of the answer."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ProxySettings(ListenSettings):
    """Settings of `python -m router proxy`.

    Attributes:
        backends: YAML file that lists the backends.
        choose: router: the chain that the router picks for each prompt; static: always the same, no model is loaded.
        chain: the chain of `static`, such as 0-24,28-29.
        max_requests: most requests under way; more are refused with status 429.
        connect_timeout: longest wait for a connection to a backend, seconds.
        first_byte_timeout: longest wait for the first byte of a backend's answer, seconds; without streaming that is
            the whole generation.
        idle_timeout: longest wait between two parts of a streamed answer, seconds.
        retry_seconds: how long a backend that is down is left out before it is tried again.
    """

    backends: Path
    choose: Literal["router", "static"] = "router"
    chain: str | None = None
    max_requests: Positive = 1024
    connect_timeout: Seconds = 2.0
    first_byte_timeout: Seconds = 300.0
    idle_timeout: Seconds = 60.0
    request_timeout: Seconds = 600.0
    retry_seconds: Seconds = 10.0

    @model_validator(mode="after")
    def _chooses_one_way(self) -> ProxySettings:
        if (self.chain is not None) != (self.choose == "static"):
            raise ValueError(f"chain: expected one with choose=static alone, got {self.chain} with {self.choose}")
        wishes = ("budget", "guaranteed", "latency_factor")
        if self.choose == "static" and (given := [name for name in wishes if getattr(self, name)]):
            raise ValueError(f"{given[0]}: expected none with choose=static, got {getattr(self, given[0])}")
        return self


@dataclasses.dataclass(frozen=True)
class Proxy:
    """What the application serves.

    Attributes:
        guard: what the gate asks for, and the model's name.
        backends: where requests go.
        choice: picks the chain.
        max_requests: most requests under way.
        metrics: what is counted of them.
    """

    guard: Guard
    backends: Backends
    choice: Choice
    max_requests: int
    metrics: ProxyMetrics


def main(argv: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: at bad input, or a port in use.
    """
    serve("proxy", "Route requests to engines of which each serves one exported chain.", ProxySettings, argv, _made)


def _made(settings: ProxySettings, key: str | None) -> Served:
    proxy, told = make_proxy(settings, key)
    return Served(proxy.guard.name, told, make_app(proxy), proxy.backends.close)


def make_proxy(settings: ProxySettings, key: str | None) -> tuple[Proxy, str]:
    """Return what the application serves, and in words how it chooses.

    Raises:
        InputError: where router or backends cannot be loaded, or the settings do not fit them.
    """
    router = load_router(router_folder(settings.router, revision=settings.router_revision))
    config = router.config
    listed = read_backends(settings.backends, config.num_layers, config.read_layer)
    served = [one.chain for one in listed]
    choice: Choice
    if settings.chain is not None:
        choice = StaticChoice(_static(settings.chain, served, config.num_layers))
        told = f"always chain {choice.chain}"
    else:
        choice, told = _routed(settings, served)
    patience = Patience(
        settings.connect_timeout, settings.first_byte_timeout, settings.idle_timeout, settings.retry_seconds
    )
    guard = settings.guard(config.base_model, key)
    metrics = ProxyMetrics(listed, config.num_layers)
    proxy = Proxy(guard, Backends(listed, patience), choice, settings.max_requests, metrics)
    return proxy, f"{told}; backends: {len(served)}{_of_menu(router, served)}"


def _static(text: str, served: Sequence[Chain], num_layers: int) -> Chain:
    try:
        chain = Chain.parse(text, num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error
    if chain not in served:
        raise InputError(f"chain: expected one that has a backend ({'; '.join(map(str, served))}), got {chain}")
    return chain


def _routed(settings: ProxySettings, served: Sequence[Chain]) -> tuple[RouterChoice, str]:
    routed = load_routed(settings)
    set_template(routed, settings.chat_template)
    choice = RouterChoice(routed, served, settings.batch_limits, budgets_for(settings, routed))
    return choice, said_of(routed.router, routed.operation)


def _of_menu(router: Router, served: Sequence[Chain]) -> str:
    """Return in words how many chains of a router's menu have a backend."""
    menu = getattr(router.head, "chains", None)
    return "" if menu is None else f", for {len(set(menu) & set(served))} of the menu's {len(menu)} chains"


def make_app(proxy: Proxy) -> FastAPI:
    """Return the application; what reads prompts starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(proxy.backends.disconnect)
            if isinstance(proxy.choice, RouterChoice):
                await stack.enter_async_context(proxy.choice.running())
            yield

    app = guarded_app(proxy.guard, _Routes(proxy), lifespan)
    proxy.metrics.add_to(app)
    return app


class _Routes:
    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self._running = proxy, 0

    async def completions(self, request: Request) -> Response:
        return await self._pass_on(request, "completions")

    async def chat(self, request: Request) -> Response:
        return await self._pass_on(request, CHAT)

    async def health(self) -> Response:
        """Say which backends are up; without full depth's the proxy cannot serve."""
        backends = self._proxy.backends
        await backends.look()
        up = backends.full.up
        listed = [
            {"chain": str(one.chain), "depth": one.chain.depth, "model": one.model, "up": one.up}
            for one in backends.all
        ]
        said = {"status": "ok" if up else "down", "ready": up, "running": self._running, "backends": listed}
        return JSONResponse(said, 200 if up else 503)

    async def _pass_on(self, request: Request, path: str) -> Response:
        began = asyncio.get_running_loop().time()
        asked = await read_body(request, read_object)
        check_model(self._proxy.guard.name, asked.get("model"))
        headers = {name: value for name, value in request.headers.raw if name.decode("latin-1") in SENT_ON}
        async with AsyncExitStack() as stack:
            stack.enter_context(self._counted())
            answer, whole = await unless_left(request, self._answer(asked, path, headers, began, stack))
            answer.response.headers.encoding = "latin-1"  # as it is sent on
            told = {name: value for name, value in answer.response.headers.items() if name not in KEPT_BACK}
            told |= {CHAIN_HEADER: str(answer.chain), DEPTH_HEADER: str(answer.chain.depth)}
            status = answer.response.status_code
            if whole is not None:
                return Response(whole, status, told)
            return Events(renamed_events(answer, self._proxy.guard.name), stack.pop_all(), status, told)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._running >= self._proxy.max_requests:
            message = f"too many requests: expected at most {self._proxy.max_requests} under way, try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        self._running += 1
        try:
            with self._proxy.metrics.running.track_inprogress():
                yield
        finally:
            self._running -= 1

    async def _answer(
        self, asked: dict[str, Any], path: str, headers: dict[bytes, bytes], began: float, stack: AsyncExitStack
    ) -> tuple[Upstream, bytes | None]:
        """Return the backend's answer, and its body where it is no stream; `stack` closes it."""
        backends, metrics = self._proxy.backends, self._proxy.metrics
        deadline = began + self._proxy.guard.request_timeout
        depth, body = depth_asked(asked)
        picked = await backends.until(deadline, self._proxy.choice.pick(body, depth, chat=path == CHAT))
        answer = await backends.open(picked.chain, path, body, headers, deadline, one_token=picked.one_token)
        stack.push_async_callback(answer.close)
        stack.callback(metrics.observe, answer, picked)
        if answer.response.headers.get("content-type", "").startswith("text/event-stream"):
            metrics.first_token.observe(asyncio.get_running_loop().time() - began)
            return answer, None
        return answer, renamed(b"".join([part async for part in answer.parts()]), self._proxy.guard.name, answer.told)


def renamed(text: bytes, name: str, told: Told) -> bytes:
    """Return an object's JSON with the model's name replaced, and note what it tells; anything else as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(value, dict) or "model" not in value:
        return text
    told.note(value)
    return json.dumps(value | {"model": name}).encode("ascii")


async def renamed_events(answer: Upstream, name: str) -> AsyncIterator[bytes]:
    """Yield a stream's events as they come, with the model's name replaced; an error in mid-stream is the last one."""
    rest = b""
    try:
        async for part in answer.parts():
            *lines, rest = (rest + part).split(b"\n")
            if lines:
                yield b"".join(_renamed_line(line, name, answer.told) + b"\n" for line in lines)
        if rest:
            yield _renamed_line(rest, name, answer.told)
    except ApiError as error:
        yield b"\n" + event(error.body)  # the line ends an event that broke off


def _renamed_line(line: bytes, name: str, told: Told) -> bytes:
    field, _, value = line.partition(b":")
    if field != b"data" or b'"model"' not in value:
        return line
    ending = b"\r" if line.endswith(b"\r") else b""
    return b"data: " + renamed(value.strip(), name, told) + ending
