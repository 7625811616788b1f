"""Measures of per-sample results; no model, no files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from data.statistics import CONFIDENCE, wilson_interval
from eval.results import PolicyResult

RESAMPLES = 10_000
"""Bootstrap resamples of a paired difference."""


@dataclass(frozen=True)
class Paired:
    """An arm against a baseline on the same samples.

    Attributes:
        wrong_to_right: samples that the baseline answers wrongly and the arm rightly.
        right_to_wrong: samples that the baseline answers rightly and the arm wrongly.
        mcnemar_p: two-sided exact McNemar p-value of these two counts (1 where both are 0).
        mcnemar_p_holm: the same, corrected by Holm's method for all comparisons of the report; None: not one of them.
        difference: accuracy of the arm minus the baseline's, in -1..1.
        difference_interval: its 95 % percentile bootstrap interval over samples.
    """

    wrong_to_right: int
    right_to_wrong: int
    mcnemar_p: float
    difference: float
    difference_interval: tuple[float, float]
    mcnemar_p_holm: float | None = None


@dataclass(frozen=True)
class ArmMeasures:
    """One policy's measures.

    Attributes:
        n: samples.
        correct: samples answered rightly.
        accuracy: correct / n.
        accuracy_interval: 95 % Wilson score interval.
        no_answer: samples in whose generated text no answer could be read (format failures); they count as wrong.
        mean_depth: layers executed, mean over samples.
        mean_depth_interval: its 95 % percentile bootstrap interval over samples.
        depth_ratio: mean depth by the model's layers.
        rescued_share: of the samples that full depth answers wrongly the share that the arm answers rightly (error
            correction rate); None where there are none, and for full depth itself.
        rescued_interval: its 95 % Wilson score interval.
        against_full: the comparison with full depth; None for full depth itself.
    """

    n: int
    correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    no_answer: int
    mean_depth: float
    mean_depth_interval: tuple[float, float]
    depth_ratio: float
    rescued_share: float | None
    rescued_interval: tuple[float, float] | None
    against_full: Paired | None


@dataclass(frozen=True)
class Collapse:
    """How far a policy has fallen back to few chains.

    Attributes:
        share_full: share of samples that get the full chain.
        distinct_chains: number of different chains.
        share_most_common: share of samples that get the most common chain.
        most_common: its text form.
        entropy_bits: entropy of the chains' shares, bits; 0 where all samples get one chain.
    """

    share_full: float
    distinct_chains: int
    share_most_common: float
    most_common: str
    entropy_bits: float


def arm_of(results: Sequence[PolicyResult], full: Sequence[PolicyResult], seed: int) -> ArmMeasures:
    """Measure one policy.

    Args:
        results: the policy's results, one a sample.
        full: full depth's results on the same samples, in the same order; the policy's own for full depth.
        seed: seed of the bootstrap.

    Raises:
        ValueError: where the samples differ or there are none.
    """
    _check_aligned(results, full)
    n = len(results)
    correct = sum(result.correct for result in results)
    depth = sum(result.chain.depth for result in results) / n
    against = None if results is full else paired(results, full, seed)
    wrong = 0 if against is None else n - sum(result.correct for result in full)
    rescued = against.wrong_to_right if against is not None and wrong else None
    return ArmMeasures(
        n=n,
        correct=correct,
        accuracy=correct / n,
        accuracy_interval=wilson_interval(correct, n),
        no_answer=sum(result.prediction is None for result in results),
        mean_depth=depth,
        mean_depth_interval=mean_interval([result.chain.depth for result in results], seed),
        depth_ratio=depth / results[0].chain.num_layers,
        rescued_share=None if rescued is None else rescued / wrong,
        rescued_interval=None if rescued is None else wilson_interval(rescued, wrong),
        against_full=against,
    )


def paired(results: Sequence[PolicyResult], baseline: Sequence[PolicyResult], seed: int) -> Paired:
    """Compare two policies on the same samples.

    Raises:
        ValueError: where the samples differ or there are none.
    """
    _check_aligned(results, baseline)
    return paired_outcomes([one.correct for one in results], [one.correct for one in baseline], seed)


def paired_outcomes(ours: Sequence[bool], theirs: Sequence[bool], seed: int) -> Paired:
    """Compare two series of outcomes of the same samples, `theirs` being the baseline.

    Of the samples' differences (-1, 0, 1) a bootstrap resample needs their counts only, which are multinomial;
    it is drawn so, exactly as if samples were drawn with replacement.
    """
    n = len(ours)
    gained = sum(one and not other for one, other in zip(ours, theirs, strict=True))
    lost = sum(other and not one for one, other in zip(ours, theirs, strict=True))
    both = sum(one and other for one, other in zip(ours, theirs, strict=True))
    table = [[both, lost], [gained, n - both - lost - gained]]
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], size=RESAMPLES)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / n, [tail, 100 - tail])
    return Paired(
        wrong_to_right=gained,
        right_to_wrong=lost,
        mcnemar_p=float(mcnemar(table, exact=True).pvalue),
        difference=(gained - lost) / n,
        difference_interval=(float(low), float(high)),
    )


def mean_interval(values: Sequence[float] | NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean over samples.

    Equal values are interchangeable, so a resample needs their counts only, which are multinomial.
    """
    different, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws @ different / len(values), [tail, 100 - tail])
    return float(low), float(high)


def corrected(comparisons: Sequence[Paired]) -> list[Paired]:
    """Return comparisons with their p-values corrected for each other (Holm 1979)."""
    if not comparisons:
        return []
    p_values = multipletests([one.mcnemar_p for one in comparisons], method="holm")[1]
    return [replace(one, mcnemar_p_holm=float(p)) for one, p in zip(comparisons, p_values, strict=True)]


def collapse_of(results: Sequence[PolicyResult]) -> Collapse:
    """Measure how varied a policy's chains are."""
    counts = Counter(result.chain for result in results)
    n = len(results)
    # Among equally common chains the first by layers, so that the answer does not hang on the samples' order.
    most, times = min(counts.items(), key=lambda item: (-item[1], item[0].layers))
    entropy = sum(count / n * math.log2(n / count) for count in counts.values())
    return Collapse(
        share_full=sum(count for chain, count in counts.items() if chain.is_full) / n,
        distinct_chains=len(counts),
        share_most_common=times / n,
        most_common=str(most),
        entropy_bits=entropy,
    )


def chance_accuracy(results: Sequence[PolicyResult]) -> float:
    """Return the expected accuracy of guessing one of each sample's choices; a free answer is never guessed."""
    return sum(1 / result.choices if result.choices else 0.0 for result in results) / len(results)


def _check_aligned(results: Sequence[PolicyResult], baseline: Sequence[PolicyResult]) -> None:
    if not results or [one.sample_id for one in results] != [one.sample_id for one in baseline]:
        raise ValueError(
            f"results: expected two policies on the same samples in the same order, "
            f"got {len(results)} and {len(baseline)} results"
        )
