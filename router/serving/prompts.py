"""Requests as rows: prompts become token ids, and what no row may be is refused before it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from router.base_model import context_of
from router.command import InputError
from router.routed import RoutedModel
from router.serving.decoding import Row
from router.serving.errors import ApiError, bad
from router.serving.protocol import Asked, ChatAsked, CompletionAsked, Message
from router.serving.sampling import Sampling
from router.serving.text import TextStream
from router.tokens import chat_tokens, prompt_tokens

DEFAULT_NEW_TOKENS = 16
"""Tokens generated for a completion that does not say, as in OpenAI's interface."""


class RowMaker:
    """Makes rows of requests; safe for several threads."""

    def __init__(
        self,
        routed: RoutedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int,
        max_rows: int,
        depth_for: Callable[[float], float] | None = None,
    ) -> None:
        """Prepare.

        Args:
            routed: the routed model.
            tokenizer: its tokenizer.
            max_tokens: most tokens that a request may generate for a choice.
            max_rows: most choices of a request.
            depth_for: returns the mean depth, layers, that takes a latency (units of full depth's); None: unknown.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
        self._head = routed.router.head
        self._tokenizer = tokenizer
        self._max_tokens, self._max_rows, self._depth_for = max_tokens, max_rows, depth_for
        self._positions = context_of(routed)
        self._vocabulary: int = routed.get_input_embeddings().num_embeddings
        self._lock = threading.Lock()  # tokenizers keep state

    def of_completion(self, asked: CompletionAsked) -> list[Row]:
        """Return a row for each choice of each prompt.

        Raises:
            ApiError: 400, where a prompt is empty, too long or no prompt, or a setting is out of its bounds.
        """
        self._check_rows(len(asked.prompt) * asked.n)
        prompts = [self._plain(prompt) if isinstance(prompt, str) else tuple(prompt) for prompt in asked.prompt]
        return self._rows(asked, prompts, "prompt", DEFAULT_NEW_TOKENS)

    def of_chat(self, asked: ChatAsked) -> list[Row]:
        """Return a row for each choice; errors as in `of_completion`, also where there is no chat template."""
        self._check_rows(asked.n)
        return self._rows(asked, [self._chat(asked.messages)], "messages", None)

    def _rows(self, asked: Asked, prompts: Sequence[tuple[int, ...]], param: str, default: int | None) -> list[Row]:
        budget, rows = self._budget(asked), list[Row]()
        for prompt in prompts:
            new_tokens = self._new_tokens(asked, prompt, param, default)
            for choice in range(asked.n):
                sampling = Sampling.of(asked.temperature, asked.top_p, asked.seed, choice)
                text = TextStream(self._tokenizer, asked.stop)
                rows.append(Row(len(rows), prompt, new_tokens, sampling, text, budget, asked.stream))
        return rows

    def _check_rows(self, rows: int) -> None:
        if rows > self._max_rows:
            raise bad("n", f"at most {self._max_rows} choices of all prompts together", rows)

    def _plain(self, text: str) -> tuple[int, ...]:
        with self._lock:
            return prompt_tokens(self._tokenizer, text)

    def _chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        if self._tokenizer.chat_template is None:
            raise bad("messages", "a model with a chat template (/v1/completions takes plain text)", "one without")
        said = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with self._lock:
                return chat_tokens(self._tokenizer, said)
        except (TemplateError, TypeError, ValueError) as error:
            # Templates refuse what they cannot say, such as roles that do not alternate.
            raise ApiError(400, f"messages: the chat template refuses them: {error}", param="messages") from None

    def _new_tokens(self, asked: Asked, prompt: tuple[int, ...], param: str, default: int | None) -> int:
        """Return the most tokens to generate for a prompt, whose tokens are checked."""
        if not prompt:
            raise bad(param, "at least one token", "none")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < self._vocabulary:
                raise bad(param, f"token ids in 0..{self._vocabulary - 1}", token)
        if asked.new_tokens is not None and asked.new_tokens > self._max_tokens:
            raise bad("max_tokens", f"at most {self._max_tokens}", asked.new_tokens)
        room = self._max_tokens if self._positions is None else self._positions - len(prompt)
        wanted = asked.new_tokens or max(1, min(default or self._max_tokens, self._max_tokens, room))
        if wanted > room:
            raise ApiError(
                400,
                f"{param}: expected at most {self._positions} tokens with those to generate, "
                f"got {len(prompt)} and {wanted}",
                param=param,
                code="context_length_exceeded",
            )
        return wanted

    def _budget(self, asked: Asked) -> float | None:
        """Return the mean depth that a request wants, layers; None: none of its own."""
        param, budget = "budget", asked.budget
        try:
            if asked.latency_factor is not None:
                param = "latency_factor"
                if self._depth_for is None:
                    raise bad(param, "a server with a latency_profile", "one without")
                budget = self._depth_for(asked.latency_factor)
            self._head.offset_for(budget)
        except (InputError, ValueError) as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from None
        return budget
