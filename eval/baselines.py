"""How the arms without training are chosen: static chain, mixture of static chains, early exit, pruned layers.

Each is chosen on train and validation, kept in a file, and no deeper than the router is *on the validation split*. That
depth is known before any test sample is read; bounding by the router's depth on test would let test in.

Candidates for the static chain come from the chains that the search tried on training samples: for each depth those
with the best share of right answers, by Wilson's lower bound. The chains that the router gives most often on validation
join them; one of them is always as shallow as the router. Each candidate is then run on every train and validation
sample, because a search tries a chain on samples that suit it (a menu table has run it on all already). It is judged
there in the cheap mode of the sample's task (`Task.mode`); only the chosen chain is run on test, in the real mode.

The static chain of a kind (a task of a mixture) is chosen in the same way from the samples of that kind alone, at most
as deep as the router is on them: it knows the kind, which the router must read.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from data.encoding import batches_by_length
from data.profile import without
from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, confidences
from data.statistics import wilson_interval
from eval.arms import Arm, exit_chain, kind_arm, static_arm
from eval.results import ArmResult
from router.chain import Chain
from router.files import read_json, write_json
from router.heads.budget import best_mixture
from router.validation import STORED, ChainField, Count, InputError, NotNegative, Positive, Share, from_plain, to_plain

INFLUENCE_SAMPLES = 128
"""Training samples on which the layers' influence is measured; ShortGPT takes a few hundred texts at most."""


@dataclass(frozen=True, config=STORED)
class Candidate:
    """A static chain and what it answers on train and validation.

    Attributes:
        chain: the chain.
        correct: samples that it answers rightly.
        n: samples that it was run on.
    """

    chain: ChainField
    correct: Count
    n: Positive


@dataclass(frozen=True, config=STORED)
class Considered:
    """A candidate, for readers.

    Attributes:
        chain: the chain in text form.
        depth: its layers.
        correct: samples that it answers rightly.
        source: whose chain it is: the search's, or one that the router chooses often.
    """

    chain: str
    depth: Positive
    correct: Count
    source: Literal["search", "router"]


@dataclass(frozen=True, config=STORED)
class StaticChoice:
    """The best static chain: the content of `static.json`.

    Attributes:
        chain: its layer indices in order.
        text: the same in text form.
        depth: its layers.
        router_validation_depth: greatest depth allowed: the router's mean depth on validation, layers; of a kind's
            chain the greatest mean depth over all kinds' chains.
        source: whose chain it is: the search's, or one that the router chooses often.
        chosen_on: splits on which it was chosen.
        correct: samples of these splits that it answers rightly, in `mode`.
        n: samples of these splits.
        candidates: every chain that was considered.
        mode: mode in which candidates were judged.
    """

    FILE: ClassVar = "static.json"
    chain: ChainField
    text: str
    depth: Positive
    router_validation_depth: NotNegative
    source: Literal["search", "router"]
    chosen_on: str
    correct: Count
    n: Positive
    candidates: tuple[Considered, ...]
    mode: str


@dataclass(frozen=True, config=STORED)
class StaticByKind:
    """The best static chain of each kind: the content of `static_by_kind.json`.

    Attributes:
        kinds: the choice of each kind, by task; a task without training or validation samples has that of all samples.
    """

    FILE: ClassVar = "static_by_kind.json"
    kinds: dict[str, StaticChoice]


@dataclass(frozen=True, config=STORED)
class MixtureChoice:
    """The best mixture of two static chains: the content of `mixture.json`.

    Attributes:
        first: the shallower chain.
        second: the deeper one.
        text: share and chains in text form.
        share: probability of the shallower chain.
        mean_depth: mean depth, layers.
        accuracy: expected share of right answers on train and validation.
        n: samples there.
        chosen_on: splits on which it was chosen.
        candidates: chains that were considered.
        router_validation_depth: greatest mean depth allowed, layers.
    """

    FILE: ClassVar = "mixture.json"
    first: ChainField
    second: ChainField
    text: str
    share: Share
    mean_depth: NotNegative
    accuracy: Share
    n: Positive
    chosen_on: str
    candidates: Positive
    router_validation_depth: NotNegative


@dataclass(frozen=True, config=STORED)
class EarlyExitChoice:
    """Early exit by the logit lens: the content of `early_exit.json`.

    Attributes:
        layer: layers after which a sample may stop.
        threshold: confidence from which it stops there; 2: never.
        accuracy: share of right answers on validation.
        mean_depth: mean depth there, layers.
        n: samples there.
        chosen_on: split on which it was chosen.
        layers_tried: first and last layer that were tried.
        router_validation_depth: greatest mean depth allowed, layers.
    """

    FILE: ClassVar = "early_exit.json"
    layer: Positive
    threshold: NotNegative
    accuracy: Share
    mean_depth: NotNegative
    n: Positive
    chosen_on: str
    layers_tried: tuple[Positive, Positive]
    router_validation_depth: NotNegative


