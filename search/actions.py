"""Edits of a chain: the actions of the search, and which of them are legal.

A skip takes a block of entries out of the chain, a repeat runs a block more times in a row (CoLa, arXiv
2507.07996). The legal actions of a chain are numbered 0..count-1, so one is drawn uniformly with one random
number and without listing the others.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from router.chain import Chain

ActionKind = Literal["skip", "repeat"]
ActionSet = Literal["skip", "repeat", "both"]


@dataclass(frozen=True, slots=True)
class Action:
    """One edit of a chain.

    Attributes:
        kind: "skip" or "repeat".
        position: entry of the chain (not layer index) at which the block starts, at least 0.
        size: entries of the block, at least 1.
        times: how many MORE times a repeat runs the block, at least 1; 0 for a skip.

    Raises:
        ValueError: where a field is out of its bounds.
    """

    kind: ActionKind
    position: int
    size: int
    times: int = 0

    def __post_init__(self) -> None:
        """Refuse what is not an action."""
        if self.kind not in get_args(ActionKind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(ActionKind))}, got {self.kind!r}")
        _require_int("position", self.position, 0)
        _require_int("size", self.size, 1)
        if self.kind == "repeat":
            _require_int("times", self.times, 1)
        elif not _is_int(self.times) or self.times != 0:
            raise ValueError(f"times: expected 0 for a skip, got {self.times!r}")

    def apply(self, chain: Chain) -> Chain:
        """Return the edited chain.

        Raises:
            ValueError: where the block leaves the chain, or nothing would be left.
        """
        if self.kind == "skip":
            return chain.skip(self.position, self.size)
        return chain.repeat(self.position, self.size, self.times)


class _Group(NamedTuple):
    """Actions that differ in position only: `positions` of them, the first at the first editable entry."""

    kind: ActionKind
    size: int
    times: int
    positions: int


@dataclass(frozen=True)
class ActionSpace:
    """The legal actions of every chain of one model.

    A chain's entries before `prefix_layers` are 0..prefix_layers-1 and are never edited; a block lies wholly
    behind them. No action makes a chain deeper than `max_depth` or empty. Two actions may give the same
    chain.

    Attributes:
        num_layers: layers of the unedited model, at least 1.
        prefix_layers: layers 0..prefix_layers-1 run in every chain, unedited; 0..num_layers.
        action_set: kinds of action: "skip", "repeat" or "both".
        max_block: entries of the longest block, at least 1.
        max_times: how many more times a repeat runs its block at most, at least 1.
        max_depth: layers of the deepest chain, at least num_layers; None stands for, and becomes, 2 *
            num_layers.
        max_edits: actions between the full chain and any other, at least 0: the search tree's greatest depth.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    num_layers: int
    prefix_layers: int = 0
    action_set: ActionSet = "both"
    max_block: int = 4
    max_times: int = 4
    max_depth: int | None = None
    max_edits: int = 4
    _tables: dict[int, tuple[list[int], list[_Group]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse bounds that make no sense."""
        _require_int("num_layers", self.num_layers, 1)
        _require_int("prefix_layers", self.prefix_layers, 0, self.num_layers)
        if self.action_set not in get_args(ActionSet):
            raise ValueError(f"action_set: expected one of {', '.join(get_args(ActionSet))}, got {self.action_set!r}")
        _require_int("max_block", self.max_block, 1)
        _require_int("max_times", self.max_times, 1)
        if self.max_depth is None:
            object.__setattr__(self, "max_depth", 2 * self.num_layers)
        _require_int("max_depth", self.max_depth, self.num_layers)
        _require_int("max_edits", self.max_edits, 0)

    def count(self, chain: Chain) -> int:
        """Return the number of legal actions on a chain of this space (`max_edits` is for the tree to keep).

        Raises:
            ValueError: where the chain is not of this space.
        """
        return self._table(chain)[0][-1]

    def action(self, chain: Chain, index: int) -> Action:
        """Return legal action number `index`, 0..count-1; the numbering depends on the chain's depth only.

        Raises:
            ValueError: where the chain is not of this space or the number is out of range.
        """
        ends, groups = self._table(chain)
        if not 0 <= index < ends[-1]:
            raise ValueError(f"index: expected an action number in 0..{ends[-1] - 1}, got {index}")
        i = bisect_right(ends, index)
        kind, size, times, positions = groups[i]
        return Action(kind, self.prefix_layers + index - (ends[i] - positions), size, times)

    def sample(self, chain: Chain, rng: random.Random) -> Action:
        """Draw one legal action uniformly, in constant time.

        Raises:
            ValueError: where the chain is not of this space or has no legal action.
        """
        count = self.count(chain)
        if count == 0:
            raise ValueError(f"chain {chain}: expected at least one legal action, got none")
        return self.action(chain, rng.randrange(count))

    def legal(self, chain: Chain) -> list[Action]:
        """List every legal action, in the order of their numbers.

        Raises:
            ValueError: where the chain is not of this space.
        """
        return [self.action(chain, index) for index in range(self.count(chain))]

    def _table(self, chain: Chain) -> tuple[list[int], list[_Group]]:
        """Return the number of the action at which each group of a chain's actions ends, and the groups."""
        if chain.num_layers != self.num_layers:
            raise ValueError(f"chain: expected one of a model of {self.num_layers} layers, got {chain.num_layers}")
        prefix = self.prefix_layers
        if chain.layers[:prefix] != tuple(range(prefix)):
            raise ValueError(f"chain: expected layers 0..{prefix - 1} first, unedited, got {chain}")
        depth = len(chain.layers)
        table = self._tables.get(depth)
        if table is None:
            table = self._tables[depth] = self._build_table(depth)
        return table

    def _build_table(self, depth: int) -> tuple[list[int], list[_Group]]:
        assert self.max_depth is not None
        if depth > self.max_depth:
            raise ValueError(f"chain: expected a depth of at most max_depth {self.max_depth}, got {depth}")
        editable = depth - self.prefix_layers
        groups: list[_Group] = []
        for size in range(1, min(self.max_block, editable) + 1):
            positions = editable - size + 1
            if self.action_set != "repeat" and size < depth:
                groups.append(_Group("skip", size, 0, positions))
            if self.action_set != "skip":
                most = min(self.max_times, (self.max_depth - depth) // size)
                groups += [_Group("repeat", size, times, positions) for times in range(1, most + 1)]
        ends: list[int] = []
        for group in groups:
            ends.append((ends[-1] if ends else 0) + group.positions)
        return ends or [0], groups


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_int(name: str, value: object, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bound = f"of at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{name}: expected an integer {bound}, got {value!r}")
