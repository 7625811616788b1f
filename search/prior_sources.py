"""What earlier work tells about a model's layers: log weights for skipping and repeating them, and known chains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from router.chain import Chain
from router.head import pad_states
from router.layerwise import REPEAT, RUN, SKIP
from router.storage import Router
from search.prior import LOG_LIMIT

SMOOTHING = 2.0
"""Trials at the average rate that are added to every count, so that rare chains say little."""
BATCH_SAMPLES = 32
LEAST_TRIED = 2
"""Samples on which a chain must have been tried to become a known one."""


@dataclass(frozen=True)
class LayerWeights:
    """Log weights of skipping and of repeating each layer, natural logarithm, 0 for layers of the prefix.

    Attributes:
        skip: one for each layer.
        repeat: one for each layer.
    """

    skip: tuple[float, ...]
    repeat: tuple[float, ...]

    def scaled(self, factor: float) -> LayerWeights:
        """Return the weights times a factor, within the bounds of a prior."""
        return LayerWeights(*(tuple(_bounded(factor * w) for w in weights) for weights in (self.skip, self.repeat)))


def from_records(records: Sequence[SearchRecord], most: int) -> tuple[LayerWeights, tuple[tuple[Chain, float], ...]]:
    """Return what the chains that a search tried say.

    A layer's weight is the log of the share of right answers among the chains that skip (repeat) it, over the share
    among all edited chains, smoothed. Known chains are those that were right on the most samples; the weight is that
    number.

    Args:
        records: records of one model and prefix.
        most: known chains at most.
    """
    n, prefix = records[0].num_layers, records[0].prefix_layers
    tried, right = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    chains, solved = Counter[Chain](), Counter[Chain]()
    for record in records:
        for result in record.results[1:]:
            chains[result.chain] += 1
            solved[result.chain] += result.correct
            counts = Counter(result.chain.layers)
            for layer in range(prefix, n):
                if counts[layer] != 1:
                    what = ("skip" if not counts[layer] else "repeat", layer)
                    tried[what] += 1
                    right[what] += result.correct
    rate = solved.total() / max(1, chains.total())
    kinds = ("skip", "repeat")
    skip, repeat = ([_log_ratio(right[kind, i], tried[kind, i], rate) for i in range(n)] for kind in kinds)
    candidates = [chain for chain, count in chains.items() if count >= LEAST_TRIED and solved[chain]]
    best = sorted(candidates, key=lambda chain: (-solved[chain], chain.depth, chain.layers))[:most]
    return LayerWeights(tuple(skip), tuple(repeat)), tuple((chain, float(solved[chain])) for chain in best)


def from_redundancy(scorer: ChainScorer, samples: Sequence[Sample], prefix_layers: int) -> LayerWeights:
    """Measure how often the model's answer stays what it is when one layer is skipped, or run twice.

    No right answer is looked at. A layer's weight is the log of that share over the mean share of all layers, smoothed.

    Args:
        scorer: the model.
        samples: some samples, of the training split.
        prefix_layers: layers that are left alone.
    """
    n = scorer.num_layers
    full = Chain.full(n)
    edits = {("skip", i): full.skip(i, 1) for i in range(prefix_layers, n) if n > 1}
    edits |= {("repeat", i): full.repeat(i, 1, 1) for i in range(prefix_layers, n)}
    kept = Counter[tuple[str, int]]()
    encoded = scorer.encode_all(samples)
    with tqdm(total=len(samples), desc="redundancy of layers", unit="sample") as progress:
        for batch in batches_by_length([one.length for one in encoded], BATCH_SAMPLES):
            block = scorer.load([encoded[i] for i in batch])
            jobs = [(i, chain) for i in range(len(batch)) for chain in (full, *edits.values())]
            results = iter(scorer.score(block, jobs))
            for _ in batch:
                answer = next(results).prediction
                kept.update(edit for edit in edits if next(results).prediction == answer)
            progress.update(len(batch))
    rate = kept.total() / max(1, len(edits) * len(samples))
    kinds = ("skip", "repeat")
    skip, repeat = (
        [_log_ratio(kept[kind, i], len(samples), rate) if (kind, i) in edits else 0.0 for i in range(n)]
        for kind in kinds
    )
    return LayerWeights(tuple(skip), tuple(repeat))


@torch.inference_mode()
def from_router(router: Router, scorer: ChainScorer, samples: Sequence[Sample]) -> dict[str, LayerWeights]:
    """Return by sample id what a layerwise router thinks: the log of p(skip) over p(run), and of p(repeat) over p(run).

    Each sample's weights are centred for skips and for repeats: they say which layers, not how many edits.

    Args:
        router: a router of the scorer's model.
        scorer: the model.
        samples: the samples to route.
    """
    prefix = router.config.prefix_layers
    encoded = scorer.encode_all(samples)
    found: dict[str, LayerWeights] = {}
    with tqdm(total=len(samples), desc="router", unit="sample") as progress:
        for batch in batches_by_length([one.length for one in encoded], BATCH_SAMPLES):
            states = scorer.states(scorer.load([encoded[i] for i in batch]), prefix)
            output: Tensor = router.head(*pad_states([state.cpu() for state in states]))
            logprobs = output.double().log_softmax(-1).cpu()
            for i, of_sample in zip(batch, logprobs, strict=True):
                odds = [of_sample[:, kind] - of_sample[:, RUN] for kind in (SKIP, REPEAT)]
                skip, repeat = ((0.0,) * prefix + tuple((o - o.mean()).tolist()) for o in odds)
                found[encoded[i].sample.id] = LayerWeights(skip, repeat)
            progress.update(len(batch))
    return {sample.id: found[sample.id] for sample in samples}


def _log_ratio(hits: int, trials: int, rate: float) -> float:
    """Return log(share of hits / rate), with SMOOTHING trials at the rate added; 0 where the rate is 0."""
    if rate <= 0:
        return 0.0
    share = (hits + SMOOTHING * rate) / (trials + SMOOTHING)
    return math.log(share / rate)


def _bounded(value: float) -> float:
    return max(-LOG_LIMIT, min(LOG_LIMIT, value))
