"""Scoring of chains on samples: from the task's query to a score for every choice.

One scorer serves search, training and evaluation, so that all three see the same tokens and the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from data.answers import final_answer, folded, parse_letter
from data.generation import Answer, Generator, Request
from data.grading import Grader
from data.pictures import read_picture
from data.prompts import Query
from data.records import ChainResult
from data.sample import Sample, Split, read_samples
from data.statistics import greatest_probability
from data.tasks import CHOICE_MODES, Task, TaskSet, read_tasks
from router.chain import Chain
from router.command import one_line
from router.engine.block import Block
from router.engine.choices import joined_states, rows_of
from router.engine.decoder import find_decoder
from router.engine.executor import ChainExecutor, Job
from router.engine.inputs import widened
from router.engine.load import (
    DEFAULT_MODEL,
    ModelSettings,
    context_of,
    load_model,
    load_processor,
    prompt_tokens,
    tokens_after,
)
from router.engine.readout import ExecutorStatistics
from router.engine.rows import Row
from router.files import require_directory
from router.fingerprint import Fingerprints, model_fingerprint, tokenizer_fingerprint
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
        kept = str(self._tokenizer.decode(tokens[excess:])).lstrip()
        if not kept or len(kept) >= len(getattr(asked, field)):
            raise ValueError(f"{limit}, and its {field} cannot be cut by tokens")
        return dataclasses.replace(asked, context=kept) if sample.context else dataclasses.replace(asked, question=kept)


@dataclass(frozen=True)
class SampleBlock:
    """Samples loaded into the executor.

    Attributes:
        samples: the samples.
        block: their rows.
        rows: for each sample the indices of its rows: one packed row, or one a continuation.
    """

    samples: tuple[EncodedSample, ...]
    block: Block
    rows: tuple[tuple[int, ...], ...]

    def executed(self, sample: int) -> int:
        """Return the layers run so far for a sample, counted by row."""
        return sum(self.block.executed[row] for row in self.rows[sample])


class ChainScorer:
    """Runs chains on samples and judges what they answer.

    Attributes:
        model: the frozen base model.
        tokenizer: its tokenizer.
        tasks: the samples' tasks.
        batch_tokens: tokens in one call of a layer at most.
        num_layers: layers of the model.
        d_model: width of the model's hidden states.
        dtype: dtype of the model, for example "bfloat16".
        fingerprints: what the scores are valid for.
        layer_parameters: parameters of all layers; a token's forward through them takes about twice as many
            operations (a mixture of experts uses a part of them).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Task | TaskSet,
        *,
        batch_tokens: int = 1024,
        state_bytes: int = 2**30,
        packed: bool = True,
        origin: ModelSettings | None = None,
        processor: ProcessorMixin | None = None,
    ) -> None:
        """Prepare a model for its tasks.

        Args:
            model: the frozen base model in evaluation mode.
            tokenizer: its tokenizer.
            tasks: the tasks that make prompts of samples.
            batch_tokens: tokens in one call of a layer at most.
            state_bytes: bytes of computed states kept for reuse.
            packed: whether the choices of a sample share one row where the model allows it.
            origin: where the model comes from, for another process that is to load it too; None: only this one has it.
            processor: the model's processor, for tasks with pictures.
        """
        self.tasks = TaskSet.of(tasks)
        self.model, self.tokenizer = model, tokenizer
        self._origin, self._state_bytes = origin, state_bytes
        self._processor = processor
        self._encoder = Encoder(model, tokenizer, self.tasks, processor)
        self._executor = ChainExecutor(model, batch_tokens=batch_tokens, state_bytes=state_bytes)
        self._generator = Generator(model, tokenizer, batch_tokens=4 * batch_tokens)
        self._grader = Grader()
        self.batch_tokens = batch_tokens
        self._asked_packed, self._packed = packed, packed and self._executor.can_pack
        self.num_layers = self._executor.num_layers
        self.d_model = int(model.config.get_text_config(decoder=True).hidden_size)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.layer_parameters = sum(p.numel() for layer in find_decoder(model).layers for p in layer.parameters())
        self.fingerprints = Fingerprints(
            model=model_fingerprint(model),
            tokenizer=tokenizer_fingerprint(tokenizer),
            prompt=self.tasks.prompt_hash(),
        )

    @classmethod
    def open(
        cls,
        origin: ModelSettings,
        tasks: Task | TaskSet,
        *,
        batch_tokens: int = 1024,
        state_bytes: int = 2**30,
        packed: bool = True,
    ) -> ChainScorer:
        """Load a model for its tasks; workers in other processes can then load it too.

        Raises:
            InputError: where the model, its device, or its processor for tasks with pictures does not exist.
        """
        name, tasks, processor = origin.model or DEFAULT_MODEL, TaskSet.of(tasks), None
        if any(task.columns.image is not None for task in tasks.tasks.values()):
            processor = load_processor(name, revision=origin.revision)
        model, tokenizer = load_model(name, dtype=origin.dtype, device=origin.device, revision=origin.revision)
        sizes = {"batch_tokens": batch_tokens, "state_bytes": state_bytes}
        return cls(model, tokenizer, tasks, **sizes, packed=packed, origin=origin, processor=processor)

    def with_tasks(self, tasks: TaskSet) -> ChainScorer:
        """Return a scorer of the same model for other tasks."""
        sizes = {"batch_tokens": self.batch_tokens, "state_bytes": self._state_bytes}
        return ChainScorer(
            self.model,
            self.tokenizer,
            tasks,
            **sizes,
            packed=self._asked_packed,
            origin=self._origin,
            processor=self._processor,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by name: the model is loaded there, and must be the same."""
        if self._origin is None:
            raise TypeError("a scorer of a model that was not loaded by name cannot go to another process")
        kept = (self._origin, self.tasks, self.batch_tokens, self._state_bytes, self._asked_packed)
        return _reopened, (*kept, self.fingerprints)

    @property
    def unjudged(self) -> int:
        """Answers that could not be graded in time, in this process and in others that tell it."""
        return self._grader.unjudged

    @unjudged.setter
    def unjudged(self, count: int) -> None:
        self._grader.unjudged = count

    @property
    def statistics(self) -> ExecutorStatistics:
        """Counts and times of the layers and the head run so far."""
        return self._executor.statistics

    @property
    def notes(self) -> list[str]:
        """What a reader of the results must know, a sentence each: truncated prompts, answers that were not graded."""
        notes = []
        if self._encoder.truncated:
            notes.append(f"{len(self._encoder.truncated)} prompts were too long and lost their start")
        if self._encoder.unreachable:
            notes.append(
                f"{len(self._encoder.unreachable)} right answers are longer than max_new_tokens lets one generate"
            )
        if self.unjudged:
            notes.append(f"{self.unjudged} answers could not be graded in time and count as wrong")
        return notes

    def means_the_same(self, sample: Sample, answer: str) -> bool:
        """Whether a free answer would be graded as right for a sample, or the sample's own as right for it."""
        if self.tasks[sample.task].grading == "text":
            return folded(answer) in map(folded, (sample.gold, *sample.aliases))
        return self._grader.equal(sample.gold, answer) or self._grader.equal(answer, sample.gold)

    def encode(self, sample: Sample, target: int | str | None = None, variant: int = 0) -> EncodedSample:
        """Tokenise a sample's prompt and continuations; see `data.scoring.Encoder.encode`."""
        return self._encoder.encode(sample, target, variant)

    def encode_all(
        self, samples: Iterable[Sample], targets: Mapping[str, int | str] | None = None, variant: int = 0
    ) -> list[EncodedSample]:
        """Tokenise samples; `targets` has, by sample id, the right answer where it is not the sample's own.

        Raises:
            InputError: where one cannot be asked; the message names it.
        """
        encoded = []
        for sample in samples:
            try:
                encoded.append(self.encode(sample, (targets or {}).get(sample.id), variant))
            except ValueError as error:
                raise InputError(f"data: sample {sample.id}: {str(error).removeprefix('data: ')}") from error
        return encoded

    def load(self, samples: Sequence[EncodedSample], *, share: bool = True, beside: bool = False) -> SampleBlock:
        """Load samples into the executor; a block loaded before loses its reusable states, but for `beside`.

        With `share`, tokens that many prompts begin with (examples, a system prompt) run once for all of them. Beside
        samples with pictures each choice has a row of its own.

        Raises:
            InputError: where a picture is missing or another.
            ValueError: where the model hands pictures to its layers in a way of its own.
        """
        rows: list[Row] = []
        owned: list[tuple[int, ...]] = []
        packed = self._packed and not any(sample.sample.images for sample in samples)
        for sample in samples:
            # Letters are predicted, never read: one plain row has them all.
            letters = bool(sample.sample.images) and all(len(tokens) == 1 for tokens in sample.continuations)
            made = rows_of(sample.prompt, sample.continuations, packed=packed or letters)
            if inputs := self._encoder.inputs(sample):
                made = [dataclasses.replace(row, inputs=inputs) for row in made]
            owned.append(tuple(range(len(rows), len(rows) + len(made))))
            rows += made
        return SampleBlock(tuple(samples), self._executor.load(rows, share=share, beside=beside), tuple(owned))

    def score(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Run each (index of a sample in the block, chain) and judge it in its task's mode; one result a job, in order.

        Raises:
            InputError: where a score is no finite number (float16 overflows in some models).
        """
        return self._in_modes(block, jobs, [block.samples[index].task.mode for index, _ in jobs])

    def judge(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Do as `score` does, in the mode that evaluation uses (`Task.judged_mode`)."""
        return self._in_modes(block, jobs, [block.samples[index].task.judged_mode for index, _ in jobs])

    def _in_modes(
        self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]], modes: Sequence[str]
    ) -> list[ChainResult]:
        results: dict[int, ChainResult] = {}
        for run, names in (
            (self._compare_choices, CHOICE_MODES),
            (self._force_answers, ("exact",)),
            (self.generate_answers, ("generate",)),
        ):
            places = [i for i, mode in enumerate(modes) if mode in names]
            if places:
                results |= zip(places, run(block, [jobs[i] for i in places]), strict=True)
        return [results[i] for i in range(len(jobs))]

    def _compare_choices(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        row_jobs = [Job(row, chain) for index, chain in jobs for row in block.rows[index]]
        logprobs = iter(self._executor.target_logprobs(block.block, row_jobs))
        results = []
        for index, chain in jobs:
            encoded = block.samples[index]
            sums = [0.0] * len(encoded.continuations)
            for row in block.rows[index]:
                for target, value in zip(block.block.rows[row].targets, next(logprobs).tolist(), strict=True):
                    sums[target.group] += value
            scores = encoded.query.choice_scores(sums, [len(tokens) for tokens in encoded.continuations])
            assert isinstance(encoded.target, int)
            with self._finite(encoded.sample):
                results.append(ChainResult.from_scores(chain, scores, encoded.target))
        return results

    def _force_answers(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Judge by teacher forcing: right where greedy decoding would emit the right answer's tokens and its end."""
        row_jobs = [Job(block.rows[index][0], chain) for index, chain in jobs]
        results = []
        readings = self._executor.target_readings(block.block, row_jobs)
        for (index, chain), reading in zip(jobs, readings, strict=True):
            encoded = block.samples[index]
            logprobs, margins, best = reading.T.tolist()
            emitted = [int(token) for token in best]
            same = [one == wanted for one, wanted in zip(emitted, encoded.continuations[0], strict=True)]
            known = same.index(False) + 1 if False in same else len(same)
            text = str(self.tokenizer.decode(emitted[:known], skip_special_tokens=True))
            with self._finite(encoded.sample):
                results.append(ChainResult.from_tokens(chain, logprobs, margins, all(same), text))
        return results

    @contextmanager
    def _finite(self, sample: Sample) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise InputError(f"dtype: sample {sample.id} in {self.dtype}: {error}") from error

    def generate_answers(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Decode each job's answer under its chain's view and grade it, whatever its task's mode; choices by letter."""
        requests = []
        for index, chain in jobs:
            task = block.samples[index].task
            inputs = block.block.rows[block.rows[index][0]].inputs
            requests.append(Request(block.samples[index].prompt, chain, task.max_new_tokens, task.before_end, inputs))
        results = []
        for (index, chain), answer in zip(jobs, self._generator.generate(requests), strict=True):
            one = block.samples[index]
            judged = judge(one.task, one.sample, one.query, one.target, answer, self._grader)
            results.append(ChainResult.from_answer(chain, *judged))
        return results

    def first_token_logits(
        self, block: SampleBlock, samples: Sequence[int], chain: Chain
    ) -> list[Float[Tensor, " vocabulary"]]:
        """Return for each of some samples of the block the logits of an answer's first token under a chain."""
        jobs = [Job(block.rows[i][0], chain) for i in samples]
        ends = [len(block.samples[i].prompt) - 1 for i in samples]
        return [logits[0] for logits in self._executor.logits(block.block, jobs, ends)]

    def states(self, block: SampleBlock, read_layer: int) -> list[Float[Tensor, "_ d_model"]]:
        """Return `hidden_states[read_layer]` of each sample: of its prompt and then of each choice's continuation.

        Continuations come without their last token, as in a packed row; a free answer is never among them. This is
        what the router reads, here and in deployment: prompt and choices, never the answer.

        Raises:
            ValueError: where `read_layer` is not in 1..num_layers (the last layer's output, before the final norm).
        """
        if not 1 <= read_layer <= self.num_layers:
            raise ValueError(f"read_layer: expected 1..{self.num_layers}, got {read_layer}")
        prefix = Chain(tuple(range(read_layer)), self.num_layers)
        jobs = [Job(row, prefix) for rows in block.rows for row in rows]
        states = iter(self._executor.states(block.block, jobs))
        joined = []
        for encoded, rows in zip(block.samples, block.rows, strict=True):
            own = [next(states) for _ in rows]
            joined.append(joined_states(own, len(encoded.prompt), choices=encoded.task.has_choices))
        return joined


def judge(
    task: Task, sample: Sample, query: Query, target: int | str, answer: Answer, grader: Grader
) -> tuple[int | str | None, bool]:
    """Return what was answered (a choice's index, text, or None: no answer could be read), and whether it is right.

    Args:
        task: the task, which says where the answer stands and how it is compared.
        sample: the sample.
        query: how it was asked; its order says which letter means which choice.
        target: the answer that counts as right.
        answer: what was generated after the prompt.
        grader: judges mathematical equivalence.
    """
    text = _answer_text(task, answer)
    if text is None or not text.strip():
        return None, False
    if task.has_choices:
        letter = parse_letter(text, len(sample.choices))
        return (None, False) if letter is None else (query.order[letter], query.order[letter] == target)
    text = text.strip()
    accepted = (str(target), *(sample.aliases if target == sample.answer else ()))
    if task.grading == "text":
        return text, folded(text) in map(folded, accepted)
    return text, any(grader.equal(one, text) for one in accepted)


def _answer_text(task: Task, answer: Answer) -> str | None:
    before_end = task.before_end(answer.text)
    text = answer.text if before_end is None else before_end
    if task.free_form:
        return final_answer(text)
    if task.has_choices and not task.prompt.opening:
        return text  # a letter is read strictly, whatever follows it
    if before_end is None and (not answer.complete or task.prompt.opening.endswith("{")):
        return None  # cut off, or a box that was never closed
    return text


def confidences(
    scorer: ChainScorer, block: SampleBlock, chain: Chain, results: Sequence[ChainResult] | None = None
) -> list[float]:
    """Return for each sample, in 0..1, how sure a chain's answer is; the right answer is not looked at.

    With choices it is the probability of its choice (softmax over their scores), of a free answer that of its first
    token. `results` are those in the cheap mode, where they are known.
    """
    places = range(len(block.samples))
    choices = [i for i in places if block.samples[i].task.mode in CHOICE_MODES]
    free = [i for i in places if block.samples[i].task.mode not in CHOICE_MODES]
    known = dict(enumerate(results or ()))
    compared = [known[i] for i in choices] if known else scorer.score(block, [(i, chain) for i in choices])
    found = {i: greatest_probability(one.scores) for i, one in zip(choices, compared, strict=True)}
    for i, logits in zip(free, scorer.first_token_logits(block, free, chain), strict=True):
        found[i] = float(logits.double().softmax(0).max())
    return [found[i] for i in places]


def delivered(result: ChainResult, task: Task, *, one_token: bool) -> ChainResult:
    """Return a chain's result as a router delivers it, which may end generation after one token.

    Choices are compared as ever; a free answer, which is more than a token and its end, is then cut off, so wrong, and
    agrees with no other.
    """
    cut = one_token and task.judged_mode not in CHOICE_MODES
    return ChainResult.from_answer(result.chain, "", correct=False) if cut else result


JOBS_PER_CALL = 256
"""(Sample, chain) pairs run at once, which bounds the memory of their last states; shared prefixes stay cached."""
Judge = Callable[[SampleBlock, Sequence[tuple[int, Chain]]], list[ChainResult]]
"""`ChainScorer.judge` (the real mode) or `ChainScorer.score` (the cheap one)."""


def in_parts(
    judge: Judge, block: SampleBlock, jobs: Sequence[tuple[int, Chain]], told: Callable[[int], object]
) -> dict[tuple[int, Chain], ChainResult]:
    """Run jobs, of which none stands twice, `JOBS_PER_CALL` at once; `told` hears how many are done after each call."""
    results: dict[tuple[int, Chain], ChainResult] = {}
    for start in range(0, len(jobs), JOBS_PER_CALL):
        part = jobs[start : start + JOBS_PER_CALL]
        results |= zip(part, judge(block, part), strict=True)
        told(len(part))
    return results


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Split 0..len-1 into batches of at most `size` of similar length, so that little is padded; a fixed order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def open_scorer(
    model: ModelSettings, data: Path, split: Split, *, limit: int | None = None, batch_tokens: int = 1024
) -> tuple[ChainScorer, list[Sample]]:
    """Load a model and read the samples that it is to run on.

    Raises:
        InputError: where something is missing or does not fit.
    """
    require_directory(data, "data")
    tasks = read_tasks(data)
    samples = read_samples(data / f"{split}.jsonl", f"data: {split}")[:limit]
    for name in {sample.task for sample in samples}:
        tasks[name]  # refuses a sample of another task
    return ChainScorer.open(model.base, tasks, batch_tokens=batch_tokens), samples


_opened: dict[tuple[Any, ...], ChainScorer] = {}
"""The scorer that this process has opened for another, by the model's settings: one model at a time."""


def _reopened(
    origin: ModelSettings,
    tasks: TaskSet,
    batch_tokens: int,
    state_bytes: int,
    packed: bool,
    fingerprints: Fingerprints,
) -> ChainScorer:
    """Return the scorer of another process in this one; see `ChainScorer.__reduce__`.

    Raises:
        InputError: where the model cannot be loaded, or is not the same.
    """
    key = (origin.model, origin.revision, origin.dtype, origin.device, batch_tokens, state_bytes, packed)
    if key not in _opened:
        _opened.clear()
        _opened[key] = ChainScorer.open(
            origin, tasks, batch_tokens=batch_tokens, state_bytes=state_bytes, packed=packed
        )
    scorer = _opened[key].with_tasks(tasks)
    scorer.fingerprints.require(fingerprints, f"model {origin.model or DEFAULT_MODEL} as it is here")
    return scorer
