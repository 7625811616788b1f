"""One knob for any budget: a price on depth, and the prices measured to give which mean depth."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from pydantic.dataclasses import dataclass
from torch import Tensor

from router.validation import STORED, NotNegative, Share

POINTS = 64
"""Operating points kept by calibration, about."""


@dataclass(frozen=True, config=STORED)
class BudgetPoint:
    """One operating point of a trained head, measured on the validation split.

    Attributes:
        mean_depth: mean depth that the offset gave, layers.
        offset: the price of a layer, in units of the head's values; a layerwise head adds it to its skip logits.
        accuracy: share of right answers there; None: not measured.
    """

    mean_depth: NotNegative
    offset: float
    accuracy: Share | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """How right a router was on the validation split at an operating point.

    Attributes:
        mean_depth: mean depth there, layers.
        accuracy: share of right answers there.
        full_accuracy: share of right answers at full depth.
        chance_accuracy: share that guessing is expected to get.
        samples: validation samples.
    """

    mean_depth: float
    accuracy: float
    full_accuracy: float
    chance_accuracy: float
    samples: float

    @property
    def loss(self) -> float:
        """Accuracy lost against full depth; below 0 where the router is right more often."""
        return self.full_accuracy - self.accuracy


def budget_range(points: Sequence[BudgetPoint], num_layers: int) -> tuple[float, float]:
    """Return the least and the greatest mean depth, layers, that can be asked for: up to full depth, or deeper."""
    depths = [point.mean_depth for point in points]
    return min(depths), max(*depths, float(num_layers))


def offset_for(points: Sequence[BudgetPoint], budget: float | None, num_layers: int) -> float:
    """Return the offset for a mean depth, interpolated between operating points; 0 without a budget.

    A budget between the deepest point and the model's depth buys the deepest point, which stays within it.

    Raises:
        ValueError: where there are no points, or the budget lies outside of `budget_range`.
    """
    if budget is None:
        return 0.0
    if not points:
        raise ValueError("budget: expected a calibrated head, got one without operating points")
    ordered = sorted(points, key=lambda point: (point.mean_depth, -point.offset))
    low, high = budget_range(points, num_layers)
    if not low <= budget <= high:
        raise ValueError(f"budget: expected a mean depth in {low:.2f}..{high:.2f}, got {budget}")
    budget = min(budget, ordered[-1].mean_depth)
    for left, right in itertools.pairwise(ordered):
        if left.mean_depth <= budget <= right.mean_depth:
            width = right.mean_depth - left.mean_depth
            share = (budget - left.mean_depth) / width if width else 0.0
            return left.offset + share * (right.offset - left.offset)
    return ordered[0].offset


def priced_choice(
    values: Float[Tensor, "batch options"],
    depths: Float[Tensor, "batch options"],
    price: float | Float[Tensor, "batch 1"],
    late: Float[Tensor, "batch options"] | None = None,
) -> Int[Tensor, " batch"]:
    """Return each row's option of greatest value - price * depth; among equals the shallower, then the first.

    Of all choices of that mean depth it is the one of greatest mean value (Lagrange).

    Args:
        values: value of each option.
        depths: its depth, layers.
        price: of a layer, in units of the values, for all rows or for each.
        late: value of each option that is still open when the router reads once more, -inf for the others: a row whose
            best option is open then takes the best by these; None: it reads once.
    """
    worth = values - price * depths
    best = worth.max(1, keepdim=True).values
    first = torch.where(worth >= best, depths, depths.max() + 1).argmin(1)
    if late is None:
        return first
    is_open = late.gather(1, first[:, None])[:, 0].isfinite()
    return torch.where(is_open, priced_choice(late, depths, price), first)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A randomised static policy: one option with probability `share`, else the other.

    Attributes:
        first: index of the shallower option.
        second: index of the deeper one.
        share: probability of the first.
    """

    first: int
    second: int
    share: float

    def mean(self, values: Sequence[float]) -> float:
        """Return the mean of a value under the mixture, given each option's."""
        return float(self.share * values[self.first] + (1 - self.share) * values[self.second])


