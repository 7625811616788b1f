"""The read-layer profile: what a linear probe of each layer's states knows of what full depth will do.

For a router that reads `hidden_states[e]`, three questions at every e: how sure full depth will be, whether it will be
right, and whether a skip of later layers will keep its answer. The last one is what a router needs; the others say
where the model makes up its mind. No model here: everything comes from `data.observe.Observations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import norm
from tqdm import tqdm

from data.layer_profile import CHANCE, LayerProfile, Measure, Profile, SkipProfile, Suggestion
from data.observe import Observations
from data.probe import auc, correlation, deal_folds, interval_of, out_of_fold, resamples_of

RAREST = 10
"""Samples of the rarer class that an AUC needs; with fewer its interval would say nothing."""
TAIL = 0.025
"""Probability beyond either end of an interval."""


def profile(
    observations: Observations, *, folds: int = 5, seed: int = 0, components: int = 64, resamples: int = 1000
) -> Profile:
    """Measure what linear probes read at every layer; shows a progress bar.

    Args:
        observations: a model observed on samples.
        folds: folds of the cross-validation, stratified by correctness and by the number of skips that keep the answer.
        seed: decides folds, bootstrap and permutations.
        components: principal components at most; also at most a quarter of a training fold.
        resamples: bootstrap resamples.

    Raises:
        ValueError: where a bound is below 1, or there are fewer than four samples a fold.
    """
    for name, bound in (("components", components), ("resamples", resamples)):
        if bound < 1:
            raise ValueError(f"{name}: expected at least 1, got {bound}")
    n, skips = observations.samples, sorted(observations.kept)
    kept = np.array([observations.kept[skip] for skip in skips]).reshape(len(skips), n)
    generator = np.random.default_rng(seed)
    fold_of = deal_folds(np.stack([observations.correct, kept.sum(0)]), folds, generator)
    weights = resamples_of(n, resamples, generator)
    labels = {skip: row for skip, row in zip(skips, kept, strict=True) if _rarer(row) >= RAREST}
    confidence, confidence_why = observations.confidence, _why_no_correlation(observations.confidence)
    if confidence_why is not None:
        confidence = np.zeros(n)  # keeps its column; nothing of it is shown
    correct_why = _why_no_auc(observations.correct)
    # No fit, no folds: all pairs count.
    whole = np.zeros_like(fold_of)
    by_confidence = {skip: auc(confidence, row, whole, weights) for skip, row in labels.items()}
    layers, shuffled = [], []
    for e in tqdm(sorted(observations.features), desc="profile", unit="layer"):
        readable = {skip: row for skip, row in labels.items() if skip[0] >= e}
        targets = np.stack([confidence, observations.correct, *readable.values()], axis=1).astype(float)
        permutation = generator.permutation(n)
        predictions = out_of_fold(
            observations.features[e], np.hstack([targets, targets[permutation]]), fold_of, components
        )
        half = targets.shape[1]
        measured = _measure_all(predictions[:, :half], targets, fold_of, weights)
        shuffled.append(_measure_all(predictions[:, half:], targets[permutation], fold_of, weights[:1]))
        rarer = min((_rarer(row) for row in readable.values()), default=0)
        kept_why = None if readable else f"no skip from layer {e} on has {RAREST} samples of its rarer class"
        reference = [by_confidence[skip] for skip in readable]
        layers.append(
            LayerProfile(
                prefix_layers=e,
                editable=observations.num_layers - e,
                confidence=_measure(measured[:1], n, None, confidence_why),
                correct=_measure(measured[1:2], n, _rarer(observations.correct), correct_why),
                kept=_measure(measured[2:], n, rarer, kept_why),
                by_confidence=_measure(reference, n, rarer, kept_why or confidence_why, fitted=False),
            )
        )
    measured_skips = []
    for skip, row in zip(skips, kept, strict=True):
        draws, why = [by_confidence[skip]] if skip in labels else [], _why_no_auc(row) or confidence_why
        measured_skips.append(SkipProfile(skip, float(row.mean()), _measure(draws, n, _rarer(row), why, fitted=False)))
    permuted = {
        "confidence": None if confidence_why else _mean([draws[0][0] for draws in shuffled]),
        "correct": None if correct_why else _mean([draws[1][0] for draws in shuffled]),
        "kept": _mean([np.mean([one[0] for one in draws[2:]]) for draws in shuffled if len(draws) > 2]),
    }
    return Profile(
        num_layers=observations.num_layers,
        samples=n,
        accuracy=float(observations.correct.mean()),
        folds=folds,
        seed=seed,
        components=components,
        resamples=resamples,
        layers=tuple(layers),
        skips=tuple(measured_skips),
        permuted=permuted,
        suggestion=suggest(layers),
    )


def suggest(layers: Sequence[LayerProfile]) -> Suggestion:
    """Return the layer with the most evidence times room, a heuristic.

    Early layers leave much to edit and know nothing; late ones know and leave nothing. The score of a layer is (lower
    end of AUC(kept) - 0.5) * editable layers, at least 0. Where it is 0 at every layer, the lower end of r(confidence)
    takes its place: it asks for less, being one smooth target. The first of equals wins.

    As the best of many layers is taken, the lower ends are those of intervals that hold for all layers at once
    (Bonferroni: arms as long as a normal's 1 - 0.025 / layers quantile has it). On 30 made-up data sets of 28 layers
    with nothing to read, these named a layer in 2, and ends of plain bootstrap intervals in 27 or more. What a router
    gains there has still to be measured on other samples.
    """
    lengthened = norm.isf(TAIL / max(1, len(layers))) / norm.isf(TAIL)
    for name, words in (("kept", "AUC(kept)"), ("confidence", "r(confidence)")):
        scores = [getattr(one, name).above(CHANCE[name], lengthened) * one.editable for one in layers]
        best = max(range(len(scores)), key=scores.__getitem__, default=None)
        if best is not None and scores[best] > 0:
            one = layers[best]
            reason = (
                f"read at e = {one.prefix_layers}: {words} {getattr(one, name)} with {one.editable} layers left to edit"
            )
            return Suggestion(one.prefix_layers, name, float(scores[best]), reason)
    reason = f"none: neither AUC(kept) nor r(confidence) is surely above chance at any of {len(layers)} layers"
    return Suggestion(None, None, 0.0, reason)


def _measure_all(
    predictions: np.ndarray, targets: np.ndarray, fold_of: np.ndarray, weights: np.ndarray
) -> list[Float[np.ndarray, " draws"]]:
    """Return the draws of the confidence's correlation and of each other column's AUC, in the columns' order."""
    first, *others = zip(predictions.T, targets.T, strict=True)
    return [correlation(*first, fold_of, weights), *(auc(one, true > 0, fold_of, weights) for one, true in others)]


def _measure(
    draws: Sequence[Float[np.ndarray, " draws"]],
    samples: int,
    rarer: int | None,
    reason: str | None,
    *,
    fitted: bool = True,
) -> Measure:
    """Return the mean over targets with its interval; entry 0 of the draws is the measure itself."""
    if reason is None:
        means = np.mean(draws, axis=0)
        interval = interval_of(means, fitted=fitted)
        if interval is not None:
            return Measure(float(means[0]), interval, samples, rarer, len(draws))
        reason = "no fold holds samples that differ in it"
    return Measure(None, None, samples, rarer, 0, reason)


def _rarer(labels: np.ndarray) -> int:
    return int(min(labels.sum(), (~labels).sum()))


def _why_no_auc(labels: np.ndarray) -> str | None:
    rarer = _rarer(labels)
    if rarer == 0:
        return "all samples are in one class"
    return f"the rarer class has {rarer} samples, fewer than {RAREST}" if rarer < RAREST else None


def _why_no_correlation(confidence: np.ndarray) -> str | None:
    if not np.isfinite(confidence).all():
        return "full depth gives no scores for some samples"
    return "full depth's confidence is the same for all samples" if np.ptp(confidence) == 0 else None


def _mean(values: Sequence[Any]) -> float | None:
    finite = [float(value) for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None
