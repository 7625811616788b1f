"""Linear probes: out-of-fold predictions from a layer's states, and measures of how well they order the samples.

Measures compare samples of the same fold only. Predictions of two folds come from two fits and share no scale, and a
fold that is rich in a class leaves a training set that is poor in it: pooled, a probe that knows nothing comes out
below chance.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties tried, in units of the components' mean sum of squares: from hardly any to none but the direction of
the covariance with the target, which is what is left to learn where samples are few."""


def deal_folds(keys: np.ndarray, folds: int, generator: np.random.Generator) -> Int[np.ndarray, " samples"]:
    """Return each sample's fold: stratified, samples with equal keys are dealt to the folds in turn.

    Args:
        keys: [keys, samples], numbers or booleans; the first counts most.
        folds: number of folds.
        generator: decides between samples with equal keys.

    Raises:
        ValueError: where there are fewer than two folds, or fewer than four samples a fold.
    """
    n = keys.shape[1]
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}")
    if n < 4 * folds:
        raise ValueError(f"samples: expected at least {4 * folds} for {folds} folds, got {n}")
    order = np.lexsort((generator.random(n), *keys[::-1]))
    fold_of = np.empty(n, np.int64)
    fold_of[order] = np.arange(n) % folds
    return fold_of


def out_of_fold(
    features: Float[np.ndarray, "samples features"],
    targets: Float[np.ndarray, "samples targets"],
    fold_of: Int[np.ndarray, " samples"],
    components: int,
) -> Float[np.ndarray, "samples targets"]:
    """Predict every target of each sample with a linear probe that was fitted on the other folds.

    Standardisation and principal components are fitted on the training folds and shared by all targets; then one
    ridge regression a target. For a target of 0 and 1 that is least squares instead of logistic regression: without
    a penalty its direction is Fisher's discriminant (Hastie, Tibshirani and Friedman, The Elements of Statistical
    Learning, exercise 4.2), an AUC asks for the order only, and all targets are solved at once.

    Args:
        features: what is read.
        targets: what is predicted, one column each.
        fold_of: each sample's fold.
        components: principal components at most; also at most a quarter of the training samples.
    """
    predictions = np.empty(targets.shape)
    for fold in np.unique(fold_of):
        held = fold_of == fold
        scaler = StandardScaler().fit(features[~held])
        train = scaler.transform(features[~held])
        n, d = train.shape
        # Both solvers are exact, and each is the fast one on its side.
        pca = PCA(max(1, min(components, d, n // 4)), svd_solver="covariance_eigh" if d <= n else "full").fit(train)
        inputs, asked = pca.transform(train), pca.transform(scaler.transform(features[held]))
        predictions[held] = _ridge(inputs.astype(np.float64), targets[~held], asked.astype(np.float64))
    return predictions


def _ridge(
    inputs: Float[np.ndarray, "train components"],
    targets: Float[np.ndarray, "train targets"],
    asked: Float[np.ndarray, "held components"],
) -> Float[np.ndarray, "held targets"]:
    """Fit by ridge regression and predict; each target's penalty is the one of the least leave-one-out error.

    The inputs are principal components: centred and orthogonal, so every coefficient is solved for alone. The error
    without a sample is its residual / (1 - leverage), exactly (Allen's PRESS, 1974); only training samples enter.
    """
    mean = targets.mean(0)
    power = (inputs**2).sum(0)
    moments = inputs.T @ (targets - mean)
    least = np.full(targets.shape[1], np.inf)
    coefficients = np.zeros_like(moments)
    for strength in STRENGTHS:
        penalised = power + strength * power.mean()
        tried = moments / penalised[:, None]
        leverage = 1 / len(inputs) + (inputs**2 / penalised).sum(1)
        error = (((targets - mean - inputs @ tried) / (1 - leverage)[:, None]) ** 2).sum(0)
        better = error < least
        coefficients[:, better] = tried[:, better]
        least[better] = error[better]
    predictions: np.ndarray = mean + asked @ coefficients
    return predictions


def resamples_of(samples: int, resamples: int, generator: np.random.Generator) -> Float[np.ndarray, "draws samples"]:
    """Return how often each sample counts: once each in row 0, then in each row a bootstrap resample of all."""
    drawn = generator.multinomial(samples, np.full(samples, 1 / samples), size=resamples)
    return np.concatenate([np.ones((1, samples)), drawn])


def auc(
    scores: Float[np.ndarray, " samples"],
    positive: np.ndarray,
    fold_of: Int[np.ndarray, " samples"],
    weights: Float[np.ndarray, "draws samples"],
) -> Float[np.ndarray, " draws"]:
    """Return the area under the ROC curve for each row of weights, NaN where no fold holds both classes.

    It is the share of pairs (one sample of each class, both of one fold) that the scores put in the right order,
    equal scores counted half (Hanley and McNeil 1982).

    Args:
        scores: the higher, the rather positive.
        positive: [samples], booleans.
        fold_of: each sample's fold.
        weights: how often each sample counts, as from `resamples_of`.
    """
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(fold_of):
        high, low = np.flatnonzero((fold_of == fold) & positive), np.flatnonzero((fold_of == fold) & ~positive)
        difference = scores[high, None] - scores[None, low]
        order = (np.sign(difference) + 1) / 2
        right += ((weights[:, high] @ order) * weights[:, low]).sum(1)
        pairs += weights[:, high].sum(1) * weights[:, low].sum(1)
    return _ratio(right, pairs)


def correlation(
    predictions: Float[np.ndarray, " samples"],
    targets: Float[np.ndarray, " samples"],
    fold_of: Int[np.ndarray, " samples"],
    weights: Float[np.ndarray, "draws samples"],
) -> Float[np.ndarray, " draws"]:
    """Return Pearson's r for each row of weights, mean over the folds; NaN where it is defined in none.

    It is not r over all folds at once: with sums over folds below the fraction line, chance comes out below 0 (-0.05
    for 300 samples of noise), for a fold that by luck predicts badly also lessens its own weight.

    Args:
        predictions: the predictions.
        targets: what they were to predict.
        fold_of: each sample's fold.
        weights: how often each sample counts, as from `resamples_of`.
    """
    above, below = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(fold_of):
        w = weights[:, fold_of == fold]
        total = w.sum(1)
        # Centred before the sums too, so that these do not cancel.
        x, y = (values[fold_of == fold] - values[fold_of == fold].mean() for values in (predictions, targets))
        covariance, x_variance, y_variance = (
            w @ (a * b) - (w @ a) * (w @ b) / np.maximum(total, 1) for a, b in ((x, y), (x, x), (y, y))
        )
        r = _ratio(covariance, np.sqrt(np.maximum(x_variance, 0) * np.maximum(y_variance, 0)))
        defined = np.isfinite(r)
        above[defined] += (total * r)[defined]
        below[defined] += total[defined]
    return _ratio(above, below)


def interval_of(draws: Float[np.ndarray, " draws"], *, fitted: bool) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of a measure; None where nothing can be said.

    A bootstrap of finished predictions holds the probes fixed. Where there is little to learn that is half of the
    variance: each pair of samples counts twice, once with the one judged by a probe that learnt from the other and
    once the other way round, and only the first is drawn again. So what was fitted has its interval's arms lengthened
    by the square root of 2. On noise 0.77 to 0.88 of the 95 % intervals held chance before; where much is learnt the
    longer arms are too cautious.

    Args:
        draws: the measure itself and then its value in each resample; those that are NaN are left out.
        fitted: whether the measure is of out-of-fold predictions, not of something known beforehand.
    """
    value, drawn = draws[0], draws[1:][np.isfinite(draws[1:])]
    if not np.isfinite(value) or not len(drawn):
        return None
    arms = np.percentile(drawn, [2.5, 97.5]) - value
    low, high = value + arms * (math.sqrt(2) if fitted else 1.0)
    return max(-1.0, float(low)), min(1.0, float(high))


def _ratio(above: Float[np.ndarray, " draws"], below: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    ratio: np.ndarray = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return ratio
