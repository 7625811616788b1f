"""Encoding of samples: from the task's query to the token ids of a prompt and of what may follow it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from data.pictures import read_picture
from data.prompts import Query
from data.sample import Sample
from data.tasks import Task, TaskSet
from router.command import one_line
from router.engine.inputs import widened
from router.engine.load import context_of, prompt_tokens, tokens_after
from router.validation import InputError


@dataclass(frozen=True)
class EncodedSample:
    """A sample as token ids.

    Attributes:
        sample: the sample.
        task: its task.
        query: its prompt and continuations as text.
        prompt: token ids of the prompt.
        continuations: token ids of each continuation, in the query's order; in mode "exact" those of the right answer
            and its end; in mode "generate" none.
        target: the answer that counts as right (index of a choice, or text): the sample's own, but for a control
            another one.
        truncated: whether the prompt was too long and lost its start.
        text: the prompt as text, in which a picture is one token; kept where there are pictures.
    """

    sample: Sample
    task: Task
    query: Query
    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    target: int | str
    truncated: bool = False
    text: str = ""

    @property
    def length(self) -> int:
        """Tokens of the packed row."""
        return len(self.prompt) + sum(len(tokens) - 1 for tokens in self.continuations)


class Encoder:
    """Tokenises samples for one model.

    Attributes:
        truncated: ids of the samples whose prompt lost its start so far.
        unreachable: ids of the samples whose right answer is longer than `max_new_tokens`, so that generation cannot
            reach it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: TaskSet,
        processor: ProcessorMixin | None = None,
    ) -> None:
        """Prepare for a model's tokenizer and positions; `processor`: for samples with pictures."""
        self._tokenizer, self._tasks, self._processor = tokenizer, tasks, processor
        self._varied = {0: tasks}
        self._device, self._dtype = model.device, model.dtype
        self._positions = context_of(model)
        self.truncated: set[str] = set()
        self.unreachable: set[str] = set()

    def encode(self, sample: Sample, target: int | str | None = None, variant: int = 0) -> EncodedSample:
        """Tokenise a sample's prompt and continuations.

        A continuation's tokens are those that it adds to the prompt; where the tokenizer would merge across the
        border, the continuation is tokenised alone, so that all continuations follow the same prompt tokens. A prompt
        that is too long loses the start of its context, or of its question where there is none, if its task says so.

        Args:
            sample: the sample.
            target: the answer that counts as right; None: the sample's own.
            variant: 0: the sample is asked as its task says; otherwise so many variants on (`Task.variant`).

        Raises:
            InputError: where the sample is of another task, or its prompt does not fit a chat template.
            ValueError: where the sample has no such variant, a continuation has no tokens, or the prompt is too long
                and is not to be truncated.
        """
        if variant not in self._varied:
            self._varied[variant] = self._tasks.varied(variant)
        task = self._varied[variant][sample.task]
        wanted: int | str = sample.answer if target is None else target
        gold = wanted if isinstance(wanted, str) else None
        asked, truncated = sample, False
        while True:
            query = task.query(sample, gold, asked)
            text = self._text(query, sample, task)
            prompt = self._opened(text, task)
            follows = f"\n\n{query.asked}" if query.examples and task.prompt.style == "base" else ""
            continuations = tuple(self._continuation(text, prompt, one, follows, task) for one in query.continuations)
            if sample.images:
                prompt, _ = self._pictured(text, sample, task)
            excess = self._excess(task, prompt, continuations)
            if excess <= 0:
                break
            asked, truncated = self._truncated(asked, sample, task, len(prompt), excess), True
        if any(not tokens for tokens in continuations):
            raise ValueError("expected tokens in every continuation, got none in one")
        if truncated:
            self.truncated.add(sample.id)
        self._check_answer(sample, task, prompt, continuations)
        return EncodedSample(
            sample, task, query, prompt, continuations, wanted, truncated, text if sample.images else ""
        )

    def inputs(self, encoded: EncodedSample) -> dict[str, Tensor]:
        """Return what the model takes of a sample besides tokens: nothing, or its pictures as they are now on the disk.

        Raises:
            InputError: where a picture is missing or another.
        """
        if not encoded.sample.images:
            return {}
        return self._pictured(encoded.text, encoded.sample, encoded.task)[1]

    def _text(self, query: Query, sample: Sample, task: Task) -> str:
        processor = self._processor
        if processor is None and sample.images:
            raise InputError("data: expected a model with a processor for samples with pictures, got none")
        if processor is None or task.columns.image is None:
            return task.prompt.text(query, self._tokenizer)
        template = processor.chat_template if isinstance(processor.chat_template, str) else None
        pictures = [str(processor.image_token)] * len(sample.images)
        return task.prompt.text(query, self._tokenizer, pictures=pictures, template=template)

    def _pictured(self, text: str, sample: Sample, task: Task) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        """Return a prompt's tokens, with all that stand for its pictures, and the model's other inputs."""
        assert self._processor is not None
        if self._tasks.folder is None:
            raise InputError("data: expected a folder with the samples' pictures, got samples that stand in none")
        pictures = [read_picture(self._tasks.folder, name) for name in sample.images]
        try:
            made = self._processor(images=pictures, text=text, add_special_tokens=False, return_tensors="pt")
        except (TypeError, ValueError) as error:
            raise ValueError(f"expected pictures and a text that the processor takes: {one_line(error)}") from error
        plain = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        opened = self._opened(text, task)
        front = opened[: len(opened) - len(plain)]  # BOS, as before every other prompt
        prompt = (*front, *made.pop("input_ids")[0].tolist())
        made.pop("attention_mask", None)
        return prompt, widened(made.to(self._device, self._dtype), len(prompt), left=True)

    def _continuation(
        self, text: str, prompt: tuple[int, ...], added: str, follows: str, task: Task
    ) -> tuple[int, ...]:
        """Return the tokens that `added` puts after the prompt.

        An exact answer's end is tokenised as the examples show it, with the next question after it: a line end, or a
        closing brace and line ends, are one token in some vocabularies and several in others.
        """
        if task.mode == "exact" and follows:
            tokens = self._before(text + added, follows.removeprefix(task.end or ""), task)
        else:
            tokens = self._opened(text + added, task)
        own = tokens_after(self._tokenizer, prompt, tokens, added)
        if task.mode == "exact" and task.end is None:
            own += (self._end_token(),)
        return own

    def _before(self, text: str, follows: str, task: Task) -> tuple[int, ...]:
        """Return the tokens of a text in front of another one, up to the one that holds the text's last character."""
        if not self._tokenizer.is_fast:
            return self._opened(text, task)
        whole = self._opened(text + follows, task)
        encoded = self._tokenizer(text + follows, add_special_tokens=False, return_offsets_mapping=True)
        later = sum(start >= len(text) for start, _ in encoded["offset_mapping"])
        return whole[: len(whole) - later]

    def _end_token(self) -> int:
        end = self._tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ValueError("prompt.end: expected a text for a tokenizer without an end-of-sequence token, got null")
        return end

    def _opened(self, text: str, task: Task) -> tuple[int, ...]:
        """Return a text's tokens, with BOS unless a chat template writes its special tokens itself."""
        return prompt_tokens(self._tokenizer, text, special=task.prompt.style != "chat")

    def _excess(self, task: Task, prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...]) -> int:
        """Return how many tokens too many there are; a free answer reserves `max_new_tokens`, whatever it is."""
        answer = max(map(len, continuations), default=0) if task.has_choices else 0
        if "generate" in (task.mode, task.judged_mode):
            answer = max(answer, task.max_new_tokens)
        over = [0]
        if task.max_prompt_tokens is not None:
            over.append(len(prompt) - task.max_prompt_tokens)
        if isinstance(self._positions, int):
            over.append(len(prompt) + answer - self._positions)
        return max(over)

    def _check_answer(
        self, sample: Sample, task: Task, prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...]
    ) -> None:
        """Note, or refuse, a right answer that has no place."""
        longest = max(map(len, continuations), default=0)
        if isinstance(self._positions, int) and len(prompt) + longest > self._positions:
            raise ValueError(
                f"expected prompt and answer within the model's {self._positions} positions, "
                f"got {len(prompt)} and {longest} tokens"
            )
        if task.mode == "exact" and task.judged_mode == "generate" and longest > task.max_new_tokens:
            self.unreachable.add(sample.id)

    def _truncated(self, asked: Sample, sample: Sample, task: Task, length: int, excess: int) -> Sample:
        """Return the sample without the first `excess` tokens of its context, or of its question."""
        field = "context" if sample.context else "question"
        limit = f"max_prompt_tokens: expected a prompt of at most {length - excess} tokens, got {length}"
        tokens = self._tokenizer(getattr(asked, field), add_special_tokens=False)["input_ids"]
        if task.over_long != "truncate":
            raise ValueError(f"{limit} (over_long: truncate would cut the {field}'s start)")
        if len(tokens) <= excess:
            raise ValueError(f"{limit}, and its {field} has only {len(tokens)} to cut")
        kept = str(self._tokenizer.decode(tokens[excess:])).lstrip("\ufffd").lstrip()  # the cut may part a character
        if not kept or len(kept) >= len(getattr(asked, field)):
            raise ValueError(f"{limit}, and its {field} cannot be cut by tokens")
        return dataclasses.replace(asked, context=kept) if sample.context else dataclasses.replace(asked, question=kept)


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Split 0..len-1 into batches of at most `size` of similar length, so that little is padded; a fixed order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]
