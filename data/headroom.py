"""What a router could reach at all: an oracle that is judged anew, on questions asked otherwise than it was chosen on.

The oracle of a search takes for each sample a chain that it saw to be right. Among many chains some are right by luck,
so its gain says little of what a router can learn. Where a sample was asked in several variants (its choices in other
orders, its instruction worded otherwise), a chain can be chosen by some of them and judged on another (cross-fitting):
luck does not repeat, and what is better for the sample does. Beside it stand full depth, the oracle that has seen the
answers, and fixed chains, chosen on other samples.

Few variants of one sample say little of a chain, and the best of many chains is then one that was lucky. So the
sample's own answers are joined with what each chain reaches on other samples of its task, as a beta prior does; how
much that weighs is chosen on other samples too (0: the sample's own answers decide alone). No model here, and no files:
records or margins go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from pydantic.dataclasses import dataclass

import router.heads.budget
from data.records import ChainResult, SearchRecord
from data.statistics import Estimate, Proportion, mean_of, share_of
from router.validation import STORED, NotNegative, Positive

Chooser = Literal["full", "oracle", "anew", "static", "mixture"]
"""Who picks the chain: full depth; the oracle that has seen the answers that it is judged on; the oracle judged anew;
the best fixed chain; the best mixture of fixed chains at most as deep as the oracle judged anew."""
FOLDS = 5
"""Parts of the samples; what is taken from other samples for one part comes from the others."""
WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""How much what a chain reaches on other samples may weigh, in answers of the sample's own."""
SLACK = 0.01
"""Accuracy: chains within it of the best count as good as that one, and the shallowest is taken."""
NEGLIGIBLE = 0.02
"""Accuracy: a gain surely below it is nothing to route for."""
HOW = "python -m search with variants: 4 and a menu, or with held_out: 2, asks each sample in several variants"
"""How records come to hold what is needed here."""


Reached = dict[Chooser, Float[np.ndarray, " samples"]]
"""Of each choice of a chain: what it reaches on each sample."""


@dataclass(frozen=True, config=STORED, kw_only=True)
class Gains:
    """What each choice of a chain reaches on some samples.

    Attributes:
        n: samples.
        accuracy: accuracy of each choice, mean over variants.
        depth: mean depth of each choice, layers.
        over_full: accuracy of each choice minus full depth's.
        over_fixed: accuracy of the oracle judged anew minus that of fixed chains of its depth ("mixture"); null: of a
            search, which knows no fixed chains.
    """

    n: Positive
    accuracy: dict[Chooser, Proportion | None]
    depth: dict[Chooser, NotNegative]
    over_full: dict[Chooser, Estimate | None]
    over_fixed: Estimate | None


@dataclass(frozen=True, config=STORED, kw_only=True)
class Headroom(Gains):
    """What a router could reach at all.

    Attributes:
        variants: variants in which every chain answered each sample; of a search, those that it never saw.
        held_out: whether a search chose the chains (the shortest that stands) and variants that it never saw judge
            them; otherwise the chain of each variant is chosen by all others. A search knows no fixed chains.
        tasks: the same by task; empty with one task.
    """

    variants: Positive
    held_out: bool
    tasks: dict[str, Gains]

    @classmethod
    def of(cls, records: Sequence[SearchRecord], seed: int) -> Headroom | None:
        """Measure it on records; None: they do not hold what is needed, or fewer than `FOLDS` samples.

        Of a table in which all chains answered all variants the choices are cross-fitted. Of a search the shortest
        chain that stands is judged on the variants that it never saw, full depth where none stands.

        Args:
            records: the records.
            seed: seed of the bootstrap.
        """
        if len(records) < FOLDS:
            return None
        ids, tasks = [one.sample_id for one in records], [one.task for one in records]
        margins = _dense_margins(records)
        if margins is not None:
            depths = np.array([result.chain.depth for result in records[0].results])
            return cls.crossed(ids, tasks, margins, depths, seed)
        unseen = {len(record.full.held_out) for record in records}
        if len(unseen) > 1 or 0 in unseen:
            return None
        return _measured(tasks, *_on_held_out(records), seed, variants=unseen.pop(), held_out=True)

    @classmethod
    def crossed(
        cls,
        ids: Sequence[str],
        tasks: Sequence[str],
        margins: Float[np.ndarray, "variants samples chains"],
        depths: Int[np.ndarray, " chains"],
        seed: int,
    ) -> Headroom:
        """Choose on some variants, or samples, and judge on others.

        Args:
            ids: the samples' ids, at least `FOLDS`.
            tasks: their tasks.
            margins: margin of each answer, above 0 where it is right; at least two variants; full depth is chain 0.
            depths: depth of each chain, layers.
            seed: seed of the bootstrap.
        """
        right, groups = margins > 0, np.unique(tasks, return_inverse=True)[1]
        folds = np.argsort(np.argsort(ids)) % FOLDS  # by id: the order of the samples decides nothing
        samples, anew = right.shape[1], judged_anew(margins, depths, folds, groups)
        budget = float(depths[anew].mean())
        static = np.zeros(samples, dtype=int)
        shares = np.empty((samples, len(depths)))
        for fold in range(FOLDS):
            others = margins[:, folds != fold]
            accuracy = (others > 0).mean((0, 1))
            static[folds == fold] = best_chain(accuracy, others.mean((0, 1)), depths)
            shares[folds == fold] = best_mixture(accuracy, depths, budget)
        columns: dict[Chooser, Int[np.ndarray, "variants samples"]] = {
            "full": np.zeros_like(anew),
            "oracle": best_chain(right, margins, depths),
            "anew": anew,
            "static": np.broadcast_to(static, anew.shape),
        }
        reached = {name: _taken(right, one).mean(0) for name, one in columns.items()}
        layers = {name: depths[one].mean(0) for name, one in columns.items()}
        reached["mixture"], layers["mixture"] = np.minimum(1.0, (right.mean(0) * shares).sum(1)), shares @ depths
        return _measured(tasks, reached, layers, seed, variants=len(right), held_out=False)

    @property
    def advice(self) -> str:
        """Whether there is something to route, in a line."""
        known, gain = self.over_fixed, self.over_full["anew"]
        decisive = known or gain
        low, high = (0.0, 0.0) if decisive is None else decisive.interval
        if low > 0:
            verdict = "there is something to route"
        elif high < NEGLIGIBLE:
            verdict = "there is no accuracy to gain" if known is None else "there is nothing to route"
        else:
            verdict = f"whether there is something to route, {self.n} samples do not show"
        reached = f"an oracle judged anew gains {gain or '-'} over full depth"
        if known is None:
            return f"{verdict}: {reached} at {self.depth['anew']:.2f} layers"
        saved = round(self.depth["static"] - self.depth["anew"], 2) + 0.0  # never -0.00
        return (
            f"{verdict}: {reached}, {known} over fixed chains of its depth, and saves {saved:.2f} layers over "
            "the best fixed chain"
        )


