"""Settings of the search over chains. No torch, no language model; presets: configs/search/presets/*.yaml."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

from search.actions import ActionSet, ActionSpace

RewardKind = Literal["correct", "margin"]


@dataclass(frozen=True)
class SearchSettings:
    """How one sample's tree is searched.

    The defaults are ours (configs/search/presets/default.yaml). Published values: CoLa, arXiv 2507.07996
    (200 simulations, depth_penalty 5, random_share 0.1, exploration unpublished); Dr.LLM, arXiv
    2510.12773 (50 simulations, exploration 1.8, depth_penalty 3, random_share 0.1).

    Attributes:
        simulations: simulations per sample, the root's included, at least 1. Each evaluates one new chain, so
            this is also the greatest number of chains evaluated per sample.
        exploration: c of c * sqrt(ln V / v), in units of reward, at least 0 (UCT: Kocsis and Szepesvari
            2006).
        depth_penalty: lambda of lambda * depth / num_layers, in units of reward per full depth, at least 0
            (CoLa).
        random_share: p, the probability in 0..1 that a selection step picks a uniformly random child (CoLa).
        widening_constant: C, above 0: a node visited `visits` times may have ceil(C * visits**alpha) children
            (progressive widening: Coulom 2007, Chaslot et al. 2008).
        widening_exponent: alpha of the same formula, in 0..1; 1 with a C of hundreds is search without
            widening.
        in_flight: leaf evaluations in flight in one tree, at least 1. It changes the search (a simulation
            does not see the rewards still in flight), so it is a search setting and not a batch size.
        action_set: kinds of action: "skip", "repeat" or "both".
        max_block: entries of the longest block that one action skips or repeats, at least 1.
        max_times: how many more times a repeat runs its block at most, at least 1.
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

    simulations: int = 100
    exploration: float = 0.05
    depth_penalty: float = 0.1
    random_share: float = 0.1
    widening_constant: float = 2.0
    widening_exponent: float = 0.5
    in_flight: int = 4
    action_set: ActionSet = "both"
    max_block: int = 4
    max_times: int = 4
    max_depth: int | None = None
    max_edits: int = 4
    reward: RewardKind = "margin"
    margin_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of bounds; those of the actions are judged by ActionSpace."""
        for name, least in (("simulations", 1), ("in_flight", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
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
        if self.reward not in get_args(RewardKind):
            raise ValueError(f"reward: expected one of {', '.join(get_args(RewardKind))}, got {self.reward!r}")
        depth = self.max_depth
        if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or depth < 1):
            raise ValueError(f"max_depth: expected an integer of at least 1 or null, got {self.max_depth!r}")
        self.action_space(1 if self.max_depth is None else self.max_depth)

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
