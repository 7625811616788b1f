"""What earlier work tells about a model's layers: log weights for skipping and repeating them, and known chains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from router.chain import Chain
from router.head import Head, ScoredChain
from router.layerwise import CLASSES, REPEAT, RUN, SKIP, LayerwiseHead
from router.menu_head import MenuHead
from router.storage import Router
from search.prior import LOG_LIMIT

SMOOTHING = 2.0
"""Trials at the average rate that are added to every count, so that rare chains say little."""
BATCH_SAMPLES = 32
LEAST_TRIED = 2
"""Samples on which a chain must have been tried to become a known one."""
MENU_TEMPERATURE = 0.05
"""A menu head's chain that is worth this much less than another (a share of right answers) weighs 1/e as much."""
LEAST_SHARE = 0.01
"""Added to the shares of skip, run and repeat of a layer in a router's ranked chains: what none of them does stays
possible, and log odds stay within log(1.01 / 0.01) = 4.6 of 0 (9.2 when centred), well within a prior's bounds."""


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


def from_router(
    router: Router, scorer: ChainScorer, samples: Sequence[Sample], offset: float = 0.0
) -> dict[str, LayerWeights]:
    """Return by sample id what a router thinks: the log of p(skip) over p(run), and of p(repeat) over p(run).

    Args:
        router: a router of the scorer's model.
        scorer: the model.
        samples: the samples to route.
        offset: operating point of the head (`Head.decode_at`), which weighs the ranked chains of a menu or program
            head; a layerwise head's weights do not hang on it.
    """
    output = router_outputs(router, scorer, samples)
    weights = weights_of_output(router.head, output, offset)
    return {sample.id: of_sample for sample, of_sample in zip(samples, weights, strict=True)}


@torch.inference_mode()
def router_outputs(router: Router, scorer: ChainScorer, samples: Sequence[Sample]) -> Float[Tensor, "samples ..."]:
    """Return the output of a router's head for each sample, on the CPU.

    Args:
        router: a router of the scorer's model.
        scorer: the model.
        samples: the samples to route, at least one.
    """
    encoded = scorer.encode_all(samples)
    found: dict[int, Tensor] = {}
    with tqdm(total=len(samples), desc="router", unit="sample") as progress:
        for batch in batches_by_length([one.length for one in encoded], BATCH_SAMPLES):
            states = scorer.states(scorer.load([encoded[i] for i in batch]), router.config.prefix_layers)
            found |= zip(batch, router.outputs([state.cpu() for state in states]).cpu(), strict=True)
            progress.update(len(batch))
    places = {one.sample.id: i for i, one in enumerate(encoded)}
    return torch.stack([found[places[sample.id]] for sample in samples])


def weights_of_output(head: Head, output: Float[Tensor, "samples ..."], offset: float = 0.0) -> list[LayerWeights]:
    """Return the log weights that each row of a head's output gives: log p(skip) / p(run) and log p(repeat) / p(run).

    A layerwise head says the classes' probabilities itself. Of any other head they are the shares of its ranked chains
    that skip the layer, run it once, or more than once; chains weigh by the softmax of what they are ranked by: a
    program's log-probability, or a menu chain's value over `MENU_TEMPERATURE`, less the price on depth at the offset.
    Each row's weights are centred for skips and for repeats: they say which layers, not how many edits.

    Args:
        head: the head.
        output: what its `forward` returned.
        offset: operating point at which chains are ranked; a layerwise head's weights do not hang on it.
    """
    prefix = head.prefix_layers
    if isinstance(head, LayerwiseHead):
        logprobs = output.double().log_softmax(-1)
    else:
        logprobs = _shares(head, output, offset).log()
    weights = []
    for of_sample in logprobs:
        odds = [of_sample[:, kind] - of_sample[:, RUN] for kind in (SKIP, REPEAT)]
        skip, repeat = ((0.0,) * prefix + tuple((o - o.mean()).tolist()) for o in odds)
        weights.append(LayerWeights(skip, repeat))
    return weights


def _shares(head: Head, output: Tensor, offset: float) -> Float[Tensor, "samples layers classes"]:
    """Return p(skip), p(run) and p(repeat) of each layer after the prefix under each row's ranked chains, smoothed."""
    scale = MENU_TEMPERATURE if isinstance(head, MenuHead) else 1.0
    classes: dict[Chain, Tensor] = {}
    rows = []
    for ranked in _ranked(head, output, offset):
        for one in ranked:
            if one.chain not in classes:
                runs = Counter(one.chain.layers)
                kinds = torch.tensor([min(runs[i], REPEAT) for i in range(head.prefix_layers, head.num_layers)])
                classes[one.chain] = one_hot(kinds, len(CLASSES)).double()
        scores = torch.tensor([one.score - offset * one.chain.depth for one in ranked], dtype=torch.float64)
        weights = (scores / scale).softmax(0)
        rows.append(torch.einsum("c,clk->lk", weights, torch.stack([classes[one.chain] for one in ranked])))
    return (torch.stack(rows) + LEAST_SHARE) / (1 + LEAST_SHARE * len(CLASSES))


def chosen_chains(
    head: Head, output: Float[Tensor, "samples ..."], offset: float, most: int
) -> tuple[tuple[Chain, float], ...]:
    """Return the edited chains that a router chooses most often, each with the number of samples that get it.

    Args:
        head: the router's head.
        output: what its `forward` returned.
        offset: operating point (`Head.decode_at`); 0: the router's own choice.
        most: chains at most; of chains chosen alike the shallower come first.
    """
    counts = Counter(ranked[0].chain for ranked in _ranked(head, output, offset) if not ranked[0].chain.is_full)
    best = sorted(counts, key=lambda chain: (-counts[chain], chain.depth, chain.layers))[:most]
    return tuple((chain, float(counts[chain])) for chain in best)


def _ranked(head: Head, output: Tensor, offset: float) -> Iterator[list[ScoredChain]]:
    """Give each row's chains; a few rows at once, since a menu may have thousands of chains."""
    for part in torch.split(output, BATCH_SAMPLES):
        yield from head.decode_at(part, offset)


def split_common(weights: Sequence[LayerWeights]) -> tuple[LayerWeights, list[LayerWeights]]:
    """Return the mean of samples' weights, and each sample's difference from it, within the bounds of a prior."""
    means = [[sum(of_layer) / len(weights) for of_layer in zip(*rows, strict=True)] for rows in _columns(weights)]
    common = LayerWeights(*(tuple(_bounded(value) for value in of_kind) for of_kind in means))
    own = []
    for one in weights:
        pairs = ((one.skip, common.skip), (one.repeat, common.repeat))
        # By a hair within the bounds, so that adding up again cannot leave them by rounding.
        own.append(
            LayerWeights(*(tuple(_bounded(a * (1 - 1e-12) - b) for a, b in zip(*p, strict=True)) for p in pairs))
        )
    return common, own


def _columns(weights: Sequence[LayerWeights]) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    return [one.skip for one in weights], [one.repeat for one in weights]


def _log_ratio(hits: int, trials: int, rate: float) -> float:
    """Return log(share of hits / rate), with SMOOTHING trials at the rate added; 0 where the rate is 0."""
    if rate <= 0:
        return 0.0
    share = (hits + SMOOTHING * rate) / (trials + SMOOTHING)
    return math.log(share / rate)


def _bounded(value: float) -> float:
    return max(-LOG_LIMIT, min(LOG_LIMIT, value))
