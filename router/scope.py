"""Which prompts a router was made for: those that look like its training prompts at the read layer.

A head answers whatever it reads, also what is unlike anything that it was trained on. So a router keeps where its
training prompts lie, and a prompt that lies farther off than nearly all validation prompts runs at full depth. Training
prompts lie near a space of few dimensions; what leaves it is another kind of prompt. The distance is Mahalanobis' under
probabilistic principal components (Tipping and Bishop 1999; scikit-learn's `PCA.score_samples` up to a constant).

An answer by letter is judged by its first token, and a chain without the last layers that says the right letter goes
on with nonsense where the full one ends. So a scope also tells prompts whose answers were judged by their first token
from those whose answers were judged whole, by logistic regression on the principal components. A prompt that may be
either is outside. `train.scope` fits it.
"""

from __future__ import annotations

import operator
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from router.heads.head import pool_ends
from router.validation import STORED, Positive, Share

SURE = 0.95
"""How probable it must be that an answer is judged by its first token, or that it is not, for a prompt to be inside."""


@dataclass(frozen=True, config=STORED)
class ScopeConfig:
    """What a router's scope is; its numbers stand with the weights, so that a guarantee is bound to them too.

    Attributes:
        components: principal components of the training prompts.
        samples: training prompts that they were fitted to.
        share: share of the validation prompts that lie outside: the false alarms that were asked for.
        one_token: whether some training prompts' answers were judged by their first token, and it tells which. Left
            out where it does not.
    """

    components: Annotated[int, Field(ge=1, le=2**12)]
    samples: Positive
    share: Share
    one_token: Annotated[bool, Field(exclude_if=operator.not_)] = False


class Scope(nn.Module):
    """Where training prompts lie, and how far from there a prompt may lie.

    Attributes:
        config: its size, and the share of false alarms.
        centre: mean of the training prompts as `pooled` makes them, `[2 * d_model]`.
        scale: their standard deviation.
        axes: principal components of what is centred and scaled, `[2 * d_model, components]`, of length 1.
        variances: variance of the training prompts along each.
        noise: variance along every other direction, mean.
        threshold: the greatest distance that is inside.
        slopes: log-odds that an answer is judged by its first token, along each component in units of its standard
            deviation, `[components]`; not there where the configuration tells no such thing, as the next.
        intercept: these log-odds at the centre.
    """

    centre: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    axes: Float[Tensor, "width components"]
    variances: Float[Tensor, " components"]
    noise: Float[Tensor, ""]
    threshold: Float[Tensor, ""]
    slopes: Float[Tensor, " components"]
    intercept: Float[Tensor, ""]

    def __init__(self, config: ScopeConfig, d_model: int) -> None:
        """Make room for the numbers of a scope over states of that width."""
        super().__init__()
        self.config = config
        width = 2 * d_model
        shapes = {
            "centre": (width,),
            "scale": (width,),
            "axes": (width, config.components),
            "variances": (config.components,),
            "noise": (),
            "threshold": (),
        }
        if config.one_token:
            shapes |= {"slopes": (config.components,), "intercept": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def judge(self, prompts: Float[Tensor, "batch width"]) -> tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Say of prompts, as `pooled` makes them, what the scope knows.

        Returns:
            Which lie inside, and how probable it is that each one's answer is judged by its first token alone.
        """
        distances, components = self.places(prompts)
        near = distances <= self.threshold
        if not self.config.one_token:
            return near, torch.zeros(len(prompts))
        probability = (components @ self.slopes + self.intercept).sigmoid()
        return near & ((probability >= SURE) | (probability <= 1 - SURE)), probability

    def places(
        self, prompts: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch components"]]:
        """Say where prompts, as `pooled` makes them, lie.

        Returns:
            How far from the training prompts, and where along each principal component, in standard deviations of the
            training prompts.
        """
        points = (prompts - self.centre) / self.scale
        along = points @ self.axes
        across = points - along @ self.axes.T
        squares = (along.square() / self.variances).sum(1) + across.square().sum(1) / self.noise
        return squares.sqrt(), along / self.variances.sqrt()

    def forward_flops(self, tokens: int) -> int:
        """Return the floating-point operations for one prompt (2 a multiply-add), pooling included."""
        # Normalising takes about eight operations a value, the mean one.
        return 9 * tokens * len(self.centre) // 2 + 4 * self.axes.numel()


def pooled(
    states: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch width"]:
    """Return what a scope reads of prompts: the last token and the mean of all, normalised, side by side.

    The last token at a later layer says what kind of answer the model is about to give, the mean what it was asked.
    """
    normal = functional.layer_norm(states, states.shape[-1:])
    return pool_ends(normal, mask).flatten(1)
