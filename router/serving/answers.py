"""What clients get: OpenAI's objects, with the chain and depth of each choice beside them."""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from router.serving.decoding import Piece, Row
from router.serving.errors import ApiError


class Answer(ABC):
    """Makes the objects of one request's answer.

    Attributes:
        kind: the object's name, whole and in chunks.
        prefix: what its id begins with.
    """

    kind: tuple[str, str]
    prefix: str

    def __init__(self, model: str, choices: int) -> None:
        """Begin an answer.

        Args:
            model: the served model's name.
            choices: choices of each prompt (`n`), which count its tokens once.
        """
        self._about = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._choices = choices

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the answer of rows that have ended."""
        choices = [self._choice(row, row.reason, self.said(row.answer)) for row in rows]
        return {**self._about, "object": self.kind[0], "choices": choices, "usage": self._usage(rows)}

    def chunk(self, row: Row, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return a chunk of one choice; `reason`: why it ended, in its last chunk."""
        return {**self._about, "object": self.kind[1], "choices": [self._choice(row, reason, said)]}

    def usage_chunk(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the chunk that counts tokens."""
        return {**self._about, "object": self.kind[1], "choices": [], "usage": self._usage(rows)}

    @abstractmethod
    def said(self, text: str) -> dict[str, Any]:
        """Return a choice's whole text as its fields."""

    @abstractmethod
    def added(self, text: str) -> dict[str, Any]:
        """Return a piece of a choice's text as its fields."""

    def opening(self) -> dict[str, Any] | None:
        """Return the fields of a choice's first chunk; None: it has none of its own."""
        return None

    def _choice(self, row: Row, reason: str | None, said: dict[str, Any]) -> dict[str, Any]:
        assert row.chain is not None
        routed = {"chain": str(row.chain), "depth": row.chain.depth}
        return {"index": row.index, **said, "logprobs": None, "finish_reason": reason, **routed}

    def _usage(self, rows: Sequence[Row]) -> dict[str, int]:
        prompts = sum(len(row.prompt) for row in rows[:: self._choices])
        generated = sum(len(row.tokens) for row in rows)
        return {"prompt_tokens": prompts, "completion_tokens": generated, "total_tokens": prompts + generated}


class CompletionAnswer(Answer):
    """The answer to POST /v1/completions."""

    kind = ("text_completion", "text_completion")
    prefix = "cmpl"

    def said(self, text: str) -> dict[str, Any]:
        """Return a choice's whole text as its fields."""
        return {"text": text}

    def added(self, text: str) -> dict[str, Any]:
        """Return a piece of a choice's text as its fields."""
        return {"text": text}


class ChatAnswer(Answer):
    """The answer to POST /v1/chat/completions."""

    kind = ("chat.completion", "chat.completion.chunk")
    prefix = "chatcmpl"

    def said(self, text: str) -> dict[str, Any]:
        """Return a choice's whole text as its fields."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def added(self, text: str) -> dict[str, Any]:
        """Return a piece of a choice's text as its fields."""
        return {"delta": {"content": text} if text else {}}

    def opening(self) -> dict[str, Any] | None:
        """Return the fields of a choice's first chunk: who speaks."""
        return {"delta": {"role": "assistant", "content": ""}}


async def stream(
    answer: Answer, rows: Sequence[Row], pieces: AsyncIterator[Piece], *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events; an error in mid-stream is the last one.

    Args:
        answer: makes the objects.
        rows: the request's rows.
        pieces: what they say.
        include_usage: whether a last chunk counts tokens.
    """
    opened: set[Row] = set()
    try:
        async for piece in pieces:
            opening = answer.opening()
            if opening is not None and piece.row not in opened:
                opened.add(piece.row)
                yield _event(answer.chunk(piece.row, opening))
            reason = piece.row.reason if piece.text is None else None
            yield _event(answer.chunk(piece.row, answer.added(piece.text or ""), reason))
    except ApiError as error:
        yield _event(error.body)
        return
    if include_usage:
        yield _event(answer.usage_chunk(rows))
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    # ASCII: some clients break lines at characters that JSON leaves as they are.
    return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode("ascii")
