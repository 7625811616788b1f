"""Scoring of chains on samples: from token ids to a score for every choice, or an answer that is judged.

One scorer serves search, training and evaluation, so that all three see the same tokens and the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from data.answers import final_answer, folded, parse_letter
from data.encoding import EncodedSample, Encoder
from data.generation import Answer, Generator, Request
from data.grading import Grader
from data.prompts import Query
from data.records import ChainResult
from data.sample import Sample, Split
from data.statistics import greatest_probability
from data.tasks import CHOICE_MODES, Task, TaskSet, read_split, read_tasks
from router.chain import Chain
from router.decision import RouterConfig
from router.engine.block import Block
from router.engine.choices import joined_states, rows_of
from router.engine.decoder import find_decoder
from router.engine.executor import ChainExecutor, Job
from router.engine.load import DEFAULT_MODEL, ModelSettings, load_model, load_processor
from router.engine.rows import Row
from router.files import require_directory
from router.fingerprint import Fingerprints, model_fingerprint, tokenizer_fingerprint
from router.validation import InputError, from_plain


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
        scorer = cls(model, tokenizer, tasks, **sizes, packed=packed, origin=origin, processor=processor)
        scorer._origin = from_plain(ModelSettings, asdict(origin) | {"dtype": scorer.dtype})  # wherever it is loaded
        return scorer

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
        """Whether a free answer would be graded as right for a sample, or one of the sample's own as right for it."""
        own = (sample.gold, *sample.aliases)
        if self.tasks[sample.task].grading == "text":
            return folded(answer) in map(folded, own)
        return any(self._grader.equal(one, answer) or self._grader.equal(answer, one) for one in own)

    def encode(self, sample: Sample, target: int | str | None = None, variant: int = 0) -> EncodedSample:
        """Tokenise a sample's prompt and continuations; see `data.encoding.Encoder.encode`."""
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
                made = [replace(row, inputs=inputs) for row in made]
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
        """Decode each job's answer under its chain's view and grade it, whatever its task's mode; choices by letter.

        Raises:
            InputError: where a logit is no number (float16 overflows in some models).
        """
        requests = []
        for index, chain in jobs:
            task = block.samples[index].task
            inputs = block.block.rows[block.rows[index][0]].inputs
            requests.append(Request(block.samples[index].prompt, chain, task.max_new_tokens, task.before_end, inputs))
        try:
            answers = self._generator.generate(requests)
        except FloatingPointError as error:
            raise InputError(f"dtype: {error} in {self.dtype}") from error
        results = []
        for (index, chain), answer in zip(jobs, answers, strict=True):
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


def base_model(settings: ModelSettings, known: RouterConfig) -> ModelSettings:
    """Return the base model of a command that reads a router: what the settings leave open is as the router names it.

    Raises:
        InputError: where the router's dtype is none.
    """
    name, revision = known.base(settings.model, settings.revision)
    named = {"model": name, "revision": revision, "dtype": settings.dtype or known.dtype, "device": settings.device}
    return from_plain(ModelSettings, named, "router")


def open_scorer(
    model: ModelSettings, data: Path, split: Split, *, limit: int | None = None, batch_tokens: int = 1024
) -> tuple[ChainScorer, list[Sample]]:
    """Load a model and read the samples that it is to run on.

    Raises:
        InputError: where something is missing or does not fit.
    """
    require_directory(data, "data")
    tasks = read_tasks(data)
    samples = read_split(data, split, tasks)[:limit]
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
