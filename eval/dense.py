"""What policies are worth on a dense table (`data.records`).

On such a table a policy costs nothing to evaluate, so curves over budgets, seeds and permutations can be had. The
table's chains ran in the search's cheap mode; `python -m eval` runs a router's own chains, in the real mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from data.records import DenseTable
from data.statistics import mean_interval
from router.heads.budget import Mixture, best_mixture

PERMUTATIONS = 10_000
"""Permutations of a router's chains among samples of one task."""


def best_static_mixture(table: DenseTable, depth: float) -> Mixture | None:
    """Return the static mixture of greatest accuracy on a table with mean depth of at most `depth`; None: none is."""
    return best_mixture(table.accuracy.tolist(), table.depths.astype(float).tolist(), depth)


def right_of_mixture(table: DenseTable, mixture: Mixture) -> Float[np.ndarray, " samples"]:
    """Return each sample's probability of a right answer under a mixture of two columns."""
    correct = table.correct.astype(float)
    result: NDArray[np.float64] = (
        mixture.share * correct[:, mixture.first] + (1 - mixture.share) * correct[:, mixture.second]
    )
    return result


def best_static(table: DenseTable, depth: float) -> int | None:
    """Return the column of the most accurate chain of depth at most `depth`, the shallower among equals; None: none."""
    within = [int(i) for i in np.flatnonzero(table.depths <= depth)]
    return min(within, key=lambda i: (-table.accuracy[i], table.depths[i]), default=None)


def same_menu(table: DenseTable, choices: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Return each sample's probability of a right answer under a static menu.

    Its chain is drawn as often as the router chose it for the sample's task, but whatever the sample: what this lacks
    against the router is what the router read of a sample beyond its task.
    """
    result = np.empty(len(choices))
    tasks = np.array(table.tasks)
    for task in np.unique(tasks):
        own = np.flatnonzero(tasks == task)
        shares = np.bincount(choices[own], minlength=len(table.chains)) / len(own)
        result[own] = table.correct[own].astype(float) @ shares
    return result


def random_of_depth(table: DenseTable, choices: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Return each sample's probability of a right answer when its chain is any of the menu's of the same depth."""
    means = {
        int(depth): table.correct[:, table.depths == depth].astype(float).mean(1) for depth in np.unique(table.depths)
    }
    return np.array([means[int(table.depths[choice])][row] for row, choice in enumerate(choices)])


def permutation_p(table: DenseTable, choices: Int[np.ndarray, " samples"], seed: int) -> tuple[float, float]:
    """Permute chains among samples of the same task, `PERMUTATIONS` times.

    Returns:
        The share of permutations (the given choice counted as one of them) that answer at least as many samples
        rightly, and the mean accuracy over permutations.
    """
    rng = np.random.default_rng(seed)
    tasks = np.array(table.tasks)
    groups = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    own = table.right(choices).sum()
    totals = np.zeros(PERMUTATIONS)
    for group in groups:
        rows = table.correct[group]
        for i in range(PERMUTATIONS):
            totals[i] += rows[np.arange(len(group)), rng.permutation(choices[group])].sum()
    p = (1 + int((totals >= own).sum())) / (PERMUTATIONS + 1)
    return p, float(totals.mean() / len(choices))


def bootstrap_difference(
    one: Float[np.ndarray, " samples"], other: Float[np.ndarray, " samples"], seed: int
) -> tuple[float, float, float]:
    """Return the mean difference of two policies on the same samples and its 95 % percentile bootstrap interval.

    Values may be probabilities of a right answer (a randomised policy's expectation).
    """
    difference = one - other
    low, high = mean_interval(difference, seed)
    return float(difference.mean()), low, high


@dataclass(frozen=True)
class EarlyExit:
    """Stop after the first of some layers at which the model is confident (logit lens, no training).

    Attributes:
        exits: columns of the chains 0..k-1, k rising; the last is the full chain.
        threshold: confidence from which it stops, 0..1.
    """

    exits: tuple[int, ...]
    threshold: float

    def choices(self, table: DenseTable) -> Int[np.ndarray, " samples"]:
        """Return each sample's column."""
        chosen = np.full(len(table.sample_ids), self.exits[-1])
        for column in reversed(self.exits[:-1]):
            chosen[table.confidence[:, column] >= self.threshold] = column
        return chosen


def early_exit(table: DenseTable, depth: float) -> EarlyExit | None:
    """Return the early exit whose mean depth on a table is nearest below `depth`; None: the table holds no exits."""
    n = table.chains[0].num_layers
    exits = sorted(
        (i for i, chain in enumerate(table.chains) if chain.layers == tuple(range(chain.depth))),
        key=lambda i: int(table.depths[i]),
    )
    if len(exits) < 2 or table.depths[exits[-1]] != n or np.isnan(table.confidence[:, exits]).any():
        return None
    for threshold in [*np.unique(np.quantile(table.confidence[:, exits], np.linspace(0, 1, 201)))[::-1], 0.0]:
        policy = EarlyExit(tuple(exits), float(threshold))
        if table.depths[policy.choices(table)].mean() <= depth:
            return policy
    return None
