"""Settings of the search over chains. No torch, no language model; presets: configs/search/presets/*.yaml."""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from router.validation import SETTINGS, Count, NotNegative, Positive, Share, to_plain

ActionKind = Literal["skip", "repeat", "move"]
ActionSet = Literal["skip", "repeat", "both", "both+move"]
Above0 = Annotated[float, Field(gt=0)]
"""A number above 0."""
YOUNGER = ("below_block", "max_runs", "depth_shares")
"""Settings that records of schema 3 did not always have: see `SearchSettings.decisive`."""


@dataclass(frozen=True, config=SETTINGS)
class SearchSettings:
    """How one sample's chains are searched. Settings that the chosen algorithm does not use change nothing.

    The defaults are ours, chosen by measurement on training questions (docs/log.md): mostly skips, several edits at
    once, and shorter chains than the shortest right one so far. Published values stand in configs/search/presets.

    Attributes:
        algorithm: "uct" (tree search) or "random".
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
        shorter_first: uct: once a chain is right (see `Searcher.tell`), new chains are to be shorter than
            the shortest right one, as far as ten draws give such a chain.
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
        below_block: the same for actions on any chain but the full one, at most `max_block`; None: `max_block`.
        max_times: how many more times a repeat runs its block at most, at least 1.
        max_runs: no repeat makes a chain run a layer more often, at least 1; None: any number.
        max_shift: entries by which a move puts its block earlier or later at most, at least 1.
        max_depth: layers of the deepest chain, at least the model's layers; None: twice the model's layers.
        depth_shares: shares of the model's layers, at most 1 and at least 1, which rounded to whole layers no edit
            goes below or above, whatever `max_depth`; None: no such bounds.
        max_edits: actions between the full chain and any other chain, at least 0: the greatest depth of the
            tree.
        reward: "correct": 1 for a right answer, else 0; "margin": see `reward_for`.
        margin_scale: margin in nats at which the margin's part of the reward has grown from 0.5 to 0.73,
            above 0.
        seed: seed of the whole search; each sample draws from its own generator, see `rng_for`.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    algorithm: Literal["uct", "random"] = "uct"
    simulations: Positive = 50
    exploration: NotNegative = 0.05
    depth_penalty: NotNegative = 0.3
    depth_in: Literal["selection", "reward"] = "reward"
    backup: Literal["mean", "max"] = "max"
    random_share: Share = 0.2
    skip_share: Annotated[float, Field(gt=0, lt=1)] | None = 0.85
    root_leap: Positive = 4
    leap: Positive = 2
    shorter_first: bool = True
    widening_constant: Above0 = 2.0
    widening_exponent: Share = 0.5
    edit_weights: Annotated[tuple[NotNegative, ...], Field(min_length=1)] | None = None
    in_flight: Positive = 4
    action_set: ActionSet = "both"
    max_block: Positive = 4
    below_block: Positive | None = None
    max_times: Positive = 4
    max_runs: Positive | None = None
    max_shift: Positive = 4
    max_depth: Positive | None = None
    depth_shares: tuple[Share, Annotated[float, Field(ge=1)]] | None = None
    max_edits: Count = 8
    reward: Literal["correct", "margin"] = "margin"
    margin_scale: Above0 = 1.0
    seed: Count = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse edit weights that do not fit `max_edits`, and larger blocks below the root than at it."""
        weights = self.edit_weights
        if weights is not None and (len(weights) > self.max_edits or not any(weights)):
            raise ValueError(
                f"edit_weights: expected null or 1..{self.max_edits} (max_edits) numbers of at least 0, not all 0, "
                f"got {list(weights)}"
            )
        if self.below_block is not None and self.below_block > self.max_block:
            raise ValueError(
                f"below_block: expected null or at most {self.max_block} (max_block), got {self.below_block}"
            )
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings as JSON data, those in `YOUNGER` only where they are not the default.

        A record names the hash of this, so it is the same as before there were those settings.
        """
        plain: dict[str, Any] = to_plain(self)
        default = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in plain.items() if name not in YOUNGER or value != default[name]}

    def reward_for(self, correct: bool, margin: float) -> float:
        """Return the reward of an evaluated chain, in 0..1.

        "correct": 1 or 0. "margin": (correct + sigmoid(margin / margin_scale)) / 2, so it grows with the
        margin, and no wrong chain (at most 0.5) is worth more than a right one (at least 0.5), whatever the
        scoring mode's margin means.

        Args:
            correct: whether the chain answers rightly.
            margin: score of the right answer minus the best other score, nats; may be infinite.
        """
        if self.reward == "correct":
            return float(correct)
        sigmoid = 0.5 * (1.0 + math.tanh(0.5 * margin / self.margin_scale))
        return 0.5 * (float(correct) + sigmoid)

    def rng_for(self, sample_id: str) -> random.Random:
        """Return one sample's generator: it depends on the seed and the sample, never on its neighbours."""
        return random.Random(f"{self.seed}/{sample_id}")