@dataclass(frozen=True, config=STORED)
class PrunedChoice:
    """Layers of least influence left out for all samples alike: the content of `pruned.json`.

    Attributes:
        chain: the chain.
        text: the same in text form.
        depth: its layers.
        influence: 1 minus the mean cosine similarity of a layer's input and output, by layer.
        samples: samples on which it was measured.
        tokens: their tokens.
        measured_on: their split.
        router_validation_depth: greatest depth allowed, layers.
    """

    FILE: ClassVar = "pruned.json"
    chain: ChainField
    text: str
    depth: Positive
    influence: dict[str, float]
    samples: Positive
    tokens: Positive
    measured_on: str
    router_validation_depth: NotNegative


CHOICES = (StaticChoice, StaticByKind, MixtureChoice, EarlyExitChoice, PrunedChoice)
"""What a run may choose, each kept in a file."""
ChoiceT = TypeVar("ChoiceT", StaticChoice, StaticByKind, MixtureChoice, EarlyExitChoice, PrunedChoice)


def read_choice(out: Path, kind: type[ChoiceT], num_layers: int) -> ChoiceT:
    """Read what a run has chosen, for a model of so many layers.

    Raises:
        InputError: where the file is missing or corrupt.
    """
    path = out / kind.FILE
    return from_plain(kind, read_json(path), str(path), num_layers=num_layers)


def keep_choice(out: Path, choice: ChoiceT) -> None:
    """Write what a run has chosen into its folder."""
    write_json(out / choice.FILE, to_plain(choice))


def kept(out: Path, kind: type[ChoiceT], num_layers: int, choose: Callable[[], ChoiceT]) -> ChoiceT:
    """Return what an earlier run in the folder has chosen, or choose and keep it; errors as of `read_choice`."""
    if not (out / kind.FILE).exists():
        keep_choice(out, choose())
    return read_choice(out, kind, num_layers)


def candidate_pool(records: Sequence[SearchRecord], *, pool: int, trials: int, max_depth: float) -> list[Chain]:
    """Return the full chain and, for each depth, the best chains of the training records.

    Args:
        records: search records of training samples, at least one.
        pool: chains of each depth.
        trials: samples that a chain should have been tried on; less tried ones come after all others.
        max_depth: layers; deeper chains could not be chosen and are left out, but for the full chain.

    Returns:
        The full chain first, then by depth, best first.
    """
    tried: dict[Chain, int] = defaultdict(int)
    right: dict[Chain, int] = defaultdict(int)
    full = records[0].full.chain
    for record in records:
        for result in record.results:
            tried[result.chain] += 1
            right[result.chain] += result.correct
    ranks = {
        chain: (count < trials, -wilson_interval(right[chain], count)[0])
        for chain, count in tried.items()
        if chain.depth <= max_depth and chain != full
    }
    return [full, *_first_of_each_depth(ranks, pool)]


@plain_dataclass(frozen=True)
class StaticPool:
    """Candidates for the static chain of some samples.

    Attributes:
        searched: the search's; the full chain first.
        common: those that the router gives most often.
        max_depth: the router's mean depth on the validation samples, layers.
    """

    searched: tuple[Chain, ...]
    common: tuple[Chain, ...]
    max_depth: float

    @classmethod
    def of(cls, records: Sequence[SearchRecord], routed: Sequence[Chain], pool: int, trials: int) -> StaticPool:
        """Gather the candidates.

        Args:
            records: records of training samples, at least one.
            routed: the router's chains of validation samples, at least one.
            pool: as of `candidate_pool`, and of `common_chains`.
            trials: as of `candidate_pool`.
        """
        max_depth = sum(chain.depth for chain in routed) / len(routed)
        deepest = max(max_depth, routed[0].num_layers)  # a mixture may use deeper ones
        searched = candidate_pool(records, pool=pool, trials=trials, max_depth=deepest)
        return cls(tuple(searched), tuple(common_chains(routed, pool=pool, max_depth=deepest)), max_depth)

    def joined(self, other: StaticPool) -> StaticPool:
        """Return these and another's candidates, at that one's depth."""
        searched, common = dict.fromkeys([*self.searched, *other.searched]), [*self.common, *other.common]
        return StaticPool(tuple(searched), tuple(dict.fromkeys(common)), other.max_depth)

    @property
    def chains(self) -> list[Chain]:
        """All of them, each once."""
        return list(dict.fromkeys([*self.searched, *self.common]))


def common_chains(routed: Sequence[Chain], *, pool: int, max_depth: float) -> list[Chain]:
    """Return, for each depth up to `max_depth`, the `pool` most common of the router's chains, by depth."""
    ranks = {chain: (-count,) for chain, count in Counter(routed).items() if chain.depth <= max_depth}
    return _first_of_each_depth(ranks, pool)