def judged_anew(
    margins: Float[np.ndarray, "variants samples chains"],
    depths: Int[np.ndarray, " chains"],
    folds: Int[np.ndarray, " samples"],
    groups: Int[np.ndarray, " samples"],
) -> Int[np.ndarray, "variants samples"]:
    """Return the column of each sample's chain in each variant: see `cross_fitted`.

    What chains reach elsewhere, and how much it weighs, comes from the samples of the other folds alone.

    Args:
        margins: margin of each answer, above 0 where it is right.
        depths: depth of each chain, layers.
        folds: each sample's fold.
        groups: each sample's task.
    """
    chosen = np.empty(margins.shape[:2], dtype=int)
    for fold in np.unique(folds):
        own, others = folds == fold, folds != fold
        known = margins[:, others]
        elsewhere = _elsewhere(known, folds[others], groups[others])
        right = [_taken(known > 0, cross_fitted(known, depths, elsewhere, weight)).mean() for weight in WEIGHTS]
        weight = WEIGHTS[int(np.argmax(right))]
        chosen[:, own] = cross_fitted(margins[:, own], depths, _reached(known, groups[others], groups[own]), weight)
    return chosen


def cross_fitted(
    margins: Float[np.ndarray, "variants samples chains"],
    depths: Int[np.ndarray, " chains"],
    elsewhere: Float[np.ndarray, "samples chains"],
    weight: float,
) -> Int[np.ndarray, "variants samples"]:
    """Return for each variant the column of each sample's chain, chosen on the sample's other variants.

    A chain's worth is the mean of the beta posterior: right answers in the other variants, and what it reaches on other
    samples as so many answers more (Gelman et al., Bayesian Data Analysis, equation 2.9 with a prior of that mean).

    Args:
        margins: margin of each answer, above 0 where it is right.
        depths: depth of each chain, layers.
        elsewhere: accuracy of each chain on other samples like this one.
        weight: how many answers that counts for; 0: nothing.
    """
    chosen = []
    for v in range(len(margins)):
        others = np.delete(margins, v, axis=0)
        worth = ((others > 0).sum(0) + weight * elsewhere) / (len(others) + weight)
        chosen.append(best_chain(worth, others.mean(0), depths))
    return np.stack(chosen)


def best_chain(worth: ArrayLike, margins: ArrayLike, depths: Int[np.ndarray, " chains"]) -> NDArray[np.int64]:
    """Return the column of the chain of greatest worth, of those within `SLACK` the shallowest, then greatest margin.

    It is full depth, column 0, where no other is better, or as good and shallower; also where none is worth anything.

    Args:
        worth: accuracy that is expected of each chain, `[..., chains]`.
        margins: its mean margin, `[..., chains]`.
        depths: its depth, layers.
    """
    values = np.asarray(worth, dtype=float)
    worse = values < values.max(-1, keepdims=True) - SLACK
    edited, deep = (np.broadcast_to(one, values.shape) for one in (np.arange(len(depths)) > 0, depths))
    order = np.lexsort((-np.asarray(margins), edited, deep, worse), axis=-1)
    return np.where(values.any(-1), order[..., 0], 0)


