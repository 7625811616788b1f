"""What a linear probe of each layer's states knows of what full depth will do: the statistics of the profile.

For a router that reads `hidden_states[e]`, three questions at every e: how sure full depth will be, whether it will be
right, and whether a skip of later layers will keep its answer. The last one is what a router needs; the others say
at which layer the model decides. No model here: everything comes from `Observations`.

Measures compare samples of the same fold only. Predictions of two folds come from two fits and share no scale, and a
fold that is rich in a class leaves a training set that is poor in it: pooled, a probe that knows nothing comes out
below chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import bootstrap, norm, rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from router.progress import followed

SCHEMA = 2
"""Version of the profile's JSON."""
CHANCE = {"confidence": 0.0, "correct": 0.5, "kept": 0.5}
"""Each measure's value where the states say nothing."""
RAREST = 10
"""Samples of the rarer class that an AUC needs; with fewer its interval would say nothing."""
TAIL = 0.025
"""Probability beyond either end of an interval."""
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties tried, in units of a component's mean sum of squares: from hardly any to none but the direction of
the covariance with the target, which is what is left to learn where samples are few."""
RESAMPLES_AT_ONCE = 100
"""Bootstrap resamples computed together, which bounds memory."""

Skip = tuple[int, ...]
"""Layers left out of the full chain, ascending."""
Folds = list[Int[np.ndarray, " samples_of_fold"]]
"""The samples' indices, by fold."""
Statistic = Callable[..., Float[np.ndarray, " draws"]]
"""Of the folds' indices, each [draws, samples of the fold], the value of each draw; NaN where it is not defined."""


@dataclass(frozen=True, eq=False)
class Observations:
    """A model observed on samples.

    Memory: the features take 8 * samples * d_model bytes a read layer, as float32 (1,000 samples of a model of 30
    layers and width 576: 134 MB).

    Attributes:
        num_layers: layers of the model.
        features: by read layer e: `hidden_states[e]` of the prompt's last token beside the mean over all tokens that
            the router reads, `[samples, 2 * d_model]`, float32.
        confidence: full depth's confidence, in 0..1; NaN where the mode gives no scores.
        correct: whether full depth is right.
        kept: by skipped layers: whether the chain without them answers as full depth does.
        margins: of full depth and then of each of these chains the answer's margin in each variant of the samples,
            above 0 where it is right; None: the samples were asked in one variant.
    """

    num_layers: int
    features: Mapping[int, Float[np.ndarray, "samples features"]]
    confidence: Float[np.ndarray, " samples"]
    correct: Bool[np.ndarray, " samples"]
    kept: Mapping[Skip, Bool[np.ndarray, " samples"]]
    margins: Float[np.ndarray, "variants samples chains"] | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.confidence)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of a probe.

    Attributes:
        value: the measure, from out-of-fold predictions; None where it cannot be computed.
        interval: its 95 % bootstrap interval over samples, all skips of a sample drawn together (`interval_of`).
        samples: number of samples.
        rarer: samples of the rarer class, of the rarest target where several are averaged; None for a correlation.
        targets: how many targets the measure is the mean of.
        reason: why there is no value; None where there is one.
    """

    value: float | None
    interval: tuple[float, float] | None
    samples: int
    rarer: int | None
    targets: int
    reason: str | None = None

    def above(self, chance: float, lengthened: float = 1.0) -> float:
        """Return by how much the interval's lower end exceeds chance; 0 where it does not or there is no value.

        Args:
            chance: the value where nothing is known.
            lengthened: factor by which the interval's lower arm is lengthened first.
        """
        if self.value is None or self.interval is None:
            return 0.0
        return max(0.0, self.value - lengthened * (self.value - self.interval[0]) - chance)

    def __str__(self) -> str:
        """Return value and interval for a table."""
        if self.value is None or self.interval is None:
            return "-"
        return f"{self.value:.3f} [{self.interval[0]:.3f}..{self.interval[1]:.3f}]"


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """What can be read at one layer.

    Attributes:
        read_layer: e, layers that have run when the states are read.
        editable: layers that a router which reads there can still change, `num_layers - e`.
        confidence: Pearson's r of the probe with full depth's confidence.
        correct: AUC of the probe for "full depth is right".
        kept: AUC of the probe for "this skip keeps full depth's answer", mean over the skips from e on.
        by_confidence: the same AUC, for the same skips, of full depth's confidence itself: known only at the end, a
            reference for what could be known.
    """

    read_layer: int
    editable: int
    confidence: Measure
    correct: Measure
    kept: Measure
    by_confidence: Measure


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The read layer to start from.

    Attributes:
        read_layer: the layer; None where nothing can be read anywhere.
        measure: the measure that it was chosen by, "kept" or, where that is nowhere above chance, "confidence".
        score: the rule's value there, in layers: evidence above chance times layers that can still be edited.
        reason: the choice in words.
    """

    read_layer: int | None
    measure: str | None
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of a model on a task's samples.

    Attributes:
        num_layers: layers of the model.
        samples: number of samples.
        accuracy: full depth's share of right answers.
        layers: one entry a read layer, ascending.
        permuted: mean over layers of each measure where every layer's targets were dealt to other samples: near
            chance (0 for confidence, 0.5 for the others), unless a probe sees what it is tested on.
        suggestion: the read layer to start from.
    """

    num_layers: int
    samples: int
    accuracy: float
    layers: tuple[LayerProfile, ...]
    permuted: dict[str, float | None]
    suggestion: Suggestion

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the profile."""
        return {"schema": SCHEMA, **asdict(self)}


