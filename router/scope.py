"""Which prompts a router was made for: those that lie near its training prompts at the read layer.

A head answers whatever it reads, also what is unlike anything that it was trained on. So a router keeps its training
prompts as points, and a prompt that lies farther from them than nearly all validation prompts runs at full depth. The
distance is that to the k-th nearest training prompt (Sun et al., arXiv 2204.06507). `train.scope` fits it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from router.heads.head import pool_ends
from router.validation import STORED, Share

COMPONENTS = 64
"""Principal components kept at most."""


@dataclass(frozen=True, config=STORED)
class ScopeConfig:
    """What a router's scope is; its numbers stand with the weights, so that a guarantee is bound to them too.

    Attributes:
        samples: training prompts that are kept.
        components: principal components in which they are kept.
        neighbours: the distance is that to this nearest one of them.
        share: share of validation prompts that lie outside: the false alarms that were asked for.
    """

    samples: Annotated[int, Field(ge=1, le=2**20)]
    components: Annotated[int, Field(ge=1, le=COMPONENTS)]
    neighbours: Annotated[int, Field(ge=1, le=2**10)]
    share: Share


class Scope(nn.Module):
    """Training prompts as points, and how far from them a prompt may lie.

    A prompt's states are normalised and pooled (`pooled`), centred, scaled to unit variance and turned into whitened
    principal components, all as measured on the training prompts.

    Attributes:
        config: its sizes, and the share of false alarms.
        centre: what is taken off a pooled prompt, `[2 * d_model]`.
        axes: what it is multiplied by then, `[2 * d_model, components]`.
        known: the training prompts as points, `[samples, components]`.
        threshold: the greatest distance that is inside.
    """

    centre: Float[Tensor, " width"]
    axes: Float[Tensor, "width components"]
    known: Float[Tensor, "samples components"]
    threshold: Float[Tensor, ""]

    def __init__(self, config: ScopeConfig, d_model: int) -> None:
        """Make room for the numbers of a scope over states of that width."""
        super().__init__()
        self.config = config
        shapes = {
            "centre": (2 * d_model,),
            "axes": (2 * d_model, config.components),
            "known": (config.samples, config.components),
            "threshold": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def contains(
        self, states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
    ) -> Bool[Tensor, " batch"]:
        """Return which prompts lie inside; padding (mask False) does not count."""
        return self.distances(pooled(states, mask)) <= self.threshold

    def distances(self, prompts: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Return how far pooled prompts lie from the training prompts."""
        points = (prompts - self.centre) @ self.axes
        # Not by matrix products, which round otherwise in batches of another size.
        apart = torch.cdist(points, self.known, compute_mode="donot_use_mm_for_euclid_dist")
        return apart.kthvalue(min(self.config.neighbours, len(self.known)), dim=1).values

    def forward_flops(self, tokens: int) -> int:
        """Return the floating-point operations for one prompt (2 a multiply-add), pooling included."""
        width = len(self.centre)
        return (4 + 1) * tokens * width + 2 * self.axes.numel() + 3 * self.known.numel()


def pooled(
    states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    """Return what a scope reads of prompts: the last token and the mean of all, normalised, side by side."""
    normal = functional.layer_norm(states, states.shape[-1:])
    return pool_ends(normal, mask).flatten(1)
