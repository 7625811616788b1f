"""Shares, depths and their intervals over samples; no model, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from data.statistics import CONFIDENCE, wilson_interval

RESAMPLES = 10_000
"""Bootstrap resamples of samples."""
PERCENTS = (5, 10, 20, 100)
"""Of the samples, those with the shortest right chains, whose mean depth is told."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """A share of samples.

    Attributes:
        n: samples.
        count: those that are counted.
        share: count / n; None without samples.
        interval: its 95 % Wilson score interval; None without samples.
    """

    n: int
    count: int
    share: float | None
    interval: Interval | None

    @classmethod
    def of(cls, counted: Sequence[bool]) -> Share:
        """Count."""
        n, count = len(counted), sum(counted)
        return cls(n, count, count / n if n else None, wilson_interval(count, n) if n else None)


@dataclass(frozen=True)
class DepthAt:
    """Mean depth of the shortest right chains, over the samples where they are shortest.

    Attributes:
        percent: share of the samples with a right chain that are taken, those of the shortest first, percent.
        n: these samples (rounded up).
        mean: mean depth, layers.
        interval: its 95 % percentile bootstrap interval over all samples with a right chain; None with fewer than two.
    """

    percent: int
    n: int
    mean: float
    interval: Interval | None


def depths_of(depths: Sequence[int], seed: int) -> tuple[DepthAt, ...]:
    """Return the mean depth at each of `PERCENTS`; nothing without depths."""
    if not depths:
        return ()
    counts = [-(-percent * len(depths) // 100) for percent in PERCENTS]

    def means(values: np.ndarray, axis: int) -> np.ndarray:
        ordered = np.moveaxis(np.sort(values, axis), axis, -1)
        return np.stack([ordered[..., :count].mean(-1) for count in counts])

    told = np.array(depths, dtype=float)
    intervals = bootstraps((told,), means, seed)
    means_told = means(told, -1).tolist()
    return tuple(
        DepthAt(percent, count, mean, None if intervals is None else intervals[i])
        for i, (percent, count, mean) in enumerate(zip(PERCENTS, counts, means_told, strict=True))
    )


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean; None without values, or where one is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def bootstrap(values: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], seed: int) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of a statistic over samples; None with fewer than two.

    Args:
        values: arrays of one value a sample, resampled together.
        statistic: takes the arrays and `axis`, the samples' axis.
        seed: seed of the resamples.
    """
    intervals = bootstraps(values, lambda *args, axis: statistic(*args, axis=axis)[None], seed)
    return None if intervals is None else intervals[0]


def bootstraps(
    values: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray], seed: int
) -> list[Interval] | None:
    """Return the 95 % percentile bootstrap intervals of several statistics over samples; None with fewer than two."""
    if len(values[0]) < 2:
        return None
    result = stats.bootstrap(
        values,
        statistic,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [(float(low), float(high)) for low, high in zip(result.low, result.high, strict=True)]