def probe(
    observed: Observations, *, folds: int = 5, seed: int = 0, components: int = 64, resamples: int = 1000
) -> Profile:
    """Measure what linear probes read at every layer; shows a progress bar.

    Args:
        observed: a model observed on samples.
        folds: folds of the cross-validation, stratified by correctness and by the number of skips that keep the answer;
            at least two, of four samples or more.
        seed: decides folds, bootstrap and permutations.
        components: principal components at most; also at most a quarter of a training fold.
        resamples: bootstrap resamples.
    """
    n, skips = observed.samples, sorted(observed.kept)
    kept = np.array([observed.kept[skip] for skip in skips]).reshape(len(skips), n)
    generator = np.random.default_rng(seed)
    dealt = deal_folds(np.stack([observed.correct, kept.sum(0)]), folds, generator)
    whole = [np.arange(n)]  # what was not fitted needs no folds: all pairs count
    labels = {skip: row for skip, row in zip(skips, kept, strict=True) if _rarer(row) >= RAREST}
    confidence, confidence_why = observed.confidence, _why_no_correlation(observed.confidence)
    if confidence_why is not None:
        confidence = np.zeros(n)  # keeps its column; nothing of it is shown
    correct_why = _why_no_auc(observed.correct)

    def measure(statistic: Statistic, targets: int, rarer: int | None, reason: str | None, fitted: bool) -> Measure:
        parts = dealt if fitted else whole
        value = float("nan") if reason else float(statistic(*parts))
        if math.isnan(value):
            return Measure(None, None, n, rarer, 0, reason or "no fold holds samples that differ in it")
        interval = interval_of(statistic, parts, resamples, generator, fitted=fitted)
        return Measure(value, interval, n, rarer, targets)

    layers: list[LayerProfile] = []
    shuffled: dict[str, list[float]] = {"confidence": [], "correct": [], "kept": []}
    for e in followed(sorted(observed.features), "profile", "layer"):
        rows = [row for skip, row in labels.items() if skip[0] >= e]
        targets = np.stack([confidence, observed.correct, *rows], axis=1).astype(float)
        permuted = targets[generator.permutation(n)]
        found = out_of_fold(observed.features[e], np.hstack([targets, permuted]), dealt, components)
        half = targets.shape[1]
        r, correct, stays = _statistics(found[:, :half], targets)
        for name, statistic in zip(shuffled, _statistics(found[:, half:], permuted), strict=True):
            shuffled[name].append(float(statistic(*dealt)) if rows or name != "kept" else math.nan)
        rarer = min(map(_rarer, rows), default=0)
        by_confidence = auc_of(confidence[:, None], np.array(rows, np.bool_).reshape(len(rows), n).T)
        kept_why = None if rows else f"no skip from layer {e} on has {RAREST} samples of its rarer class"
        layers.append(
            LayerProfile(
                read_layer=e,
                editable=observed.num_layers - e,
                confidence=measure(r, 1, None, confidence_why, fitted=True),
                correct=measure(correct, 1, _rarer(observed.correct), correct_why, fitted=True),
                kept=measure(stays, len(rows), rarer, kept_why, fitted=True),
                by_confidence=measure(by_confidence, len(rows), rarer, kept_why or confidence_why, fitted=False),
            )
        )
    return Profile(
        num_layers=observed.num_layers,
        samples=n,
        accuracy=float(observed.correct.mean()),
        layers=tuple(layers),
        permuted={
            "confidence": None if confidence_why else _mean(shuffled["confidence"]),
            "correct": None if correct_why else _mean(shuffled["correct"]),
            "kept": _mean(shuffled["kept"]),
        },
        suggestion=suggest(layers),
    )


