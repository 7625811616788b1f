"""The backends of a proxy: which chain each serves, whether it is up, and a request's way to one of them.

A file lists them:

    - {chain: "0-29", url: "http://127.0.0.1:8001/v1", model: full}
    - {chain: "0-24,28-29", url: "http://127.0.0.1:8002/v1", model: short, key_variable: SHORT_KEY}

The backend of the full chain stands in for any that is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pydantic.dataclasses
from pydantic import BaseModel, Field, ValidationError

from router.chain import Chain
from router.files import require_file
from router.serving.protocol import ApiError, bad
from router.validation import SETTINGS, Count, InputError, adapter, explain, parse_yaml, shown

log = logging.getLogger("router.serving")

KEEP_SECONDS = 2.0
"""How long an unused connection is kept: well below what servers do (uvicorn: 5), since a busy loop notices late."""
UNAVAILABLE = frozenset({502, 503, 504})
"""Statuses that say that a backend is down; any other of 500 and above may be the one request's fault."""
Result = TypeVar("Result")


@pydantic.dataclasses.dataclass(frozen=True, config=SETTINGS)
class BackendEntry:
    """A backend, as the file has it.

    Attributes:
        chain: the chain that it serves, in text form.
        url: where, with the path before `/chat/completions`.
        model: the chain's name there.
        key_variable: environment variable with the key that it asks for; null: it asks for none.
    """

    chain: str
    url: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+[^?#@\s]*$")]
    model: Annotated[str, Field(min_length=1)]
    key_variable: Annotated[str, Field(min_length=1)] | None = None


@dataclass(eq=False)
class Backend:
    """A backend, and what is known of it.

    Attributes:
        chain: the chain that it serves.
        url: where, without a slash at the end.
        model: the chain's name there.
        key: what it asks for; None: nothing.
        up: whether it answered when it was last asked.
        asked: when that was, in seconds of the monotonic clock.
        failures: answers that failed, broke off or came too late.
    """

    chain: Chain
    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    up: bool = True
    asked: float = -float("inf")
    failures: int = 0

    @property
    def authorization(self) -> dict[bytes, bytes]:
        """The header with its key, in the bytes of the environment; none where it asks for none."""
        return {} if self.key is None else {b"authorization": b"Bearer " + os.fsencode(self.key)}

    def note(self, up: bool) -> None:
        """Note whether it answered."""
        if up != self.up:
            log.warning("the backend of chain %s is %s", self.chain, "up again" if up else "down")
        self.up, self.asked = up, time.monotonic()


def read_backends(path: Path, num_layers: int, read_layer: int) -> list[Backend]:
    """Read the file of backends.

    Args:
        path: the file.
        num_layers: layers of the base model.
        read_layer: layers that the router reads, with which every chain begins.

    Raises:
        InputError: where it is no such file, a chain stands twice or does not fit the router, none is the full one, two
            chains have one address and name, or a key's variable is not set.
    """
    try:
        listed = parse_yaml(require_file(path, "backends").read_text(encoding="utf-8"), f"backends: {path}")
    except UnicodeDecodeError as error:
        raise InputError(f"backends: expected text in UTF-8 in {path}, got {error.reason}") from error
    if not isinstance(listed, list) or not listed:
        raise InputError(f"backends: expected a list of backends in {path}, got {shown(listed)}")
    found: list[Backend] = []
    for number, value in enumerate(listed, 1):
        where = f"backends: {path}, entry {number}"
        try:
            backend = _backend(value, num_layers, read_layer)
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error)}") from error
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        for other in found:
            if other.chain == backend.chain:
                raise InputError(f"{where}: expected each chain once, got {backend.chain} twice")
            if (other.url, other.model) == (backend.url, backend.model):
                raise InputError(
                    f"{where}: expected another url or model for another chain, got those of {other.chain}"
                )
        found.append(backend)
    if not any(one.chain.is_full for one in found):
        raise InputError(f"backends: expected one of the full chain, {Chain.full(num_layers)}, in {path}, got none")
    return found


def _backend(value: object, num_layers: int, read_layer: int) -> Backend:
    entry: BackendEntry = adapter(BackendEntry).validate_python(value)
    chain = Chain.parse(entry.chain, num_layers)
    if chain.layers[:read_layer] != tuple(range(read_layer)):
        raise ValueError(f"chain: expected one that begins with the first {read_layer} layers, got {chain}")
    try:
        httpx.URL(entry.url)
        urlsplit(entry.url).port  # noqa: B018 - reading it refuses one that is none
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"url: expected one like http://127.0.0.1:8001/v1, got {entry.url!r} ({error})") from error
    key = None
    if entry.key_variable is not None:
        key = os.environ.get(entry.key_variable, "").strip()
        if not key:
            raise ValueError(f"key_variable: expected a key in {entry.key_variable}, got none")
    return Backend(chain, entry.url.rstrip("/"), entry.model, key)


