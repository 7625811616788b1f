"""What the read-layer profile is made from: states at every layer, full depth's answers, and what each skip keeps.

One pass over the samples. The executor shares chain prefixes within a block, so the states at all layers cost one run
of the model, and a chain that skips layer l is computed from layer l+1 on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock, batches_by_length
from data.statistics import greatest_probability
from router.chain import Chain
from router.command import InputError

JOBS_PER_CALL = 256
"""(Sample, chain) pairs run at once, which bounds the memory of their last states; shared prefixes stay cached."""

Skip = tuple[int, ...]
"""Layers left out of the full chain, ascending."""


@dataclass(frozen=True, eq=False)
class Observations:
    """A model observed on samples.

    Memory: the features take 8 * samples * d_model bytes a read layer, as float32 (1,000 samples of a model of 30
    layers and width 576: 134 MB).

    Attributes:
        num_layers: layers of the model.
        features: by read layer e: `hidden_states[e]` of the prompt's last token beside the mean over all tokens that
            the router reads, `[samples, 2 * d_model]`, float32.
        confidence: full depth's confidence as `confidence_of` has it, in 0..1; NaN where the mode gives no scores.
        correct: whether full depth is right.
        kept: by skipped layers: whether the chain without them answers as full depth does (`same_answer`).

    Raises:
        ValueError: where a layer is out of range, shapes disagree or a number is not finite.
    """

    num_layers: int
    features: Mapping[int, Float[np.ndarray, "samples features"]]
    confidence: Float[np.ndarray, " samples"]
    correct: Bool[np.ndarray, " samples"]
    kept: Mapping[Skip, Bool[np.ndarray, " samples"]]

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        n = len(self.confidence)
        for layer, features in self.features.items():
            if not 1 <= layer < self.num_layers:
                raise ValueError(f"features: expected read layers in 1..{self.num_layers - 1}, got {layer}")
            if features.ndim != 2 or len(features) != n:
                raise ValueError(f"features[{layer}]: expected [{n}, features], got {list(features.shape)}")
            if not np.isfinite(features).all():
                raise ValueError(f"features[{layer}]: expected finite numbers, got others")
        if self.confidence.shape != (n,) or np.isinf(self.confidence).any():
            raise ValueError(f"confidence: expected {n} numbers or NaN, got others")
        for name, array in (("correct", self.correct), *((f"kept[{skip}]", kept) for skip, kept in self.kept.items())):
            if array.dtype != np.bool_ or array.shape != (n,):
                raise ValueError(f"{name}: expected {n} booleans, got {array.dtype} {list(array.shape)}")
        for skip in self.kept:
            _check_skip(skip, self.num_layers)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.confidence)


def observe(
    scorer: ChainScorer, samples: Sequence[Sample], skips: Sequence[Skip] | None = None, batch_samples: int = 16
) -> Observations:
    """Run full depth and every skip on every sample, and read the states at every layer; shows a progress bar.

    Args:
        scorer: runs chains on the samples.
        samples: the samples, at least one.
        skips: sets of layers to leave out, each ascending and within 1..num_layers-1; None: every single one of them.
        batch_samples: samples in one block; it changes speed and memory, not the result (but for rounding).

    Raises:
        ValueError: at no samples, a skip out of range or twice, or `batch_samples` below 1.
        InputError: where a sample cannot be asked, or the model gives a number that is not finite.
    """
    n = scorer.num_layers
    skips = [(layer,) for layer in range(1, n)] if skips is None else list(skips)
    for skip in skips:
        _check_skip(skip, n)
    if len(set(skips)) != len(skips):
        raise ValueError(f"skips: expected each once, got {len(skips)} with {len(set(skips))} different ones")
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    if batch_samples < 1:
        raise ValueError(f"batch_samples: expected at least 1, got {batch_samples}")
    encoded = scorer.encode_all(samples)
    features = {e: np.empty((len(samples), 2 * scorer.d_model), np.float32) for e in range(1, n)}
    confidence = np.empty(len(samples))
    correct = np.empty(len(samples), np.bool_)
    kept = {skip: np.empty(len(samples), np.bool_) for skip in skips}
    full = Chain.full(n)
    chains = {skip: without(skip, n) for skip in skips}
    # Neighbours in this order share the most layers, so little must be held for them.
    ordered = sorted([full, *chains.values()], key=lambda chain: chain.layers)
    with tqdm(total=len(samples) * len(ordered), desc="observe", unit="chain") as progress:
        for batch in batches_by_length([sample.length for sample in encoded], batch_samples):
            block = scorer.load([encoded[i] for i in batch])
            for e in range(1, n):
                states = scorer.states(block, e)
                for i, sample, state in zip(batch, block.samples, states, strict=True):
                    features[e][i] = _summary(state, len(sample.prompt))
            results: dict[tuple[int, Chain], ChainResult] = {}
            for part in _score(scorer, block, ordered):
                results |= part
                progress.update(len(part))
            for j, i in enumerate(batch):
                answer = results[j, full]
                confidence[i] = confidence_of(samples[i], answer)
                correct[i] = answer.correct
                for skip, chain in chains.items():
                    kept[skip][i] = same_answer(samples[i], results[j, chain], answer)
    try:
        return Observations(n, features, confidence, correct, kept)
    except ValueError as error:
        raise InputError(f"dtype: in {scorer.dtype}: {error}") from error


def without(skip: Skip, num_layers: int) -> Chain:
    """Return the full chain without the given layers."""
    chain = Chain.full(num_layers)
    for layer in reversed(skip):
        chain = chain.skip(layer, 1)  # above it nothing has moved yet
    return chain


def confidence_of(sample: Sample, result: ChainResult) -> float:
    """Return the probability that a result gives to its own answer, in 0..1.

    With choices it is the softmax over their scores at the prediction. A free answer's scores are the log-probabilities
    (nats) of the right answer's tokens, so it is the probability of that answer. Without scores (mode "generate") it is
    NaN.
    """
    if not result.scores:
        return math.nan
    if not sample.choices:
        return math.exp(math.fsum(result.scores))
    return greatest_probability(result.scores)


def same_answer(sample: Sample, one: ChainResult, other: ChainResult) -> bool:
    """Whether two results give the same answer.

    Free answers: both are right, however written, or both are wrong with the same text as far as it is known.
    """
    if sample.choices:
        return one.prediction == other.prediction
    return one.correct == other.correct and (one.correct or one.prediction == other.prediction)


def _check_skip(skip: Skip, num_layers: int) -> None:
    # Layer 0 runs in every chain that a router picks: it reads the states after one layer or more.
    if not skip or list(skip) != sorted(set(skip)) or not 1 <= skip[0] <= skip[-1] < num_layers:
        raise ValueError(f"skips: expected ascending layers in 1..{num_layers - 1}, got {list(skip)}")


def _summary(state: Float[Tensor, "tokens d_model"], prompt: int) -> Float[np.ndarray, " features"]:
    """Return the state of the prompt's last token, after which the answer begins, beside the mean over tokens."""
    state = state.float()
    joined: np.ndarray = torch.cat([state[prompt - 1], state.mean(0)]).cpu().numpy()
    return joined


def _score(
    scorer: ChainScorer, block: SampleBlock, chains: Sequence[Chain]
) -> Iterator[dict[tuple[int, Chain], ChainResult]]:
    """Run every chain on every sample of a block, some jobs at a time; keys are (index in the block, chain)."""
    jobs = [(i, chain) for chain in chains for i in range(len(block.samples))]
    for start in range(0, len(jobs), JOBS_PER_CALL):
        part = jobs[start : start + JOBS_PER_CALL]
        yield dict(zip(part, scorer.score(block, part), strict=True))
