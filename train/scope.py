"""Fitting a router's scope: where the training prompts lie, and within which distance the validation prompts do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from data.states import BATCH_SAMPLES
from router.heads.head import pad_states
from router.scope import Scope, ScopeConfig, pooled
from router.validation import SETTINGS, InputError
from train.datamodule import RouterData

COMPONENTS = 64
"""Principal components at most; half of the training samples, where those are fewer than twice as many."""
LEAST = 1e-6
"""Least variance along a direction; where prompts do not differ at all, any distance would be infinite."""
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

    Raises:
        InputError: as of `scope_of`.
    """
    train, validation = (
        _pooled(data.states(split, [sample for _, sample in data.pairs[split]])) for split in ("train", "validation")
    )
    scope = scope_of(train, validation, settings.share)
    return scope, scope.distances(validation) <= scope.threshold


@torch.inference_mode()
def scope_of(train: Float[Tensor, "samples width"], validation: Float[Tensor, "others width"], share: float) -> Scope:
    """Return the scope of training prompts, outside of which a share of the validation prompts lies.

    Args:
        train: the training prompts, as `router.scope.pooled` makes them.
        validation: the validation prompts, on which the threshold is measured.
        share: false alarms, 0..1.

    Raises:
        InputError: where there is a single training prompt, which no direction can be told from.
    """
    if len(train) < 2:
        raise InputError(f"scope: expected at least 2 training samples (or null), got {len(train)}")
    prompts = train.double().numpy()
    scaler = StandardScaler().fit(prompts)
    found = PCA(min(COMPONENTS, *(size // 2 for size in prompts.shape)), svd_solver="full")
    found.fit(scaler.transform(prompts))
    scope = Scope(ScopeConfig(found.n_components_, len(train), share), train.shape[1] // 2)
    numbers = {
        "centre": scaler.mean_,
        "scale": scaler.scale_,
        "axes": found.components_.T,
        "variances": found.explained_variance_.clip(LEAST),
        "noise": max(found.noise_variance_, LEAST),
    }
    for name, value in numbers.items():
        getattr(scope, name).copy_(torch.as_tensor(value))
    scope.threshold.copy_(scope.distances(validation).quantile(1 - share) * (1 + MARGIN))
    return scope


def _pooled(states: Sequence[Float[Tensor, "_ d_model"]]) -> Float[Tensor, "samples width"]:
    parts = [states[start : start + BATCH_SAMPLES] for start in range(0, len(states), BATCH_SAMPLES)]
    return torch.cat([pooled(*pad_states(part)) for part in parts])
