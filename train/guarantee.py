"""The cheapest setting of a router whose expected loss is certified: Learn-then-Test on a calibration split.

Every setting (operating point) has a loss for each calibration sample, against full depth, whose own loss is 0. The
samples must be drawn independently from the distribution that the claim is about, and neither the router nor the
settings nor their order may have been chosen on them. Then, with probability at least 1 - delta over the draw of the
samples, every certified setting has an expected loss of at most epsilon. Method: Angelopoulos et al., "Learn then
Test" (arXiv 2110.01052), with fixed sequence testing; here with exact p-values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betainc, betainccinv, gammaln, xlog1py, xlogy

from router.validation import InputError

LossKind = Literal["accuracy", "disagreement"]
"""accuracy: correct(full depth) - correct(routed chain), in {-1, 0, 1}. disagreement: answers differ, in {0, 1}."""
VALUES: dict[LossKind, tuple[int, ...]] = {"accuracy": (-1, 0, 1), "disagreement": (0, 1)}

GAMMA = 1e-4
"""Probability that the rate of non-zero losses lies above its confidence bound; added to each p-value of accuracy. It
costs a thousandth of delta = 0.1, a hundredth of delta = 0.01; 1e-3 would lower the bound's z only from 3.7 to 3.1."""
CELLS = 64
"""Cells of rates of non-zero losses, each bounded from above, where the maximum is not known to lie at the end."""
TOLERANCE = 1e-6
"""Width of the bracket at which bisection for the smallest epsilon ends."""


@dataclass(frozen=True)
class Certificate:
    """What a calibration split certifies. Settings are named by their index in the order of testing.

    Attributes:
        chosen: certified setting of the least mean depth; None: nothing is certified, and full depth must run.
        certified: all certified settings, ascending; the guarantee holds for all of them at once.
        p_values: of each setting; None where the procedure stopped before it.
        mean_losses: of each setting on the calibration samples, in losses a sample; an estimate, not a bound.
        mean_loss: of the chosen setting; 0.0 for full depth.
        samples: number of calibration samples.
        epsilon, delta: as they were asked for.
        smallest_epsilon: the least epsilon at which the first setting is certified on these data at delta / starts;
            None where no epsilon below 1 would do. Descriptive: chosen after seeing the data, it is no guarantee.
        smallest_epsilons: of each setting, the same at the whole delta, as if it alone were asked. Descriptive too.
    """

    chosen: int | None
    certified: tuple[int, ...]
    p_values: tuple[float | None, ...]
    mean_losses: tuple[float, ...]
    mean_loss: float
    samples: int
    epsilon: float
    delta: float
    smallest_epsilon: float | None
    smallest_epsilons: tuple[float | None, ...]


class Counts(NamedTuple):
    """What a p-value reads of a setting's losses.

    The kind is declared and not read off the data: the smaller binomial tail is shown to be valid where -1 cannot
    occur, not where none happened to be drawn. "accuracy" is valid for both kinds.

    Attributes:
        samples: number of samples, at least 1.
        plus: losses of 1.
        minus: losses of -1.
        kind: of the losses.
    """

    samples: int
    plus: int
    minus: int
    kind: LossKind

    @classmethod
    def of(cls, losses: Int[np.ndarray, " samples"], kind: LossKind) -> Counts:
        """Count losses.

        Raises:
            ValueError: where a loss is none of the kind.
        """
        if others := np.setdiff1d(losses, VALUES[kind])[:5].tolist():
            raise ValueError(f"losses: expected only {VALUES[kind]} for {kind}, got {others}")
        return cls(len(losses), int((losses == 1).sum()), int((losses == -1).sum()), kind)

    @property
    def mean(self) -> float:
        """Mean loss."""
        return (self.plus - self.minus) / self.samples