@dataclass(frozen=True)
class Patience:
    """How long is waited for a backend, seconds.

    Attributes:
        connect: for a connection.
        first_byte: for the first byte of an answer.
        idle: for each further one.
        retry: for a backend that is down to be tried again.
    """

    connect: float
    first_byte: float
    idle: float
    retry: float


class Backends:
    """All backends of a proxy, and the connections to them; used in one event loop."""

    def __init__(self, backends: Sequence[Backend], patience: Patience) -> None:
        """Prepare; nothing is connected before the first request."""
        self.all, self._patience = tuple(backends), patience
        self._of = {one.chain: one for one in backends}
        self.full = next(one for one in backends if one.chain.is_full)
        self._limits: set[asyncio.Timeout] = set()
        self._closed = False
        # Proxies and .netrc of the environment are not asked: they would see prompts, or add keys.
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=patience.connect),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_SECONDS),
            verify=ssl.create_default_context(),
            trust_env=False,
        )

    def close(self) -> None:
        """Take no more requests, and fail those that run."""
        self._closed = True
        for limit in self._limits:
            with contextlib.suppress(RuntimeError):  # it runs out in this moment
                limit.reschedule(0.0)

    async def disconnect(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def open(
        self,
        chain: Chain,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        deadline: float,
        *,
        one_token: bool = False,
    ) -> Upstream:
        """Send a request to a chain's backend, or where that is down to full depth's.

        Args:
            chain: a chain that has a backend.
            path: the route, such as `chat/completions`.
            body: what the client has sent; the model's name is replaced.
            headers: headers that go along.
            deadline: when the request is given up, in seconds of the event loop's clock.
            one_token: whether the chain's own backend is to generate one token; full depth's writes on.

        Returns:
            The answer, whose first byte has come.

        Raises:
            ApiError: 400 where a number of the body is too large, 502 where full depth's backend is down, 504 where an
                answer takes too long.
        """
        chosen = self._of[chain]
        if chosen is not self.full and self._may_try(chosen):
            with contextlib.suppress(_DownError):
                own = of_one_token(body) if one_token else body
                return await self._ask(chosen, path, own, headers, deadline)
        try:
            # Nothing stands in for full depth, so it is tried even where it was down a moment ago.
            return await self._ask(self.full, path, body, headers, deadline)
        except _DownError as error:
            raise ApiError(502, f"the backend of full depth is down: {error}", code="backend_down") from None

    def _may_try(self, backend: Backend) -> bool:
        """Whether a backend is up, or one request may find out whether it is up again."""
        if backend.up:
            return True
        if time.monotonic() - backend.asked < self._patience.retry:
            return False
        backend.asked = time.monotonic()  # meanwhile the others go elsewhere
        return True

    async def _ask(
        self, backend: Backend, path: str, body: Mapping[str, Any], headers: Mapping[bytes, bytes], deadline: float
    ) -> Upstream:
        own = {**headers, **backend.authorization, b"accept-encoding": b"identity"}
        try:
            request = self._client.build_request(
                "POST", f"{backend.url}/{path}", json={**body, "model": backend.model}, headers=own
            )
        except ValueError:  # 1e999 is JSON, but infinity is not
            raise bad("body", "finite numbers", float("inf")) from None
        loop = asyncio.get_running_loop()
        first_byte = min(deadline, loop.time() + self._patience.first_byte)
        response: httpx.Response | None = None
        try:
            response = await self.until(first_byte, self._client.send(request, stream=True))
            if response.status_code >= 500:
                raise _DownError(f"it answered with status {response.status_code}")
            parts = response.aiter_bytes()
            first = await self.until(first_byte, anext(parts, b""))
        except BaseException as error:
            if response is not None:
                await response.aclose()
            if isinstance(error, httpx.RequestError):
                error = _DownError(f"{type(error).__name__}")
            if isinstance(error, _DownError):
                if response is None or response.status_code in UNAVAILABLE or response.is_success:
                    backend.note(False)
                log.warning("chain %s, %s: the backend failed: %s", backend.chain, path, error)
            backend.failures += isinstance(error, _DownError) or _late(error)
            raise error
        backend.note(True)
        return Upstream(self, backend, response, first, parts, self._patience.idle, deadline)

    async def until(self, when: float, work: Awaitable[Result]) -> Result:
        """Return what work returns, given up at a time of the event loop's clock.

        Raises:
            ApiError: 504 where time is up, 503 where the server stops.
        """
        limit = asyncio.timeout_at(0.0 if self._closed else when)
        try:
            async with limit:
                self._limits.add(limit)
                return await work
        except TimeoutError:
            if self._closed:
                message = "the server stops"
                raise ApiError(503, message, code="stopping", headers={"Retry-After": "10"}) from None
            raise ApiError(504, "the backend took too long", code="timeout") from None
        finally:
            self._limits.discard(limit)

    async def look(self) -> None:
        """Ask those backends whether they are up that nobody has asked for some time."""
        now = time.monotonic()
        due = [one for one in self.all if now - one.asked >= self._patience.retry]
        for one in due:
            one.asked = now
        await asyncio.gather(*map(self._look_at, due))

    async def _look_at(self, backend: Backend) -> None:
        url, patience = f"{backend.url}/models", self._patience.connect
        try:
            found = await self._client.get(url, headers=backend.authorization, timeout=patience)
            backend.note(found.status_code < 500)
        except httpx.ReadTimeout:
            return  # slow, not down
        except httpx.RequestError:
            backend.note(False)


def _late(error: BaseException) -> bool:
    return isinstance(error, ApiError) and error.status == 504


class _DownError(Exception):
    """A backend did not answer, or said that it cannot, before the first byte of its answer."""


class _Numbered(BaseModel):
    index: Count


class _Usage(BaseModel):
    prompt_tokens: Count
    completion_tokens: Count


class _Part(BaseModel):
    choices: list[_Numbered]
    usage: _Usage | None = None


@dataclass
class Told:
    """What the parts of an answer have told so far.

    Attributes:
        choices: numbers of its choices.
        prompt_tokens: tokens of its prompts, and with the next all that it generated; 0: not told.
        generated_tokens: tokens generated.
    """

    choices: set[int] = field(default_factory=set)
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def note(self, value: dict[str, Any]) -> None:
        """Note what a part tells, the whole answer or an event's data; one of another form tells nothing."""
        try:
            part = _Part.model_validate(value)
        except ValidationError:
            return
        self.choices |= {one.index for one in part.choices}
        if part.usage is not None:
            self.prompt_tokens, self.generated_tokens = part.usage.prompt_tokens, part.usage.completion_tokens


def of_one_token(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body that asks for one token at most; engines' own `min_tokens` would contradict it.

    What is no number of tokens stays, for the backend to refuse.
    """
    kept = {name: value for name, value in body.items() if name != "min_tokens"}
    limits = {"max_tokens", *(kept.keys() & {"max_completion_tokens"})}
    more = {name for name in limits if kept.get(name) is None or (isinstance(kept[name], int) and kept[name] > 1)}
    return kept | dict.fromkeys(more, 1)


class Upstream:
    """A backend's answer, from its first byte on.

    Attributes:
        chain: the chain that the backend serves.
        response: status and headers.
        told: what those parts have told that were read.
    """

    def __init__(
        self,
        backends: Backends,
        backend: Backend,
        response: httpx.Response,
        first: bytes,
        parts: AsyncIterator[bytes],
        idle: float,
        deadline: float,
    ) -> None:
        """Go on behind the first part; `idle`: longest wait for each further one, seconds."""
        self.chain, self.response, self.told = backend.chain, response, Told()
        self._backend = backend
        self._backends, self._first, self._parts, self._idle, self._deadline = backends, first, parts, idle, deadline

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            ApiError: 502 where the connection is lost, 503 where the server stops, 504 where the next part takes too
                long.
        """
        loop, part = asyncio.get_running_loop(), self._first
        while part:
            yield part
            try:
                part = await self._backends.until(
                    min(self._deadline, loop.time() + self._idle), anext(self._parts, b"")
                )
            except ApiError as error:
                self._backend.failures += _late(error)
                raise
            except (httpx.RequestError, httpx.StreamError):
                self._backend.failures += 1
                raise ApiError(502, "the backend broke off its answer", code="backend_lost") from None

    async def close(self) -> None:
        """Give the answer up, so that the backend stops; one that has ended leaves its connection to others."""
        await self.response.aclose()
