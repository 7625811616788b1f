"""Edits of a chain: the actions of the search, and which of them are legal.

A skip takes a block of entries out of the chain, a repeat runs a block more times in a row (CoLa, arXiv
2507.07996), a move puts a block some entries earlier or later. The legal actions of a chain are numbered
0..count-1, so one is drawn uniformly with one random number and without listing the others.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

from router.chain import Chain

ActionKind = Literal["skip", "repeat", "move"]
ActionSet = Literal["skip", "repeat", "both", "both+move"]


@dataclass(frozen=True, slots=True)
class Action:
    """One edit of a chain.

    Attributes:
        kind: "skip", "repeat" or "move".
        position: entry of the chain (not layer index) at which the block starts, at least 0.
        size: entries of the block, at least 1.
        times: how many MORE times a repeat runs the block, at least 1; 0 for another kind.
        shift: entries by which a move puts the block later (above 0) or earlier (below 0), not 0; 0 for another kind.

    Raises:
        ValueError: where a field is out of its bounds.
    """

    kind: ActionKind
    position: int
    size: int
    times: int = 0
    shift: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not an action."""
        if self.kind not in get_args(ActionKind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(ActionKind))}, got {self.kind!r}")
        _require_int("position", self.position, 0)
        _require_int("size", self.size, 1)
        if self.kind == "repeat":
            _require_int("times", self.times, 1)
        elif not _is_int(self.times) or self.times != 0:
            raise ValueError(f"times: expected 0 for a {self.kind}, got {self.times!r}")
        if self.kind == "move":
            if not _is_int(self.shift) or self.shift == 0:
                raise ValueError(f"shift: expected an integer other than 0, got {self.shift!r}")
        elif not _is_int(self.shift) or self.shift != 0:
            raise ValueError(f"shift: expected 0 for a {self.kind}, got {self.shift!r}")

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
        kind: kind of the actions.
        size: entries of the block.
        times: how many more times a repeat runs the block; 0 for another kind.
        shift: entries by which a move puts the block later; below 0: earlier; 0 for another kind.
        first: position of the first action of the group.
        positions: actions in the group; their positions are first..first+positions-1.
    """

    kind: ActionKind
    size: int
    times: int
    shift: int
    first: int
    positions: int


@dataclass(frozen=True)
class ActionSpace:
    """The legal actions of every chain of one model.

    A chain's entries before `first_editable` are 0..first_editable-1 and are never edited; a block lies wholly
    behind them and stays there. No action makes a chain deeper than `max_depth` or empty. Two actions may give
    the same chain, and a move may give back the chain itself where its block is followed by its like (1,1).

    A move exchanges two neighbouring blocks, so moving the one later is the same as moving the other earlier. Each
    exchange is one action: the move of the earlier block, or that of the later one where only that is in bounds.

    Attributes:
        num_layers: layers of the unedited model, at least 1.
        first_editable: layers 0..first_editable-1 run in every chain, unedited; 0..num_layers.
        action_set: kinds of action: "skip", "repeat", "both" (of these) or "both+move".
        max_block: entries of the longest block, at least 1.
        max_times: how many more times a repeat runs its block at most, at least 1.
        max_depth: layers of the deepest chain, at least num_layers; None stands for, and becomes, 2 *
            num_layers.
        max_edits: actions between the full chain and any other, at least 0: the search tree's greatest depth.
        max_shift: entries by which a move puts its block earlier or later at most, at least 1.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    num_layers: int
    first_editable: int = 0
    action_set: ActionSet = "both"
    max_block: int = 4
    max_times: int = 4
    max_depth: int | None = None
    max_edits: int = 4
    max_shift: int = 4
    _tables: dict[int, tuple[list[int], list[ActionGroup]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse bounds that make no sense."""
        _require_int("num_layers", self.num_layers, 1)
        _require_int("first_editable", self.first_editable, 0, self.num_layers)
        if self.action_set not in get_args(ActionSet):
            raise ValueError(f"action_set: expected one of {', '.join(get_args(ActionSet))}, got {self.action_set!r}")
        _require_int("max_block", self.max_block, 1)
        _require_int("max_times", self.max_times, 1)
        if self.max_depth is None:
            object.__setattr__(self, "max_depth", 2 * self.num_layers)
        _require_int("max_depth", self.max_depth, self.num_layers)
        _require_int("max_edits", self.max_edits, 0)
        _require_int("max_shift", self.max_shift, 1)

    def holds(self, chain: Chain) -> bool:
        """Return whether a chain is of this model, starts with the unedited prefix and is at most `max_depth` deep."""
        assert self.max_depth is not None
        prefix = self.first_editable
        return (
            chain.num_layers == self.num_layers
            and chain.layers[:prefix] == tuple(range(prefix))
            and chain.depth <= self.max_depth
        )

    def count(self, chain: Chain) -> int:
        """Return the number of legal actions on a chain of this space (`max_edits` is for the tree to keep).

        Raises:
            ValueError: where the chain is not of this space.
        """
        return self._table(chain)[0][-1]

    def groups(self, chain: Chain) -> list[ActionGroup]:
        """Return the legal actions of a chain in groups, in the order of their numbers; do not change the list.

        Raises:
            ValueError: where the chain is not of this space.
        """
        return self._table(chain)[1]

    def action(self, chain: Chain, index: int) -> Action:
        """Return legal action number `index`, 0..count-1; the numbering depends on the chain's depth only.

        Raises:
            ValueError: where the chain is not of this space or the number is out of range.
        """
        ends, groups = self._table(chain)
        if not 0 <= index < ends[-1]:
            raise ValueError(f"index: expected an action number in 0..{ends[-1] - 1}, got {index}")
        i = bisect_right(ends, index)
        kind, size, times, shift, first, positions = groups[i]
        return Action(kind, first + index - (ends[i] - positions), size, times, shift)

    def sample(self, chain: Chain, rng: random.Random, skip_share: float | None = None) -> Action:
        """Draw one legal action, in constant time.

        Args:
            chain: a chain of this space.
            rng: where to draw from.
            skip_share: None: uniformly; else with this probability uniformly among the skips, else among the other
                actions; where one of the two has none, among the other's.

        Raises:
            ValueError: where the chain is not of this space or has no legal action.
        """
        count = self.count(chain)
        if count == 0:
            raise ValueError(f"chain {chain}: expected at least one legal action, got none")
        skips = self.skips(chain)
        if skip_share is None or skips in (0, count):
            return self.action(chain, rng.randrange(count))
        skip = rng.random() < skip_share
        return self.action(chain, rng.randrange(skips) if skip else rng.randrange(skips, count))

    def skips(self, chain: Chain) -> int:
        """Return the number of legal skips; they come first among the numbers of the actions.

        Raises:
            ValueError: where the chain is not of this space.
        """
        return sum(group.positions for group in self.groups(chain) if group.kind == "skip")

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
        depth = len(chain.layers)
        table = self._tables.get(depth)
        if table is None:
            table = self._tables[depth] = self._build_table(depth)
        return table

    def _build_table(self, depth: int) -> tuple[list[int], list[ActionGroup]]:
        assert self.max_depth is not None
        if depth > self.max_depth:
            raise ValueError(f"chain: expected a depth of at most max_depth {self.max_depth}, got {depth}")
        prefix = self.first_editable
        editable = depth - prefix
        groups: list[ActionGroup] = []
        sizes = [(size, editable - size + 1) for size in range(1, min(self.max_block, editable) + 1)]
        if self.action_set != "repeat":
            groups += [ActionGroup("skip", size, 0, 0, prefix, places) for size, places in sizes if size < depth]
        if self.action_set != "skip":
            for size, places in sizes:
                most = min(self.max_times, (self.max_depth - depth) // size)
                groups += [ActionGroup("repeat", size, times, 0, prefix, places) for times in range(1, most + 1)]
        if self.action_set == "both+move":
            groups += self._moves(editable)
        ends: list[int] = []
        for group in groups:
            ends.append((ends[-1] if ends else 0) + group.positions)
        return ends or [0], groups

    def _moves(self, editable: int) -> list[ActionGroup]:
        """Group the exchanges of a block of `left` entries with the `right` entries behind it."""
        groups: list[ActionGroup] = []
        longest = max(self.max_block, self.max_shift)
        for left in range(1, longest + 1):
            for right in range(1, min(longest, editable - left) + 1):
                positions = editable - left - right + 1
                if left <= self.max_block and right <= self.max_shift:
                    groups.append(ActionGroup("move", left, 0, right, self.first_editable, positions))
                elif right <= self.max_block and left <= self.max_shift:
                    groups.append(ActionGroup("move", right, 0, -left, self.first_editable + left, positions))
        return groups


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_int(name: str, value: object, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bound = f"of at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name}: expected an integer {bound}, got {value!r}")


# Drawing a node's actions without replacement: uniformly, or in proportion to weights.


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