def _first_of_each_depth(ranks: Mapping[Chain, tuple[float, ...]], pool: int) -> list[Chain]:
    """Return of each depth the `pool` chains of lowest rank (among equals the first by layers), shallowest first."""
    found: dict[int, list[Chain]] = defaultdict(list)
    for chain in sorted(ranks, key=lambda chain: (chain.depth, ranks[chain], chain.layers)):
        if len(found[chain.depth]) < pool:
            found[chain.depth].append(chain)
    return [chain for of_depth in found.values() for chain in of_depth]


def choose_static(candidates: Sequence[Candidate], max_depth: float) -> Candidate:
    """Return the most accurate candidate of depth at most `max_depth`, layers.

    Among equals it is the shorter, then the first by layers.

    Raises:
        ValueError: where no candidate is that shallow.
    """
    within = [one for one in candidates if one.chain.depth <= max_depth]
    if not within:
        raise ValueError(f"candidates: expected one of depth at most {max_depth}, got none")
    return min(within, key=lambda one: (-one.correct / one.n, one.chain.depth, one.chain.layers))


def choose_by_kind(
    candidates: Mapping[str, Sequence[Candidate]], samples: Mapping[str, int], max_depth: float
) -> dict[str, Candidate]:
    """Return one candidate for each kind, of mean depth at most `max_depth`, layers: what one kind spares another has.

    Of all such choices it is the most accurate one, among equals the shallowest. Where none is so shallow, each kind
    has its shallowest candidate.

    Args:
        candidates: of each kind, at least one.
        samples: samples of each kind, over which depth and accuracy are averaged.
        max_depth: the bound.
    """
    bound = max_depth * sum(samples[kind] for kind in candidates) + 1e-6
    # Kind by kind, all choices that no shallower one equals: layers and right answers in all, and the candidates.
    front: list[tuple[int, Fraction, tuple[Candidate, ...]]] = [(0, Fraction(0), ())]
    least = sum(samples[kind] * min(one.chain.depth for one in of_kind) for kind, of_kind in candidates.items())
    for kind, of_kind in candidates.items():
        count = samples[kind]
        least -= count * min(one.chain.depth for one in of_kind)
        longer = [
            (layers + count * one.chain.depth, right + Fraction(count * one.correct, one.n), (*chosen, one))
            for layers, right, chosen in front
            for one in of_kind
        ]
        front, best = [], Fraction(-1)
        for layers, right, chosen in sorted(longer, key=lambda choice: (choice[0], -choice[1])):
            if layers + least <= bound and right > best:
                front.append((layers, right, chosen))
                best = right
    if not front:
        return {
            kind: min(of_kind, key=lambda one: (one.chain.depth, -one.correct / one.n))
            for kind, of_kind in candidates.items()
        }
    return dict(zip(candidates, front[-1][2], strict=True))


def from_tables(
    records: Sequence[SearchRecord], samples: Sequence[Sample], chains: Sequence[Chain]
) -> list[Candidate] | None:
    """Count right answers in menu tables, which have run every chain on every sample.

    Args:
        records: records of the samples.
        samples: the samples.
        chains: the candidates.

    Returns:
        The candidates; None where a record lacks a chain, or a sample a record: then they must be run.
    """
    by_sample = {record.sample_id: {one.chain: one.right for one in record.results} for record in records}
    if not all(by_sample.get(sample.id, {}).keys() >= set(chains) for sample in samples):
        return None
    return [Candidate(chain, sum(by_sample[one.id][chain] for one in samples), len(samples)) for chain in chains]


def routed_chains(arm: Arm, samples: Sequence[Sample], scorer: ChainScorer, batch_samples: int) -> list[Chain]:
    """Return an arm's chain for each sample, in order; nothing beyond what the arm reads is run."""
    encoded = [scorer.encode(sample) for sample in samples]
    chains: dict[int, Chain] = {}
    for indices in batches_by_length([one.length for one in encoded], batch_samples):
        chains |= zip(indices, arm.chains(scorer.load([encoded[i] for i in indices])), strict=True)
    return [chains[i] for i in range(len(samples))]


def candidate_arms(pool: StaticPool, kinds: Mapping[str, StaticPool]) -> list[Arm]:
    """Return arms that run every candidate: those of all samples, then what a kind alone has, on its samples.

    Args:
        pool: candidates of all samples.
        kinds: candidates of each kind, by task.
    """
    shared = pool.chains
    own = {kind: [chain for chain in of_kind.chains if chain not in shared] for kind, of_kind in kinds.items()}
    more = range(max(map(len, own.values()), default=0))
    by_place = [{kind: chains[i] for kind, chains in own.items() if i < len(chains)} for i in more]
    return [
        *(static_arm(chain, str(chain)) for chain in shared),
        *(kind_arm(of_kind, shared[0], f"kind {i}") for i, of_kind in enumerate(by_place)),
    ]


