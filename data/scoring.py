"""Scoring of chains on samples: from the task's query to a score for every choice.

One scorer serves search, training and evaluation, so that all three see the same tokens and the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.answers import folded
from data.encoding import EncodedSample, Encoder
from data.generation import Generator, Request
from data.grading import Grader
from data.judging import is_whole_answer, judge
from data.records import ChainResult
from data.sample import Sample
from data.tasks import CHOICE_MODES, Task, TaskSet
from router.block import Block
from router.chain import Chain
from router.choices import joined_states, rows_of
from router.command import InputError
from router.decoder import find_decoder
from router.executor import ChainExecutor, Job
from router.fingerprint import Fingerprints, model_fingerprint, tokenizer_fingerprint
from router.rows import Row
from router.statistics import ExecutorStatistics


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
        partial: bool = True,
    ) -> None:
        """Prepare a model for its tasks.

        Args:
            model: the frozen base model in evaluation mode.
            tokenizer: its tokenizer.
            tasks: the tasks that make prompts of samples.
            batch_tokens: tokens in one call of a layer at most.
            state_bytes: bytes of computed states kept for reuse.
            packed: whether the choices of a sample share one row where the model allows it.
            partial: whether layers run on part of a row's tokens where the model allows it (`router.partial`).
        """
        self.tasks = TaskSet.of(tasks)
        self._encoder = Encoder(model, tokenizer, self.tasks)
        self._tokenizer = tokenizer
        self._executor = ChainExecutor(model, batch_tokens=batch_tokens, state_bytes=state_bytes, partial=partial)
        self._generator = Generator(model, tokenizer, batch_tokens=4 * batch_tokens)
        self._grader = Grader()
        self.batch_tokens = batch_tokens
        self._packed = packed and self._executor.can_pack
        self.num_layers = self._executor.num_layers
        self.d_model = int(model.config.get_text_config(decoder=True).hidden_size)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.layer_parameters = sum(p.numel() for layer in find_decoder(model).layers for p in layer.parameters())
        self.fingerprints = Fingerprints(
            model=model_fingerprint(model),
            tokenizer=tokenizer_fingerprint(tokenizer),
            prompt=self.tasks.prompt_hash(),
        )

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
        if self._grader.unjudged:
            notes.append(f"{self._grader.unjudged} answers could not be graded in time and count as wrong")
        return notes

    def means_the_same(self, sample: Sample, answer: str) -> bool:
        """Whether a free answer would be graded as right for a sample, or the sample's own as right for it."""
        if self.tasks[sample.task].grading == "text":
            return folded(sample.gold) == folded(answer)
        return self._grader.equal(sample.gold, answer) or self._grader.equal(answer, sample.gold)

    def encode(self, sample: Sample, target: int | str | None = None) -> EncodedSample:
        """Tokenise a sample's prompt and continuations; see `data.encoding.Encoder.encode`."""
        return self._encoder.encode(sample, target)

    def encode_all(
        self, samples: Iterable[Sample], targets: Mapping[str, int | str] | None = None
    ) -> list[EncodedSample]:
        """Tokenise samples, or refuse them.

        Args:
            samples: the samples.
            targets: by sample id, the answer that counts as right where it is not the sample's own.

        Raises:
            InputError: where one cannot be asked; the message names it.
        """
        encoded = []
        for sample in samples:
            try:
                encoded.append(self.encode(sample, (targets or {}).get(sample.id)))
            except ValueError as error:
                raise InputError(f"data: sample {sample.id}: {str(error).removeprefix('data: ')}") from error
        return encoded

    def load(self, samples: Sequence[EncodedSample], *, share: bool = True) -> SampleBlock:
        """Load samples into the executor; a block loaded before loses its reusable states.

        Args:
            samples: the samples.
            share: whether tokens that many prompts begin with (examples, a system prompt) run once for all of them.
        """
        rows: list[Row] = []
        owned: list[tuple[int, ...]] = []
        for sample in samples:
            made = rows_of(sample.prompt, sample.continuations, packed=self._packed)
            owned.append(tuple(range(len(rows), len(rows) + len(made))))
            rows += made
        return SampleBlock(tuple(samples), self._executor.load(rows, share=share), tuple(owned))

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
            try:
                results.append(ChainResult.from_scores(chain, scores, encoded.target))
            except ValueError as error:
                raise self._not_finite(encoded, error) from error
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
            text = str(self._tokenizer.decode(emitted[:known], skip_special_tokens=True))
            try:
                results.append(ChainResult.from_tokens(chain, logprobs, margins, all(same), text))
            except ValueError as error:
                raise self._not_finite(encoded, error) from error
        return results

    def _not_finite(self, encoded: EncodedSample, error: ValueError) -> InputError:
        return InputError(f"dtype: sample {encoded.sample.id} in {self.dtype}: {error}")

    def generate_answers(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Decode each job's answer under its chain's view and grade it, whatever its task's mode; choices by letter."""
        requests = []
        for index, chain in jobs:
            encoded = block.samples[index]
            finished = functools.partial(is_whole_answer, encoded.task)
            requests.append(Request(encoded.prompt, chain, encoded.task.max_new_tokens, finished))
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

    def states(self, block: SampleBlock, prefix_layers: int) -> list[Float[Tensor, "_ d_model"]]:
        """Return `hidden_states[prefix_layers]` of each sample: of its prompt and then of each choice's continuation.

        Continuations come without their last token, as in a packed row; a free answer is never among them. This is
        what the router reads, here and in deployment: prompt and choices, never the answer.

        Raises:
            ValueError: where `prefix_layers` is not in 1..num_layers (the last layer's output, before the final norm).
        """
        if not 1 <= prefix_layers <= self.num_layers:
            raise ValueError(f"prefix_layers: expected 1..{self.num_layers}, got {prefix_layers}")
        prefix = Chain(tuple(range(prefix_layers)), self.num_layers)
        jobs = [Job(row, prefix) for rows in block.rows for row in rows]
        states = iter(self._executor.states(block.block, jobs))
        joined = []
        for encoded, rows in zip(block.samples, block.rows, strict=True):
            own = [next(states) for _ in rows]
            joined.append(joined_states(own, len(encoded.prompt), choices=encoded.task.has_choices))
        return joined


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Split 0..len-1 into batches of at most `size` of similar length, so that little is padded; a fixed order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]
