"""Measures of what a search found for its cost, against figures worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.quality import Trace, found_by


def trace(*trials: tuple[int, bool], n: int = 10) -> Trace:
    return Trace(n, tuple(depth for depth, _ in trials), tuple(right for _, right in trials))


def test_hypervolume_is_the_dominated_area() -> None:
    # Oracle: the area by hand. n = 10, so the reference is (0, 20); a right chain of depth d dominates 20 - d of 20.
    assert trace((10, True)).hypervolume == pytest.approx(0.5)
    assert trace((10, False), (8, True), (12, True)).hypervolume == pytest.approx(12 / 20)
    assert trace((10, False), (5, False)).hypervolume == 0
    assert trace((10, False), (20, True)).hypervolume == 0
    assert trace((10, False), (25, True)).hypervolume == 0  # behind the reference point: no negative area


def test_a_budget_pays_for_the_first_trials_that_fit() -> None:
    tried = trace((10, False), (8, False), (6, True), (3, True))
    assert tried.cost == 27
    assert tried.within(27) == tried
    assert tried.within(26.9) == trace((10, False), (8, False), (6, True))
    assert tried.within(24) == trace((10, False), (8, False), (6, True))
    assert tried.within(23) == trace((10, False), (8, False))
    # A trial that does not fit ends the search; a cheaper one behind it is not tried.
    assert trace((10, False), (20, True), (3, True)).within(15) == trace((10, False))
    assert tried.within(1) == trace((10, False))  # full depth is what everything is compared with


def test_a_trial_costs_its_depth_once_for_each_variant_asked() -> None:
    # Oracle: by hand: 2 * 10 + 1 * 8 + 4 * 6.
    tried = Trace(10, (10, 8, 6), (False, False, True), (2, 1, 4))
    assert tried.cost == 52
    assert tried.within(52) == tried
    assert tried.within(51) == Trace(10, (10, 8), (False, False), (2, 1))


def test_what_was_found_is_counted_as_by_hand() -> None:
    found = found_by(
        [
            trace((10, True), (7, True), (6, False)),  # right, shortened
            trace((10, True), (12, True)),  # right, no shorter one
            trace((10, False), (11, True)),  # set right
            trace((10, False), (4, False)),  # never right
            trace((10, False), (3, False)),
        ]
    )
    assert (found.samples, found.full_right, found.full_wrong) == (5, 2, 3)
    assert found.cost == pytest.approx((23 + 22 + 21 + 14 + 13) / 5)
    assert found.hypervolume == pytest.approx((13 / 20 + 10 / 20 + 9 / 20) / 5)
    assert found.right == pytest.approx(3 / 5)
    assert found.shortest == pytest.approx((7 + 10 + 11) / 3)
    assert found.shortened == pytest.approx(1 / 2)
    assert found.set_right == pytest.approx(1 / 3)


def test_shares_of_nothing_are_none() -> None:
    all_right = found_by([trace((10, True))])
    assert (all_right.set_right, all_right.shortened) == (None, 0)
    assert found_by([trace((10, False))]).shortest is None
