"""Run policies over samples, durably and resumably, in one process or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.launch import Launch
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, EncodedSample, SampleBlock, batches_by_length
from eval.policies import Policy
from eval.results import PolicyResult
from eval.shared_results import ALONE, ResultsBook
from router.chain import Chain

JOBS_PER_CALL = 256
"""Chains run at once over a batch, which bounds the memory of their last states; shared prefixes stay cached."""
WAIT = 1.0
"""Seconds between two looks at what other processes have finished."""
Judge = Callable[[SampleBlock, Sequence[tuple[int, Chain]]], list[ChainResult]]
"""`ChainScorer.judge` (the real mode) or `ChainScorer.score` (the cheap one)."""


def run_policies(
    policies: Sequence[Policy],
    samples: Sequence[Sample],
    scorer: ChainScorer,
    judge: Judge,
    path: Path,
    batch_samples: int,
    description: str,
    launch: Launch = ALONE,
) -> list[PolicyResult]:
    """Run each policy's chain on each sample and append the results to a file; what stands there is not run again.

    Every chain really runs through the executor. Where policies agree on a sample's chain, it runs once. Batches
    are the same in a resumed run as in an unbroken one, whatever the number of processes: a batch of which a result is
    missing runs whole.

    Args:
        policies: policies with different names.
        samples: the samples.
        scorer: encodes and loads the samples.
        judge: runs the chains: the scorer's `judge` in the real mode, or `score` in the cheap one.
        path: the results file.
        batch_samples: samples loaded at once.
        description: name of the progress bar.
        launch: this process among those that share the work; each returns when everything is there.

    Returns:
        All results of the file, those of earlier runs and other processes included.

    Raises:
        InputError: where the file is corrupt, or the model's scores are no finite numbers.
    """
    encoded = scorer.encode_all(samples)
    batches = dict(enumerate(batches_by_length([one.length for one in encoded], batch_samples)))
    wanted = {(policy.name, sample.id) for policy in policies for sample in samples}
    with (
        ResultsBook(path, scorer.num_layers, launch) as book,
        tqdm(total=len(wanted), desc=description, unit="answer", disable=not launch.is_main) as bar,
    ):
        bar.update(len(wanted & book.results.keys()))
        while batches:
            ran = False
            for number, indices in list(batches.items()):
                chosen = [encoded[i] for i in indices]
                if not _missing(policies, chosen, book):
                    del batches[number]
                    continue
                with book.claimed(number) as mine:
                    if not mine:
                        continue
                    missing = _missing(policies, chosen, book)
                    if missing:
                        ran = True
                        book.append(_run_batch(policies, chosen, missing, scorer, judge, bar))
                    del batches[number]
                    bar.update(len(wanted & book.results.keys()) - bar.n)
            if batches and not ran:  # others run what is left, or die and leave it
                time.sleep(WAIT)
        book.finish()
        return list(book.results.values())


def _missing(policies: Sequence[Policy], samples: Sequence[EncodedSample], book: ResultsBook) -> list[tuple[int, int]]:
    """Return (index of the policy, index in the batch) of results that are not there."""
    return [
        (p, i)
        for p, policy in enumerate(policies)
        for i, one in enumerate(samples)
        if (policy.name, one.sample.id) not in book.results
    ]


def _run_batch(
    policies: Sequence[Policy],
    samples: Sequence[EncodedSample],
    missing: Sequence[tuple[int, int]],
    scorer: ChainScorer,
    judge: Judge,
    bar: Any,
) -> list[PolicyResult]:
    """Run all policies' chains on a batch; returns the missing results."""
    block = scorer.load(samples)
    chosen = [policy.chains(block) for policy in policies]
    jobs = {(i, chain) for chains in chosen for i, chain in enumerate(chains)}
    answered: dict[tuple[int, Chain], ChainResult] = {}
    for part in _parts(sorted(jobs, key=lambda job: (job[1].layers, job[0]))):
        answered |= dict(zip(part, judge(block, part), strict=True))
        bar.set_postfix(chains=f"{len(answered)}/{len(jobs)}", refresh=True)
    return [
        PolicyResult.from_chain_result(policies[p].name, one.sample, one.length, answered[i, chosen[p][i]])
        for p, i in missing
        for one in [samples[i]]
    ]


def _parts(jobs: list[tuple[int, Chain]]) -> Iterable[list[tuple[int, Chain]]]:
    for start in range(0, len(jobs), JOBS_PER_CALL):
        yield jobs[start : start + JOBS_PER_CALL]
