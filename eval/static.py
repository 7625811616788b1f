"""The best static chain: one for all samples, chosen on train and validation, the baseline that a router must beat.

Candidates come from the pool that the router was taught with, the chains that the search tried on training samples:
for each depth those with the best share of right answers, by Wilson's lower bound. The chains that the router gives
most often on validation join them: they say whether choosing by sample is worth anything, and one of them is always
as shallow as the router, whose chains can lie far below those of the search. Each candidate is then really run on
every train and validation sample, because a search tries a chain on samples that suit it (a menu table has run it on
all already). It is judged there as the
search judges, in the cheap mode of the sample's task (`Task.mode`); only the chosen chain is run on test, in the real
mode like every arm.

The choice is the most accurate candidate whose depth is at most the router's mean depth *on the validation split*.
That depth is known before any test sample is read; bounding by the router's depth on test would let test in.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.launch import Launch
from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from data.statistics import wilson_interval
from eval.baselines import chain_in, write_mixture
from eval.policies import Policy, StaticChain
from eval.results import PolicyResult
from eval.running import run_policies
from eval.settings import EvalSettings
from eval.shared_results import ALONE
from router.chain import Chain
from router.files import read_json, write_json
from router.validation import InputError

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
    full = None
    for record in records:
        full = record.full.chain
        for result in record.results:
            tried[result.chain] += 1
            right[result.chain] += result.correct
    if full is None:
        raise ValueError("records: expected at least one record, got none")
    by_depth: dict[int, list[tuple[bool, float, tuple[int, ...], Chain]]] = defaultdict(list)
    for chain, count in tried.items():
        if chain.depth <= max_depth and chain != full:
            low, _ = wilson_interval(right[chain], count)
            by_depth[chain.depth].append((count < trials, -low, chain.layers, chain))
    best = [ranked[-1] for depth in sorted(by_depth) for ranked in sorted(by_depth[depth])[:pool]]
    return [full, *best]


def common_chains(routed: Sequence[Chain], *, pool: int, max_depth: float) -> list[Chain]:
    """Return, for each depth up to `max_depth`, the `pool` most common of the router's chains, by depth."""
    by_depth: dict[int, list[tuple[int, tuple[int, ...], Chain]]] = defaultdict(list)
    for chain, count in Counter(routed).items():
        if chain.depth <= max_depth:
            by_depth[chain.depth].append((-count, chain.layers, chain))
    return [ranked[-1] for depth in sorted(by_depth) for ranked in sorted(by_depth[depth])[:pool]]


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


def best_static(
    records: Sequence[SearchRecord],
    validation: Sequence[SearchRecord],
    samples: dict[str, list[Sample]],
    router: Policy,
    scorer: ChainScorer,
    settings: EvalSettings,
    launch: Launch = ALONE,
) -> Chain:
    """Choose the best static chain, or read the choice of an earlier run, and keep it in `static.json`.

    Args:
        records: search records of training samples.
        validation: those of validation samples, where there are any; where both are menu tables that hold every
            candidate, nothing needs to run.
        samples: samples by split; train and validation are used.
        router: the routing policy, whose mean depth on validation bounds the choice.
        scorer: runs the chains.
        settings: the run's settings.
        launch: this process among those that share the work.

    Raises:
        InputError: where a file of an earlier run is corrupt.
    """
    path = settings.out / STATIC_FILE
    if path.exists():
        return read_static(path, scorer.num_layers)
    routed = routed_chains(router, samples["validation"], scorer, settings.batch_samples)
    max_depth = sum(chain.depth for chain in routed) / len(routed)
    size, deepest = settings.static_pool, max(max_depth, scorer.num_layers)  # a mixture may use deeper ones
    searched = candidate_pool(records, pool=size, trials=settings.static_trials, max_depth=deepest)
    pool = dict.fromkeys([*searched, *common_chains(routed, pool=size, max_depth=deepest)])
    seen = [*samples["train"], *samples["validation"]]
    candidates = from_tables([*records, *validation], seen, list(pool))
    if candidates is None:
        candidates = _run_candidates(list(pool), seen, scorer, settings, launch)
    chosen = choose_static(candidates, max_depth)
    chains, correct = [one.chain for one in candidates], [one.correct for one in candidates]
    write_mixture(settings.out, chains, correct, candidates[0].n, max_depth)
    write_json(path, describe(chosen, candidates, max_depth, set(searched)) | {"mode": scorer.tasks.mode})
    return read_static(path, scorer.num_layers)


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
    by_sample = {record.sample_id: {one.chain: one.correct for one in record.results} for record in records}
    if not all(by_sample.get(sample.id, {}).keys() >= set(chains) for sample in samples):
        return None
    return [Candidate(chain, sum(by_sample[one.id][chain] for one in samples), len(samples)) for chain in chains]


def _run_candidates(
    pool: Sequence[Chain], seen: Sequence[Sample], scorer: ChainScorer, settings: EvalSettings, launch: Launch
) -> list[Candidate]:
    policies = [StaticChain(chain, name=str(chain)) for chain in pool]
    file = settings.out / CANDIDATES_FILE
    size, label = settings.batch_samples, "static chains"
    results = run_policies(policies, seen, scorer, scorer.score, file, size, label, launch)
    names = {policy.name for policy in policies}
    return tally(result for result in results if result.policy in names)


def routed_chains(policy: Policy, samples: Sequence[Sample], scorer: ChainScorer, batch_samples: int) -> list[Chain]:
    """Return a policy's chain for each sample, in any order; nothing beyond what the policy reads is run."""
    encoded = [scorer.encode(sample) for sample in samples]
    chains: list[Chain] = []
    for indices in batches_by_length([one.length for one in encoded], batch_samples):
        block = scorer.load([encoded[i] for i in indices])
        chains += policy.chains(block)
    return chains


def tally(results: Iterable[PolicyResult]) -> list[Candidate]:
    """Count right answers by chain."""
    correct: dict[Chain, int] = defaultdict(int)
    n: dict[Chain, int] = defaultdict(int)
    for result in results:
        n[result.chain] += 1
        correct[result.chain] += result.correct
    return [Candidate(chain, correct[chain], n[chain]) for chain in n]


def describe(
    chosen: Candidate, candidates: Sequence[Candidate], max_depth: float, searched: set[Chain]
) -> dict[str, Any]:
    """Return the content of `static.json`, but for the scoring mode."""
    return {
        "chain": chosen.chain.to_json(),
        "text": str(chosen.chain),
        "depth": chosen.chain.depth,
        "router_validation_depth": max_depth,
        "from": "search" if chosen.chain in searched else "router",
        "chosen_on": "train+validation",
        "correct": chosen.correct,
        "n": chosen.n,
        "candidates": [
            {
                "chain": str(one.chain),
                "depth": one.chain.depth,
                "correct": one.correct,
                "from": "search" if one.chain in searched else "router",
            }
            for one in sorted(candidates, key=lambda one: (one.chain.depth, -one.correct, one.chain.layers))
        ],
    }


def read_static_depth(path: Path) -> float:
    """Return the router's mean depth on validation, layers, from `static.json`.

    Raises:
        InputError: where the file is missing or corrupt.
    """
    depth = read_json(path).get("router_validation_depth")
    if not isinstance(depth, int | float):
        raise InputError(f"{path}: expected a number router_validation_depth, got {depth!r}")
    return float(depth)


def read_static(path: Path, num_layers: int) -> Chain:
    """Return the chain of `static.json`.

    Raises:
        InputError: where the file is missing or corrupt.
    """
    return chain_in(path, read_json(path).get("chain"), num_layers)
