"""Fitting a router's scope: where the training prompts lie, and within which distance the validation prompts do.

Where some training samples are judged by an answer's first token (`Task.judged_mode` "letter"), it also learns which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
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
CERTAIN = 20.0
"""Log-odds that an answer is judged by its first token, where every training sample's is."""
WEAK = 100.0
"""Inverse penalty of the regression: so weak that a few samples of kinds far apart are told with certainty."""
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
def fit_scope(data: RouterData, settings: ScopeSettings) -> tuple[Scope, Bool[Tensor, " validation"], float]:
    """Fit a router's scope to all training and validation samples, with or without a target.

    Returns:
        The scope, which validation samples lie inside, and how often it is wrong about these (`one_token_errors`).

    Raises:
        InputError: as of `scope_of`.
    """
    train, validation = (_read(data, split) for split in ("train", "validation"))
    scope = scope_of(train, validation, settings.share, _by_one_token(data, "train"))
    inside, one_token = scope.judge(validation)
    told = one_token > 0.5
    return scope, inside, one_token_errors(told[inside], torch.tensor(_by_one_token(data, "validation"))[inside])


def one_token_errors(told: Bool[Tensor, " samples"], truth: Bool[Tensor, " samples"]) -> float:
    """Return how often it is told wrongly whether answers are judged by one token.

    Returns:
        The share of those judged by one token that are taken for others, or of the others that are taken for these,
        whichever is greater; 0 where there are none.
    """
    shares = [(told != truth)[truth == kind].double() for kind in (False, True)]
    return max(float(one.mean()) if len(one) else 0.0 for one in shares)


@torch.inference_mode()
def scope_of(
    train: Float[Tensor, "samples width"],
    validation: Float[Tensor, "others width"],
    share: float,
    one_token: Sequence[bool] = (),
) -> Scope:
    """Return the scope of training prompts, outside of which a share of the validation prompts lies.

    Args:
        train: the training prompts, as `router.scope.pooled` makes them.
        validation: the validation prompts, on which the threshold is measured.
        share: false alarms, 0..1.
        one_token: whether each training prompt's answer is judged by its first token; empty: none is.

    Raises:
        InputError: where there is a single training prompt, which no direction can be told from.
    """
    if len(train) < 2:
        raise InputError(f"scope: expected at least 2 training samples (or null), got {len(train)}")
    prompts = train.double().numpy()
    scaler = StandardScaler().fit(prompts)
    found = PCA(min(COMPONENTS, *(size // 2 for size in prompts.shape)), svd_solver="full")
    found.fit(scaler.transform(prompts))
    config = ScopeConfig(found.n_components_, len(train), share, one_token=any(one_token))
    scope = Scope(config, train.shape[1] // 2)
    numbers = {
        "centre": scaler.mean_,
        "scale": scaler.scale_,
        "axes": found.components_.T,
        "variances": found.explained_variance_.clip(LEAST),
        "noise": max(found.noise_variance_, LEAST),
    }
    for name, value in numbers.items():
        getattr(scope, name).copy_(torch.as_tensor(value))
    distances, _ = scope.places(validation)
    scope.threshold.copy_(distances.quantile(1 - share) * (1 + MARGIN))
    if config.one_token and all(one_token):
        scope.intercept.fill_(CERTAIN)
    elif config.one_token:
        _, components = scope.places(train)
        told = LogisticRegression(C=WEAK, max_iter=1000).fit(components, one_token)
        scope.slopes.copy_(torch.as_tensor(told.coef_[0]))
        scope.intercept.copy_(torch.as_tensor(told.intercept_[0]))
    return scope


def _by_one_token(data: RouterData, split: str) -> list[bool]:
    """Return which samples' answers are judged by their first token."""
    return [data.tasks[sample.task].judged_mode == "letter" for _, sample in data.pairs[split]]


def _read(data: RouterData, split: str) -> Float[Tensor, "samples width"]:
    states = data.states(split, [sample for _, sample in data.pairs[split]])
    parts = [states[start : start + BATCH_SAMPLES] for start in range(0, len(states), BATCH_SAMPLES)]
    return torch.cat([pooled(*pad_states(part)) for part in parts])
