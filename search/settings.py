"""Settings of the search over chains. No torch, no language model; presets: configs/search/presets/*.yaml."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

from search.actions import ActionSet, ActionSpace

RewardKind = Literal["correct", "margin"]
Algorithm = Literal["uct", "random", "exhaustive"]
Backup = Literal["mean", "max"]
DepthIn = Literal["selection", "reward"]


@dataclass(frozen=True)
class SearchSettings:
    """How one sample's chains are searched. Settings that the chosen algorithm does not use change nothing.

    The defaults are ours (configs/search/presets/default.yaml). Published values: CoLa, arXiv 2507.07996
    (200 simulations, depth_penalty 5, random_share 0.1, exploration unpublished); Dr.LLM, arXiv
    2510.12773 (50 simulations, exploration 1.8, depth_penalty 3, random_share 0.1).

    Attributes:
        algorithm: "uct" (tree search), "random" or "exhaustive" (every chain of the space, which must hold at most
            `simulations`).
        simulations: simulations per sample, the root's included, at least 1. Each evaluates one new chain, so
            this is also the greatest number of chains evaluated per sample.
        exploration: uct: c of c * sqrt(ln V / v), in units of reward, at least 0 (UCT: Kocsis and Szepesvari 2006).
        depth_penalty: lambda of lambda * depth / num_layers, in units of reward per full depth, at least 0
            (CoLa). Only uct.
        depth_in: "selection": the penalty of a child's own chain lowers its selection score, as published;
            "reward": the penalty of the evaluated chain lowers its reward before backup, so a short right chain
            raises every node above it. `evaluated` always keeps the raw reward.
        backup: uct: the value of a node is the "mean" of the rewards of the simulations through it
            (those in flight count as reward 0), or their "max".
        random_share: uct: p, the probability in 0..1 that a selection step picks a
            uniformly random child (CoLa).
        skip_share: uct and random: probability that a drawn action is a skip, above 0 and below 1,
            where there are others too; None: every action is as likely as another, and then four of five are repeats,
            since each block can be repeated 1 to `max_times` times and skipped once.
        root_leap: uct: actions that a new child of the root may be away, at least 1; their number
            is drawn uniformly. Several edits at once are less like full depth, and like each other, than single ones.
        leap: uct: the same for a new child of any other node.
        shorter_first: uct: once a chain is right (its reward is above
            0.5), new chains are to be shorter than the shortest right one, as far as ten draws give such a chain.
        widening_constant: uct: C, above 0: a node visited `visits` times may have
            ceil(C * visits**alpha) children (progressive widening: Coulom 2007, Chaslot et al. 2008).
        widening_exponent: alpha of the same formula, in 0..1; 1 with a C of hundreds is search without
            widening.
        edit_weights: random: relative frequency of chains of 1, 2, 3, ... edits: one to `max_edits` finite numbers of
            at least 0, not all 0; None: 1..max_edits alike.
        in_flight: leaf evaluations in flight in one tree, at least 1. It changes the search (a simulation
            does not see the rewards still in flight), so it is a search setting and not a batch size.
        action_set: kinds of action: "skip", "repeat", "both" (of these) or "both+move".
        max_block: entries of the longest block that one action skips, repeats or moves, at least 1.
        max_times: how many more times a repeat runs its block at most, at least 1.
        max_shift: entries by which a move puts its block earlier or later at most, at least 1.
        max_depth: layers of the deepest chain, at least the model's layers; None: twice the model's layers.
        max_edits: actions between the full chain and any other chain, at least 0: the greatest depth of the
            tree.
        reward: "correct": 1 for a right answer, else 0; "margin": see `reward_for`.
        margin_scale: margin in nats at which the margin's part of the reward has grown from 0.5 to 0.73,
            above 0.
        seed: seed of the whole search; each sample draws from its own generator, see `rng_for`.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    algorithm: Algorithm = "uct"
    simulations: int = 50
    exploration: float = 0.05
    depth_penalty: float = 0.3
    depth_in: DepthIn = "reward"
    backup: Backup = "max"
    random_share: float = 0.2
    skip_share: float | None = 0.85
    root_leap: int = 4
    leap: int = 2
    shorter_first: bool = True
    widening_constant: float = 2.0
    widening_exponent: float = 0.5
    edit_weights: tuple[float, ...] | None = None
    in_flight: int = 4
    action_set: ActionSet = "both"
    max_block: int = 4
    max_times: int = 4
    max_shift: int = 4
    max_depth: int | None = None
    max_edits: int = 8
    reward: RewardKind = "margin"
    margin_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of bounds; those of the actions are judged by ActionSpace."""
        for name, kinds in (
            ("algorithm", get_args(Algorithm)),
            ("depth_in", get_args(DepthIn)),
            ("backup", get_args(Backup)),
            ("reward", get_args(RewardKind)),
        ):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}: expected one of {', '.join(kinds)}, got {getattr(self, name)!r}")
        for name in ("simulations", "in_flight", "root_leap", "leap", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
        if self.skip_share is not None and not (_is_finite(self.skip_share) and 0 < self.skip_share < 1):
            raise ValueError(f"skip_share: expected a number above 0 and below 1 or null, got {self.skip_share!r}")
        if not isinstance(self.shorter_first, bool):
            raise ValueError(f"shorter_first: expected true or false, got {self.shorter_first!r}")
        for name, most in (
            ("exploration", math.inf),
            ("depth_penalty", math.inf),
            ("random_share", 1.0),
            ("widening_exponent", 1.0),
        ):
            value = getattr(self, name)
            if not _is_finite(value) or not 0 <= value <= most:
                bound = "of at least 0" if most == math.inf else f"in 0..{most:g}"
                raise ValueError(f"{name}: expected a finite number {bound}, got {value!r}")
        for name in ("widening_constant", "margin_scale"):
            value = getattr(self, name)
            if not _is_finite(value) or value <= 0:
                raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
        depth = self.max_depth
        if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 1):
            raise ValueError(f"max_depth: expected an integer of at least 1 or null, got {self.max_depth!r}")
        self.action_space(1 if self.max_depth is None else self.max_depth)
        self._check_edit_weights()

    def _check_edit_weights(self) -> None:
        weights: object = self.edit_weights
        if weights is None:
            return
        if (
            not isinstance(weights, list | tuple)
            or not 1 <= len(weights) <= self.max_edits
            or not all(_is_finite(weight) and weight >= 0 for weight in weights)
            or not any(weights)
        ):
            raise ValueError(
                f"edit_weights: expected null or 1..{self.max_edits} (max_edits) finite numbers of at least 0, "
                f"not all 0, got {weights!r}"
            )
        object.__setattr__(self, "edit_weights", tuple(map(float, weights)))

    def action_space(self, num_layers: int, prefix_layers: int = 0) -> ActionSpace:
        """Return the action space of these settings for a model.

        Args:
            num_layers: layers of the unedited model.
            prefix_layers: layers that run in every chain, unedited.

        Raises:
            ValueError: where the bounds do not fit the model.
        """
        return ActionSpace(
            num_layers=num_layers,
            prefix_layers=prefix_layers,
            action_set=self.action_set,
            max_block=self.max_block,
            max_times=self.max_times,
            max_depth=self.max_depth,
            max_edits=self.max_edits,
            max_shift=self.max_shift,
        )

    def reward_for(self, correct: bool, margin: float) -> float:
        """Return the reward of an evaluated chain, in 0..1.

        "correct": 1 or 0. "margin": (correct + sigmoid(margin / margin_scale)) / 2, so it grows with the
        margin, and no wrong chain (at most 0.5) is worth more than a right one (at least 0.5), whatever the
        scoring mode's margin means.

        Args:
            correct: whether the chain answers rightly.
            margin: score of the right answer minus the best other score, nats; may be infinite.

        Raises:
            ValueError: where the margin is not a number.
        """
        if math.isnan(margin):
            raise ValueError(f"margin: expected a number of nats, got {margin!r}")
        if self.reward == "correct":
            return float(correct)
        sigmoid = 0.5 * (1.0 + math.tanh(0.5 * margin / self.margin_scale))
        return 0.5 * (float(correct) + sigmoid)

    def rng_for(self, sample_id: str) -> random.Random:
        """Return one sample's generator: it depends on the seed and the sample, never on its neighbours."""
        return random.Random(f"{self.seed}/{sample_id}")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