def certify(
    losses: Int[np.ndarray, "settings samples"],
    depths: Float[np.ndarray, " settings"] | Sequence[float],
    epsilon: float,
    delta: float,
    *,
    kind: LossKind = "accuracy",
    starts: int = 1,
) -> Certificate:
    """Test settings in a fixed order and return the cheapest one that is certified.

    From each start, settings are tested one after another at the level delta / starts until one fails (Learn then
    Test, Algorithm 1, "fixed sequence testing"). Full depth needs no test: its loss is 0 by construction.

    Args:
        losses: `[settings, samples]`, integers, one column a calibration sample. The order of the settings, from the
            safest to the riskiest, must have been fixed before anybody looked at these samples.
        depths: `[settings]`, mean depth of each setting in layers, above 0. Cost is not under the guarantee, and all
            certified settings hold at once, so any choice among them holds: these may come from the calibration
            samples too, though the depth of the chosen one is then a slightly low estimate.
        epsilon: greatest expected loss allowed, in losses a sample; at least 0, below 1. At 0 ("no worse than full
            depth") disagreement is never certified.
        delta: probability allowed to the event that a certified setting's expected loss is above epsilon; in (0, 1).
        kind: of the losses.
        starts: number of settings, evenly spaced from the first on, at which a sequence starts; at most all.

    Raises:
        InputError: where delta / starts is not above GAMMA (accuracy), so that nothing could be certified.
        ValueError: where a loss is none of the kind.
    """
    counts = [Counts.of(row, kind) for row in losses]
    settings, level = len(counts), delta / starts
    if kind == "accuracy" and level <= GAMMA:
        raise InputError(f"delta / starts: expected above {GAMMA}, which each p-value exceeds, got {level}")
    p_values: list[float | None] = [None] * settings
    certified: list[int] = []
    for start in (settings * j // starts for j in range(starts)):
        for index in range(start, settings):
            if p_values[index] is not None:  # a sequence that ran into a later start has tested on from there
                break
            p_values[index] = tested = p_value(counts[index], epsilon)
            if tested > level:
                break
            certified.append(index)
    chosen = min(certified, key=lambda index: (depths[index], index), default=None)
    return Certificate(
        chosen=chosen,
        certified=tuple(certified),
        p_values=tuple(p_values),
        mean_losses=tuple(one.mean for one in counts),
        mean_loss=0.0 if chosen is None else counts[chosen].mean,
        samples=counts[0].samples,
        epsilon=epsilon,
        delta=delta,
        smallest_epsilon=_smallest_epsilon(counts[0], level),
        smallest_epsilons=tuple(_smallest_epsilon(one, delta) for one in counts),
    )


def p_value(counts: Counts, epsilon: float) -> float:
    """Return a p-value of the hypothesis that the expected loss is epsilon or more; valid for any number of samples.

    Disagreement: the exact binomial tail P(Bin(samples, epsilon) <= sum of losses). Accuracy: the greatest P(S <= s) of
    the sum S of losses over all distributions whose rate of non-zero losses is at most its one-sided Clopper-Pearson
    bound at GAMMA, plus GAMMA (Berger and Boos, JASA 89, 1994).
    """
    n, s, nonzero = counts.samples, counts.plus - counts.minus, counts.plus + counts.minus
    if counts.kind == "disagreement":
        return float(_binomial_cdf(np.array([s]), np.array([n]), epsilon)[0])
    # One side of Clopper-Pearson is enough: smaller rates are all kept, and the maximum lies at the upper end.
    highest = 1.0 if nonzero == n else float(betainccinv(nonzero + 1, n - nonzero, GAMMA))
    return min(1.0, _greatest_tail(n, s, epsilon, highest) + GAMMA)


def _greatest_tail(n: int, s: int, epsilon: float, highest: float) -> float:
    """Return the supremum (or a bound above it) of P(S <= s) where E[loss] >= epsilon and the rate is <= highest.

    S is the sum of n losses that are 1 with probability p+ and -1 with probability p-; the rate is r = p+ + p-.

    1. At a given r, P(S <= s) falls as E[loss] = p+ - p- rises, so only E[loss] = epsilon matters: then r >= epsilon,
       p+ = (r + epsilon) / 2 and p- = (r - epsilon) / 2; f(r) is the tail there.
    2. f'(r) = n/2 (P(S' = s + 1) - P(S' = s)), S' the sum of n - 1 losses (more r moves mass from 0 to both sides).
       Where (1 - r)^2 >= 4 p+ p-, that is r <= (1 + epsilon^2) / 2, the polynomial p- + (1 - r) z + p+ z^2 has real
       roots, so S' + n - 1 is a sum of independent Bernoulli variables, whose probabilities rise up to the mean
       (Darroch, Annals of Mathematical Statistics 35, 1964). With s + 1 <= (n - 1) epsilon, then, f rises there.
    3. Elsewhere (more than half of the losses may be non-zero, or s within one or two of n epsilon), on each cell
       a <= r <= b: p+ >= (a + epsilon) / 2 and p- <= (b - epsilon) / 2, and the tail at these two is a bound. As the
       cells do not depend on epsilon, the result falls as epsilon rises.
    """
    if s >= n * epsilon:
        return 1.0  # no evidence against the hypothesis
    if highest < epsilon:
        return 0.0  # no such distribution
    edges = [*np.linspace(0, min(highest, 0.5), CELLS + 1)]
    if highest > 0.5:
        edges += [*np.linspace(0.5, highest, CELLS + 1)[1:]]
    rising_to = (1 + epsilon**2) / 2 if s + 1 <= (n - 1) * epsilon else 0.0
    top = max(edge for edge in edges if edge <= rising_to or edge == 0)
    bound = _tail(n, s, (top + epsilon) / 2, (top - epsilon) / 2) if epsilon <= top and top > 0 else 0.0
    for below, above in pairwise(edges):
        if below >= top and above >= epsilon:
            bound = max(bound, _tail(n, s, (max(below, epsilon) + epsilon) / 2, (above - epsilon) / 2))
    return bound


def _tail(n: int, s: int, plus: float, minus: float) -> float:
    """Return P(S <= s), S the sum of n losses: m ~ Bin(n, r) are non-zero, and S given m is 2 Bin(m, p+ / r) - m."""
    rate = min(1.0, plus + minus)
    reach = 8 * (n * rate * (1 - rate)) ** 0.5 + 16
    m = np.arange(max(0, int(n * rate - reach)), min(n, int(n * rate + reach)) + 1)
    log_weights = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1) + xlogy(m, rate) + xlog1py(n - m, -rate)
    weights = np.exp(log_weights)
    inside = float(weights @ _binomial_cdf((m + s) // 2, m, plus / rate))
    return inside + max(0.0, 1 - float(weights.sum()))  # all m that were left out count in full


def _binomial_cdf(k: np.ndarray, trials: np.ndarray, probability: float) -> Float[np.ndarray, " values"]:
    """Return P(Bin(trials, probability) <= k); k may lie outside of 0..trials."""
    inside = (k >= 0) & (k < trials)
    cdf = betainc(np.where(inside, trials - k, 1), np.where(inside, k + 1, 1), 1 - probability)
    return np.where(inside, cdf, k >= trials)


def _smallest_epsilon(counts: Counts, level: float) -> float | None:
    """Return the least epsilon whose p-value is at most the level, to TOLERANCE from above; None where none is."""
    low, high = max(0.0, counts.mean), 1 - TOLERANCE
    if low >= high or p_value(counts, high) > level:
        return None
    low, high = (low, high) if p_value(counts, low) > level else (low, low)
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(counts, middle) <= level else (middle, high)
    return high
