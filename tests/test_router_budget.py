"""A price on depth: choices, operating points and the offset for a budget, against brute force in exact fractions."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch

from router.heads.budget import POINTS, BudgetPoint, offset_for, operating_points, priced_choice

Table = list[list[float]]


def best_option(values: list[float], depths: list[float], price: Fraction) -> int:
    """The choice of one row by looking at all: greatest worth, then the shallowest, then the first; -inf is none."""
    options = [
        (-(Fraction(value) - price * Fraction(depth)), depth, i)
        for i, (value, depth) in enumerate(zip(values, depths, strict=True))
        if value != -math.inf
    ]
    return min(options)[2]


def mean_depth(values: Table, depths: Table, price: Fraction) -> Fraction:
    chosen = [row[best_option(of_row, row, price)] for of_row, row in zip(values, depths, strict=True)]
    return Fraction(sum(map(Fraction, chosen)), len(chosen))


def reachable(values: Table, depths: Table) -> list[Fraction]:
    """Every mean depth that some price of at least 0 gives, deepest first: between all crossings of two options."""
    crossings = {Fraction(0)}
    for of_row, row in zip(values, depths, strict=True):
        finite = [(Fraction(v), Fraction(d)) for v, d in zip(of_row, row, strict=True) if v != -math.inf]
        for (v, d), (w, e) in itertools.permutations(finite, 2):
            if d > e and v > w:
                crossings.add((v - w) / (d - e))
    ordered = sorted(crossings)
    prices = [*ordered, *((a + b) / 2 for a, b in itertools.pairwise(ordered)), ordered[-1] + 1]
    return sorted({mean_depth(values, depths, price) for price in prices}, reverse=True)


def random_case(
    seed: int, rows: int, options: int, *, shared: bool = True, missing: float = 0.0
) -> tuple[Table, Table]:
    """Values in 1/256, so that many tie; depths of 1 to 12 layers, the same for all rows or not."""
    rng = random.Random(seed)
    one = [float(rng.randint(1, 12)) for _ in range(options)]
    depths = [one if shared else [float(rng.randint(1, 12)) for _ in range(options)] for _ in range(rows)]
    values = [
        [-math.inf if i and rng.random() < missing else rng.randint(0, 256) / 256 for i in range(options)]
        for _ in range(rows)
    ]
    return values, depths


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_priced_option_of_each_row(seed: int) -> None:
    # Oracle: all options looked at, in exact fractions; quarters tie often, and float32 holds them exactly.
    rng = random.Random(seed)
    rows, options, price = 30, rng.randint(1, 7), rng.randint(0, 4) / 4
    values = [[rng.choice([-math.inf, *(i / 4 for i in range(9))]) for _ in range(options)] for _ in range(rows)]
    values = [row if max(row) > -math.inf else [1.0] * options for row in values]
    depths = [[float(rng.randint(1, 5)) for _ in range(options)] for _ in range(rows)]
    chosen = priced_choice(torch.tensor(values), torch.tensor(depths), price).tolist()
    assert chosen == [best_option(v, d, Fraction(price)) for v, d in zip(values, depths, strict=True)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_points_of_few_rows_are_all_that_prices_can_give(seed: int, missing: float) -> None:
    # Oracle: choices at, between and above all crossings of two options, by brute force; -inf is no option there.
    values, depths = random_case(seed, rows=5, options=6, shared=seed % 2 == 0, missing=missing)
    points = operating_points(torch.tensor(values), torch.tensor(depths))
    assert [point.mean_depth for point in points] == pytest.approx(
        [float(depth) for depth in reachable(values, depths)]
    )
    for point in points:
        assert point.mean_depth == pytest.approx(float(mean_depth(values, depths, Fraction(point.offset))))
    assert points[0].offset == 0.0
    assert [point.offset for point in points] == sorted({point.offset for point in points})


def test_many_rows_give_about_so_many_points_and_no_jump_wider_than_need_be() -> None:
    # Oracle: the reachable mean depths by brute force; a jump may be 1/POINTS of the range, or what cannot be avoided.
    values, depths = random_case(7, rows=150, options=4, shared=False)
    points = operating_points(torch.tensor(values), torch.tensor(depths))
    possible = [float(depth) for depth in reachable(values, depths)]
    assert len(possible) > POINTS  # else nothing is thinned out here
    assert POINTS // 2 < len(points) < 2 * POINTS
    assert (points[0].mean_depth, points[-1].mean_depth) == pytest.approx((possible[0], possible[-1]))
    need = max((possible[0] - possible[-1]) / POINTS, *(a - b for a, b in itertools.pairwise(possible)))
    for above, below in itertools.pairwise(points):
        assert above.mean_depth > below.mean_depth
        assert above.mean_depth - below.mean_depth <= need + 1e-9


def test_rows_that_never_change_their_mind_leave_one_point_at_price_0() -> None:
    # Oracle: by hand; the shallowest option is the best already.
    points = operating_points(torch.tensor([[0.5, 0.9], [0.2, 0.2]]), torch.tensor([[4.0, 2.0], [4.0, 2.0]]))
    assert points == (BudgetPoint(2.0, 0.0),)


def test_an_offset_lies_between_its_neighbours() -> None:
    # Oracle: by hand; the order of the points does not matter.
    points = [BudgetPoint(6.0, 0.0), BudgetPoint(2.0, 8.0), BudgetPoint(4.0, 1.0)]
    wanted = {6.0: 0.0, 5.0: 0.5, 4.5: 0.75, 4.0: 1.0, 3.0: 4.5, 2.0: 8.0}
    for order in itertools.permutations(points):
        assert {budget: offset_for(order, budget, 6) for budget in wanted} == pytest.approx(wanted)
    assert offset_for(points, None, 6) == 0.0
    assert offset_for(points[:1], 6.0, 6) == 0.0


@pytest.mark.parametrize("budget", [1.99, 6.01, math.nan])
def test_a_budget_outside_what_was_measured_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=rf"budget: expected a mean depth in 2\.00\.\.6\.00, got {budget}"):
        offset_for([BudgetPoint(6.0, 0.0), BudgetPoint(2.0, 8.0)], budget, 6)


def test_a_budget_between_the_deepest_point_and_full_depth_buys_the_deepest_point() -> None:
    # Oracle: by hand; a menu with repeats has points deeper than the model.
    points = [BudgetPoint(6.0, 0.5), BudgetPoint(2.0, 8.0)]
    assert [offset_for(points, budget, 8) for budget in (6.0, 7.0, 8.0)] == [0.5, 0.5, 0.5]
    assert offset_for(points, 5.99, 5) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match=r"budget: expected a mean depth in 2\.00\.\.8\.00, got 8\.01"):
        offset_for(points, 8.01, 8)
    with pytest.raises(ValueError, match=r"budget: expected a mean depth in 2\.00\.\.6\.00, got 6\.01"):
        offset_for(points, 6.01, 5)


def test_a_head_that_was_not_calibrated_meets_no_budget() -> None:
    assert offset_for([], None, 6) == 0.0
    with pytest.raises(ValueError, match="budget: expected a calibrated head, got one without operating points"):
        offset_for([], 3.0, 6)
