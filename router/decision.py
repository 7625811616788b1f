"""A trained router, and the one place where a chain is decided."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, with_config
from pydantic.dataclasses import dataclass
from torch import Tensor
from typing_extensions import TypedDict

from router.chain import Chain
from router.command import one_line
from router.fingerprint import Fingerprints
from router.heads.budget import BudgetPoint, Measured
from router.heads.head import Decision, Head, Pooling, ReadOn, pad_states
from router.heads.layerwise import LayerwiseHead
from router.heads.menu import MenuHead
from router.scope import Scope, ScopeConfig, pooled
from router.validation import STORED, Count, NotNegative, Share

HEADS: dict[str, type[Head]] = {"layerwise": LayerwiseHead, "menu": MenuHead}

# The sizes have upper bounds, for some cost memory before any weights are read, or without them.
Layers = Annotated[int, Field(ge=1, le=2**10)]
Width = Annotated[int, Field(ge=1, le=2**20)]
Hidden = Annotated[int, Field(ge=1, le=2**16)]
Windows = Annotated[int, Field(ge=1, le=2**12)]


@with_config(STORED)
class HeadSettings(TypedDict, total=False):
    """A head's own settings; those that only one head has are refused by the others.

    Attributes:
        hidden: width of the features.
        pooling: how a sample's tokens become one vector.
        windows: parts that the tokens are split into, with pooling windows.
        dropout: share of the features dropped in training.
        chains: the menu head's chains in text form, the full one first.
        agreement: weight of agreement with full depth in the value of a menu's chain.
    """

    hidden: Hidden
    pooling: Pooling
    windows: Windows
    dropout: Annotated[float, Field(ge=0, lt=1)]
    chains: Annotated[list[str], Field(min_length=1, max_length=2**12)]
    agreement: Share


@dataclass(frozen=True, config=STORED)
class LateConfig:
    """A second menu head, for what the first one leaves open: it reads later, and knows more.

    Attributes:
        read_layer: layers that have run when it reads; it picks chains that begin with all of them.
        head_settings: its own settings.
    """

    read_layer: Layers
    head_settings: HeadSettings


@dataclass(frozen=True, config=STORED)
class RouterConfig:
    """What a router is and what it is valid for.

    Attributes:
        head: name of the head, a key of `HEADS`.
        head_settings: the head's own settings.
        num_layers: layers of the base model.
        read_layer: layers that run in every chain; the head reads their output.
        d_model: width of the base model's hidden states.
        task: the task that it was trained on.
        mode: the task's scoring mode.
        base_model: name or path that the base model was loaded from.
        revision: its hub revision, where one was named.
        dtype: dtype of the base model whose states it was trained on.
        fingerprints: the base model, tokenizer and prompt that it was trained for.
        budget_points: operating points measured on the validation split.
        training: what is worth knowing of the training: settings, hashes of the records, measures.
        scope: what its scope is; left out: it has none, and takes every prompt for one like those of training.
        late: the head that reads late; left out: the router reads once.
    """

    head: Literal["layerwise", "menu"]
    head_settings: HeadSettings
    num_layers: Layers
    read_layer: Layers
    d_model: Width
    task: str
    mode: str
    base_model: str
    revision: str | None
    dtype: str
    fingerprints: Fingerprints
    budget_points: tuple[BudgetPoint, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    scope: Annotated[ScopeConfig | None, Field(exclude_if=operator.not_)] = None
    late: Annotated[LateConfig | None, Field(exclude_if=operator.not_)] = None

    @property
    def read_layers(self) -> tuple[int, ...]:
        """The layers whose output is read, one or two."""
        return (self.read_layer,) if self.late is None else (self.read_layer, self.late.read_layer)

    def base(self, model: str | None, revision: str | None) -> tuple[str, str | None]:
        """Return the base model's name and hub revision, given those that were asked for, if any."""
        name = self.base_model if model is None else model
        return name, self.revision if revision is None and name == self.base_model else revision

    def build(self) -> Head:
        """Return an untrained head of this configuration.

        Raises:
            ValueError: where a setting of the head is unknown or out of its bounds.
        """
        head = self._head(self.read_layer, self.head_settings)
        head.budget_points = self.budget_points
        return head

    def build_late(self) -> MenuHead | None:
        """Return the untrained head that reads late; None: there is none.

        Raises:
            ValueError: as in `build`, or where it does not read later, its chains are not those that the first head
                leaves open, or that is no menu head.
        """
        if self.late is None:
            return None
        if self.head != "menu" or self.late.read_layer <= self.read_layer:
            raise ValueError(
                f"late: expected a menu head that reads later than after {self.read_layer} layers, beside a menu head, "
                f"got one after {self.late.read_layer} beside a {self.head} head"
            )
        late = cast(MenuHead, self._head(self.late.read_layer, self.late.head_settings))
        menu = [Chain.parse(text, self.num_layers) for text in self.head_settings.get("chains", [])]
        left = {chain for chain in menu if chain.unedited_prefix >= self.late.read_layer}
        if left != set(late.chains):
            raise ValueError(
                f"late: expected the {len(left)} chains of the menu that begin with layers 0..{late.read_layer - 1}, "
                f"got {', '.join(map(str, late.chains))}"
            )
        return late

    def _head(self, read_layer: int, settings: HeadSettings) -> Head:
        given: dict[str, Any] = dict(settings)
        try:
            return HEADS[self.head](self.num_layers, read_layer, self.d_model, **given)
        except TypeError as error:
            raise ValueError(f"head_settings: {one_line(error)}") from error

    def build_scope(self) -> Scope | None:
        """Return the scope without its numbers; None: there is none."""
        return None if self.scope is None else Scope(self.scope, self.d_model)


