"""The best static chain: one chain for all samples, chosen on train and validation, the baseline that a router must beat.

Candidates come from the pool that the router was taught with: the chains that the search tried on training samples.
For each depth those with the best share of right answers, by Wilson's lower bound, are taken, and each is then
really run on every train and validation sample, because a search tries a chain on samples that suit it.

The choice is the most accurate candidate whose depth is at most the router's mean depth *on the validation split*.
That depth is known before any test sample is read; bounding by the router's depth on test would let test in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from eval.metrics import wilson_interval
from eval.policies import Policy, StaticChain
from eval.results import PolicyResult, run_policies
from eval.settings import EvalSettings
from router.chain import Chain
from router.command import InputError
from router.durable import read_json, write_json

CANDIDATES_FILE, STATIC_FILE = "candidates.jsonl", "static.json"


@dataclass(frozen=True)
class Candidate:
    """A chain and what it answers on train and validation.

    Attributes:
        chain: the chain.
        correct: samples that it answers rightly.
        n: samples that it was run on.
    """

    chain: Chain
    correct: int
    n: int


def candidate_pool(records: Iterable[SearchRecord], *, pool: int, trials: int, max_depth: float) -> list[Chain]:
    """Return the candidates: the full chain and, for each depth, the best chains of the training records.

    Args:
        records: search records of training samples, at least one.
        pool: chains of each depth.
        trials: samples that a chain must have been tried on.
        max_depth: layers; deeper chains could not be chosen and are left out, but for the full chain.

    Returns:
        The full chain first, then by depth, best first.
    """
    tried: dict[Chain, int] = defaultdict(int)
    right: dict[Chain, int] = defaultdict(int)
    full = None
    for record in records:
        full = record.full.chain
        for result in record.results:
            tried[result.chain] += 1
            right[result.chain] += result.correct
    if full is None:
        raise ValueError("records: expected at least one record, got none")
    by_depth: dict[int, list[tuple[float, tuple[int, ...], Chain]]] = defaultdict(list)
    for chain, count in tried.items():
        if count >= trials and chain.depth <= max_depth and chain != full:
            low, _ = wilson_interval(right[chain], count)
            by_depth[chain.depth].append((-low, chain.layers, chain))
    best = [chain for depth in sorted(by_depth) for _, _, chain in sorted(by_depth[depth])[:pool]]
    return [full, *best]


def choose_static(candidates: Sequence[Candidate], max_depth: float) -> Candidate:
    """Return the most accurate candidate of depth at most `max_depth`; among equals the shorter, then the first by layers.

    Where no candidate is that shallow, the shallowest is returned (it is then deeper than the router, which the
    report says).
    """
    if not candidates:
        raise ValueError("candidates: expected at least one, got none")
    within = [one for one in candidates if one.chain.depth <= max_depth]
    if not within:
        shallowest = min(one.chain.depth for one in candidates)
        within = [one for one in candidates if one.chain.depth == shallowest]
    return min(within, key=lambda one: (-one.correct / one.n, one.chain.depth, one.chain.layers))


def best_static(
    records: Sequence[SearchRecord],
    samples: dict[str, list[Sample]],
    router: Policy,
    scorer: ChainScorer,
    settings: EvalSettings,
) -> Chain:
    """Choose the best static chain, or read the choice of an earlier run, and keep it in `static.json`.

    Args:
        records: search records of training samples.
        samples: samples by split; train and validation are used.
        router: the routing policy, whose mean depth on validation bounds the choice.
        scorer: runs the chains.
        settings: the run's settings.

    Raises:
        InputError: where a file of an earlier run is corrupt.
    """
    path = settings.out / STATIC_FILE
    if path.exists():
        return read_static(path, scorer.num_layers)
    max_depth = mean_depth(router, samples["validation"], scorer, settings.batch_samples)
    pool = candidate_pool(records, pool=settings.static_pool, trials=settings.static_trials, max_depth=max_depth)
    seen = [*samples["train"], *samples["validation"]]
    policies = [StaticChain(chain, name=str(chain)) for chain in pool]
    results = run_policies(
        policies, seen, scorer, settings.out / CANDIDATES_FILE, settings.batch_samples, "static chains"
    )
    candidates = tally(results)
    write_json(path, describe(choose_static(candidates, max_depth), candidates, max_depth))
    return read_static(path, scorer.num_layers)


def mean_depth(policy: Policy, samples: Sequence[Sample], scorer: ChainScorer, batch_samples: int) -> float:
    """Return the mean depth of a policy's chains, layers; nothing beyond what the policy reads is run."""
    encoded = [scorer.encode(sample) for sample in samples]
    depths: list[int] = []
    for indices in batches_by_length([one.length for one in encoded], batch_samples):
        block = scorer.load([encoded[i] for i in indices])
        depths += [chain.depth for chain in policy.chains(block)]
    return sum(depths) / len(depths)


def tally(results: Iterable[PolicyResult]) -> list[Candidate]:
    """Count right answers by chain."""
    correct: dict[Chain, int] = defaultdict(int)
    n: dict[Chain, int] = defaultdict(int)
    for result in results:
        n[result.chain] += 1
        correct[result.chain] += result.correct
    return [Candidate(chain, correct[chain], n[chain]) for chain in n]


def describe(chosen: Candidate, candidates: Sequence[Candidate], max_depth: float) -> dict[str, Any]:
    """Return the content of `static.json`."""
    return {
        "chain": chosen.chain.to_json(),
        "text": str(chosen.chain),
        "depth": chosen.chain.depth,
        "router_validation_depth": max_depth,
        "within_router_depth": chosen.chain.depth <= max_depth,
        "chosen_on": "train+validation",
        "correct": chosen.correct,
        "n": chosen.n,
        "candidates": [
            {"chain": str(one.chain), "depth": one.chain.depth, "correct": one.correct}
            for one in sorted(candidates, key=lambda one: (one.chain.depth, -one.correct, one.chain.layers))
        ],
    }


def read_static(path: Path, num_layers: int) -> Chain:
    """Return the chain of `static.json`.

    Raises:
        InputError: where the file is missing or corrupt.
    """
    try:
        return Chain.from_json(read_json(path).get("chain"), num_layers)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
