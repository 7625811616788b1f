"""Edits of a chain: the actions of the search, and which of them are legal.

A skip takes a block of entries out of the chain, a repeat runs a block more times in a row (CoLa, arXiv
2507.07996), a move puts a block some entries earlier or later. The legal actions of a chain are numbered
0..count-1, so one is drawn uniformly with one random number and without listing the others. A node of the search
tree draws its actions without replacement: uniformly (`UniformDraw`), or in proportion to weights (`WeightedDraw`).
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from router.chain import Chain
from search.settings import ActionKind, SearchSettings


class Action(NamedTuple):
    """One edit of a chain.

    Attributes:
        kind: "skip", "repeat" or "move".
        position: entry of the chain (not layer index) at which the block starts.
        size: entries of the block.
        times: how many MORE times a repeat runs the block; 0 for another kind.
        shift: entries by which a move puts the block later (above 0) or earlier (below 0); 0 for another kind.
    """

    kind: ActionKind
    position: int
    size: int
    times: int = 0
    shift: int = 0

    def apply(self, chain: Chain) -> Chain:
        """Return the edited chain.

        Raises:
            ValueError: where the block leaves the chain, or nothing would be left.
        """
        if self.kind == "skip":
            return chain.skip(self.position, self.size)
        if self.kind == "repeat":
            return chain.repeat(self.position, self.size, self.times)
        return chain.move(self.position, self.size, self.position + self.shift)


class ActionGroup(NamedTuple):
    """Legal actions of one chain that differ in position only and have neighbouring numbers.

    Attributes:
        first: the first of them.
        positions: how many they are; each starts one entry behind the one before.
    """

    first: Action
    positions: int


@dataclass(frozen=True)
class ActionSpace:
    """The legal actions of every chain of one model.

    A chain's entries before `first_editable` are 0..first_editable-1 and are never edited; a block lies wholly
    behind them and stays there. No action makes a chain deeper than `max_depth`, shorter than `min_depth` or empty.
    Two actions may give the same chain, and a move may give back the chain itself where its block is followed by its
    like (1,1).

    A move exchanges two neighbouring blocks, so moving the one later is the same as moving the other earlier. Each
    exchange is one action: the move of the earlier block, or that of the later one where only that is in bounds.

    Attributes:
        settings: settings of the search, which bound the actions.
        num_layers: layers of the unedited model.
        first_editable: layers 0..first_editable-1 run in every chain, unedited; 0..num_layers.

    Raises:
        ValueError: where the settings do not fit the model; the message names field, bound and value.
    """

    settings: SearchSettings
    num_layers: int
    first_editable: int = 0
    _tables: dict[object, tuple[list[int], list[ActionGroup]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse bounds that do not fit the model."""
        if not 0 <= self.first_editable <= self.num_layers:
            raise ValueError(f"first_editable: expected 0..{self.num_layers}, got {self.first_editable}")
        if self.max_depth < self.num_layers:
            raise ValueError(f"max_depth: expected at least the model's {self.num_layers} layers, got {self.max_depth}")

    @cached_property
    def max_depth(self) -> int:
        """Layers of the deepest chain."""
        most = 2 * self.num_layers if self.settings.max_depth is None else self.settings.max_depth
        shares = self.settings.depth_shares
        return most if shares is None else min(most, round(shares[1] * self.num_layers))

    @cached_property
    def min_depth(self) -> int:
        """Layers of the shortest chain, at least 1."""
        shares = self.settings.depth_shares
        return 1 if shares is None else max(1, round(shares[0] * self.num_layers))

    def count(self, chain: Chain) -> int:
        """Return the number of legal actions on a chain of this space (`max_edits` is for the tree to keep).

        Raises:
            ValueError: where the chain is not of this space.
        """
        return self._table(chain)[0][-1]

    def action(self, chain: Chain, index: int) -> Action:
        """Return legal action number `index`, 0..count-1.

        Raises:
            ValueError: where the chain is not of this space or the number is out of range.
        """
        ends, groups = self._table(chain)
        if not 0 <= index < ends[-1]:
            raise ValueError(f"index: expected an action number in 0..{ends[-1] - 1}, got {index}")
        i = bisect_right(ends, index)
        first, positions = groups[i]
        return first._replace(position=first.position + index - (ends[i] - positions))

    def sample(self, chain: Chain, rng: random.Random) -> Action:
        """Draw one legal action, in constant time.

        Without `skip_share` uniformly; else with this probability uniformly among the skips, else among the other
        actions; where one of the two has none, among the other's.

        Raises:
            ValueError: where the chain is not of this space or has no legal action.
        """
        count = self.count(chain)
        skips, skip_share = self.skips(chain), self.settings.skip_share
        if skip_share is None or skips in (0, count):
            return self.action(chain, rng.randrange(count))
        skip = rng.random() < skip_share
        return self.action(chain, rng.randrange(skips) if skip else rng.randrange(skips, count))

    def skips(self, chain: Chain) -> int:
        """Return the number of legal skips; they come first among the numbers of the actions.

        Raises:
            ValueError: where the chain is not of this space.
        """
        return sum(group.positions for group in self._table(chain)[1] if group.first.kind == "skip")

    def legal(self, chain: Chain) -> list[Action]:
        """List every legal action, in the order of their numbers.

        Raises:
            ValueError: where the chain is not of this space.
        """
        return [self.action(chain, index) for index in range(self.count(chain))]

    def _table(self, chain: Chain) -> tuple[list[int], list[ActionGroup]]:
        """Return the number of the action at which each group of a chain's actions ends, and the groups."""
        if chain.num_layers != self.num_layers:
            raise ValueError(f"chain: expected one of a model of {self.num_layers} layers, got {chain.num_layers}")
        prefix = self.first_editable
        if chain.layers[:prefix] != tuple(range(prefix)):
            raise ValueError(f"chain: expected layers 0..{prefix - 1} first, unedited, got {chain}")
        # What may be done hangs on the depth alone, but for these two settings.
        root = self.settings.below_block is None or chain.is_full
        key = (len(chain.layers), root) if self.settings.max_runs is None else chain.layers
        table = self._tables.get(key)
        if table is None:
            groups = self._groups(len(chain.layers), root)
            if self.settings.max_runs is not None:
                groups = _within_runs(groups, chain, self.settings.max_runs)
            table = self._tables[key] = (list(accumulate(group.positions for group in groups)) or [0], groups)
        return table

    def _groups(self, depth: int, root: bool) -> list[ActionGroup]:
        if not self.min_depth <= depth <= self.max_depth:
            bounds = f"at least {self.min_depth} and at most max_depth {self.max_depth}"
            raise ValueError(f"chain: expected a depth of {bounds}, got {depth}")
        settings, prefix, editable = self.settings, self.first_editable, depth - self.first_editable
        longest = settings.max_block if root or settings.below_block is None else settings.below_block
        groups: list[ActionGroup] = []
        sizes = [(size, editable - size + 1) for size in range(1, min(longest, editable) + 1)]
        if settings.action_set != "repeat":
            skips = [(size, places) for size, places in sizes if size <= depth - self.min_depth]
            groups += [ActionGroup(Action("skip", prefix, size), places) for size, places in skips]
        if settings.action_set != "skip":
            for size, places in sizes:
                most = min(settings.max_times, (self.max_depth - depth) // size)
                groups += [ActionGroup(Action("repeat", prefix, size, times), places) for times in range(1, most + 1)]
        if settings.action_set == "both+move":
            groups += self._moves(editable, longest)
        return groups

    def _moves(self, editable: int, block: int) -> list[ActionGroup]:
        """Group the exchanges of a block of `left` entries with the `right` entries behind it."""
        groups: list[ActionGroup] = []
        shift, prefix = self.settings.max_shift, self.first_editable
        for left in range(1, max(block, shift) + 1):
            for right in range(1, min(max(block, shift), editable - left) + 1):
                positions = editable - left - right + 1
                if left <= block and right <= shift:
                    groups.append(ActionGroup(Action("move", prefix, left, shift=right), positions))
                elif right <= block and left <= shift:
                    groups.append(ActionGroup(Action("move", prefix + left, right, shift=-left), positions))
        return groups


def _within_runs(groups: list[ActionGroup], chain: Chain, most: int) -> list[ActionGroup]:
    """Leave out the repeats after which a layer runs more often than `most` times."""
    runs = Counter(chain.layers)
    kept: list[ActionGroup] = []
    for group in groups:
        if group.first.kind != "repeat":
            kept.append(group)
            continue
        for position in range(group.first.position, group.first.position + group.positions):
            block = Counter(chain.layers[position : position + group.first.size])
            if all(runs[layer] + group.first.times * count <= most for layer, count in block.items()):
                kept.append(ActionGroup(group.first._replace(position=position), 1))
    return kept


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
