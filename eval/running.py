"""Run arms over samples into a store of results; what the evaluation and its controls share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data.pool import Batch, Tick, run_batches
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, EncodedSample, SampleBlock, batches_by_length
from data.store import Store
from eval.arms import Arm
from eval.results import ArmResult
from router.chain import Chain

JOBS_PER_CALL = 256
"""Chains run at once over a batch, which bounds the memory of their last states; shared prefixes stay cached."""
Judge = Callable[[SampleBlock, Sequence[tuple[int, Chain]]], list[ChainResult]]
"""`ChainScorer.judge` (the real mode) or `ChainScorer.score` (the cheap one)."""


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

    run_batches(store, batches, work, label=label, unit="answer", run=run)
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
