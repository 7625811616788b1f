"""Generation: greedy answers of many (prompt, chain) pairs, batched by chain, with the library's own caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from router.chain import Chain
from router.engine.copies import with_contiguous_head
from router.engine.load import left_padded, padding_token
from router.engine.view import chain_view


@dataclass(frozen=True)
class Request:
    """One answer to be generated.

    Attributes:
        prompt: token ids of the prompt.
        chain: the chain that generates.
        max_new_tokens: longest answer, tokens.
        before_end: what stands before the end of the text generated so far; None: go on, its end has not come.
        inputs: what the model takes besides tokens, such as pictures; prompts with any run alone.
    """

    prompt: tuple[int, ...]
    chain: Chain
    max_new_tokens: int
    before_end: Callable[[str], str | None]
    inputs: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Answer:
    """What was generated.

    Attributes:
        text: the new text, without special tokens.
        complete: whether it ended by itself; False: it was cut at `max_new_tokens`.
        tokens: new token ids, up to and without the end-of-sequence token.
    """

    text: str
    complete: bool
    tokens: tuple[int, ...]


class Generator:
    """Decodes greedily under chain views, batched by chain."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_tokens: int = 4096) -> None:
        """Prepare a model, which is not changed.

        Args:
            model: a decoder-only model in evaluation mode.
            tokenizer: its tokenizer.
            batch_tokens: tokens of a batch's padded prompts and answers at most (a longer one still runs alone).
        """
        self._model, self._tokenizer, self._batch_tokens = model, tokenizer, batch_tokens
        self._ends = end_tokens(model, tokenizer)
        self._padding = padding_token(tokenizer.pad_token_id, sorted(self._ends))

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Return one answer a request, in order.

        Raises:
            FloatingPointError: where a logit is no number (float16 overflows in some models).
        """
        answers: dict[int, Answer] = {}
        for batch in self._batches(requests):
            answers |= zip(batch, self._run([requests[i] for i in batch]), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _batches(self, requests: Sequence[Request]) -> list[list[int]]:
        """Split requests into batches of one chain and similar length."""

        def size(i: int) -> int:
            return len(requests[i].prompt) + requests[i].max_new_tokens

        order = sorted(range(len(requests)), key=lambda i: (requests[i].chain.layers, size(i), i))
        batches: list[list[int]] = []
        for i in order:
            last = batches[-1] if batches else []
            same = bool(last) and requests[last[0]].chain == requests[i].chain
            same = same and not (requests[last[0]].inputs or requests[i].inputs)
            if same and size(i) * (len(last) + 1) <= self._batch_tokens:
                last.append(i)
            else:
                batches.append([i])
        return batches

    @torch.inference_mode()
    def _run(self, batch: Sequence[Request]) -> list[Answer]:
        """Decode a batch of one chain; prompts are padded on the left."""
        ids, mask = left_padded([request.prompt for request in batch], self._model.device, self._padding)
        width = ids.shape[1]
        limits = [request.max_new_tokens for request in batch]
        view = with_contiguous_head(chain_view(self._model, batch[0].chain))
        view.generation_config = self._plain_greedy(max(limits))  # the library fills gaps from this one
        inputs = batch[0].inputs  # whoever has any is alone
        stop = _Finished(self._text, [request.before_end for request in batch], limits, width)
        output = view.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._plain_greedy(max(limits)),
            logits_processor=LogitsProcessorList([_numbers]),
            stopping_criteria=StoppingCriteriaList([stop]),
            **inputs,
        )
        new = [tokens[width : width + length].tolist() for tokens, length in zip(output, stop.lengths, strict=True)]
        return [self._answer(tokens, request) for tokens, request in zip(new, batch, strict=True)]

    def _plain_greedy(self, max_new_tokens: int) -> GenerationConfig:
        """Return greedy decoding with nothing of the model's own settings: no penalty, no bans, no sampling."""
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self._padding,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _answer(self, tokens: list[int], request: Request) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        kept = tokens[:end]
        text = self._text(kept)
        return Answer(text, end is not None or request.before_end(text) is not None, tuple(kept))


def _numbers(_: Tensor, logits: Tensor) -> Tensor:
    """Hand on logits; argmax would make a token of what is no number."""
    if logits.isnan().any():
        raise FloatingPointError("expected logits that are numbers, got others")
    return logits


class _Finished(StoppingCriteria):  # type: ignore[misc]  # without types in the library
    """Ends a row when its text is a whole answer, or at its own limit.

    Attributes:
        lengths: new tokens of each row up to its end; the library pads what comes after.
    """

    def __init__(
        self,
        text: Callable[[Sequence[int]], str],
        before_end: Sequence[Callable[[str], str | None]],
        limits: Sequence[int],
        width: int,
    ) -> None:
        self._text, self._before_end, self._limits, self._width = text, before_end, limits, width
        self._done = [False] * len(before_end)
        self.lengths = [0] * len(before_end)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        for i, tokens in enumerate(input_ids[:, self._width :].tolist()):
            if not self._done[i]:
                self.lengths[i] = len(tokens)
                ended = self._before_end[i](self._text(tokens)) is not None
                self._done[i] = ended or len(tokens) >= self._limits[i]
        return torch.tensor(self._done, device=input_ids.device)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a sequence: the tokenizer's, and those of the model's generation settings."""
    ends: set[int] = set()
    config = getattr(model, "generation_config", None)
    for value in (tokenizer.eos_token_id, getattr(config, "eos_token_id", None)):
        if value is not None:
            ends.update(value if isinstance(value, list | tuple) else [value])
    return frozenset(int(one) for one in ends)
