"""Teaching a menu head: what every chain of the menu answered on every sample (a menu table)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from data.records import ChainResult, SearchRecord, shared_chains
from router.budget import best_mixture, operating_points, priced_choice
from router.chain import Chain
from router.command import InputError
from router.head import Head
from router.menu_head import AGREE, CORRECT, OUTCOMES, MenuHead
from train.objectives import HeadName, Objective

CONFIDENCE_SCALE = 4.0
"""Margin of full depth, in nats, that counts as one unit of the auxiliary target."""


class MenuObjective(Objective):
    """For each chain of the menu: was it right, did it agree with full depth; and what full depth's confidence was."""

    name: HeadName = "menu"

    def __init__(self, *, agreement: float, auxiliary: float, softness: float) -> None:
        """Set the training.

        Args:
            agreement: weight of agreement in a chain's value (`MenuHead`).
            auxiliary: weight of the loss of the auxiliary targets, at least 0.
            softness: nats; above 0 a right answer by a small margin m counts as sigmoid(m / softness) right and not as
                1, since it could as well have been wrong.

        Raises:
            ValueError: where a number is out of its bounds.
        """
        for name, value in (("auxiliary", auxiliary), ("softness", softness)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if not 0 <= agreement <= 1:
            raise ValueError(f"agreement: expected 0..1, got {agreement}")
        self._agreement, self._auxiliary, self._softness = agreement, auxiliary, softness
        self._chains: tuple[Chain, ...] = ()

    def settings(self, records: Sequence[SearchRecord], prefix_layers: int) -> dict[str, Any]:
        """Return the menu: all chains that every record tried and that keep the prefix.

        Raises:
            InputError: where a record lacks a chain of the menu, or the menu is the full chain alone.
        """
        self._chains = tuple(chain for chain in shared_chains(records) if chain.unedited_prefix >= prefix_layers)
        if len(self._chains) < 2:
            raise InputError(
                "data.records: expected a menu table (python -m search --menu ...) with chains that begin with layers "
                f"0..{prefix_layers - 1}, got {len(self._chains)} chains that all records have in common"
            )
        return {"chains": [str(chain) for chain in self._chains], "agreement": self._agreement}

    def target(self, record: SearchRecord, prefix_layers: int) -> Tensor:  # noqa: ARG002
        """Return the outcomes `[chains * outcomes]` of a record and behind them full depth's confidence and entropy."""
        known = {result.chain: result for result in record.results}
        missing = [chain for chain in self._chains if chain not in known]
        if missing:
            raise InputError(
                f"data.records: expected every chain of the menu for every sample, got none of {missing[0]} "
                f"for {record.sample_id}"
            )
        full = record.full
        rows = [self._outcomes(known[chain], full) for chain in self._chains]
        return torch.tensor([*(value for row in rows for value in row), *confidence_of(full)])

    def _outcomes(self, result: ChainResult, full: ChainResult) -> tuple[float, float]:
        right = float(result.correct)
        if self._softness:
            right = 1 / (1 + math.exp(-max(-60.0, min(60.0, result.margin / self._softness))))
        return right, float(result.prediction == full.prediction)

    def start(self, head: Head, targets: Sequence[Tensor]) -> None:
        """Start from the outcomes' rates (Laplace)."""
        assert isinstance(head, MenuHead)
        table = torch.stack(list(targets))[:, : len(self._chains) * len(OUTCOMES)]
        rates = (table.sum(0) + 1) / (len(table) + 2)
        head.start_from(rates.reshape(len(self._chains), len(OUTCOMES)))

    def collate(self, targets: Sequence[Tensor]) -> Tensor:
        """Stack."""
        return torch.stack(list(targets))

    def loss(self, head: Head, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of the outcomes (nats) plus the weighted auxiliary squared error."""
        assert isinstance(head, MenuHead)
        split = len(head.chains) * len(OUTCOMES)
        loss = functional.binary_cross_entropy_with_logits(output[:, :split], targets[:, :split])
        if self._auxiliary:
            loss = loss + self._auxiliary * functional.mse_loss(output[:, split:], targets[:, split:])
        return loss

    def measures(self, head: Head, output: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean area under the ROC curve over chains of both outcomes, and the accuracy of the own choice."""
        assert isinstance(head, MenuHead)
        logits = head.outcome_logits(output).flatten(1)
        truth = (targets[:, : logits.shape[1]] > 0.5).float()
        measured: dict[str, float] = {}
        for place, name in ((CORRECT, "correct"), (AGREE, "agree")):
            areas = [
                roc_auc_score(truth[:, i].numpy(), logits[:, i].numpy())
                for i in range(place, logits.shape[1], len(OUTCOMES))
                if 0 < float(truth[:, i].mean()) < 1
            ]
            if areas:
                measured[f"auc_{name}"] = float(sum(areas) / len(areas))
        places = {chain: i for i, chain in enumerate(head.chains)}
        chosen = torch.tensor([places[ranked[0].chain] for ranked in head.decode(output)])
        right = truth[:, CORRECT :: len(OUTCOMES)]
        measured["gain"] = frontier_gain(head.values(output), right, head.depths)
        measured["accuracy"] = float(right.gather(1, chosen[:, None]).mean())
        measured["full_accuracy"] = float(right[:, 0].mean())
        return measured

    def describe(self, targets: Sequence[Tensor]) -> str:
        """Return how right the menu's chains are."""
        split = len(self._chains) * len(OUTCOMES)
        right = (torch.stack(list(targets))[:, CORRECT : split : len(OUTCOMES)] > 0.5).float()
        means = right.mean(0)
        best = int(means.argmax())
        return (
            f"menu of {len(self._chains)} chains: full depth right on {means[0]:.3f} of the training samples, "
            f"the best chain ({self._chains[best]}) on {means[best]:.3f}, some chain on {right.amax(1).mean():.3f}"
        )


def frontier_gain(
    values: Float[Tensor, "samples chains"], right: Float[Tensor, "samples chains"], depths: Float[Tensor, " chains"]
) -> float:
    """Return what choosing by sample adds to accuracy over the best static mixture of the same mean depth.

    The mean over operating points, up to the depth of the most accurate chain. The mixtures are the best for these
    very samples, which favours them a little.

    Args:
        values: value of each chain, as the head thinks.
        right: 1 where a chain answers rightly.
        depths: depth of each chain, layers.
    """
    rates = right.mean(0)
    most = float(depths[rates == rates.max()].min())
    gains = []
    for point in operating_points(values, depths.expand_as(values)):
        chosen = priced_choice(values, depths.expand_as(values), point.offset)
        depth = float(depths[chosen].mean())
        static = best_mixture(rates.tolist(), depths.tolist(), depth)
        if static is not None and depth <= most:
            gains.append(float(right.gather(1, chosen[:, None]).mean()) - static.mean(rates.tolist()))
    return sum(gains) / len(gains) if gains else 0.0


def confidence_of(full: ChainResult) -> tuple[float, float]:
    """Return full depth's margin between its two best choices, in `CONFIDENCE_SCALE`, and its entropy (nats).

    A free answer has no choices: its confidence is the mean log-probability of the right answer's tokens.
    """
    if not isinstance(full.prediction, int) or len(full.scores) < 2:
        mean = sum(full.scores) / max(1, len(full.scores))
        return mean / CONFIDENCE_SCALE, 0.0
    ordered = sorted(full.scores, reverse=True)
    chances = torch.tensor(full.scores).softmax(0)
    entropy = float(-(chances * chances.clamp(min=1e-12).log()).sum())
    return min((ordered[0] - ordered[1]) / CONFIDENCE_SCALE, 4.0), entropy