def tally(results: Iterable[ArmResult], chains: Sequence[Chain]) -> list[Candidate]:
    """Count right answers by chain, each sample once, of these chains only."""
    wanted = set(chains)
    found = {(one.chain, one.sample_id): one.correct for one in results if one.chain in wanted}
    correct: dict[Chain, int] = defaultdict(int)
    n: dict[Chain, int] = defaultdict(int)
    for (chain, _), right in found.items():
        n[chain] += 1
        correct[chain] += right
    return [Candidate(chain, correct[chain], n[chain]) for chain in n]


def describe_static(chosen: Candidate, candidates: Sequence[Candidate], pool: StaticPool, mode: str) -> StaticChoice:
    """Say how a static chain was chosen.

    Args:
        chosen: the chosen candidate.
        candidates: all candidates.
        pool: where they come from.
        mode: mode in which they were judged.
    """
    own = set(pool.searched)
    return StaticChoice(
        chain=chosen.chain,
        text=str(chosen.chain),
        depth=chosen.chain.depth,
        router_validation_depth=pool.max_depth,
        source="search" if chosen.chain in own else "router",
        chosen_on="train+validation",
        correct=chosen.correct,
        n=chosen.n,
        candidates=tuple(
            Considered(str(one.chain), one.chain.depth, one.correct, "search" if one.chain in own else "router")
            for one in sorted(candidates, key=lambda one: (one.chain.depth, -one.correct, one.chain.layers))
        ),
        mode=mode,
    )


def choose_mixture(candidates: Sequence[Candidate], depth: float) -> MixtureChoice:
    """Choose the mixture of static chains of greatest accuracy with mean depth of at most `depth`, layers.

    Raises:
        ValueError: where no candidate is that shallow.
    """
    accuracies, depths = [one.correct / one.n for one in candidates], [float(one.chain.depth) for one in candidates]
    mixture = best_mixture(accuracies, depths, depth)
    if mixture is None:
        raise ValueError(f"candidates: expected one of depth at most {depth}, got none")
    first, second = candidates[mixture.first].chain, candidates[mixture.second].chain
    return MixtureChoice(
        first=first,
        second=second,
        text=f"{mixture.share:.1%} {first}, else {second}",
        share=mixture.share,
        mean_depth=mixture.mean(depths),
        accuracy=mixture.mean(accuracies),
        n=candidates[0].n,
        chosen_on="train+validation",
        candidates=len(candidates),
        router_validation_depth=depth,
    )


def choose_early_exit(
    scorer: ChainScorer, samples: Sequence[Sample], read_layer: int, depth: float, batch_samples: int
) -> EarlyExitChoice:
    """Choose layer and threshold of the early exit on validation.

    Of all (layer from `read_layer` on, threshold) of mean depth at most `depth` it is the most accurate one, the
    shallower among equals.

    Args:
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
    return EarlyExitChoice(
        layer=layer,
        threshold=min(threshold, 2.0),  # above every confidence: nobody stops
        accuracy=accuracy,
        mean_depth=-minus_depth,
        n=count,
        chosen_on="validation",
        layers_tried=(layers[0], layers[-1]),
        router_validation_depth=depth,
    )


@torch.inference_mode()
def choose_pruned(scorer: ChainScorer, samples: Sequence[Sample], depth: float, batch_samples: int) -> PrunedChoice:
    """Leave out the layers that change the states least, down to a whole depth of at most `depth`.

    Block influence, as in ShortGPT (Men et al. 2024, arXiv 2403.03853): 1 minus the mean cosine similarity of a
    layer's input and output, over all tokens. Layer 0 is always kept.

    Args:
        scorer: runs the model.
        samples: training samples; the first `INFLUENCE_SAMPLES` by id are read.
        depth: the router's mean depth on validation, layers.
        batch_samples: samples loaded at once.

    Raises:
        InputError: where a state is no finite number (float16 overflows in some models).
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
    if not all(map(math.isfinite, influence)):
        raise InputError(f"dtype: expected finite hidden states, got others in {scorer.dtype}")
    left_out = max(0, n - int(depth))
    skipped = sorted(sorted(range(1, n), key=lambda layer: (influence[layer - 1], -layer))[:left_out])
    chain = without(tuple(skipped), n)
    return PrunedChoice(
        chain=chain,
        text=str(chain),
        depth=chain.depth,
        influence={str(layer): influence[layer - 1] for layer in range(1, n)},
        samples=len(chosen),
        tokens=tokens,
        measured_on="train",
        router_validation_depth=depth,
    )