def _taken(right: NDArray[np.bool_], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return what the chosen chains answer, `[variants, samples]`."""
    found: NDArray[np.bool_] = np.take_along_axis(right, columns[..., None], 2)[..., 0]
    return found


def _reached(margins: NDArray[np.float64], groups: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return for each wanted group each chain's accuracy on its samples; on all, where it has none."""
    right = (margins > 0).mean(0)
    means = {group: right[groups == group].mean(0) for group in np.unique(groups)}
    return np.stack([means.get(group, right.mean(0)) for group in wanted])


def _elsewhere(
    margins: NDArray[np.float64], folds: NDArray[np.int64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each chain's accuracy on samples of the same group in other folds, `[samples, chains]`."""
    found = np.empty(margins.shape[1:])
    for fold in np.unique(folds):
        others = folds != fold
        found[~others] = _reached(margins[:, others], groups[others], groups[~others])
    return found


def best_mixture(
    accuracy: Float[np.ndarray, " chains"], depths: Int[np.ndarray, " chains"], budget: float
) -> Float[np.ndarray, " chains"]:
    """Return the shares of chains that are most accurate together at a mean depth of at most `budget` layers.

    At most two shares are above 0; some chain must be within the budget.
    """
    found = router.heads.budget.best_mixture(accuracy.tolist(), depths.astype(float).tolist(), budget)
    assert found is not None
    shares = np.zeros(len(depths))
    shares[found.first] += found.share
    shares[found.second] += 1 - found.share
    return shares


def _dense_margins(records: Sequence[SearchRecord]) -> Float[np.ndarray, "variants samples chains"] | None:
    """Return the margin of every chain in every variant; None: some chain did not answer some."""
    chains = [result.chain for result in records[0].results]
    asked = {len(result.variants) for record in records for result in record.results}
    if len(chains) < 2 or len(asked) > 1 or 0 in asked:
        return None
    rows = []
    for record in records:
        known = {result.chain: result for result in record.results}
        if known.keys() != set(chains):
            return None
        rows.append([_margins(known[chain]) for chain in chains])
    return np.array(rows).transpose(2, 0, 1)


def _margins(result: ChainResult) -> list[float]:
    """Return the margins of a chain's answers; one that a second run refuted counts as wrong."""
    usual = result.margin if result.right else -abs(result.margin)
    return [usual, *(one.margin for one in result.variants)]


def _on_held_out(records: Sequence[SearchRecord]) -> tuple[Reached, Reached]:
    """Judge the shortest chain that stands on the variants that the search never saw; gives accuracy and depth."""
    fulls = [record.full for record in records]
    found = [record.shortest for record in records]
    chosen = [one if one is not None and one.held_out else full for one, full in zip(found, fulls, strict=True)]
    depth = np.array([float(one.chain.depth) for one in chosen])
    right: Reached = {
        "full": _unseen_right(fulls),
        "oracle": np.array([one.mean_correct(of.variants) for one, of in zip(chosen, records, strict=True)]),
        "anew": _unseen_right(chosen),
    }
    return right, {"full": np.array([float(one.chain.depth) for one in fulls]), "oracle": depth, "anew": depth}


def _unseen_right(results: Sequence[ChainResult]) -> Float[np.ndarray, " samples"]:
    """Return the share of the variants that the search never saw in which each result is right."""
    return np.array([np.mean([one.correct for one in result.held_out]) for result in results])


def _measured(
    tasks: Sequence[str], right: Reached, depth: Reached, seed: int, *, variants: int, held_out: bool
) -> Headroom:
    """Measure all samples, and those of each task.

    Args:
        tasks: each sample's task.
        right: share of a sample's variants that each choice answers rightly.
        depth: depth of the chosen chains, mean over variants, layers.
        seed: seed of the bootstrap.
        variants: as of `Headroom`.
        held_out: as of `Headroom`.
    """
    kinds = sorted(set(tasks)) if len(set(tasks)) > 1 else []
    by_task = {kind: np.array(tasks) == kind for kind in kinds}
    return Headroom(
        **vars(_gains(right, depth, seed)),
        variants=variants,
        held_out=held_out,
        tasks={kind: _gains(_part(right, own), _part(depth, own), seed) for kind, own in by_task.items()},
    )


def _part(of: Reached, own: Bool[np.ndarray, " samples"]) -> Reached:
    return {name: values[own] for name, values in of.items()}


def _gains(right: Reached, depth: Reached, seed: int) -> Gains:
    fixed = right.get("mixture")
    return Gains(
        n=len(right["full"]),
        accuracy={name: share_of(values.tolist()) for name, values in right.items()},
        depth={name: float(values.mean()) for name, values in depth.items()},
        over_full={name: mean_of(one - right["full"], seed) for name, one in right.items() if name != "full"},
        over_fixed=None if fixed is None else mean_of(right["anew"] - fixed, seed),
    )
