"""Baselines without training: a mixture of static chains, early exit, and pruning of redundant layers.

What they need is measured on train and validation and kept in a file each; none is deeper than the router there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.profile import without
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock, batches_by_length, confidences
from eval.arms import EARLY_EXIT, MIXTURE
from router.chain import Chain
from router.files import read_json, write_json
from router.heads.budget import best_mixture
from router.validation import InputError

MIXTURE_FILE, EXIT_FILE, PRUNED_FILE = "mixture.json", "early_exit.json", "pruned.json"
INFLUENCE_SAMPLES = 128
"""Training samples on which the layers' influence is measured; ShortGPT takes a few hundred texts at most."""


@dataclass(frozen=True)
class MixturePolicy:
    """A randomised static policy: each sample draws one of two chains from its own generator of (seed, sample id).

    Attributes:
        first: the shallower chain.
        second: the deeper one.
        share: probability of the first.
        seed: seed of the draws.
        name: the policy's name.
    """

    first: Chain
    second: Chain
    share: float
    seed: int
    name: str = MIXTURE

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return the chain that each sample draws."""
        draws = (random.Random(f"{self.seed}/mixture/{encoded.sample.id}").random() for encoded in samples.samples)
        return [self.first if draw < self.share else self.second for draw in draws]


@dataclass(frozen=True)
class EarlyExitPolicy:
    """Stop after a layer where the model is sure already (logit lens: final norm and head on its output).

    Attributes:
        scorer: runs the first layers.
        layer: layers that run for every sample.
        threshold: confidence from which a sample stops there, 0..1; the others run at full depth.
        name: the policy's name.
    """

    scorer: ChainScorer
    layer: int
    threshold: float
    name: str = EARLY_EXIT

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return for each sample the first layers alone, or the full chain."""
        n = self.scorer.num_layers
        early = exit_chain(self.layer, n)
        sure = confidences(self.scorer, samples, early)
        return [early if one >= self.threshold else Chain.full(n) for one in sure]


def exit_chain(layer: int, num_layers: int) -> Chain:
    """Return the first `layer` layers."""
    return Chain(tuple(range(layer)), num_layers)


def write_mixture(out: Path, chains: Sequence[Chain], correct: Sequence[int], n: int, depth: float) -> None:
    """Choose the mixture of static chains of greatest accuracy with mean depth of at most `depth`, and write it.

    Args:
        out: the run's folder.
        chains: the candidates, the full chain among them.
        correct: right answers of each on train and validation.
        n: samples there.
        depth: the router's mean depth on validation, layers.
    """
    mixture = best_mixture([one / n for one in correct], [float(one.depth) for one in chains], depth)
    if mixture is None:
        raise ValueError(f"candidates: expected one of depth at most {depth}, got none")
    first, second = chains[mixture.first], chains[mixture.second]
    content: dict[str, Any] = {
        "first": first.to_json(),
        "second": second.to_json(),
        "text": f"{mixture.share:.1%} {first}, else {second}",
        "share": mixture.share,
        "mean_depth": mixture.mean([float(one.depth) for one in chains]),
        "accuracy": mixture.mean([one / n for one in correct]),
        "n": n,
        "chosen_on": "train+validation",
        "candidates": len(chains),
        "router_validation_depth": depth,
    }
    write_json(out / MIXTURE_FILE, content)


def read_mixture(out: Path, num_layers: int, seed: int) -> MixturePolicy:
    """Read `mixture.json`.

    Raises:
        InputError: where it is missing or corrupt.
    """
    value = _read(out / MIXTURE_FILE, ("first", "second", "share"))
    first, second = (chain_in(out / MIXTURE_FILE, value[name], num_layers) for name in ("first", "second"))
    return MixturePolicy(first, second, float(value["share"]), seed)


