"""Policies on a dense table against values worked by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data.records import ChainResult, DenseTable, SearchRecord, pareto_front
from eval.curves import Tables, measure
from eval.dense import (
    best_static,
    best_static_mixture,
    bootstrap_difference,
    early_exit,
    permutation_p,
    random_of_depth,
    right_of_mixture,
    same_menu,
)
from router.chain import Chain
from router.fingerprint import Fingerprints
from router.heads.budget import Mixture
from router.validation import InputError

FULL = Chain.full(6)
CHAINS = (FULL, FULL.skip(5, 1), FULL.skip(4, 2), FULL.skip(3, 1), FULL.skip(3, 2))


def table(correct: np.ndarray, tasks: list[str] | None = None, confidence: np.ndarray | None = None) -> DenseTable:
    n, k = correct.shape
    return DenseTable(
        chains=CHAINS[:k],
        sample_ids=tuple(f"s{i}" for i in range(n)),
        tasks=tuple(tasks or ["t"] * n),
        correct=correct.astype(bool),
        confidence=np.ones((n, k)) if confidence is None else confidence,
    )


def random_table(seed: int, n: int = 40) -> DenseTable:
    return table(np.random.default_rng(seed).random((n, len(CHAINS))) < np.linspace(0.9, 0.3, len(CHAINS)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depth", [4.0, 4.3, 5.0, 5.5, 6.0])
def test_the_best_mixture_beats_every_other_mixture_of_that_depth(seed: int, depth: float) -> None:
    # Oracle: all pairs on a fine grid of shares.
    one = random_table(seed)
    found = best_static_mixture(one, depth)
    assert found is not None
    assert found.mean(one.depths.astype(float).tolist()) <= depth + 1e-9
    best = max(
        (share * one.accuracy[i] + (1 - share) * one.accuracy[j])
        for i, j in itertools.product(range(len(CHAINS)), repeat=2)
        for share in np.linspace(0, 1, 101)
        if share * one.depths[i] + (1 - share) * one.depths[j] <= depth + 1e-9
    )
    assert right_of_mixture(one, found).mean() >= best - 1e-9


def test_static_choices_keep_their_bound() -> None:
    one = table(np.array([[1, 0, 1, 1, 0], [1, 1, 0, 1, 0], [0, 1, 0, 1, 1]]))
    assert best_static(one, 6.0) == 3  # 3 of 3 right, 5 layers
    assert best_static(one, 4.9) == 2  # 1 of 3 like column 4, the first of equals
    assert best_static(one, 3.9) is None
    assert best_static_mixture(one, 3.9) is None
    assert right_of_mixture(one, Mixture(2, 3, 0.25)).tolist() == [1.0, 0.75, 0.75]


def test_the_same_menu_and_random_chains_by_hand() -> None:
    correct = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 0, 1]])
    one = table(correct, ["a", "a", "b", "b"])
    choices = np.array([0, 1, 3, 2])
    # Task a: full and column 1, half each; task b: columns 3 and 2.
    assert same_menu(one, choices).tolist() == [0.5, 0.5, 0.5, 0.5]
    # Depth 6: full alone; depth 5: columns 1 and 3; depth 4: columns 2 and 4.
    assert random_of_depth(one, choices).tolist() == [1.0, 0.5, 1.0, 1.0]


def test_permutations_tell_reading_from_none() -> None:
    # Oracle: a router that knows every outcome, and one that draws.
    rng = np.random.default_rng(0)
    correct = rng.random((200, 2)) < 0.5
    one = table(correct)
    knowing = np.where(correct[:, 0], 0, 1)
    p, mean = permutation_p(one, knowing, 0)
    assert p == 1 / 10_001
    assert abs(mean - 0.5) < 0.1
    drawing = rng.integers(0, 2, 200)
    p, mean = permutation_p(one, drawing, 0)
    assert p > 0.01
    assert mean == pytest.approx(same_menu(one, drawing).mean(), abs=0.003)
    kinds = table(correct, ["a"] * 100 + ["b"] * 100)
    by_task = np.repeat([0, 1], 100)
    assert permutation_p(kinds, by_task, 0)[0] == 1.0  # nothing beyond the task


def test_bootstrap_intervals_hold_a_difference_known() -> None:
    rng = np.random.default_rng(1)
    one, other = (rng.random(2000) < 0.6).astype(float), (rng.random(2000) < 0.5).astype(float)
    difference, low, high = bootstrap_difference(one, other, 0)
    assert difference == pytest.approx((one - other).mean())
    deviation = (one - other).std() / np.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.05)
    assert low < difference < high


def test_early_exit_stops_where_it_is_confident() -> None:
    # Exits are the chains 0-3 (column 2), 0-4 (column 1) and full depth.
    confidence = np.array([[1, 0.9, 0.9, 0, 0], [1, 0.9, 0.2, 0, 0], [1, 0.1, 0.2, 0, 0]], dtype=float)
    one = table(np.eye(3, 5), confidence=confidence)
    policy = early_exit(one, 5.0)
    assert policy is not None
    assert policy.choices(one).tolist() == [2, 1, 0]
    assert early_exit(one, 3.0) is None
    free = table(np.eye(3, 5), confidence=np.full((3, 5), np.nan))
    assert early_exit(free, 5.0) is None


def test_measure_tells_the_router_from_its_baselines() -> None:
    # Oracle: counts by hand.
    rng = np.random.default_rng(2)
    test, known = random_table(7, 300), random_table(8, 300)
    choices = rng.integers(0, len(CHAINS), 300)
    found = measure(Tables(known, known, test), choices, choices, 5.0, 0)
    right = test.correct[np.arange(300), choices]
    assert found["accuracy"] == right.mean()
    assert found["depth"] == np.mean([CHAINS[i].depth for i in choices])
    full = found["against"]["full"]
    assert full["difference"] == pytest.approx(right.mean() - test.correct[:, 0].mean())
    assert full["interval"][0] <= full["difference"] <= full["interval"][1]
    assert found["against"]["mixture"]["depth"] <= found["depth"] + 1e-9
    assert found["static_chain"] == str(CHAINS[best_static(known, found["validation_depth"]) or 0])


def result(chain: Chain, correct: bool) -> ChainResult:
    return ChainResult(chain, (0.0, 1.0) if correct else (1.0, 0.0), int(correct), correct, 1.0 if correct else -1.0)


def record(sample_id: str, chains: tuple[Chain, ...]) -> SearchRecord:
    results = tuple(result(chain, i % 2 == 0) for i, chain in enumerate(chains))
    return SearchRecord(
        sample_id, "t", "test", {}, "continuation", 6, 2, "float32", "gold", 1, 0, len(chains), 0, 0, results,
        pareto_front(results), Fingerprints("m", "t", "p"), "0" * 64,
    )  # fmt: skip


def test_a_table_holds_what_all_records_tried() -> None:
    one = DenseTable.of([record("a", CHAINS), record("b", (FULL, CHAINS[2], CHAINS[1]))])
    assert one.chains == (FULL, CHAINS[1], CHAINS[2])
    assert one.correct.tolist() == [[True, False, True], [True, True, False]]
    assert one.confidence[0, 0] == pytest.approx(np.e / (1 + np.e))
    with pytest.raises(InputError, match="for every sample, got none for b"):
        DenseTable.of([record("b", (FULL, CHAINS[1]))], CHAINS[:3])
