"""What clients may ask: the bodies of OpenAI's completions and chat completions, checked strictly.

Two fields are ours: `budget` (mean depth, layers) and `latency_factor` (time in units of full depth's). What the server
does not do (penalties, log-probabilities, tools) is refused unless it is asked to do nothing; so is an unknown field.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from router.serving.batcher import Batcher, Piece, Row

MAX_CHOICES = 128
"""Choices of one prompt, as in OpenAI's interface."""
MAX_STOPS, MAX_STOP_LENGTH = 4, 256
"""Stop strings of a request, and characters of each."""


def _only(*neutral: Any) -> Any:
    """Return the type of a field that is known but must ask for nothing."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in neutral):
            raise ValueError(f"expected {neutral[0]!r}, since this server does nothing else, got {shown(value)}")
        return value

    return Annotated[Any, AfterValidator(check)]


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """Return a list of prompts, of whichever of four forms OpenAI's interface allows."""
    items: list[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if items and all(isinstance(item, str) for item in items):
        return items
    if items and all(type(item) is int for item in items):
        return [items]
    if items and all(isinstance(item, list) and all(type(token) is int for token in item) for item in items):
        return items
    raise ValueError(f"expected a text, token ids, or a list of either, got {shown(value)}")


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_LENGTH for stop in stops)
    ):
        raise ValueError(
            f"expected a text, or up to {MAX_STOPS}, of 1 to {MAX_STOP_LENGTH} characters each, got {shown(value)}"
        )
    return stops


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)  # type: ignore[arg-type]
    raise ValueError(f"expected a text, or parts of type text, got {shown(value)}")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Strict):
    """How to stream.

    Attributes:
        include_usage: whether a last chunk counts tokens.
    """

    include_usage: bool = False


class Asked(_Strict):
    """What completions and chat completions share; None: not given.

    Attributes:
        model: the served model's name.
        max_tokens: most tokens to generate for a choice.
        temperature: 0: always the likeliest token.
        top_p: draw from the likeliest tokens whose probabilities add up to this.
        seed: the same seed gives the same choices, whoever shares the batch.
        stop: texts that end a choice, which does not contain them.
        n: choices for each prompt.
        stream: send text as it comes, as server-sent events.
        stream_options: see there.
        user: ignored.
        budget: mean depth wanted, layers, over prompts like those that the router was trained for.
        latency_factor: mean latency wanted, in units of full depth's.
    """

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[str], PlainValidator(_stops)] = []
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    budget: float | None = Field(None, gt=0, allow_inf_nan=False)
    latency_factor: float | None = Field(None, gt=0, allow_inf_nan=False)
    frequency_penalty: _only(0, 0.0) = 0  # type: ignore[valid-type]
    presence_penalty: _only(0, 0.0) = 0  # type: ignore[valid-type]
    logprobs: _only(False) = False  # type: ignore[valid-type]
    logit_bias: _only({}) = {}  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _check(self) -> Asked:
        if self.budget is not None and self.latency_factor is not None:
            raise ValueError("budget: expected a budget or a latency_factor, got both")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: expected none without stream, got some")
        return self

    @property
    def new_tokens(self) -> int | None:
        """Most tokens to generate for a choice; None: not given."""
        return self.max_tokens


class CompletionAsked(Asked):
    """The body of POST /v1/completions.

    Attributes:
        prompt: texts, or token ids of each prompt; a single one counts as a list of one.
    """

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts)]
    echo: _only(False) = False  # type: ignore[valid-type]
    best_of: _only(1) = 1  # type: ignore[valid-type]
    suffix: _only("") = ""  # type: ignore[valid-type]


class Message(_Strict):
    """A message of a chat.

    Attributes:
        role: who says it.
        content: what, as one text.
        name: ignored.
    """

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, PlainValidator(_content)]
    name: str | None = None


class ChatAsked(Asked):
    """The body of POST /v1/chat/completions.

    Attributes:
        messages: the chat so far.
        max_completion_tokens: the newer name of `max_tokens`.
    """

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    top_logprobs: _only(0) = 0  # type: ignore[valid-type]
    tools: _only([]) = []  # type: ignore[valid-type]
    tool_choice: _only("none") = "none"  # type: ignore[valid-type]
    response_format: _only({"type": "text"}) = {"type": "text"}  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one_limit(self) -> ChatAsked:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: expected max_tokens or max_completion_tokens, got both")
        return self

    @property
    def new_tokens(self) -> int | None:
        """Most tokens to generate for a choice; None: not given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


AskedT = TypeVar("AskedT", bound=Asked)


def parse(kind: type[AskedT], body: bytes) -> AskedT:
    """Read a body.

    Fields that are null count as not given. Numbers that are none (NaN), halves of surrogate pairs and deep nesting are
    no JSON to this parser.

    Raises:
        ApiError: 400, where it is no JSON object, or a field is unknown, missing or of another type.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"body: expected JSON, got something else: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"body: expected a JSON object, got {shown(value)}", code="invalid_json")
    try:
        return kind.model_validate({name: item for name, item in value.items() if item is not None})
    except ValidationError as error:
        raise _refused(error.errors(include_url=False)[0]) from None


_REFUSALS: dict[str, Callable[[ErrorDetails], str]] = {
    "extra_forbidden": lambda _: "expected no field of this name",
    "missing": lambda _: "expected a value, got none",
    "value_error": lambda detail: str(detail["ctx"]["error"]),
}


def _refused(detail: ErrorDetails) -> ApiError:
    """Return the error of one field that pydantic refused."""
    param = ".".join(str(part) for part in detail["loc"]) or None
    say = _REFUSALS.get(detail["type"])
    if say is None:
        message = f"{detail['msg'].replace('Input should be', 'expected')}, got {shown(detail['input'])}"
    else:
        message = say(detail)
    if param is None:  # a check of several fields, whose message names the first
        param = message.partition(":")[0]
    else:
        message = f"{param[:60]}: {message}"
    code = "unknown_field" if detail["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(400, message, param=param[:60], code=code)


# Errors as OpenAI's clients know them: a status and `{"error": {"message", "type", "param", "code"}}`.


class ApiError(Exception):
    """What a request is answered with when it cannot be served.

    Attributes:
        status: HTTP status.
        message: what was expected and what came.
        param: the field at fault; None: no one field.
        code: a word for programs.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(param: str, expected: str, got: object) -> ApiError:
    """Return the error of a field that holds something else than expected; long values are cut short."""
    return ApiError(400, f"{param}: expected {expected}, got {shown(got)}", param=param, code="invalid_value")


def internal() -> ApiError:
    """Return the error of what is our fault; what happened is in the log, not in the answer."""
    return ApiError(500, "the server failed at this request", code="internal_error")


def shown(value: object) -> str:
    """Return a value as a short text."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# Between the event loop and the worker: a request's rows, and what comes back of them.


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
