"""Fitting a router's scope: the training prompts as points, and the distance within which validation prompts lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from data.states import BATCH_SAMPLES
from router.heads.head import pad_states
from router.scope import COMPONENTS, Scope, ScopeConfig, pooled
from router.validation import SETTINGS
from train.datamodule import RouterData

NEIGHBOURS = 5
"""Nearest training prompts of which the last gives the distance."""
MARGIN = 1e-3
"""By how much a threshold lies above the distance that it was measured at, relatively: no prompt stands on it."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ScopeSettings:
    """Which prompts a router takes for ones like those of training; all others run at full depth.

    Attributes:
        share: false alarms: share of the validation samples that are to lie outside.
    """

    share: Annotated[float, Field(ge=0, le=0.5)] = 0.02


@torch.inference_mode()
def fit_scope(data: RouterData, settings: ScopeSettings) -> tuple[Scope, Bool[Tensor, " validation"]]:
    """Fit a router's scope to all training and validation samples, with or without a target.

    Returns:
        The scope, and which validation samples lie inside.
    """
    known, fresh = (_pooled(data.states(split, [one for _, one in data.pairs[split]])) for split in data.pairs)
    scope = scope_of(known, fresh, settings.share)
    return scope, scope.distances(fresh) <= scope.threshold


def scope_of(train: Float[Tensor, "samples width"], validation: Float[Tensor, "others width"], share: float) -> Scope:
    """Return the scope of training prompts outside of which a share of the validation prompts lies.

    Args:
        train: the training prompts, as `router.scope.pooled` makes them.
        validation: the validation prompts, on which the threshold is measured.
        share: false alarms, 0..1.
    """
    prompts = train.double().numpy()
    scaler = StandardScaler().fit(prompts)
    found = PCA(min(COMPONENTS, *prompts.shape), svd_solver="full").fit(scaler.transform(prompts))
    # Directions in which the training prompts hardly differ would be nothing but noise once whitened.
    kept = found.explained_variance_ > 1e-6 * found.explained_variance_[0]
    axes = (found.components_[kept].T / np.sqrt(found.explained_variance_[kept])) / scaler.scale_[:, None]
    scope = Scope(ScopeConfig(len(train), int(kept.sum()), NEIGHBOURS, share), train.shape[1] // 2)
    scope.centre.copy_(torch.as_tensor(scaler.mean_))
    scope.axes.copy_(torch.as_tensor(axes))
    scope.known.copy_((train - scope.centre) @ scope.axes)
    distances = scope.distances(validation)
    scope.threshold.copy_(distances.quantile(1 - share) * (1 + MARGIN))
    return scope


def _pooled(states: Sequence[Float[Tensor, "_ d_model"]]) -> Float[Tensor, "samples width"]:
    parts = [states[start : start + BATCH_SAMPLES] for start in range(0, len(states), BATCH_SAMPLES)]
    return torch.cat([pooled(*pad_states(part)) for part in parts])
