"""Errors as OpenAI's clients know them: a status and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
