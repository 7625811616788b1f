"""Measures of what a search found (docs/analysis.md says what they mean); no model, no files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data.statistics import wilson_interval
from eval.analysis.outcomes import Outcome
from eval.analysis.statistics import DepthAt, Interval, Share, bootstrap, depths_of, mean_or_none
from eval.measures import LayerUse, layer_use
from router.chain import Chain


@dataclass(frozen=True)
class Luck:
    """What a search finds for the right answer against what it finds for a wrong one that it is told, on one footing.

    Both are counted on the samples whose full depth clearly does not give the told answer (`gives_other`).

    Attributes:
        found: samples where the search told the right answer found what is asked for.
        told_wrong: those where the search told a wrong answer did: luck.
        net: share found less share told wrong; None without samples.
        net_interval: its 95 % percentile bootstrap interval over samples (paired); None with fewer than two.
    """

    found: Share
    told_wrong: Share
    net: float | None
    net_interval: Interval | None


@dataclass(frozen=True)
class Gain:
    """A share of samples for which a search found what is asked for, and what says how much of it is luck.

    Attributes:
        found: the share.
        chains: chains tried on these samples that would count if they were right.
        right: of these, the right ones.
        rate: right / chains; None without chains.
        rate_interval: its 95 % percentile bootstrap interval over samples; None with fewer than two samples.
        by_lot: the share that would be expected if each of these chains drew one of the choices by lot, on its own;
            None where the number of choices is unknown or there are no samples.
        luck: the control; None: not searched.
    """

    found: Share
    chains: int
    right: int
    rate: float | None
    rate_interval: Interval | None
    by_lot: float | None
    luck: Luck | None


@dataclass(frozen=True)
class Use(LayerUse):
    """How often the shortest right chains run each layer.

    Attributes:
        skip_interval: 95 % Wilson interval of each layer's skip rate.
        repeat_interval: 95 % Wilson interval of each layer's repeat rate.
    """

    skip_interval: tuple[Interval, ...]
    repeat_interval: tuple[Interval, ...]

    @classmethod
    def of(cls, chains: Sequence[Chain]) -> Use | None:
        """Count; None without chains."""
        if not chains:
            return None
        use = layer_use(chains)

        def intervals(rates: Sequence[float]) -> tuple[Interval, ...]:
            return tuple(wilson_interval(round(rate * use.chains), use.chains) for rate in rates)

        return cls(**asdict(use), skip_interval=intervals(use.skip_rate), repeat_interval=intervals(use.repeat_rate))


@dataclass(frozen=True)
class Measures:
    """What a search found on some samples.

    Attributes:
        n: samples.
        chance_accuracy: accuracy of guessing a choice, 0 for free answers; None where the number is unknown.
        original: samples that full depth answers rightly.
        oracle: samples with a right chain, full depth among them: the search has seen the answers.
        shortened: of the samples that full depth answers rightly, those with a shorter right chain.
        set_right: of those that it answers wrongly, those with a right chain.
        depth: see `DepthAt`; empty where there is no right chain.
        use: of the shortest right chains; None where there are none.
        use_told_wrong: the same of the search told a wrong answer, on samples whose full depth does not give that one
            (`gives_other`).
    """

    n: int
    chance_accuracy: float | None
    original: Share
    oracle: Share
    shortened: Gain
    set_right: Gain
    depth: tuple[DepthAt, ...]
    use: Use | None
    use_told_wrong: Use | None


def measures_of(found: Sequence[Outcome], wrong: Sequence[Outcome] | None, seed: int) -> Measures:
    """Measure what a search found.

    Args:
        found: the search's outcomes, at least one.
        wrong: the outcomes of the same search told a wrong answer, of the same samples in the same order; None: none.
        seed: seed of the bootstrap.

    Raises:
        ValueError: where there are none, or the samples differ.
    """
    if not found or (wrong is not None and [one.sample_id for one in found] != [one.sample_id for one in wrong]):
        raise ValueError(f"found: expected the outcomes of the same samples, got {len(found)} and others")

    def where(right: bool) -> tuple[list[Outcome], list[Outcome] | None]:
        kept = [i for i, one in enumerate(found) if one.right == right]
        return [found[i] for i in kept], None if wrong is None else [wrong[i] for i in kept]

    chains = [one.shortest for one in found if one.shortest is not None]
    others = [other for one, other in zip(found, wrong or (), strict=wrong is not None) if gives_other(one, other)]
    lucky = [other.shortest for other in others if other.shortest is not None]
    return Measures(
        n=len(found),
        chance_accuracy=mean_or_none([one.guess for one in found]),
        original=Share.of([one.right for one in found]),
        oracle=Share.of([one.shortest is not None for one in found]),
        shortened=_gain(_SHORTER, *where(True), seed),
        set_right=_gain(_ANY, *where(False), seed),
        depth=depths_of([chain.depth for chain in chains], seed),
        use=Use.of(chains),
        use_told_wrong=Use.of(lucky),
    )


def gives_other(found: Outcome, wrong: Outcome) -> bool:
    """Return whether full depth does not give the wrong answer that the second search was told.

    Left out are samples where it is unclear what full depth gives: a second run disagreed, or two answers tie.
    """
    return not wrong.right and wrong.clear and found.clear


@dataclass(frozen=True)
class _Asked:
    """What is asked of an outcome: whether it was found, and of how many chains tried how many are right."""

    found: Callable[[Outcome], bool]
    tried: Callable[[Outcome], int]
    right: Callable[[Outcome], int]


_SHORTER = _Asked(lambda one: one.shortened, lambda one: one.shorter, lambda one: one.shorter_right)
_ANY = _Asked(lambda one: one.shortest is not None, lambda one: one.tried, lambda one: one.tried_right)


def _gain(asked: _Asked, outcomes: Sequence[Outcome], wrong: Sequence[Outcome] | None, seed: int) -> Gain:
    tried = np.array([asked.tried(one) for one in outcomes if asked.tried(one)], dtype=float)
    right = np.array([asked.right(one) for one in outcomes if asked.tried(one)], dtype=float)
    lots = [None if (guess := one.guess) is None else 1.0 - (1.0 - guess) ** asked.tried(one) for one in outcomes]
    return Gain(
        found=Share.of([asked.found(one) for one in outcomes]),
        chains=int(tried.sum()),
        right=int(right.sum()),
        rate=float(right.sum() / tried.sum()) if len(tried) else None,
        rate_interval=bootstrap((right, tried), lambda a, b, axis: a.sum(axis) / b.sum(axis), seed),
        by_lot=mean_or_none(lots),
        luck=None if wrong is None else _luck(asked, outcomes, wrong, seed),
    )


def _luck(asked: _Asked, outcomes: Sequence[Outcome], wrong: Sequence[Outcome], seed: int) -> Luck:
    pairs = [(one, other) for one, other in zip(outcomes, wrong, strict=True) if gives_other(one, other)]
    found, lucky = [asked.found(one) for one, _ in pairs], [asked.found(other) for _, other in pairs]
    differences = np.subtract(found, lucky, dtype=float)
    return Luck(
        found=Share.of(found),
        told_wrong=Share.of(lucky),
        net=float(differences.mean()) if pairs else None,
        net_interval=bootstrap((differences,), lambda a, axis: a.mean(axis), seed),
    )
