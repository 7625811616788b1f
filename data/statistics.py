"""The one statistics of tasks, search, training and evaluation: shares, paired comparisons, intervals, corrections.

Every interval covers 95 %. A bootstrap here resamples samples with replacement. Samples of equal value are
interchangeable, so a resample needs only how often each value comes, which is multinomial; it is drawn so, which gives
the same distribution as `scipy.stats.bootstrap` (a test compares the two) without drawing samples one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from router.validation import STORED, Count, Positive, Share

CONFIDENCE = 0.95
"""Of every interval."""
RESAMPLES = 10_000
"""Bootstrap resamples."""
PERMUTATIONS = 10_000
"""Permutations of a permutation test."""
Interval = tuple[Share, Share]
"""Lower and upper end of an interval of a share."""
Signed = Annotated[float, Field(ge=-1, le=1)]
"""A difference of two shares."""
SignedInterval = tuple[Signed, Signed]
"""Lower and upper end of an interval of a difference of two shares."""
Sums = NDArray[np.float64]
"""Sums of some columns over samples, `[resamples, columns]`."""
Flags = Sequence[bool] | NDArray[np.bool_]
"""Whether each sample counts."""
Values = Sequence[float] | NDArray[np.float64] | NDArray[np.bool_]
"""A value of each sample."""


def greatest_probability(scores: Sequence[float]) -> float:
    """Return the greatest probability of the softmax over scores (nats), in 0..1."""
    best = max(scores)
    return 1 / math.fsum(math.exp(score - best) for score in scores)


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share (Wilson 1927).

    Args:
        correct: samples that count, or a sum of values in 0..1, one a sample.
        n: samples.

    Raises:
        ValueError: where `n` is below 1 or `correct` is not in 0..n.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct: expected 0..n of n of at least 1, got {correct} of {n}")
    low, high = proportion_confint(correct, n, alpha=1 - CONFIDENCE, method="wilson")
    # At 0 and n the bound is the share itself, which rounding can miss.
    return min(float(low), correct / n), max(float(high), correct / n)


@dataclass(frozen=True, config=STORED)
class Proportion:
    """A share of samples.

    Attributes:
        n: samples.
        share: mean over them of what is 0 or 1, or of a mean of several 0 and 1 of each sample.
        interval: its Wilson score interval of `n` draws. Where a sample's value is itself a mean, it varies less than
            one draw, and the interval is wider than it need be.
    """

    n: Positive
    share: Share
    interval: Interval

    def __str__(self) -> str:
        """Return it for readers, `0.596 (0.568..0.623)`."""
        return f"{self.share:.3f} ({self.interval[0]:.3f}..{self.interval[1]:.3f})"


@dataclass(frozen=True, config=STORED)
class Estimate:
    """A difference, or another number that is no share, over samples.

    Attributes:
        n: samples.
        value: the number.
        interval: its percentile bootstrap interval over samples.
    """

    n: Positive
    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        """Return it for readers, `+0.018 (-0.003..+0.041)`."""
        return f"{self.value:+.3f} ({self.interval[0]:+.3f}..{self.interval[1]:+.3f})"


@dataclass(frozen=True, config=STORED)
class PairedShares:
    """Two shares of the same samples.

    Attributes:
        n: samples.
        first_only: samples that count in the first share alone.
        second_only: samples that count in the second alone.
        mcnemar_p: two-sided exact McNemar p-value of these two counts (1 where both are 0).
        difference: the first share minus the second.
        difference_interval: its percentile bootstrap interval over samples.
    """

    n: Positive
    first_only: Count
    second_only: Count
    mcnemar_p: Share
    difference: Signed
    difference_interval: SignedInterval

    def __str__(self) -> str:
        """Return the difference for readers, as of `Estimate`."""
        return str(Estimate(self.n, self.difference, self.difference_interval))


def share_of(values: Values) -> Proportion | None:
    """Return the mean of values in 0..1, one a sample; None: there is no sample."""
    n, total = len(values), float(sum(values))
    return Proportion(n, total / n, wilson_interval(total, n)) if n else None


def paired_shares(first: Flags, second: Flags, seed: int) -> PairedShares | None:
    """Compare two shares of the same samples; None: there is no sample.

    Args:
        first: whether each sample counts in the first share.
        second: whether it counts in the second.
        seed: seed of the bootstrap.
    """
    n = len(first)
    if not n:
        return None
    pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
    gained, lost, both = (pairs.count(kind) for kind in ((True, False), (False, True), (True, True)))
    table = [[both, lost], [gained, n - both - lost - gained]]
    draws = resampled([gained, lost, n - gained - lost], seed)
    return PairedShares(
        n=n,
        first_only=gained,
        second_only=lost,
        mcnemar_p=float(mcnemar(table, exact=True).pvalue),
        difference=(gained - lost) / n,
        difference_interval=percentile_interval((draws[:, 0] - draws[:, 1]) / n),
    )


def mean_of(values: Values, seed: int) -> Estimate | None:
    """Return the mean of a value of each sample; None: there is no sample."""
    n = len(values)
    return Estimate(n, float(np.mean(values)), mean_interval(values, seed)) if n else None


def mean_interval(values: Values, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean over samples.

    Args:
        values: a value of each sample, at least one.
        seed: seed of the bootstrap.
    """
    different, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    return percentile_interval(resampled(counts, seed) @ different / len(values))


