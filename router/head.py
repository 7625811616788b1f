"""What every router head shares: states in, chains with scores out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from router.budget import BudgetPoint, offset_for
from router.chain import Chain
from router.encoder import StateEncoder


@dataclass(frozen=True)
class ScoredChain:
    """A chain that a head proposes.

    Attributes:
        chain: the chain.
        score: what the head thinks of it, in the head's own terms: a log-probability (nats), or a value.
    """

    chain: Chain
    score: float


class Head(nn.Module, ABC):
    """A small network from the frozen model's early states to chains.

    Attributes:
        encoder: pools and narrows the states; every head has one.
        num_layers: layers of the base model.
        prefix_layers: layers 0..prefix_layers-1 run in every chain; the head reads the last one's output.
        d_model: width of the states.
        budget_points: operating points, by mean depth; empty before calibration.
    """

    encoder: StateEncoder

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

    def forward(
        self, states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch ..."]:
        """Return the head's output; row i depends on row i alone, padding (mask False) does not count."""
        return self.respond(self.encoder(states, mask))

    @abstractmethod
    def respond(self, features: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch ..."]:
        """Return the head's output for encoded states."""

    def decode(self, output: Float[Tensor, "batch ..."], budget: float | None = None) -> list[list[ScoredChain]]:
        """Return for each row its chains, best first.

        Args:
            output: what `forward` returned.
            budget: mean depth wanted over samples like the validation split's, layers; None: the head's own choice.

        Raises:
            ValueError: where there is a budget and the head is not calibrated, or it lies outside what was measured.
        """
        return self.decode_at(output, self.offset_for(budget))

    @abstractmethod
    def decode_at(self, output: Float[Tensor, "batch ..."], offset: float) -> list[list[ScoredChain]]:
        """Return for each row its chains, best first, at an operating point's offset; 0: the head's own choice."""

    @abstractmethod
    def scores_of(self, output: Float[Tensor, "batch ..."], chains: Sequence[Chain]) -> Float[Tensor, "batch chains"]:
        """Return the score (as in `decode_at`) of each given chain; -inf where the head cannot say a chain."""

    @abstractmethod
    def calibrate(self, output: Float[Tensor, "batch ..."]) -> None:
        """Set the operating points from the head's output on a validation split, so that budgets can be met."""

    def forward_flops(self, tokens: int) -> int:
        """Return the floating-point operations of one sample's forward (2 a multiply-add), the encoder's included."""
        behind = {id(parameter) for parameter in self.encoder.parameters()}
        own = [parameter for parameter in self.parameters() if parameter.ndim == 2 and id(parameter) not in behind]
        return self.encoder.forward_flops(tokens) + sum(2 * parameter.numel() for parameter in own)

    def offset_for(self, budget: float | None) -> float:
        """Return the offset for a mean depth; see `router.budget.offset_for`."""
        return offset_for(self.budget_points, budget)


def pad_states(
    states: Sequence[Float[Tensor, "_ d_model"]],
) -> tuple[Float[Tensor, "batch tokens d_model"], Bool[Tensor, "batch tokens"]]:
    """Return states of different lengths as one float32 batch, padded on the right, and the mask of real tokens."""
    lengths = torch.tensor([len(state) for state in states])
    padded = pad_sequence([state.float() for state in states], batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    return padded, mask.to(padded.device)