def suggest(layers: Sequence[LayerProfile]) -> Suggestion:
    """Return the layer with the most evidence times room, a heuristic.

    Early layers leave much to edit and know nothing; late ones know and leave nothing. The score of a layer is (lower
    end of AUC(kept) - 0.5) * editable layers, at least 0. Where it is 0 at every layer, the lower end of r(confidence)
    takes its place: it asks for less, being one smooth target. The first of equals wins.

    As the best of many layers is taken, the lower ends are those of intervals that hold for all layers at once
    (Bonferroni: arms as long as a normal's 1 - 0.025 / layers quantile has it). What a router gains there has still to
    be measured on other samples.
    """
    lengthened = norm.isf(TAIL / max(1, len(layers))) / norm.isf(TAIL)
    for name, words in (("kept", "AUC(kept)"), ("confidence", "r(confidence)")):
        scores = [getattr(one, name).above(CHANCE[name], lengthened) * one.editable for one in layers]
        best = max(range(len(scores)), key=scores.__getitem__, default=None)
        if best is not None and scores[best] > 0:
            one = layers[best]
            found = f"{words} {getattr(one, name)} with {one.editable} layers left to edit"
            return Suggestion(one.read_layer, name, float(scores[best]), f"read at e = {one.read_layer}: {found}")
    reason = f"none: neither AUC(kept) nor r(confidence) is surely above chance at any of {len(layers)} layers"
    return Suggestion(None, None, 0.0, reason)


def deal_folds(keys: np.ndarray, folds: int, generator: np.random.Generator) -> Folds:
    """Deal the samples into folds: stratified, samples with equal keys go to the folds in turn.

    Args:
        keys: [keys, samples], numbers or booleans; the first counts most.
        folds: number of folds, at least two, of four samples or more.
        generator: decides between samples with equal keys.
    """
    order = np.lexsort((generator.random(keys.shape[1]), *keys[::-1]))
    return [np.sort(order[fold::folds]) for fold in range(folds)]


