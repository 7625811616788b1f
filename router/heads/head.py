"""What every router head shares: states in, chains with scores out.

A head begins with an encoder, which pools a sample's token states and narrows them to a few features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from router.chain import Chain
from router.heads.budget import BudgetPoint, offset_for

Pooling = Literal["windows", "ends"]
ReadOn = Callable[[Sequence[int]], Sequence[Float[Tensor, "_ d_model"]]]
"""Runs the samples of these places on to the late read layer, and returns their states there."""


@dataclass(frozen=True)
class Decision:
    """A chain that a head proposes.

    Attributes:
        chain: the chain.
        score: what the head thinks of it, in the head's own terms: a log-probability (nats), or a value.
        in_scope: whether the prompt is like those of training; one that is not runs at full depth (`router.scope`).
        one_token: whether the chain is only known to say an answer's first token, and generation is to end after it:
            true of chains other than the full one where the training judged answers to such prompts by that token.
    """

    chain: Chain
    score: float
    in_scope: bool = True
    one_token: bool = False


class Head(nn.Module, ABC):
    """A small network from the frozen model's early states to chains.

    Attributes:
        encoder: pools and narrows the states; every head has one.
        num_layers: layers of the base model.
        read_layer: layers 0..read_layer-1 run in every chain; the head reads the last one's output.
        d_model: width of the states.
        budget_points: operating points, by mean depth; empty before calibration.
    """

    def __init__(
        self,
        num_layers: int,
        read_layer: int,
        d_model: int,
        *,
        hidden: int = 64,
        pooling: Pooling = "windows",
        windows: int = 8,
        dropout: float = 0.1,
    ) -> None:
        """Build the encoder, and set what all heads share.

        Args:
            num_layers: layers of the base model.
            read_layer: layers that run in every chain.
            d_model: width of the states.
            hidden: see `StateEncoder`, as for the next three.
            pooling: how a sample's tokens become one vector.
            windows: parts that the tokens are split into.
            dropout: share of the features dropped in training.

        Raises:
            ValueError: where `read_layer` is not in 1..num_layers-1.
        """
        super().__init__()
        if not 1 <= read_layer < num_layers:
            raise ValueError(f"read_layer: expected 1..{num_layers - 1}, got {read_layer}")
        self.num_layers = num_layers
        self.read_layer = read_layer
        self.d_model = d_model
        self.budget_points: tuple[BudgetPoint, ...] = ()
        self.encoder = StateEncoder(d_model, hidden=hidden, pooling=pooling, windows=windows, dropout=dropout)

    def forward(
        self, states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch ..."]:
        """Return the head's output; row i depends on row i alone, padding (mask False) does not count."""
        return self.respond(self.encoder(states, mask))

    @abstractmethod
    def respond(self, features: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch ..."]:
        """Return the head's output for encoded states."""

    @abstractmethod
    def decode_at(self, output: Float[Tensor, "batch ..."], offset: float) -> list[Decision]:
        """Return each row's best chain at an operating point's offset; 0: the head's own choice."""

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
        """Return the offset for a mean depth, layers; see `router.heads.budget.offset_for`."""
        return offset_for(self.budget_points, budget, self.num_layers)


def known_late(states: Sequence[Float[Tensor, "_ d_model"]]) -> ReadOn:
    """Return what reads samples on whose states at the late read layer are known."""
    return lambda rows: [states[row].cpu() for row in rows]


def pad_states(
    states: Sequence[Float[Tensor, "_ d_model"]],
) -> tuple[Float[Tensor, "batch tokens d_model"], Bool[Tensor, "batch tokens"]]:
    """Return states of different lengths as one float32 batch, padded on the right, and the mask of real tokens."""
    lengths = torch.tensor([len(state) for state in states])
    padded = pad_sequence([state.float() for state in states], batch_first=True)
    mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
    return padded, mask.to(padded.device)


class StateEncoder(nn.Module):
    """Token states to one vector of features.

    Attributes:
        hidden: width of the features.
    """

    def __init__(
        self, d_model: int, *, hidden: int = 64, pooling: Pooling = "windows", windows: int = 8, dropout: float = 0.1
    ) -> None:
        """Build the network.

        Args:
            d_model: width of the states.
            hidden: width of the features.
            pooling: "windows": the mean of each of `windows` parts of the tokens goes through the bottleneck, then
                their mean is taken; "ends": the last token and the mean of all.
            windows: parts of the tokens.
            dropout: share of what goes into the bottleneck's successor that is dropped in training.
        """
        super().__init__()
        self.hidden, self.windows, self.pooling = hidden, windows, pooling
        self.normalise = nn.LayerNorm(d_model, elementwise_affine=False)
        self.bottleneck = nn.Linear(d_model if pooling == "windows" else 2 * d_model, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch hidden"]:
        """Return a row's features; padding (mask False) does not count."""
        return self.narrow(*self.pool(states, mask))

    def pool(
        self, states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, "batch places d_model"], Bool[Tensor, "batch places"]]:
        """Do what has no weights and so needs doing once for a sample, however long the training.

        Returns:
            The normalised and pooled states, and which places are filled: `windows` means, or the last token and the
            mean of all.
        """
        normal = self.normalise(states)
        if self.pooling == "windows":
            return pool_windows(normal, mask, self.windows)
        return pool_ends(normal, mask), mask.new_ones(len(mask), 2)

    def narrow(
        self, pooled: Float[Tensor, "batch places d_model"], filled: Bool[Tensor, "batch places"]
    ) -> Float[Tensor, "batch hidden"]:
        """Return the features of what `pool` gave."""
        if self.pooling == "windows":
            features = functional.gelu(self.bottleneck(pooled)) * filled[..., None]
            joined: Tensor = features.sum(1) / filled.sum(1)[:, None]
            return self.dropout(joined)  # type: ignore[no-any-return]
        return self.dropout(functional.gelu(self.bottleneck(pooled.flatten(1))))  # type: ignore[no-any-return]

    def forward_flops(self, tokens: int) -> int:
        """Return the floating-point operations for one sample (2 a multiply-add), pooling included."""
        d_model = self.normalise.normalized_shape[0]
        passes = self.windows if self.pooling == "windows" else 1
        # Normalising takes about eight operations a value, the means two.
        return (8 + 2) * tokens * d_model + 2 * passes * self.bottleneck.weight.numel()


def pool_windows(
    states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"], windows: int
) -> tuple[Float[Tensor, "batch windows d_model"], Bool[Tensor, "batch windows"]]:
    """Return the mean state of each of `windows` equal parts of a row's real tokens, and whether a part has any."""
    rank = mask.cumsum(1) - 1
    part = (rank * windows).div(mask.sum(1, keepdim=True), rounding_mode="floor").clamp(0, windows - 1)
    member = functional.one_hot(part, windows).to(states.dtype) * mask[..., None].to(states.dtype)
    sizes = member.sum(1)
    pooled = torch.einsum("btw,btd->bwd", member, states) / sizes.clamp(min=1)[..., None]
    return pooled, sizes > 0


def pool_ends(
    states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch 2 d_model"]:
    """Return each row's last real token, and the mean of all its real tokens."""
    mean = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    last = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    return torch.stack([last, mean], dim=1)
