"""The greedy choice of a menu, against all subsets."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from search.menu import Outcomes, best_of_each_depth, choose_chains, outcomes_of
from tests.menus import FULL, N, chain, record


def test_outcomes_of_sparse_records() -> None:
    # Oracle: by hand; "0-3" was tried once, "1-5" edits the prefix; full depth answers wrong on b.
    records = [
        record("a", {"0-5": True, "0-4": False, "0-3": True}),
        record("b", {"0-5": False, "0-4": False, "1-5": True}),
        record("c", {"0-5": True, "0-4": True, "1-5": True}),
    ]
    nan = math.nan
    for kind, full, first in (("correct", [1, 0, 1], [0, 0, 1]), ("agree", [1, 1, 1], [0, 1, 1])):
        found = outcomes_of(records, kind, 2, tried=2)
        assert found.chains == (FULL, chain("0-4"))
        assert found.values.T.tolist() == [full, first]
    both = outcomes_of(records, "both", 2)
    assert both.chains == (FULL, chain("0-4"), chain("0-3"))
    np.testing.assert_equal(both.values, [[1, 0, 1], [0.5, 0.5, nan], [1, 1, nan]])
    with pytest.raises(ValueError, match="records: expected at least one, got none"):
        outcomes_of([], "correct", 2)


def by_hand(values: np.ndarray, p: float, trust: float = 4.0) -> list[list[float]]:
    """Shrunk values by the formula of the module's text, in loops."""
    known = [[v for v in column if not math.isnan(v)] for column in values.T.tolist()]
    overall = sum(map(sum, known)) / sum(map(len, known))
    means = [(sum(column) + trust * overall) / (len(column) + trust) for column in known]
    return [
        [m if math.isnan(v) else (1 - p) * m + p * v for v, m in zip(row, means, strict=True)]
        for row in values.tolist()
    ]


def random_outcomes(seed: int) -> Outcomes:
    """Eight chains of several depths on 12 samples, a quarter of it not tried; two chains do the same everywhere."""
    rng = random.Random(seed)
    texts = ["0-5", "0-4", "0-3,5", "0-1,3-5", "0-3", "0-1,4-5", "0-2,5", "0-5,5"]
    values = np.array([[float(rng.random() < 0.5) for _ in texts] for _ in range(12)])
    values[np.array([[i > 0 and rng.random() < 0.25 for i in range(len(texts))] for _ in range(12)])] = math.nan
    values[:, 2] = values[:, 1]
    return Outcomes(tuple(chain(text) for text in texts), values)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("predictable", [0.0, 0.4, 1.0])
def test_the_greedy_choice_against_all_subsets(seed: int, predictable: float) -> None:
    # Oracle: the worth of every subset by the text's formula, in loops.
    outcomes, prices = random_outcomes(seed), (0.0, 0.2, 1.0)
    values = by_hand(outcomes.values, predictable)
    np.testing.assert_allclose(outcomes.shrunk(predictable), values)

    def worth(menu: Sequence[int]) -> float:
        total = 0.0
        for price in prices:
            for row in values:
                total += max(row[i] - price * outcomes.chains[i].depth / N for i in menu)
        return total / len(prices) / len(values)

    places = range(1, len(outcomes.chains))
    for size in (1, 2, 3, 4, 8):
        chosen = choose_chains(outcomes, size, predictable=predictable, prices=prices)
        menu = [outcomes.chains.index(one) for one, _ in chosen]
        assert menu[0] == 0
        assert len(set(menu)) == len(menu) <= size
        for k in range(1, len(menu)):  # each the best to add, and what it adds
            gains = [worth([*menu[:k], i]) - worth(menu[:k]) for i in places]
            assert chosen[k][1] == pytest.approx(max(gains)) == pytest.approx(gains[menu[k] - 1])
        assert chosen[0][1] == pytest.approx(worth([0]))
        if len(menu) < size:  # nothing was left to gain
            assert max(worth([*menu, i]) for i in places) == pytest.approx(worth(menu))
        best = max(worth([0, *rest]) for rest in itertools.combinations(places, size - 1))
        assert worth(menu) - worth([0]) >= (1 - 1 / math.e) * (best - worth([0])) - 1e-12
        assert not {1, 2} <= set(menu)  # the second of two that do the same adds nothing


def test_the_best_of_each_depth_are_kept_in_any_case() -> None:
    # Oracle: by hand: of two chains of depth 5 the better on average; a useless one of depth 4 is kept all the same.
    chains = (FULL, chain("0-4"), chain("0-3,5"), chain("0-3"))
    outcomes = Outcomes(chains, np.array([[1.0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0]]))
    keep = best_of_each_depth(outcomes)
    assert keep == [FULL, chain("0-3,5"), chain("0-3")]
    chosen = choose_chains(outcomes, 4, predictable=1.0, prices=[0.0], keep=keep)
    assert [one for one, _ in chosen] == [FULL, chain("0-3,5"), chain("0-3"), chain("0-4")]
    assert [gain for _, gain in chosen][1:3] == [0.0, 0.0]
    assert len(choose_chains(outcomes, 2, predictable=1.0, prices=[0.0], keep=keep)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"predictable": 1.1}, r"predictable: expected 0\.\.1, got 1\.1"),
        ({"prices": []}, "prices: expected some, each at least 0"),
        ({"prices": [-1.0]}, "prices: expected some, each at least 0"),
        ({"keep": [chain("0,2-5")]}, "keep: expected candidates, got 0,2-5"),
    ],
)
def test_bad_bounds_of_the_choice_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_chains(random_outcomes(0), **({"size": 3, "predictable": 0.5, "prices": [0.0]} | changes))


def test_values_are_drawn_towards_the_mean_on_the_samples_task() -> None:
    # Oracle: by hand, with 16 samples' worth of the chain's overall mean, itself with 4 of the mean of all (0.5).
    values = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8)
    outcomes = Outcomes((chain("0-5"), chain("0-4")), values, ("a",) * 8 + ("b",) * 8)
    high, low = (8 + 16 * 0.5) / 24, (0 + 16 * 0.5) / 24
    np.testing.assert_allclose(outcomes.shrunk(0.0), [[high, low]] * 8 + [[low, high]] * 8)
    assert outcomes.shrunk(0.5)[0].tolist() == [(high + 1) / 2, low / 2]