def best_mixture(values: Sequence[float], depths: Sequence[float], depth: float) -> Mixture | None:
    """Return the static mixture of greatest value whose mean depth is at most `depth`; None: none is so shallow.

    The best mixture under one bound has at most two options (the upper hull of depth and value).

    Args:
        values: value of each option.
        depths: its depth, layers.
        depth: the bound, layers.
    """
    options: list[tuple[float, float, Mixture]] = []
    for i, shallow in enumerate(depths):
        if shallow > depth:
            continue
        options.append((float(values[i]), -float(shallow), Mixture(i, i, 1.0)))
        for j, deep in enumerate(depths):
            if deep > depth:
                mixture = Mixture(i, j, float((deep - depth) / (deep - shallow)))
                options.append((mixture.mean(values), -depth, mixture))
    return max(options, key=lambda option: option[:2])[2] if options else None


def operating_points(
    values: Float[Tensor, "batch options"],
    depths: Float[Tensor, "batch options"],
    late: Float[Tensor, "batch options"] | None = None,
) -> tuple[BudgetPoint, ...]:
    """Return prices of a layer and the mean depths that they give on these rows, deepest first.

    Prices at which some row changes its mind lie dense; of them about `POINTS` are kept, evenly spread over depth.

    Args:
        values: value of each option of each row; -inf: no option.
        depths: its depth, layers.
        late: as of `priced_choice`.
    """
    values, depths = values.double(), depths.double()
    prices = _changes(values, depths)
    if late is not None:
        late = late.double()
        prices = sorted({*prices, *_changes(late, depths)})
    between = [0.0, *((left + right) / 2 for left, right in itertools.pairwise(prices))]
    between.append((prices[-1] if prices else 0.0) * 2 + 1.0)
    found: dict[float, float] = {}
    low, high = (_mean_depth(values, depths, price, late) for price in (between[-1], 0.0))
    step = (high - low) / POINTS
    stack = [(0, len(between) - 1)]
    found[low] = between[-1]
    found[high] = 0.0  # the last word, where no price changes anything
    while stack:  # halve where the mean depth still jumps
        left, right = stack.pop()
        above, below = (_mean_depth(values, depths, between[i], late) for i in (left, right))
        found.setdefault(above, between[left])
        found.setdefault(below, between[right])
        if above - below > step and right - left > 1:
            middle = (left + right) // 2
            stack += [(left, middle), (middle, right)]
    # With a late reading a greater price may run deeper in the mean; such points are left out.
    by_price = sorted((price, depth) for depth, price in found.items())
    least = itertools.accumulate((depth for _, depth in by_price), min, initial=math.inf)
    return tuple(
        BudgetPoint(depth, price) for (price, depth), before in zip(by_price, least, strict=False) if depth < before
    )


def _mean_depth(values: Tensor, depths: Tensor, price: float, late: Tensor | None) -> float:
    chosen = priced_choice(values, depths, price, late)
    return float(depths.gather(1, chosen[:, None]).mean())


def _changes(values: Tensor, depths: Tensor) -> list[float]:
    """Return the prices above 0 at which some row's choice changes, ascending, each once.

    Row by row along the upper hull of (depth, value): from the best option at price 0, the next one is the shallower
    option that overtakes it first.
    """
    prices: set[float] = set()
    now = priced_choice(values, depths, 0.0)
    while True:
        value, depth = values.gather(1, now[:, None]), depths.gather(1, now[:, None])
        shallower = (depths < depth) & values.isfinite()
        at = torch.where(shallower, (value - values) / (depth - depths).clamp(min=1e-12), torch.inf)
        least = at.min(1, keepdim=True).values
        moving = least[:, 0].isfinite()
        if not moving.any():
            return sorted(prices)
        prices.update(least[moving, 0].clamp(min=0).tolist())
        # Of several that overtake at the same price the shallowest wins.
        following = torch.where(at <= least + 1e-15, depths, torch.inf).argmin(1)
        now = torch.where(moving, following, now)
