"""The oracle judged anew: on made-up answers where which chain is right is luck, or skill, and on records by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from data.headroom import FOLDS, Headroom, HeadroomFound, best_chain, best_mixture, cross_fitted, fixed_chains
from data.statistics import Estimate

DEPTHS = np.array([28, 27, 26, 25, 24, 24, 23, 22, 25, 29])
SAMPLES = 600
IDS = [f"{i:04d}" for i in range(SAMPLES)]


def answered(chance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Margins of answers that are right by chance: `chance`, broadcast to `[variants, samples, chains]`."""
    rng = np.random.default_rng(seed)
    shape = (4, SAMPLES, len(DEPTHS))
    return np.where(rng.random(shape) < chance, 1.0, -1.0) * rng.uniform(0.1, 1.0, shape)


def measured(margins: np.ndarray, tasks: Sequence[str] = ("a",) * SAMPLES) -> Headroom:
    return HeadroomFound.crossed(IDS, tasks, margins, DEPTHS).measure(0)


def of(found: Estimate | None) -> Estimate:
    assert found is not None
    return found


def test_where_the_right_chain_is_luck_nothing_is_gained_anew() -> None:
    # Oracle: chances. Whether a sample is hard differs, but no chain is better than another on any sample. The oracle
    # that sees the answers gains E[1 - (1 - p)^10] - E[p] = 10/11 - 1/2 for p uniform in 0..1.
    found = measured(answered(np.random.default_rng(1).random((SAMPLES, 1))))
    assert of(found.over_full["oracle"]).value == pytest.approx(10 / 11 - 1 / 2, abs=0.04)
    low, high = of(found.over_full["anew"]).interval
    assert low < 0 < high
    assert of(found.over_fixed["anew"]).interval[1] < 0.02
    assert found.advice.startswith("there is nothing to route: an oracle judged anew gains -0.0")
    assert found.tasks == {}


