"""Drawing a node's actions without replacement: uniformly, or in proportion to weights."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

TRIES = 8
"""Numbers drawn in vain, because they were drawn before, before a weighted draw builds its sums anew."""


class UniformDraw:
    """Numbers 0..count-1, each drawn once, uniformly and in constant time (sparse Fisher-Yates shuffle).

    Attributes:
        left: numbers not drawn yet.
    """

    __slots__ = ("_moved", "left")

    def __init__(self, count: int) -> None:
        self.left = count
        self._moved: dict[int, int] = {}

    def draw(self, rng: random.Random) -> int:
        """Draw a number; at least one must be left."""
        index = rng.randrange(self.left)
        self.left -= 1
        drawn = self._moved.get(index, index)
        if index != self.left:
            self._moved[index] = self._moved.pop(self.left, self.left)
        return drawn


class WeightedDraw:
    """Numbers 0..count-1, each drawn once, every time in proportion to the weights of those that are left.

    This is the distribution of the Gumbel-top-k trick (Kool, van Hoof and Welling 2019, "Stochastic beams and where
    to find them"), without a Gumbel variate for each of hundreds of numbers of which a few are drawn: a number is
    found by bisection in the cumulative weights, and one that was drawn before is rejected.

    Attributes:
        left: numbers not drawn yet.
    """

    __slots__ = ("_cumulative", "_drawn", "_weights", "left")

    def __init__(self, weights: list[float]) -> None:
        """Start with nothing drawn; every weight must be above 0."""
        self._weights = weights
        self._cumulative = list(accumulate(weights))
        self._drawn: set[int] = set()
        self.left = len(weights)

    def draw(self, rng: random.Random) -> int:
        """Draw a number; at least one must be left."""
        tries = 0
        while True:
            number = bisect_right(self._cumulative, rng.random() * self._cumulative[-1])
            if number < len(self._weights) and number not in self._drawn:
                break
            tries += 1
            if tries == TRIES:
                # Most of the weight is drawn: leave it out. A number of weight 0 is never found by bisection.
                left = [0.0 if i in self._drawn else weight for i, weight in enumerate(self._weights)]
                self._cumulative = list(accumulate(left))
        self._drawn.add(number)
        self.left -= 1
        return number
