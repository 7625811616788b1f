"""Losses for classes of very different frequency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def effective_number_weights(counts: Sequence[int], beta: float) -> Float[Tensor, " classes"]:
    """Return class weights (1 - beta) / (1 - beta^n), scaled to a mean of 1 over the classes that occur.

    Class-balanced loss, Cui et al. 2019 (arXiv 1901.05555), equation 3; beta 0 weighs all classes alike, beta -> 1 by
    inverse frequency. A class that does not occur gets weight 0.

    Raises:
        ValueError: where beta is not in 0..1 (1 excluded) or no class occurs.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta: expected at least 0 and below 1, got {beta}")
    if not any(counts):
        raise ValueError(f"counts: expected at least one class that occurs, got {list(counts)}")
    weights = torch.tensor([(1 - beta) / (1 - beta**n) if n else 0.0 for n in counts], dtype=torch.float64)
    return (weights * sum(n > 0 for n in counts) / weights.sum()).float()


def focal_loss(
    logits: Float[Tensor, "batch layers classes"],
    targets: Int[Tensor, "batch layers"],
    weights: Float[Tensor, " classes"],
    gamma: float,
) -> Float[Tensor, ""]:
    """Return the mean of -w_t (1 - p_t)^gamma ln p_t over all layers of all rows (nats).

    Focal loss, Lin et al. 2017 (arXiv 1708.02002), equation 5; gamma 0 is weighted cross-entropy (not divided by the
    sum of the weights).
    """
    logprobs = functional.log_softmax(logits, dim=-1).gather(-1, targets[..., None])[..., 0]
    return (-weights[targets] * (1 - logprobs.exp()) ** gamma * logprobs).mean()
