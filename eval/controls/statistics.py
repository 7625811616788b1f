"""Shares and differences of the oracle's controls, each with its number of samples and 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from data.statistics import CONFIDENCE
from eval.measures import RESAMPLES, mean_interval, paired_outcomes
from eval.results import PolicyResult

Pair = tuple[Sequence[PolicyResult], Sequence[PolicyResult]]
"""Full depth's and the oracle's results on the same samples, in the same order."""
Sums = NDArray[np.float64]
"""Sums of some columns over samples, `[resamples, columns]`."""


@dataclass(frozen=True)
class Share:
    """A share of samples.

    Attributes:
        n: samples.
        share: mean over them of what is 0 or 1, or of a mean of several 0 and 1 of each sample.
        interval: 95 % Wilson score interval of `n` draws. Where a sample's value is itself a mean, it varies less
            than one draw, and the interval is wider than it need be.
    """

    n: int
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Value:
    """A difference, or another number that is no share, over samples.

    Attributes:
        n: samples.
        value: the number.
        interval: its 95 % percentile bootstrap interval over samples.
    """

    n: int
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class PairedShares:
    """Two shares of the same samples.

    Attributes:
        n: samples.
        first_only: samples that count in the first share alone.
        second_only: samples that count in the second alone.
        mcnemar_p: two-sided exact McNemar p-value of these two counts (1 where both are 0).
        difference: the first share minus the second.
        difference_interval: its 95 % percentile bootstrap interval over samples.
    """

    n: int
    first_only: int
    second_only: int
    mcnemar_p: float
    difference: float
    difference_interval: tuple[float, float]


def share_of(values: Sequence[float]) -> Share | None:
    """Return the mean of values in 0..1, one a sample; None: there is no sample."""
    n = len(values)
    if not n:
        return None
    total = float(sum(values))
    low, high = proportion_confint(total, n, alpha=1 - CONFIDENCE, method="wilson")
    share = total / n
    return Share(n, share, (min(float(low), share), max(float(high), share)))  # rounding can miss a bound of 0 or 1


def paired_shares(first: Sequence[bool], second: Sequence[bool], seed: int) -> PairedShares | None:
    """Compare two shares of the same samples; None: there is no sample."""
    if not first:
        return None
    pair = paired_outcomes(first, second, seed)
    return PairedShares(
        n=len(first),
        first_only=pair.wrong_to_right,
        second_only=pair.right_to_wrong,
        mcnemar_p=pair.mcnemar_p,
        difference=pair.difference,
        difference_interval=pair.difference_interval,
    )


def mean_of(values: Sequence[float], seed: int) -> Value | None:
    """Return the mean of a value of each sample; None: there is no sample."""
    return Value(len(values), float(np.mean(values)), mean_interval(values, seed)) if values else None


def value_of(rows: Sequence[Sequence[float]], of_sums: Callable[[Sums], Any], seed: int) -> Value | None:
    """Return a number that hangs on sums over samples, with its bootstrap interval.

    Samples with equal rows are interchangeable, so a resample needs their counts only, which are multinomial; it is
    drawn so, exactly as if samples were drawn with replacement. A resample without a sample to divide by is left out.

    Args:
        rows: some columns for each sample.
        of_sums: the number, `[resamples]`, of the columns' sums, `[resamples, columns]`.
        seed: seed of the bootstrap.

    Returns:
        The number; None where there is no sample, or none to divide by.
    """
    n = len(rows)
    if not n:
        return None
    different, counts = np.unique(np.asarray(rows, dtype=np.float64), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(of_sums((counts @ different)[None])[0])
        resampled = np.asarray(of_sums(draws @ different), dtype=np.float64)
    if not np.isfinite(value):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled[np.isfinite(resampled)], [tail, 100 - tail])
    return Value(n, value, (float(low), float(high)))