def write_early_exit(
    out: Path, scorer: ChainScorer, samples: Sequence[Sample], read_layer: int, depth: float, batch_samples: int
) -> None:
    """Choose layer and threshold of the early exit on validation, and write them.

    Of all (layer from `read_layer` on, threshold) of mean depth at most `depth` it is the most accurate one, the
    shallower among equals.

    Args:
        out: the run's folder.
        scorer: runs the chains, in the cheap mode.
        samples: the validation samples.
        read_layer: least layer to stop after; 1 at least.
        depth: the router's mean depth on validation, layers.
        batch_samples: samples loaded at once.
    """
    n, count = scorer.num_layers, len(samples)
    layers = list(range(max(1, read_layer), n))
    sure, right = np.empty((len(layers), count)), np.empty((len(layers), count), np.bool_)
    full = np.empty(count, np.bool_)
    encoded = scorer.encode_all(samples)
    for indices in batches_by_length([one.length for one in encoded], batch_samples):
        block = scorer.load([encoded[i] for i in indices])
        places = range(len(indices))
        for row, layer in enumerate(layers):
            chain = exit_chain(layer, n)
            results = scorer.score(block, [(i, chain) for i in places])
            sure[row, indices] = confidences(scorer, block, chain, results)
            right[row, indices] = [one.correct for one in results]
        full[indices] = [one.correct for one in scorer.score(block, [(i, Chain.full(n)) for i in places])]
    best = max(
        (
            (float(np.where(stops, right[row], full).mean()), -mean, layer, float(threshold))
            for row, layer in enumerate(layers)
            for threshold in [*np.unique(sure[row]), np.inf]
            for stops in [sure[row] >= threshold]
            for mean in [float(np.where(stops, layer, n).mean())]
            if mean <= depth
        ),
        default=None,
    )
    # A router as deep as the full chain leaves room for it; one that is shallower than any exit leaves none.
    accuracy, minus_depth, layer, threshold = best or (float(right[0].mean()), -float(layers[0]), layers[0], 0.0)
    content = {
        "layer": layer,
        "threshold": min(threshold, 2.0),  # above every confidence: nobody stops
        "accuracy": accuracy,
        "mean_depth": -minus_depth,
        "n": count,
        "chosen_on": "validation",
        "layers_tried": [layers[0], layers[-1]],
        "router_validation_depth": depth,
    }
    write_json(out / EXIT_FILE, content)


def read_early_exit(out: Path, scorer: ChainScorer) -> EarlyExitPolicy:
    """Read `early_exit.json`.

    Raises:
        InputError: where it is missing or corrupt.
    """
    value = _read(out / EXIT_FILE, ("layer", "threshold"))
    return EarlyExitPolicy(scorer, int(value["layer"]), float(value["threshold"]))


@torch.inference_mode()
def write_pruned(out: Path, scorer: ChainScorer, samples: Sequence[Sample], depth: float, batch_samples: int) -> None:
    """Leave out the layers that change the states least, down to a whole depth of at most `depth`; write the chain.

    Block influence, as in ShortGPT (Men et al. 2024, arXiv 2403.03853): 1 minus the mean cosine similarity of a
    layer's input and output, over all tokens. Layer 0 is always kept.

    Args:
        out: the run's folder.
        scorer: runs the model.
        samples: training samples; the first `INFLUENCE_SAMPLES` by id are read.
        depth: the router's mean depth on validation, layers.
        batch_samples: samples loaded at once.
    """
    n = scorer.num_layers
    chosen = scorer.encode_all(sorted(samples, key=lambda one: one.id)[:INFLUENCE_SAMPLES])
    similar, tokens = torch.zeros(n - 1, dtype=torch.float64), 0
    for indices in batches_by_length([one.length for one in chosen], batch_samples):
        block = scorer.load([chosen[i] for i in indices])
        before = torch.cat(scorer.states(block, 1)).double()
        tokens += len(before)
        for layer in range(1, n):
            after = torch.cat(scorer.states(block, layer + 1)).double()
            similar[layer - 1] += torch.nn.functional.cosine_similarity(before, after, dim=-1).sum().cpu()
            before = after
    influence = (1 - similar / tokens).tolist()
    left_out = max(0, n - int(depth))
    skipped = sorted(sorted(range(1, n), key=lambda layer: (influence[layer - 1], -layer))[:left_out])
    chain = without(tuple(skipped), n)
    content = {
        "chain": chain.to_json(),
        "text": str(chain),
        "depth": chain.depth,
        "influence": {str(layer): influence[layer - 1] for layer in range(1, n)},
        "samples": len(chosen),
        "tokens": tokens,
        "measured_on": "train",
        "router_validation_depth": depth,
    }
    write_json(out / PRUNED_FILE, content)


def read_pruned(out: Path, num_layers: int) -> Chain:
    """Read the chain of `pruned.json`.

    Raises:
        InputError: where it is missing or corrupt.
    """
    return chain_in(out / PRUNED_FILE, _read(out / PRUNED_FILE, ("chain",))["chain"], num_layers)


def chain_in(path: Path, value: Any, num_layers: int) -> Chain:
    """Return the chain that a file holds as JSON.

    Raises:
        InputError: where it is none; the message names the file.
    """
    try:
        return Chain.from_json(value, num_layers)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _read(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    value = read_json(path)
    missing = [name for name in fields if name not in value]
    if missing:
        raise InputError(f"{path}: expected the field {missing[0]}, got none")
    return value