def test_where_a_chain_is_better_for_a_sample_the_gain_is_found() -> None:
    # Oracle: chances. Half of the samples have a chain of their own (24 layers) that is right at 0.95 where full depth
    # is at 0.3; the rest of the chains guess at 0.3.
    chance = np.full((SAMPLES, len(DEPTHS)), 0.3)
    chance[: SAMPLES // 2, 4] = 0.95
    chance[SAMPLES // 2 :, 0] = 0.95
    found = measured(answered(chance))
    gain = of(found.over_full["anew"])
    assert 0.1 < gain.interval[0] < gain.value < 0.33  # 0.5 * 0.65, less what noise costs the choice
    assert of(found.over_fixed["anew"]).interval[0] > 0.1
    assert found.depth["anew"] < 26.5
    assert found.advice.startswith("there is something to route: an oracle judged anew gains +0.")


def test_each_tasks_own_chain_is_found_where_single_samples_are_too_noisy() -> None:
    # Oracle: chances. On task a chain 6 (23 layers) is as good as full depth (0.6), on b none is; others are at 0.2. A
    # choice from three answers takes noise for skill, the fixed chain of each task does not: 25.5 layers, no loss.
    tasks = np.repeat(["a", "b"], SAMPLES // 2)
    chance = np.full((SAMPLES, len(DEPTHS)), 0.2)
    chance[:, 0] = 0.6
    chance[tasks == "a", 6] = 0.65
    found = measured(answered(chance), tasks.tolist())
    assert of(found.over_full["anew"]).interval[1] < 0
    assert found.depth["task"] == pytest.approx(25.5)
    assert of(found.over_full["task"]).interval[1] > 0
    assert of(found.over_fixed["task"]).interval[0] > 0.05
    assert found.advice.startswith("there is something to route")
    assert found.advice.endswith("saves 2.50 layers over the best fixed chain")
    assert (found.tasks["a"].n, found.tasks["b"].depth["task"]) == (SAMPLES // 2, 28)
    assert of(found.tasks["a"].over_full["anew"]) != of(found.tasks["b"].over_full["anew"])


def test_few_samples_leave_it_open() -> None:
    # Oracle: the interval over 40 samples of a small advantage holds 0, and more than is negligible.
    chance = np.full((SAMPLES, len(DEPTHS)), 0.3)
    chance[:, 0], chance[:, 4] = 0.7, np.arange(SAMPLES) % 2
    found = HeadroomFound.crossed(IDS[:40], ["a"] * 40, answered(chance)[:, :40], DEPTHS).measure(0)
    low, high = of(found.over_fixed["anew"]).interval
    assert low < 0 < 0.02 < high
    assert found.advice.startswith("whether there is something to route, 40 samples do not show")


def test_the_judged_variant_and_fold_decide_nothing() -> None:
    # Oracle: with other answers in one variant, or one fold, its own choices are the same and others are not.
    margins, other = (answered(np.full((SAMPLES, len(DEPTHS)), 0.5), seed) for seed in (0, 1))
    chosen = cross_fitted(margins, DEPTHS)
    for v in range(len(margins)):
        changed = margins.copy()
        changed[v] = other[v]
        again = cross_fitted(changed, DEPTHS)
        assert (again[v] == chosen[v]).all()
        assert (again != chosen).any(1).sum() == len(margins) - 1
    folds = np.arange(SAMPLES) % FOLDS
    groups = np.arange(SAMPLES) // FOLDS % 3
    fixed = fixed_chains(margins, DEPTHS, folds, groups)
    assert len({(int(fold), int(group)): None for fold, group in zip(folds, groups, strict=True)}) == 15
    for fold in range(FOLDS):
        changed = margins.copy()
        changed[:, folds == fold] = other[:, folds == fold]
        again = fixed_chains(changed, DEPTHS, folds, groups)
        assert (again[folds == fold] == fixed[folds == fold]).all()
        assert (again != fixed).any()
    # And the order of the samples decides nothing.
    rows = {row.sample_id: row for row in HeadroomFound.crossed(IDS, ["a"] * SAMPLES, margins, DEPTHS).samples}
    backward = HeadroomFound.crossed(IDS[::-1], ["a"] * SAMPLES, margins[:, ::-1], DEPTHS)
    for row in backward.samples:
        assert row.right == rows[row.sample_id].right
        assert row.depth == rows[row.sample_id].depth
        assert row.fixed == pytest.approx(rows[row.sample_id].fixed)


def test_the_chain_that_is_taken_by_hand() -> None:
    # Oracle: by hand. Columns: full depth (5), 4, 4, 3, 6 layers; each case one rule.
    depths = np.array([5, 4, 4, 3, 6])
    cases = {
        "more often right wins, however deep": ([2, 1, 1, 1, 3], [0, 0, 0, 0, 0], 4),
        "as often right: the shallowest": ([2, 2, 1, 2, 2], [0, 0, 0, 0, 0], 3),
        "as shallow: the greater margin": ([1, 2, 2, 1, 2], [9, 1, 2, 9, 9], 2),
        "full depth, where none is right": ([0, 0, 0, 0, 0], [0, 9, 9, 9, 9], 0),
        "full depth, where others are as good and deeper": ([2, 1, 1, 1, 2], [0, 0, 0, 0, 9], 0),
    }
    for name, (right, margins, wanted) in cases.items():
        assert best_chain(np.array(right), np.array(margins), depths) == wanted, name


def test_the_mixture_is_the_best_of_all_pairs() -> None:
    # Oracle: brute force over pairs of chains, each pair mixed to the budget.
    rng = np.random.default_rng(0)
    for _ in range(20):
        accuracy, depths = rng.random(6), rng.integers(10, 20, 6)
        budget = rng.uniform(depths.min(), 20)
        best = max(accuracy[depths <= budget])
        for i, j in itertools.permutations(range(6), 2):
            if depths[i] <= budget < depths[j]:
                share = (depths[j] - budget) / (depths[j] - depths[i])
                best = max(best, share * accuracy[i] + (1 - share) * accuracy[j])
        shares = best_mixture(accuracy, depths, budget)
        assert shares @ accuracy == pytest.approx(best)
        assert shares @ depths <= budget + 1e-6
    with pytest.raises(ValueError, match="budget: expected at least the depth 10"):
        best_mixture(np.ones(2), np.array([10, 12]), 9.0)
