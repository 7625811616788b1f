"""`python -m eval`: run every arm's chains on the test split, then report, figures, page and table.

Answers on test are judged in the real mode of each sample's task (`Task.judged_mode`: what a user would see); the
static chain is chosen on train and validation in the cheap mode of the search (`Task.mode`).
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from data.flops import count_forward
from data.pool import Batch, RunSettings, Tick, run_batches
from data.records import ChainResult
from data.sample import Sample, read_samples, write_samples
from data.scoring import ChainScorer, EncodedSample, SampleBlock, batches_by_length
from data.store import Store
from data.tracking import TrackingSettings
from eval.arms import (
    EARLY_EXIT,
    FULL,
    GUARANTEE,
    MIXTURE,
    ORACLE,
    PRUNED,
    RANDOM,
    RANDOM_SEARCH,
    STATIC,
    Arm,
    ArmPlan,
    Baseline,
    EarlyExitArm,
    MixtureArm,
    RandomArm,
    RouterArm,
    StatesReader,
    StaticArm,
    oracle_arm,
    plan_arms,
)
from eval.baselines import (
    EXIT_FILE,
    MIXTURE_FILE,
    PRUNED_FILE,
    STATIC_FILE,
    Candidate,
    EarlyExitChoice,
    MixtureChoice,
    PrunedChoice,
    StaticChoice,
    candidate_pool,
    choose_early_exit,
    choose_mixture,
    choose_pruned,
    common_chains,
    describe_static,
    from_tables,
    kept,
    routed_chains,
    tally,
)
from eval.results import (
    RESULTS_FILE,
    RUN_FILE,
    ArmResult,
    Model,
    Run,
    RunArm,
    key_of,
    result_store,
)
from router.chain import Chain
from router.command import provenance
from router.engine.load import ModelSettings, load_model, resolve_device
from router.files import write_json
from router.latency import budget_for
from router.storage import Operation, load_router
from router.validation import SETTINGS, Count, Positive, to_plain

CANDIDATES_FILE, SAMPLES_FILE = "candidates.jsonl", "samples.jsonl"
"""Results of the candidates for the static chain; the test samples, copied so that the page can show them."""
JOBS_PER_CALL = 256
"""Chains run at once over a batch, which bounds the memory of their last states; shared prefixes stay cached."""
STATISTICS_PACKAGES = ("numpy", "statsmodels")
"""Libraries that the report's numbers hang on, beside those of every run."""
Depth = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A mean depth, layers."""
Judge = Callable[[SampleBlock, Sequence[tuple[int, Chain]]], list[ChainResult]]
"""`ChainScorer.judge` (the real mode) or `ChainScorer.score` (the cheap one)."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class EvalSettings(ModelSettings, RunSettings):
    """Settings of `python -m eval`; `data`, `out`, batches and the base model as everywhere.

    Attributes:
        records: folder of `python -m search`: train.jsonl (pool of the static chains) and test.jsonl (oracle).
        router: folder of a trained router.
        budget: mean depth that the router is asked for, layers; null: the router's own choice. The arms without
            training are matched with this arm.
        budgets: further mean depths, an arm each.
        latency_factor: in place of `budget`: time that a routed call may take, in units of full depth's.
        latency_profile: latency.json of `python -m eval latency`, measured on this device, for `latency_factor`.
        baselines: which of mixture (of static chains), early_exit and pruned (ShortGPT) are arms besides.
        random_search: folder of the records of a random search at the oracle's cost (test.jsonl), an arm; null: none.
        wrong_records: folder of the records of the oracle's search for a wrong answer (`--reward_target wrong`,
            test.jsonl): the report then says what of the oracle is luck; null: it does not.
        control_samples: test samples on which choices are reshuffled and labels verified by real generation; 0: none.
        reshuffles: other orders of the choices of each such sample.
        seed: draws the random chains and the bootstrap.
        static_pool: chains of each depth, of the search's and of the router's, that are candidates for the best
            static chain.
        static_trials: training samples that a candidate of the search should have been tried on; where a depth has
            too few such chains, less tried ones fill it up.
        tracking: Weights & Biases.
    """

    records: Path
    router: Path
    budget: Depth | None = None
    budgets: tuple[Depth, ...] = ()
    latency_factor: Annotated[float, Field(gt=0)] | None = None
    latency_profile: Path | None = None
    baselines: tuple[Baseline, ...] = (MIXTURE, EARLY_EXIT, PRUNED)
    random_search: Path | None = None
    wrong_records: Path | None = None
    control_samples: Count = 0
    reshuffles: Annotated[int, Field(ge=1, le=999)] = 3
    seed: Count = 0
    static_pool: Positive = 4
    static_trials: Positive = 8
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse settings that contradict each other."""
        if (self.latency_factor is None) != (self.latency_profile is None):
            raise ValueError("latency_factor: expected it and latency_profile together, got one of them")
        if self.latency_factor is not None and self.budget is not None:
            raise ValueError("latency_factor: expected it or budget, got both")
        for name in ("budgets", "baselines"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name}: expected each once, got {list(getattr(self, name))}")
        return self


def run_arms(
    arms: Sequence[Arm],
    samples: Sequence[Sample],
    scorer: ChainScorer,
    judge: Judge,
    store: Store[ArmResult],
    batch_samples: int,
    label: str,
    run: dict[str, Any] | None = None,
) -> None:
    """Run each arm's chain on each sample, or go on where an earlier run was stopped; finishes the store.

    Every chain really runs through the executor. Where arms agree on a sample's chain, it runs once. Batches are the
    same in a resumed run as in an unbroken one.

    Args:
        arms: arms with different names.
        samples: the samples.
        scorer: encodes and loads the samples.
        judge: runs the chains: the scorer's `judge` in the real mode, or `score` in the cheap one.
        store: where the results go.
        batch_samples: samples loaded at once.
        label: name of the progress bar.
        run: what the store says of this run.

    Raises:
        InputError: where the model's scores are no finite numbers, or another process writes the store.
    """
    encoded = scorer.encode_all(samples)
    batches = []
    for number, indices in enumerate(batches_by_length([one.length for one in encoded], batch_samples)):
        items = tuple(encoded[i] for i in indices)
        keys = tuple(f"{arm.name}/{one.sample.id}" for arm in arms for one in items)
        batches.append(Batch(str(number), items, keys, len(keys)))

    def work(batch: Batch[EncodedSample], tick: Tick) -> list[ArmResult]:
        return _run_batch(arms, batch.items, scorer, judge, tick)

    run_batches(store, batches, work, key_of, label=label, unit="answer", run=run)
    store.finish([f"{arm.name}/{sample.id}" for arm in arms for sample in samples])


def _run_batch(
    arms: Sequence[Arm], samples: Sequence[EncodedSample], scorer: ChainScorer, judge: Judge, tick: Tick
) -> list[ArmResult]:
    """Run all arms' chains on a batch."""
    block = scorer.load(samples)
    chosen = [arm.chains(block) for arm in arms]
    wanted = {(i, chain) for chains in chosen for i, chain in enumerate(chains)}
    jobs = sorted(wanted, key=lambda job: (job[1].layers, job[0]))
    answered: dict[tuple[int, Chain], ChainResult] = {}
    for start in range(0, len(jobs), JOBS_PER_CALL):
        part = jobs[start : start + JOBS_PER_CALL]
        answered |= dict(zip(part, judge(block, part), strict=True))
        tick(len(part) / len(jobs) * len(arms) * len(samples))
    return [
        ArmResult.of(arm.name, one.sample, one.length, answered[i, chains[i]])
        for arm, chains in zip(arms, chosen, strict=True)
        for i, one in enumerate(samples)
    ]
