"""What clients may ask: the bodies of OpenAI's completions and chat completions, checked strictly; and errors.

Two fields are ours: `budget` (mean depth, layers) and `latency_factor` (time in units of full depth's). What the server
does not do (penalties, tools, JSON) is refused unless it is asked to do nothing; so is an unknown field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from router.decision import Router
from router.validation import Positive, Share, explain, shown

MOST_CHARACTERS = 400
"""Characters of an error's message: what clients have sent is cut short."""


class ApiError(Exception):
    """What a request is answered with when it cannot be served: a status, and an error as OpenAI's clients know it.

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
        self.status, self.message, self.param, self.code = status, message[:MOST_CHARACTERS], param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON: `{"error": {"message", "type", "param", "code"}}`."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(param: str, expected: str, got: object) -> ApiError:
    """Return the error of a field that holds something else than expected."""
    return ApiError(400, f"{param}: expected {expected}, got {shown(got)}", param=param, code="invalid_value")


def internal() -> ApiError:
    """Return the error of what is our fault; what happened is in the log, not in the answer."""
    return ApiError(500, "the server failed at this request", code="internal_error")


def _listed(value: Any) -> Any:
    """Return one text, or the token ids of one prompt, as a list of one."""
    one_prompt = isinstance(value, list) and value and isinstance(value[0], int)
    return [value] if isinstance(value, str) or one_prompt else value


def _refuse_true(value: bool) -> bool:
    if value:
        raise ValueError("expected false, got true")
    return value


Off = Annotated[bool, AfterValidator(_refuse_true)]
"""What can only be off."""
Nothing = Annotated[list[Any], Field(max_length=0)]
"""A list of what the server does not do."""
TokenIds = Annotated[list[int], Field(fail_fast=True)]
"""A prompt. Lists without a small bound stop at their first fault: a million of them would hold up all requests."""
Alternatives = Annotated[int, Field(ge=0, le=20)]
"""Likeliest tokens named for each token, at most as many as in OpenAI's chat."""


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How to stream.

    Attributes:
        include_usage: whether a last chunk counts tokens.
    """

    include_usage: bool = False


class DepthAsked(_Body):
    """How much depth a request asks for; None: not given.

    Attributes:
        budget: mean depth wanted, layers, over prompts like those that the router was trained for.
        latency_factor: mean latency wanted, in units of full depth's.
    """

    budget: Annotated[float, Field(gt=0)] | None = None
    latency_factor: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _asks_one_way(self) -> Self:
        if self.budget is not None and self.latency_factor is not None:
            raise ValueError("budget: expected a budget or a latency_factor, got both")
        return self


@dataclass(frozen=True)
class Budgets:
    """Which mean depths requests may ask for.

    Attributes:
        router: the router.
        allow_loss: accuracy that a request's budget may have lost against full depth in validation.
        depth_for: returns the mean depth, layers, that takes a latency (units of full depth's); None: unknown.
    """

    router: Router
    allow_loss: float
    depth_for: Callable[[float], float] | None = None

    def of(self, asked: DepthAsked) -> float | None:
        """Return the mean depth that a request wants, layers; None: none of its own.

        Raises:
            ApiError: 400, where the router has no such depth, or lost too much accuracy at it.
        """
        param, budget = "budget", asked.budget
        try:
            if asked.latency_factor is not None:
                param = "latency_factor"
                if self.depth_for is None:
                    raise bad(param, "a server with a latency_profile", "one without")
                budget = self.depth_for(asked.latency_factor)
            if budget is not None:
                self.router.require_accuracy(budget, self.allow_loss)
        except ValueError as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        return budget


class Asked(DepthAsked):
    """What completions and chat completions share; None: not given.

    Attributes:
        model: the served model's name.
        max_tokens: most tokens to generate for a choice.
        temperature: 0: always the likeliest token.
        top_p: draw from the likeliest tokens whose probabilities add up to this.
        seed: the same seed gives the same choices, whoever shares the batch.
        stop: texts that end a choice, which does not contain them; a single one counts as a list of one.
        n: choices for each prompt, at most as many as in OpenAI's interface.
        stream: send text as it comes, as server-sent events.
        stream_options: see there.
        user: ignored, as the next five, which ask a server that keeps nothing for nothing.
        frequency_penalty: nothing else can be asked for, as for the fields below.
    """

    model: str
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Share = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4), BeforeValidator(_listed)
    ] = []
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] = {}
    store: Off = False
    service_tier: Literal["auto", "default"] = "auto"
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] = {}

    @model_validator(mode="after")
    def _streams_with_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: expected none without stream, got some")
        return self

    @property
    def new_tokens(self) -> int | None:
        """Most tokens to generate for a choice; None: not given."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Likeliest tokens to name with their log-probabilities beside each token's own; None: no log-probabilities."""
        return None


class CompletionAsked(Asked):
    """The body of POST /v1/completions.

    Attributes:
        prompt: texts, or token ids of each prompt; a single one counts as a list of one.
        logprobs: likeliest tokens to name beside each token, with log-probabilities; None: no log-probabilities.
        echo: nothing else can be asked for, as for the fields below.
    """

    prompt: Annotated[
        Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)],
        BeforeValidator(_listed),
    ]
    logprobs: Alternatives | None = None
    echo: Off = False
    best_of: Literal[1] = 1
    suffix: Literal[""] = ""

    @property
    def alternatives(self) -> int | None:
        """See `Asked.alternatives`."""
        return self.logprobs


