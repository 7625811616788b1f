"""A row's tokens as text, piece by piece: no broken characters, no part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


class TextStream:
    """Turns tokens into pieces of text that can be shown at once, since later tokens do not change them.

    All pieces together are the text of all tokens, special ones left out, up to the first stop string.

    Attributes:
        stopped: whether a stop string has come; it and what follows are in no piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        """Begin at an empty text."""
        self.stopped = False
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        # Decoders treat a text's first token in their own way (its leading space). So the tokens of the last piece
        # are decoded again before the new ones, and what they gave is left out.
        self._window: list[int] = []
        self._shown = 0
        self._before = ""
        self._held = ""

    def push(self, token: int) -> str:
        """Return the text that a token makes certain; often none."""
        self._window.append(token)
        whole = self._decode(self._window)
        if whole == self._before or whole.endswith(BROKEN):
            return ""
        return self._release(self._advance(whole))

    def flush(self) -> str:
        """Return what is left once no more tokens come: beginnings of stop strings, broken characters."""
        rest = self._release(self._advance(self._decode(self._window)))
        if self.stopped:
            return rest
        held, self._held = self._held, ""
        return rest + held

    def _advance(self, whole: str) -> str:
        """Take the window's new text, and go on from the tokens that gave it."""
        tokens = self._window[self._shown :]
        # Some decoders break a whole run of bytes for a wrong one; what was shown stays.
        new = whole[len(self._before) :] if whole.startswith(self._before) else self._decode(tokens)
        self._window = tokens
        self._shown = len(self._window)
        self._before = self._decode(self._window)
        return new

    def _decode(self, tokens: list[int]) -> str:
        # Cleaning up changes text that was shown already (" ." to ".").
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, new: str) -> str:
        """Hold back what may become a stop string; cut at the one that is complete first, of those the longest."""
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        held = next((n for n in range(longest, 0, -1) if self._begins_a_stop(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _begins_a_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
