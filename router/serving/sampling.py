"""Drawing tokens row by row: rows of different settings share a batch, and none changes another's draws."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are picked.

    Attributes:
        temperature: 0: always the likeliest token.
        top_p: share of probability from which is drawn: the fewest likeliest tokens that have it.
        key: where the row's random numbers come from.
    """

    temperature: float
    top_p: float
    key: bytes

    @classmethod
    def of(cls, temperature: float, top_p: float, seed: int | None, choice: int) -> Sampling:
        """Return the settings of a prompt's choice; without a seed its draws are its own.

        Choice i of a seed is the same whether the prompt comes alone or in a list, and whatever `n` is.
        """
        key = secrets.token_bytes(16) if seed is None else f"{seed}/{choice}".encode()
        return cls(temperature, top_p, key)

    def uniform(self, step: int) -> float:
        """Return the random number in [0, 1) of a step.

        It is a hash of key and step, not the next number of a generator: so a step that is run again (a batch that was
        halved) draws the same, on any device and with any version of torch.
        """
        digest = hashlib.blake2b(step.to_bytes(8, "big"), key=self.key[:64], digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(scores: Float[Tensor, "rows vocabulary"], settings: Sequence[Sampling], step: int) -> Int[Tensor, " rows"]:
    """Draw a token for each row.

    By the inverse of the distribution function, in the order of the vocabulary: one random number a token, where noise
    for each token of the vocabulary would be the greater part of a small model's step. In double precision: rounding
    that differs between batches moves a draw only where the random number falls within it.

    Args:
        scores: logits, each row's greatest one finite.
        settings: each row's settings; temperatures above 0.
        step: tokens drawn before.
    """
    device = scores.device
    column = {"dtype": torch.float64, "device": device}
    temperatures = torch.tensor([[one.temperature] for one in settings], **column)  # type: ignore[arg-type]
    logits = scores.double()
    shares = torch.softmax((logits - logits.max(1, keepdim=True).values) / temperatures, 1)
    for row, one in enumerate(settings):
        if one.top_p < 1:
            shares[row] = _nucleus(shares[row], one.top_p)
    bounds = shares.cumsum(1)
    uniforms = torch.tensor([[one.uniform(step)] for one in settings], **column)  # type: ignore[arg-type]
    # The first token whose bound lies above; the last bound does, since the random number is below 1.
    return torch.searchsorted(bounds, uniforms * bounds[:, -1:], right=True)[:, 0]


def _nucleus(shares: Float[Tensor, " vocabulary"], top_p: float) -> Float[Tensor, " vocabulary"]:
    """Return shares with 0 for all but the fewest likeliest tokens that have `top_p` together (at least one)."""
    ordered, order = shares.sort(descending=True, stable=True)
    kept = ordered.cumsum(0) - ordered < top_p
    kept[0] = True
    return torch.where(torch.empty_like(kept).scatter_(0, order, kept), shares, 0.0)