class TextPart(_Body):
    """A part of a message; the only kind is text."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """A message of a chat; what the official client returns of one of ours is one too.

    Attributes:
        role: who says it; a developer is the system.
        content: what, as one text or as parts that follow each other; an assistant may have said nothing.
        name: ignored.
        refusal: what an assistant said in place of content.
        annotations: nothing else can be given, as for the next.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Nothing = []
    tool_calls: Nothing = []

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.role != "assistant":
            if self.content is None:
                raise ValueError(f"content: expected a text of the {self.role}, got none")
            if self.refusal is not None:
                raise ValueError(f"refusal: expected none of the {self.role}, got one")
        return self

    @property
    def speaker(self) -> str:
        """The role by the name that chat templates know."""
        return "system" if self.role == "developer" else self.role

    @property
    def text(self) -> str:
        """What is said, as one text."""
        if self.content is None:
            return self.refusal or ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatAsked(Asked):
    """The body of POST /v1/chat/completions.

    Attributes:
        messages: the chat so far.
        max_completion_tokens: the newer name of `max_tokens`.
        logprobs: whether each token's log-probability is wanted.
        top_logprobs: likeliest tokens to name beside each; needs `logprobs`.
        tools: nothing else can be asked for, as for the fields below; without tools the next three say nothing.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Positive | None = None
    logprobs: bool = False
    top_logprobs: Alternatives = 0
    tools: Nothing = []
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: bool = False
    function_call: Literal["none", "auto"] = "none"
    functions: Nothing = []
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] = ["text"]
    response_format: dict[Literal["type"], Literal["text"]] = {"type": "text"}

    @model_validator(mode="after")
    def _one_limit(self) -> ChatAsked:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: expected max_tokens or max_completion_tokens, got both")
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs: expected logprobs with it, got {self.top_logprobs} without")
        return self

    @property
    def alternatives(self) -> int | None:
        """See `Asked.alternatives`."""
        return self.top_logprobs if self.logprobs else None

    @property
    def new_tokens(self) -> int | None:
        """Most tokens to generate for a choice; None: not given."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


AskedT = TypeVar("AskedT", bound=Asked)
BodyT = TypeVar("BodyT", bound=_Body)


def parse(kind: type[AskedT], body: bytes) -> AskedT:
    """Read a body; fields that are null count as not given.

    Raises:
        ApiError: 400, where it is no JSON object, or a field is unknown, missing or of another type.
    """
    return _validated(kind, read_object(body))


def depth_asked(value: Mapping[str, Any]) -> tuple[DepthAsked, dict[str, Any]]:
    """Return what a body asks of the router, and the body without it.

    Raises:
        ApiError: 400, where a field is of another type.
    """
    ours = {name: value[name] for name in DepthAsked.model_fields if name in value}
    return _validated(DepthAsked, ours), {name: item for name, item in value.items() if name not in ours}


def _validated(kind: type[BodyT], value: dict[str, Any]) -> BodyT:
    try:
        return kind.model_validate(without_nulls(value))
    except ValidationError as error:
        raise _refused(error) from None


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Numbers that are none (NaN), halves of surrogate pairs and deep nesting are no JSON to this parser.

    Raises:
        ApiError: 400, where it is none.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"body: expected JSON, got something else: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"body: expected a JSON object, got {shown(value)}", code="invalid_json")
    return value


def without_nulls(value: Any) -> Any:
    """Return JSON without the fields that are null, which official clients send for what was not given."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _refused(error: ValidationError) -> ApiError:
    """Return the error of the first field that pydantic refused."""
    message, first = explain(error), error.errors(include_url=False)[0]
    # A check of several fields has no place; its message names the first.
    param = str(first["loc"][0])[:60] if first["loc"] else message.partition(":")[0]
    if first["type"] == "extra_forbidden":
        place = ".".join(map(str, first["loc"]))[:60]
        return ApiError(400, f"{place}: expected no field of this name, got one", param=param, code="unknown_field")
    return ApiError(400, message, param=param, code="invalid_value")
