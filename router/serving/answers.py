"""What requests are answered with: OpenAI's objects of rows, whole or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from router.serving.protocol import ApiError, Asked, ChatAsked
from router.serving.rows import Piece, Row, TokenScore


class Events(StreamingResponse):
    """A stream that closes what it holds when it ends, also because the client has gone."""

    def __init__(
        self, events: AsyncIterator[bytes], held: AsyncExitStack, status: int, headers: dict[str, str]
    ) -> None:
        """Stream events, and close `held` then."""
        super().__init__(events, status, headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        async with self._held:
            await super().__call__(scope, receive, send)


LAST_EVENT = b"data: [DONE]\n\n"


class Answer:
    """Makes the objects of one request's answer."""

    def __init__(
        self,
        model: str,
        asked: Asked,
        token_text: Callable[[int], str],
        token_bytes: Callable[[int], list[int] | None],
    ) -> None:
        """Begin the answer to a request; its choices of a prompt (`n`) count the prompt's tokens once.

        Args:
            model: the model's name.
            asked: the request.
            token_text: returns a token's text.
            token_bytes: returns its bytes; None: they are not known.
        """
        self._chat, self._choices = isinstance(asked, ChatAsked), asked.n
        self._scored, self._token_text, self._token_bytes = asked.alternatives is not None, token_text, token_bytes
        self._offsets: dict[Row, int] = {}
        prefix, self._whole, self._part = (
            ("chatcmpl", "chat.completion", "chat.completion.chunk")
            if self._chat
            else ("cmpl", "text_completion", "text_completion")
        )
        self._about = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the answer of rows that have ended."""
        choices = [self._choice(row, row.reason, self._said(row.answer), row.scores) for row in rows]
        return {**self._about, "object": self._whole, "choices": choices, "usage": self._usage(rows)}

    def opening(self, row: Row) -> bytes | None:
        """Return the event of a choice's first chunk, which says who speaks; None: a completion has none."""
        return self._chunk(row, {"delta": {"role": "assistant", "content": ""}}) if self._chat else None

    def chunk(self, piece: Piece) -> bytes:
        """Return the event of one choice's next text, or of its end, with the reason."""
        text = piece.text
        added: dict[str, Any] = {"delta": {"content": text} if text else {}} if self._chat else {"text": text or ""}
        return self._chunk(piece.row, added, piece.row.reason if text is None else None, piece.scores)

    def usage_chunk(self, rows: Sequence[Row]) -> bytes:
        """Return the event that counts tokens."""
        return event({**self._about, "object": self._part, "choices": [], "usage": self._usage(rows)})

    def _chunk(
        self, row: Row, added: dict[str, Any], reason: str | None = None, scores: Sequence[TokenScore] = ()
    ) -> bytes:
        choices = [self._choice(row, reason, added, scores)]
        return event({**self._about, "object": self._part, "choices": choices})

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}

    def _choice(
        self, row: Row, reason: str | None, said: dict[str, Any], scores: Sequence[TokenScore]
    ) -> dict[str, Any]:
        assert row.chain is not None
        return {
            "index": row.index,
            **said,
            "logprobs": self._logprobs(row, scores),
            "finish_reason": reason,
            "chain": str(row.chain),
            "depth": row.chain.depth,
            "in_scope": row.in_scope,
            "one_token": row.one_token,
        }

    def _logprobs(self, row: Row, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        """Return the log-probabilities of tokens in the form of the interface; None where none were asked for."""
        if not self._scored:
            return None
        if self._chat:
            content = [
                self._scored_token(one.token, one.logprob)
                | {"top_logprobs": [self._scored_token(*other) for other in one.likeliest]}
                for one in scores
            ]
            return {"content": content, "refusal": None}
        texts, offsets, offset = [self._token_text(one.token) for one in scores], [], self._offsets.get(row, 0)
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        self._offsets[row] = offset
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in scores],
            "top_logprobs": [self._likeliest(one) for one in scores],
            "text_offset": offsets,
        }

    def _likeliest(self, score: TokenScore) -> dict[str, float]:
        """Return log-probabilities by the tokens' texts; of tokens of one text the likeliest counts."""
        found: dict[str, float] = {}
        for token, value in score.likeliest:
            found.setdefault(self._token_text(token), value)
        return found

    def _scored_token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._token_text(token), "logprob": logprob, "bytes": self._token_bytes(token)}

    def _usage(self, rows: Sequence[Row]) -> dict[str, int]:
        prompts = sum(len(row.prompt) for row in rows[:: self._choices])
        generated = sum(len(row.tokens) for row in rows)
        return {"prompt_tokens": prompts, "completion_tokens": generated, "total_tokens": prompts + generated}


def event(value: dict[str, Any]) -> bytes:
    """Return a server-sent event."""
    # ASCII: some clients break lines at characters that JSON leaves as they are.
    return f"data: {json.dumps(value, allow_nan=False)}\n\n".encode("ascii")


async def stream(
    answer: Answer, rows: Sequence[Row], first: Piece, pieces: AsyncGenerator[Piece, None], *, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events; an error in mid-stream is the last one.

    Args:
        answer: makes the objects.
        rows: the request's rows.
        first: what they say first.
        pieces: what they say then.
        include_usage: whether a last chunk counts tokens.
    """
    opened: set[Row] = set()
    piece: Piece | None = first
    try:
        while piece is not None:
            if piece.row not in opened and (opening := answer.opening(piece.row)):
                yield opening
            opened.add(piece.row)
            yield answer.chunk(piece)
            piece = await anext(pieces, None)
    except ApiError as error:
        yield event(error.body)
        return
    if include_usage:
        yield answer.usage_chunk(rows)
    yield LAST_EVENT
