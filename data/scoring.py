"""Scoring of chains on samples: from the task's query to a score for every choice.

One scorer serves search, training and evaluation, so that all three see the same tokens and the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import ChainResult
from data.sample import Sample
from data.tasks import Query, Task
from router.block import Block
from router.chain import Chain
from router.command import InputError
from router.executor import ChainExecutor, Job
from router.fingerprint import Fingerprints, model_fingerprint, tokenizer_fingerprint
from router.rows import Row, pack_row, separate_rows


@dataclass(frozen=True)
class EncodedSample:
    """A sample as token ids.

    Attributes:
        sample: the sample.
        query: its prompt and continuations as text.
        prompt: token ids of the prompt.
        continuations: token ids of each continuation, in the query's order.
        target: index of the choice that counts as right: the sample's answer, but for a control another one.
    """

    sample: Sample
    query: Query
    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    target: int

    @property
    def length(self) -> int:
        """Tokens of the packed row."""
        return len(self.prompt) + sum(len(tokens) - 1 for tokens in self.continuations)


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
    """Runs chains on the samples of one task.

    Attributes:
        task: the task.
        num_layers: layers of the model.
        d_model: width of the model's hidden states.
        dtype: dtype of the model, for example "bfloat16".
        fingerprints: what the scores are valid for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        *,
        batch_tokens: int = 1024,
        state_bytes: int = 2**30,
        packed: bool = True,
    ) -> None:
        """Prepare a model for a task.

        Args:
            model: the frozen base model in evaluation mode.
            tokenizer: its tokenizer.
            task: the task that makes prompts of samples.
            batch_tokens: tokens in one call of a layer at most.
            state_bytes: bytes of computed states kept for reuse.
            packed: whether the choices of a sample share one row where the model allows it.
        """
        self.task = task
        self._tokenizer = tokenizer
        self._executor = ChainExecutor(model, batch_tokens=batch_tokens, state_bytes=state_bytes)
        self._packed = packed and self._executor.can_pack
        self.num_layers = self._executor.num_layers
        self.d_model = int(model.config.get_text_config(decoder=True).hidden_size)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.fingerprints = Fingerprints(
            model=model_fingerprint(model),
            tokenizer=tokenizer_fingerprint(tokenizer),
            prompt=task.prompt_hash(),
        )

    def encode(self, sample: Sample, target: int | None = None) -> EncodedSample:
        """Tokenise a sample's prompt and continuations.

        A continuation's tokens are those that it adds to the prompt; where the tokenizer would merge across the
        border, the continuation is tokenised alone, so that all continuations follow the same prompt tokens.

        Args:
            sample: the sample.
            target: the choice that counts as right; None: the sample's answer.

        Raises:
            ValueError: where a continuation has no tokens.
        """
        query = self.task.query(sample)
        prompt = self._opened(query.prompt)
        continuations = []
        for text in query.continuations:
            whole = self._opened(query.prompt + text)
            alone = tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            fits = whole[: len(prompt)] == prompt and len(whole) > len(prompt)
            continuations.append(whole[len(prompt) :] if fits else alone)
            if not continuations[-1]:
                raise ValueError(f"sample {sample.id}: expected tokens in the continuation {text!r}, got none")
        return EncodedSample(sample, query, prompt, tuple(continuations), sample.answer if target is None else target)

    def _opened(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens with what the tokenizer puts before it (BOS), but not what it puts after it (EOS)."""
        plain = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        special = self._tokenizer(text)["input_ids"]
        for start in range(len(special) - len(plain) + 1):
            if special[start : start + len(plain)] == plain:
                return tuple(special[: start + len(plain)])
        return tuple(special)

    def load(self, samples: Sequence[EncodedSample]) -> SampleBlock:
        """Load samples into the executor; a block loaded before loses its reusable states."""
        rows: list[Row] = []
        owned: list[tuple[int, ...]] = []
        for sample in samples:
            made = (
                [pack_row(sample.prompt, sample.continuations)]
                if self._packed
                else separate_rows(sample.prompt, sample.continuations)
            )
            owned.append(tuple(range(len(rows), len(rows) + len(made))))
            rows += made
        return SampleBlock(tuple(samples), self._executor.load(rows), tuple(owned))

    def score(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Run each (index of a sample in the block, chain) and judge it; one result a job, in order.

        Raises:
            InputError: where a score is no finite number (float16 overflows in some models).
        """
        if not jobs:
            return []
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
            try:
                results.append(ChainResult.from_scores(chain, scores, encoded.target))
            except ValueError as error:
                raise InputError(f"dtype: sample {encoded.sample.id} in {self.dtype}: {error}") from error
        return results

    def states(self, block: SampleBlock, prefix_layers: int) -> list[Float[Tensor, "_ d_model"]]:
        """Return `hidden_states[prefix_layers]` of each sample: of its prompt and then of each continuation.

        Continuations come without their last token, as in a packed row. This is what the router reads, here and
        in deployment: prompt and choices, never the answer.

        Raises:
            ValueError: where `prefix_layers` is not in 1..num_layers-1.
        """
        if not 1 <= prefix_layers < self.num_layers:
            raise ValueError(f"prefix_layers: expected 1..{self.num_layers - 1}, got {prefix_layers}")
        prefix = Chain(tuple(range(prefix_layers)), self.num_layers)
        jobs = [Job(row, prefix) for rows in block.rows for row in rows]
        states = iter(self._executor.states(block.block, jobs))
        joined = []
        for encoded, rows in zip(block.samples, block.rows, strict=True):
            first, *others = [next(states) for _ in rows]
            joined.append(torch.cat([first, *(other[len(encoded.prompt) :] for other in others)]))
        return joined


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Split 0..len-1 into batches of at most `size` of similar length, so that little is padded; a fixed order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]