@dataclass(frozen=True, config=STORED)
class Guarantee:
    """What calibration certified: with probability 1 - delta over the calibration draw, the loss is at most epsilon.

    Attributes:
        epsilon: loss allowed against full depth, mean over samples like the calibration split's.
        delta: probability, over calibration draws, with which the claim may be wrong.
        loss: "accuracy": accuracy of full depth minus the router's; "disagreement": share of samples whose answers
            differ.
        offset: operating point of the head (`Head.decode_at`); None: nothing was certified, all run at full depth.
        least_score: samples whose chain scores less fall back to full depth; None: none do.
        samples: calibration samples.
        mean_loss: loss on them.
        mean_depth: layers, mean over them.
        smallest_epsilon: the least epsilon that could have been certified for the safest setting; descriptive, since
            it is chosen after the data were seen. None: none below 1.
    """

    epsilon: Share
    delta: Share
    loss: Literal["accuracy", "disagreement"]
    offset: float | None
    least_score: float | None
    samples: Count
    mean_loss: Annotated[float, Field(ge=-1, le=1)]
    mean_depth: NotNegative
    smallest_epsilon: Share | None


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """Where a head is run.

    Attributes:
        offset: price of a layer, in units of the head's values (`Head.decode_at`); None: all run at full depth.
        least_score: samples whose chain scores less run at full depth; None: none do.
    """

    offset: float | None
    least_score: float | None = None


@dataclasses.dataclass(frozen=True)
class Operation:
    """How much depth a router is to spend; without any field set, what its head likes best.

    Attributes:
        budget: mean depth wanted, layers; the model's number of layers: full depth for every sample.
        guaranteed: take the certified operating point.
        point: take this operating point, as calibration does.
        scope: run prompts unlike those of training at full depth, where the router has a scope.

    Raises:
        ValueError: where more than one of budget, guaranteed and point is given.
    """

    budget: float | None = None
    guaranteed: bool = False
    point: OperatingPoint | None = None
    scope: bool = True

    def __post_init__(self) -> None:
        """Refuse operations that exclude each other; a budget may be a whole number."""
        if self.budget is not None:
            object.__setattr__(self, "budget", float(self.budget))
        given = [self.budget is not None, self.guaranteed, self.point is not None]
        if sum(given) > 1:
            raise ValueError("budget: expected one of budget, guaranteed and point, got more")


OWN_CHOICE = Operation()
"""The head's own choice."""
ALLOWED_LOSS = 0.02
"""Accuracy that an operating point may lose against full depth on the validation split, unless more is allowed."""
TIE = 1e-9
"""Losses that differ by less are equal: they are differences of shares."""


