"""The layerwise head: skip, run or repeat for every layer after the prefix (after Dr.LLM, arXiv 2510.12773).

Dr.LLM puts a router before each layer; here one head reads one state and decides for all layers at once, so the
decision is made once for a sample and costs one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from router.chain import Chain
from router.heads.budget import POINTS, BudgetPoint
from router.heads.head import Decision, Head

SKIP, RUN, REPEAT = 0, 1, 2
CLASSES = ("skip", "run", "repeat")
"""Class c of a layer means that it runs c times in a row."""


def classes_of(chain: Chain, read_layer: int) -> tuple[int, ...] | None:
    """Return the class of each layer after the prefix; None for a chain that classes cannot say.

    Block repeats, layers out of order or run three times, and edits of the prefix cannot be said so.
    """
    try:
        counts = chain.to_counts()
    except ValueError:
        return None
    return counts[read_layer:] if max(counts) <= REPEAT and set(counts[:read_layer]) <= {1} else None


class LayerwiseHead(Head):
    """Window-pooled states through a bottleneck to three logits for each layer after the prefix."""

    def __init__(self, num_layers: int, read_layer: int, d_model: int, **encoder: Any) -> None:
        """Build the network; arguments as of `Head`."""
        super().__init__(num_layers, read_layer, d_model, **encoder)
        self.classify = nn.Linear(self.encoder.hidden, (num_layers - read_layer) * len(CLASSES))

    def start_from(self, frequencies: Float[Tensor, "layers classes"]) -> None:
        """Make the untrained head answer with the classes' frequencies by layer, whatever it reads.

        So training begins at the best answer that ignores the sample, and moves only for what the states say (the
        prior initialisation of focal loss, arXiv 1708.02002, section 3.3).

        Args:
            frequencies: share of each class at each layer after the prefix, each above 0.
        """
        with torch.no_grad():
            self.classify.weight.zero_()
            self.classify.bias.copy_(frequencies.log().reshape(-1))

    def respond(self, features: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch layers classes"]:
        """Return the logits of the classes for each layer after the prefix."""
        logits: Tensor = self.classify(features)
        return logits.reshape(len(logits), -1, len(CLASSES))

    def scores_of(
        self, output: Float[Tensor, "batch layers classes"], chains: Sequence[Chain]
    ) -> Float[Tensor, "batch chains"]:
        """Return the log-probability of each chain's classes."""
        logprobs = output.detach().float().log_softmax(-1)
        scores = logprobs.new_full((len(output), len(chains)), float("-inf"))
        for i, chain in enumerate(chains):
            classes = classes_of(chain, self.read_layer)
            if classes is not None:
                scores[:, i] = logprobs[:, torch.arange(len(classes)), list(classes)].sum(1)
        return scores

    def calibrate(self, output: Float[Tensor, "batch layers classes"]) -> None:
        """Set the operating points: which skip offset gives which mean depth on these (validation) outputs.

        A layer is skipped as soon as the offset exceeds its threshold, the better of its other two log-probabilities
        minus that of skip; sorted, the thresholds give the mean depth at every offset exactly.
        """
        logprobs = output.detach().double().log_softmax(-1)
        others, counts = logprobs[..., RUN:].max(-1)
        thresholds, order = (others - logprobs[..., SKIP]).reshape(-1).sort()
        saved = (counts.reshape(-1)[order] + RUN).cumsum(0)
        depths = self.read_layer + (saved[-1] - torch.cat([saved.new_zeros(1), saved])) / len(output)
        below = torch.cat([thresholds[:1] - 2.0, thresholds])
        above = torch.cat([thresholds, thresholds[-1:] + 2.0])
        # Between equal thresholds no offset can stand.
        possible = (above > below).nonzero()[:, 0]
        step = max(1, len(possible) // POINTS)
        chosen = sorted({*possible[::step].tolist(), int(possible[-1])}, reverse=True)
        self.budget_points = tuple(BudgetPoint(float(depths[i]), float((below[i] + above[i]) / 2)) for i in chosen)

    def decode_at(self, output: Float[Tensor, "batch layers classes"], offset: float) -> list[Decision]:
        """Return for each row the chain of the likeliest classes, skip logits shifted by the offset."""
        logprobs = output.detach().float().log_softmax(-1)
        shifted = logprobs.clone()
        shifted[..., SKIP] += offset
        counts = shifted.argmax(-1)
        scores = logprobs.gather(-1, counts[..., None]).sum((-2, -1))
        prefix = [1] * self.read_layer
        return [
            Decision(Chain.from_counts([*prefix, *row]), score)
            for row, score in zip(counts.tolist(), scores.tolist(), strict=True)
        ]
