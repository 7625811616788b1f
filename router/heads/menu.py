"""The menu head: what each chain of a fixed menu is worth for a sample, so that a price on depth picks one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from router.chain import Chain
from router.heads.budget import operating_points, priced_choice
from router.heads.head import Decision, Head, Pooling

CORRECT, AGREE = 0, 1
OUTCOMES = ("correct", "agree")
"""What is predicted of each chain: that it answers rightly, and that it answers as full depth does."""
AUXILIARY = ("confidence", "entropy")
"""What is predicted of full depth besides, to teach the encoder: its margin and its entropy over the choices."""


class MenuHead(Head):
    """Encoded states to the probability, for each chain of a menu, that it is right and that it agrees with full depth.

    The value of a chain is a mean of the two, weighted by `agreement`; the choice is the chain of greatest value minus
    price * depth (`router.heads.budget`).

    Attributes:
        chains: the menu, the full chain first.
        agreement: weight of agreement in a chain's value, 0..1; the rest weighs being right.
    """

    def __init__(
        self,
        num_layers: int,
        read_layer: int,
        d_model: int,
        *,
        chains: Sequence[str],
        agreement: float = 0.5,
        pooling: Pooling = "ends",
        **encoder: Any,
    ) -> None:
        """Build the network.

        Args:
            num_layers: layers of the base model.
            read_layer: layers that run in every chain.
            d_model: width of the states.
            chains: the menu in text form, the full chain first.
            agreement: weight of agreement in a chain's value.
            pooling: as of `Head`, and so are the others.
            encoder: the encoder's other settings.

        Raises:
            ValueError: where the full chain is not the first, one stands twice, or one edits the prefix.
        """
        super().__init__(num_layers, read_layer, d_model, pooling=pooling, **encoder)
        self.chains = tuple(Chain.parse(text, num_layers) for text in chains)
        if not self.chains or not self.chains[0].is_full:
            raise ValueError("chains: expected the full chain as the first, got another or none")
        if len(set(self.chains)) != len(self.chains):
            raise ValueError("chains: expected every chain once, got one twice")
        for chain in self.chains:
            if chain.unedited_prefix < read_layer:
                raise ValueError(f"chains: expected chains that begin with layers 0..{read_layer - 1}, got {chain}")
        self.agreement = agreement
        self.predict = nn.Linear(self.encoder.hidden, len(self.chains) * len(OUTCOMES) + len(AUXILIARY))

    @property
    def depths(self) -> Float[Tensor, " chains"]:
        """Depth of each chain, layers."""
        return torch.tensor([float(chain.depth) for chain in self.chains])

    def start_from(self, rates: Float[Tensor, "chains outcomes"]) -> None:
        """Make the untrained head answer with the outcomes' rates, whatever it reads.

        Args:
            rates: share of training samples on which each outcome held, each above 0 and below 1.
        """
        with torch.no_grad():
            self.predict.weight.zero_()
            self.predict.bias.zero_()
            self.predict.bias[: rates.numel()] = rates.logit().reshape(-1)

    def respond(self, features: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch outputs"]:
        """Return logits of the outcomes, chain by chain, and behind them the auxiliary values."""
        output: Tensor = self.predict(features)
        return output

    def outcome_logits(self, output: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch chains outcomes"]:
        """Return the part of the output that speaks of the chains."""
        return output[:, : len(self.chains) * len(OUTCOMES)].reshape(-1, len(self.chains), len(OUTCOMES))

    def values(self, output: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch chains"]:
        """Return the value of each chain, 0..1."""
        chance = self.outcome_logits(output.detach()).float().sigmoid()
        return (1 - self.agreement) * chance[..., CORRECT] + self.agreement * chance[..., AGREE]

    def decode_at(self, output: Float[Tensor, "batch outputs"], offset: float) -> list[Decision]:
        """Return each row's best chain of the menu at that price of a layer; the score is the value without it."""
        values = self.values(output)
        best = priced_choice(values, self.depths.to(values).expand_as(values), offset)
        scores = values.gather(1, best[:, None])[:, 0]
        return [Decision(self.chains[i], score) for i, score in zip(best.tolist(), scores.tolist(), strict=True)]

    def scores_of(
        self, output: Float[Tensor, "batch outputs"], chains: Sequence[Chain]
    ) -> Float[Tensor, "batch chains"]:
        """Return the value of each chain of the menu."""
        values = self.values(output)
        places = {chain: i for i, chain in enumerate(self.chains)}
        absent = values.new_full((len(values),), float("-inf"))
        return torch.stack([values[:, places[chain]] if chain in places else absent for chain in chains], dim=1)

    def calibrate(self, output: Float[Tensor, "batch outputs"]) -> None:
        """Set the operating points: which price of a layer gives which mean depth on these (validation) outputs."""
        values = self.values(output)
        self.budget_points = operating_points(values, self.depths.to(values).expand_as(values))