def out_of_fold(
    features: Float[np.ndarray, "samples features"],
    targets: Float[np.ndarray, "samples targets"],
    folds: Folds,
    components: int,
) -> Float[np.ndarray, "samples targets"]:
    """Predict every target of each sample with a linear probe that was fitted on the other folds.

    Standardisation, principal components and one ridge regression a target, its penalty by the leave-one-out error of
    the training samples. For a target of 0 and 1 that is least squares instead of logistic regression: without a
    penalty its direction is Fisher's discriminant (Hastie, Tibshirani and Friedman, The Elements of Statistical
    Learning, exercise 4.2), an AUC asks for the order only, and all targets are solved at once.

    Args:
        features: what is read.
        targets: what is predicted, one column each.
        folds: the samples' indices, by fold.
        components: principal components at most; also at most a quarter of the training samples.
    """
    n, d = features.shape
    training = n - max(map(len, folds))
    fold_of = np.empty(n, np.int64)
    for fold, members in enumerate(folds):
        fold_of[members] = fold
    k = max(1, min(components, d, training // 4))
    # Standardised features have a sum of squares of `training` each, which the components share.
    penalties = np.array(STRENGTHS) * training * d / k
    # Both solvers are exact, and each is the fast one on its side.
    pca = PCA(k, svd_solver="covariance_eigh" if d <= training else "full")
    model = make_pipeline(StandardScaler(), pca, RidgeCV(penalties, alpha_per_target=True))
    predictions: np.ndarray = cross_val_predict(model, features, targets, cv=PredefinedSplit(fold_of))
    return predictions.reshape(targets.shape)


def auc_of(scores: Float[np.ndarray, "samples columns"], positive: Bool[np.ndarray, "samples targets"]) -> Statistic:
    """Return the statistic "area under the ROC curve, mean over targets"; one column of scores may serve all targets.

    The area is the share of pairs (one sample of each class, both of one fold) that the scores put in the right order,
    equal scores counted half (Hanley and McNeil 1982), computed from the ranks within the fold (Mann-Whitney).
    """

    def statistic(*folds: np.ndarray) -> np.ndarray:
        right, pairs = np.array(0.0), np.array(0)
        for index in folds:
            truth = positive[index]
            ranks = rankdata(scores[index], axis=-2)
            ones = truth.sum(-2)
            right = right + (ranks * truth).sum(-2) - ones * (ones + 1) / 2
            pairs = pairs + ones * (truth.shape[-2] - ones)
        mean: np.ndarray = _ratio(right, pairs).mean(-1)
        return mean

    return statistic


def correlation_of(predictions: Float[np.ndarray, " samples"], truth: Float[np.ndarray, " samples"]) -> Statistic:
    """Return the statistic "Pearson's r within each fold, mean over the folds' samples".

    It is not r over all folds at once: with sums over folds below the fraction line, chance comes out below 0 (-0.05
    for 300 samples of noise), for a fold that by luck predicts badly also lessens its own weight.
    """

    def statistic(*folds: np.ndarray) -> np.ndarray:
        above, below = np.array(0.0), np.array(0.0)
        for index in folds:
            x, y = (values[index] - values[index].mean(-1, keepdims=True) for values in (predictions, truth))
            r = _ratio((x * y).sum(-1), np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))
            defined = np.isfinite(r)
            above = above + np.where(defined, r, 0.0) * index.shape[-1]
            below = below + defined * index.shape[-1]
        return _ratio(above, below)

    return statistic


def interval_of(
    statistic: Statistic, folds: Folds, resamples: int, generator: np.random.Generator, *, fitted: bool
) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of a statistic; None where no resample has a value.

    Samples are drawn again within their fold. A bootstrap of finished predictions holds the probes fixed. Where there
    is little to learn that is half of the variance: each pair of samples counts twice, once with the one judged by a
    probe that learnt from the other and once the other way round, and only the first is drawn again. So what was
    fitted has its interval's arms lengthened by the square root of 2. On noise 0.77 to 0.88 of the 95 % intervals held
    chance before; where much is learnt the longer arms are too cautious.

    Args:
        statistic: the measure.
        folds: the samples' indices, by fold.
        resamples: bootstrap resamples, at least 2.
        generator: draws them.
        fitted: whether the measure is of out-of-fold predictions, not of something known beforehand.
    """

    def redrawn(*parts: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1, "scipy draws along the last axis"
        return statistic(*parts)

    drawn = bootstrap(
        folds,
        redrawn,
        n_resamples=resamples,
        batch=RESAMPLES_AT_ONCE,
        vectorized=True,
        method="percentile",
        rng=generator,
    ).bootstrap_distribution
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    value = float(statistic(*folds))
    arms = np.quantile(drawn, [TAIL, 1 - TAIL]) - value
    low, high = value + arms * (math.sqrt(2) if fitted else 1.0)
    return max(-1.0, float(low)), min(1.0, float(high))


def _statistics(predictions: np.ndarray, targets: np.ndarray) -> tuple[Statistic, Statistic, Statistic]:
    """Return the statistics of confidence (column 0), correctness (column 1) and kept answers (the others)."""
    positive = targets > 0
    return (
        correlation_of(predictions[:, 0], targets[:, 0]),
        auc_of(predictions[:, 1:2], positive[:, 1:2]),
        auc_of(predictions[:, 2:], positive[:, 2:]),
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return the quotient, NaN where the denominator is 0."""
    ratio: np.ndarray = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)
    return ratio


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


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None