@dataclasses.dataclass(frozen=True)
class Router:
    """A trained head with its configuration.

    Attributes:
        config: the configuration.
        head: the head; its operating points are the router's.
        guarantee: what was certified; None: nothing.
        scope: which prompts the router is for; None: all.
        late: the head that reads late: where the first one's best chain begins with all layers that have run by then,
            this one picks the chain. None: the router reads once.
    """

    config: RouterConfig
    head: Head
    guarantee: Guarantee | None = None
    scope: Scope | None = None
    late: MenuHead | None = None

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        heads = [head for head in (self.head, self.late) if head is not None]
        return sum(parameter.numel() for head in heads for parameter in head.parameters())

    def require(self, operation: Operation) -> None:
        """Refuse an operation that this router does not have.

        Raises:
            ValueError: where the budget lies outside what was measured in training, or nothing was certified without
                the scope.
        """
        if operation.guaranteed and self.guarantee is None:
            raise ValueError("guaranteed: expected a router with a guarantee (python -m train calibrate), got none")
        if operation.guaranteed and self.scope is not None and not operation.scope:
            raise ValueError("scope: expected true with guaranteed, which was certified with it, got false")
        if operation.budget != self.config.num_layers:
            self.head.offset_for(operation.budget)

    def measured(self, budget: float | None = None) -> Measured | None:
        """Return how right the router was on its validation split; None: the training did not measure it.

        Args:
            budget: mean depth, layers, of which the nearest measured one counts (the model's number of layers: full
                depth); None: the router's own choice.
        """
        known = self.config.training.get("validation")
        names = [one.name for one in dataclasses.fields(Measured)]
        if not isinstance(known, dict) or not all(isinstance(known.get(name), int | float) for name in names):
            return None
        own = Measured(**{name: known[name] for name in names})
        if budget is None:
            return own
        if budget == self.config.num_layers:
            return dataclasses.replace(own, mean_depth=budget, accuracy=own.full_accuracy)
        points = [
            (abs(one.mean_depth - budget), one.mean_depth, one.accuracy)
            for one in self.config.budget_points
            if one.accuracy is not None
        ]
        if not points:
            return None
        _, depth, accuracy = min(points)
        return dataclasses.replace(own, mean_depth=depth, accuracy=accuracy)

    def least_budget(self, allow_loss: float = ALLOWED_LOSS) -> float | None:
        """Return the least budget, layers, at which, as at all greater ones, no more accuracy is lost than allowed.

        Validation accuracies are noisy: a shallow point that looks good between worse ones is not taken.

        Args:
            allow_loss: accuracy that may be lost against full depth on the validation split.

        Returns:
            The budget; the number of layers where every point loses more; None where the training measured none.
        """
        layers = float(self.config.num_layers)
        depths = {one.mean_depth for one in self.config.budget_points if one.accuracy is not None}
        if not depths or self.measured() is None:
            return None
        shallower = sorted((depth for depth in depths if depth < layers), reverse=True)
        return min([layers, *itertools.takewhile(lambda depth: self._within(depth, allow_loss), shallower)])

    def _within(self, budget: float, allow_loss: float) -> bool:
        found = self.measured(budget)
        return found is None or found.loss <= allow_loss + TIE

    def default_operation(self, allow_loss: float = ALLOWED_LOSS, *, scope: bool = True) -> Operation:
        """Return how much depth is spent where nobody says how much.

        What was certified goes before what was measured, and that before the head's own choice, which is taken for
        routers alone whose training measured no accuracy.

        Args:
            allow_loss: as in `least_budget`.
            scope: as in `Operation`; without it nothing is certified.
        """
        if self.guarantee is not None and (scope or self.scope is None):
            return Operation(guaranteed=True, scope=scope)
        return Operation(budget=self.least_budget(allow_loss), scope=scope)

    def require_accuracy(self, budget: float, allow_loss: float = ALLOWED_LOSS) -> None:
        """Refuse a budget that was not measured, or at which more accuracy was lost on validation than is allowed.

        Of routers whose training measured no accuracy none is refused for it.

        Args:
            budget: mean depth, layers.
            allow_loss: accuracy that may be lost against full depth.

        Raises:
            ValueError: with the accuracies, and which budgets lose less; or as in `require`.
        """
        self.require(Operation(budget=budget))
        found, layers = self.measured(budget), self.config.num_layers
        if found is None or self._within(budget, allow_loss):
            return
        least = math.ceil((self.least_budget(allow_loss) or layers) * 100) / 100
        raise ValueError(
            f"budget: expected one that lost at most {allow_loss:g} of full depth's accuracy in validation, got "
            f"{budget:g}, near which ({found.mean_depth:.1f} of {layers} layers) the router was right on "
            f"{found.accuracy:.3f} of {found.samples:.0f} samples, full depth on {found.full_accuracy:.3f}, guessing "
            f"on {found.chance_accuracy:.3f}; a budget in {least:g}..{layers} loses no more "
            f"(allow_loss={math.ceil(found.loss * 100) / 100:g} takes this one)"
        )

    @torch.inference_mode()
    def decide(
        self,
        states: Sequence[Float[Tensor, "_ d_model"]],
        operation: Operation | Sequence[Operation] = OWN_CHOICE,
        read_on: ReadOn | None = None,
    ) -> list[Decision]:
        """Decide one chain for each sample: the only place where a trained router says which chain runs.

        What lies outside of the scope runs at full depth, whatever the operation, unless that leaves the scope out.

        Args:
            states: `hidden_states[read_layer]` of each sample's tokens; batch partners do not matter.
            operation: how much depth to spend, for all samples alike or for each.
            read_on: reads samples once more, where the router has a head for it; called once, for those that it is
                to pick the chains of, or not at all.

        Raises:
            ValueError: as in `require`, where there is another number of operations than samples, or the router reads
                late and nothing does so.
        """
        operations = [operation] * len(states) if isinstance(operation, Operation) else list(operation)
        if len(operations) != len(states):
            raise ValueError(f"operation: expected {len(states)} operations, one a sample, got {len(operations)}")
        distinct = list(dict.fromkeys(operations))
        own = [[row for row, other in enumerate(operations) if other == one] for one in distinct]
        by_operation = dict(zip(distinct, self._decide(states, distinct, own, read_on), strict=True))
        return [by_operation[one][row] for row, one in enumerate(operations)]

    @torch.inference_mode()
    def decide_each(
        self,
        states: Sequence[Float[Tensor, "_ d_model"]],
        operations: Sequence[Operation],
        read_on: ReadOn | None = None,
    ) -> list[list[Decision]]:
        """Decide one chain for each sample at each operation, as `decide` does; the states are read once.

        Args:
            states: `hidden_states[read_layer]` of each sample's tokens.
            operations: how much depth to spend.
            read_on: as in `decide`.

        Returns:
            For each operation the samples' decisions.

        Raises:
            ValueError: as in `decide`.
        """
        return self._decide(states, operations, [range(len(states))] * len(operations), read_on)

    def _decide(
        self,
        states: Sequence[Tensor],
        operations: Sequence[Operation],
        rows: Sequence[Sequence[int]],
        read_on: ReadOn | None,
    ) -> list[list[Decision]]:
        """Return each operation's decisions; of rows that are not among its own, what was decided at first."""
        for one in operations:
            self.require(one)
        if not states:
            return [[] for _ in operations]
        padded, points = pad_states(states), [self._point(one) for one in operations]
        output = self.head(*padded) if any(point.offset is not None for point in points) else None
        inside, short = [True] * len(states), [False] * len(states)
        if self.scope is not None:
            known, one_token = self.scope.judge(pooled(*padded))
            inside, short = known.tolist(), (known & (one_token > 0.5)).tolist()
        full = Decision(Chain.full(self.config.num_layers), 0.0)
        outside = dataclasses.replace(full, in_scope=False)
        found, open_rows = [], []
        for one, point, own in zip(operations, points, rows, strict=True):
            held = [not one.scope or is_inside for is_inside in inside]
            best = [full] * len(states)
            left = list[int]()
            if output is not None and point.offset is not None:
                best = self.head.decode_at(output, point.offset)
                left = [row for row in own if held[row] and self._is_open(best[row].chain)]
            open_rows.append(left)
            found.append([chosen if is_held else outside for chosen, is_held in zip(best, held, strict=True)])
        self._decide_late(found, points, open_rows, read_on)
        return [
            [self._taken(chosen, point, is_short) for chosen, is_short in zip(decided, short, strict=True)]
            for decided, point in zip(found, points, strict=True)
        ]

    def _is_open(self, chain: Chain) -> bool:
        """Whether a chain that the first head likes best is left to the one that reads late."""
        return self.late is not None and chain.unedited_prefix >= self.late.read_layer

    def _decide_late(
        self,
        found: Sequence[list[Decision]],
        points: Sequence[OperatingPoint],
        open_rows: Sequence[Sequence[int]],
        read_on: ReadOn | None,
    ) -> None:
        """Put what the late head decides in the place of what was left open at each point."""
        every = sorted({row for rows in open_rows for row in rows})
        if self.late is None or not every:
            return
        if read_on is None:
            raise ValueError(
                f"read_on: expected what reads after {self.late.read_layer} layers, for a router that reads twice, "
                "got None"
            )
        place = {row: i for i, row in enumerate(every)}
        output = self.late(*pad_states(read_on(every)))
        for decided, point, rows in zip(found, points, open_rows, strict=True):
            if rows:
                assert point.offset is not None
                own = output[[place[row] for row in rows]]
                for row, best in zip(rows, self.late.decode_at(own, point.offset), strict=True):
                    decided[row] = best

    def forward_flops(self, tokens: int) -> int:
        """Return the floating-point operations of one sample's decision (2 a multiply-add)."""
        parts = [one for one in (self.head, self.scope, self.late) if one is not None]
        return sum(one.forward_flops(tokens) for one in parts)

    @torch.inference_mode()
    def values(
        self,
        states: Sequence[Float[Tensor, "_ d_model"]],
        chains: Sequence[Chain],
        read_on: ReadOn | None = None,
        *,
        scope: bool = True,
    ) -> tuple[Float[Tensor, "batch chains"], Float[Tensor, "batch chains"] | None]:
        """Return what each chain is worth for each sample, before any price on depth.

        Out of the scope only the full chain has a value, 0; that of the others is -inf.

        Args:
            states: `hidden_states[read_layer]` of each sample's tokens.
            chains: the chains that are valued.
            read_on: as in `decide`; it is called for all samples.
            scope: as in `Operation`.

        Returns:
            The head's values, and the late head's (`router.heads.budget.priced_choice`); None: the router reads once.
        """
        padded = pad_states(states)
        read = [self.head.scores_of(self.head(*padded), chains)]
        if self.late is not None:
            assert read_on is not None
            read.append(self.late.scores_of(self.late(*pad_states(read_on(range(len(states))))), chains))
        if self.scope is not None and scope:
            full = torch.tensor([0.0 if chain.is_full else -torch.inf for chain in chains])
            inside, _ = self.scope.judge(pooled(*padded))
            read = [torch.where(inside[:, None], values, full.to(values)) for values in read]
        return read[0], read[1] if len(read) > 1 else None

    def _point(self, operation: Operation) -> OperatingPoint:
        """Return the operating point that an operation stands for."""
        if operation.point is not None:
            return operation.point
        if operation.guaranteed:
            assert self.guarantee is not None
            return OperatingPoint(self.guarantee.offset, self.guarantee.least_score)
        if operation.budget == self.config.num_layers:
            return OperatingPoint(None)
        return OperatingPoint(self.head.offset_for(operation.budget))

    def _taken(self, best: Decision, point: OperatingPoint, short: bool) -> Decision:
        """Return the chain decided on, or full depth where it scores too little; `short`: an answer of one token."""
        if not best.in_scope or point.offset is None:
            return best
        if point.least_score is not None and best.score < point.least_score:
            return Decision(Chain.full(self.config.num_layers), 0.0)
        return dataclasses.replace(best, one_token=short and not best.chain.is_full)
