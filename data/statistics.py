"""Statistics that tasks, search and evaluation share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
"""Of every interval."""


def greatest_probability(scores: Sequence[float]) -> float:
    """Return the greatest probability of the softmax over scores (nats), in 0..1."""
    best = max(scores)
    return 1 / math.fsum(math.exp(score - best) for score in scores)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927).

    Raises:
        ValueError: where `n` is below 1 or `correct` is not in 0..n.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct: expected 0..n of n of at least 1, got {correct} of {n}")
    low, high = proportion_confint(correct, n, alpha=1 - CONFIDENCE, method="wilson")
    # At 0 and n the bound is the share itself, which rounding can miss.
    return min(float(low), correct / n), max(float(high), correct / n)