def estimate_of(
    rows: Sequence[Sequence[float]] | NDArray[np.float64], of_sums: Callable[[Sums], Any], seed: int
) -> Estimate | None:
    """Return a number that hangs on sums over samples, such as a ratio of means, with its bootstrap interval.

    A resample without a sample to divide by is left out.

    Args:
        rows: some columns for each sample.
        of_sums: the number, `[resamples]`, of the columns' sums, `[resamples, columns]`.
        seed: seed of the bootstrap.

    Returns:
        The number; None where there is no sample, or none to divide by.
    """
    if not len(rows):
        return None
    different, counts = np.unique(np.asarray(rows, dtype=np.float64), axis=0, return_counts=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(of_sums((counts @ different)[None])[0])
        found = np.asarray(of_sums(resampled(counts, seed) @ different), dtype=np.float64)
    if not np.isfinite(value):
        return None
    return Estimate(len(rows), value, percentile_interval(found[np.isfinite(found)]))


def resampled(counts: Sequence[int] | NDArray[np.int64], seed: int) -> Int[np.ndarray, "resamples kinds"]:
    """Return how often each kind of sample comes in each of `RESAMPLES` bootstrap resamples.

    Args:
        counts: samples of each kind; their sum is the size of a resample.
        seed: seed of the draws.
    """
    n = int(np.sum(counts))
    return np.random.default_rng(seed).multinomial(n, np.asarray(counts) / n, size=RESAMPLES)


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of resampled values."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for each other (Holm 1979), in their order."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def permutation_p(
    correct: Bool[np.ndarray, "samples options"],
    choices: Int[np.ndarray, " samples"],
    groups: Sequence[str],
    seed: int,
) -> tuple[float, float]:
    """Permute choices among samples of the same group, `PERMUTATIONS` times.

    Args:
        correct: whether each option is right on each sample.
        choices: each sample's option.
        groups: each sample's group, such as its task.
        seed: seed of the permutations.

    Returns:
        The share of permutations (the given choice counted as one of them) that answer at least as many samples
        rightly, and the mean accuracy over permutations.
    """
    rng = np.random.default_rng(seed)
    names = np.array(groups)
    own = correct[np.arange(len(choices)), choices].sum()
    totals = np.zeros(PERMUTATIONS)
    for name in np.unique(names):
        group = np.flatnonzero(names == name)
        rows = correct[group]
        for i in range(PERMUTATIONS):
            totals[i] += rows[np.arange(len(group)), rng.permutation(choices[group])].sum()
    p = (1 + int((totals >= own).sum())) / (PERMUTATIONS + 1)
    return p, float(totals.mean() / len(choices))
