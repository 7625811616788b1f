"""Settings of the search over chains. No torch, no language model; presets: configs/search/presets/*.yaml."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from data.sample import SPLITS, Sample, read_samples
from data.tasks import TaskSet
from router.files import read_json
from router.validation import InputError
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

    def action_space(self, num_layers: int, first_editable: int = 0) -> ActionSpace:
        """Return the action space of these settings for a model.

        Args:
            num_layers: layers of the unedited model.
            first_editable: layers that run in every chain, unedited.

        Raises:
            ValueError: where the bounds do not fit the model.
        """
        return ActionSpace(
            num_layers=num_layers,
            first_editable=first_editable,
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


# Settings of `python -m search`, and the samples that they name.


@dataclass(frozen=True)
class RunSettings:
    """Settings of `python -m search`.

    Attributes:
        data: directory with the splits' sample files and their tasks, made by `python -m data prepare`.
        out: directory for the records; several processes may share it.
        splits: splits to search, in this order.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        first_editable: layers 0..first_editable-1 run unedited in every chain; the router will read their output.
        reward_target: "gold", or "wrong": the control that counts a wrong answer as right.
        shuffle: 0: the listed choices in their usual order; any other number: in another one, for the control
            whether what was found survives it.
        verify: judge the chains that can become labels once more, in the mode of evaluation.
        dtype: dtype of the model: float32, bfloat16 or float16.
        device: torch device, or auto: a GPU where there is one, each process of a launch its own.
        limit: samples of each split to search at most; null: all.
        batch_samples: samples whose trees advance together; a process takes as many at a time.
        batch_tokens: tokens in one call of a layer at most.
        state_bytes: bytes of computed states kept for reuse.
        menu: file of `python -m search.menu`: run its chains on every sample in place of a search (a menu table); the
            settings under `search` then decide nothing; null: search.
        read_layers: layers e whose `hidden_states[e]` are kept in `<out>/<split>.states` for routers to be trained on,
            which costs next to no time here and a run of the model later; each at least 1.
        estimate_only: search one batch, say what the run would cost, keep nothing, and stop.
        search: settings of each sample's search.
    """

    data: Path
    out: Path
    first_editable: int
    splits: tuple[str, ...] = ("train", "validation", "test")
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    reward_target: Literal["gold", "wrong"] = "gold"
    shuffle: int = 0
    verify: bool = True
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None
    batch_samples: int = 32
    batch_tokens: int = 1024
    state_bytes: int = 2**30
    menu: Path | None = None
    read_layers: tuple[int, ...] = ()
    estimate_only: bool = False
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown or not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, each once, got {list(self.splits)}")
        for name, least in (
            ("batch_samples", 1),
            ("batch_tokens", 1),
            ("state_bytes", 0),
            ("first_editable", 0),
            ("shuffle", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if min(self.read_layers, default=1) < 1:
            raise ValueError(f"read_layers: expected layers of at least 1, got {list(self.read_layers)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")

    def read_samples(self, split: str, tasks: TaskSet) -> list[Sample]:
        """Read the samples of a split.

        Raises:
            InputError: where they are missing, of another split or task, or the prompt is not the prepared one.
        """
        samples = read_samples(self.data / f"{split}.jsonl", f"data: {split}")
        other = [sample for sample in samples if sample.split != split]
        if other:
            raise InputError(f"data: expected samples of the split {split}, got one of {other[0].split}")
        for name in {sample.task for sample in samples}:
            tasks[name]  # refuses a sample of another task
        manifest = self.data / "manifest.json"
        if manifest.exists() and read_json(manifest).get("prompt_hash") not in (None, tasks.prompt_hash()):
            raise InputError(
                f"data: expected tasks.json with the prompt that {manifest} names, got another ({tasks.name})"
            )
        return samples
