"""What every router head shares: states in, chains with scores out."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from router.chain import Chain


@dataclass(frozen=True)
class ScoredChain:
    """A chain that a head proposes.

    Attributes:
        chain: the chain.
        score: its log-probability under the head, nats.
    """

    chain: Chain
    score: float


@dataclass(frozen=True)
class BudgetPoint:
    """One operating point of a trained head, measured on the validation split.

    Attributes:
        mean_depth: mean depth that the offset gave, layers.
        offset: what is added to the head's skip logits.
    """

    mean_depth: float
    offset: float


class Head(nn.Module, ABC):
    """A small network from the frozen model's early states to chains.

    Attributes:
        num_layers: layers of the base model.
        prefix_layers: layers 0..prefix_layers-1 run in every chain; the head reads the last one's output.
        d_model: width of the states.
        budget_points: operating points, by mean depth; empty before calibration.
    """

    def __init__(self, num_layers: int, prefix_layers: int, d_model: int) -> None:
        """Set what all heads share.

        Raises:
            ValueError: where `prefix_layers` is not in 1..num_layers-1.
        """
        super().__init__()
        if not 1 <= prefix_layers < num_layers:
            raise ValueError(f"prefix_layers: expected 1..{num_layers - 1}, got {prefix_layers}")
        self.num_layers = num_layers
        self.prefix_layers = prefix_layers
        self.d_model = d_model
        self.budget_points: tuple[BudgetPoint, ...] = ()

    @abstractmethod
    def forward(
        self, states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch ..."]:
        """Return the head's output; row i depends on row i alone, padding (mask False) does not count."""

    @abstractmethod
    def decode(self, output: Float[Tensor, "batch ..."], budget: float | None = None) -> list[list[ScoredChain]]:
        """Return for each row its chains, best first.

        Args:
            output: what `forward` returned.
            budget: mean depth wanted over samples like the validation split's, layers; None: the head's own choice.
        """

    @abstractmethod
    def calibrate(self, output: Float[Tensor, "batch ..."]) -> None:
        """Set the operating points from the head's output on a validation split, so that budgets can be met."""

    def forward_flops(self, tokens: int) -> int:
        """Return the floating-point operations of one sample's forward (2 a multiply-add)."""
        pooled = 4 * tokens * self.d_model
        return pooled + sum(2 * parameter.numel() for parameter in self.parameters() if parameter.ndim == 2)

    def offset_for(self, budget: float | None) -> float:
        """Return the skip offset for a mean depth, interpolated between the calibrated points.

        Raises:
            ValueError: where the head was not calibrated, or the budget lies outside what was measured.
        """
        if budget is None:
            return 0.0
        points = sorted(self.budget_points, key=lambda point: (point.mean_depth, -point.offset))
        if not points:
            raise ValueError("budget: expected a calibrated head, got one without operating points")
        low, high = points[0].mean_depth, points[-1].mean_depth
        if not low <= budget <= high:
            raise ValueError(f"budget: expected a mean depth in {low:.2f}..{high:.2f}, got {budget}")
        for left, right in itertools.pairwise(points):
            if left.mean_depth <= budget <= right.mean_depth:
                width = right.mean_depth - left.mean_depth
                share = (budget - left.mean_depth) / width if width else 0.0
                return left.offset + share * (right.offset - left.offset)
        return points[0].offset


def pad_states(
    states: Sequence[Float[Tensor, "_ d_model"]],
) -> tuple[Float[Tensor, "batch tokens d_model"], Bool[Tensor, "batch tokens"]]:
    """Return states of different lengths as one float32 batch, padded on the right, and the mask of real tokens."""
    lengths = torch.tensor([len(state) for state in states])
    padded = pad_sequence([state.float() for state in states], batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    return padded, mask.to(padded.device)
