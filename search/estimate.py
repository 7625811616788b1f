"""What a run will cost, before it begins: layers, time and disk.

Layers: the real search algorithm plays against made-up rewards for a few samples, without the model, and the prefixes
of its chains are counted: an executor that forgets no state runs each prefix's last layer once. Time: the real search
begins on a few samples, and what it did is thrown away. Both are estimates: made-up rewards steer a search otherwise
than real ones, and a machine does not always run alike.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.encoding import EncodedSample
from data.records import ChainResult
from router.chain import Chain
from router.command import InputError
from search.run import SplitSearch
from search.summary import duration, megabytes
from search.verification import chains_to_verify
from search.work import SplitWork

PLAYED_SAMPLES = 16
"""Samples whose search is played against made-up rewards."""
SMALL_RUN = 2000
"""Simulations below which a run begins at once, with no measurement of time."""
CALIBRATION_SECONDS = 3.0
"""Time after which the calibration begins no other round."""
ANSWERS = 4
"""Answers decoded to see how long one takes."""
MARGIN_OF_ERROR = 0.8
"""Share of the estimated bytes that must fit on the disk."""


@dataclass(frozen=True)
class Expected:
    """What the search of a split's waiting samples is expected to cost.

    Attributes:
        samples: samples to search.
        simulations: simulations to make.
        nominal_layers: layers of all chains, as if each ran alone.
        executed_layers: layers that an executor runs that forgets no state.
        work: executed layers, each times the tokens of its sample.
        again: the same of the verification, where it decodes nothing.
        answers: answers to decode, in verification or in the search.
        bytes: bytes of the records.
    """

    samples: int
    simulations: int
    nominal_layers: float
    executed_layers: float
    work: float
    again: float
    answers: float
    bytes: float


def estimate(works: Sequence[SplitWork], out: Path, processes: int, *, measure: bool = False) -> list[str]:
    """Return lines on what is to be expected of a run.

    Args:
        works: the splits.
        out: folder of the records.
        processes: processes launched together.
        measure: measure the time also of a small run.

    Raises:
        InputError: where the records clearly do not fit on the disk.
    """
    total = sum(len(work.samples) for work in works)
    parts = {work.name: expected(work) for work in works if work.waiting}
    finished = total - sum(part.samples for part in parts.values())
    if not parts:
        return [f"expected: nothing to search, all of {total:,} samples are finished"]
    first = max((work for work in works if work.name in parts), key=lambda work: parts[work.name].simulations)
    simulations = sum(part.simulations for part in parts.values())
    nominal = sum(part.nominal_layers for part in parts.values())
    executed = sum(part.executed_layers for part in parts.values())
    lines = [
        f"expected: {total - finished:,} samples to search ({finished:,} finished), {simulations:,} chains; "
        f"{executed:,.0f} of {nominal:,.0f} layers run"
    ]
    new = sum(part.bytes for part in parts.values())
    # While a split is merged, all of its records are there twice.
    peak = new + max(work.records.total_bytes + (parts[work.name].bytes if work.name in parts else 0) for work in works)
    free = shutil.disk_usage(out).free
    if peak * MARGIN_OF_ERROR > free:
        raise InputError(f"out: expected about {megabytes(peak)} of free disk at {str(out)!r}, got {megabytes(free)}")
    lines.append(
        f"expected: {megabytes(new)} of records, {megabytes(peak)} while they are merged ({megabytes(free)} free)"
    )
    if simulations < SMALL_RUN and not measure:
        return lines
    speed = calibrate(first)
    seconds = sum(
        part.work * speed.per_work + part.again * speed.per_again + part.answers * speed.per_answer
        for part in parts.values()
    )
    shared = f", {duration(seconds / processes)} if {processes} share it evenly" if processes > 1 else ""
    lines.append(
        f"expected: about {duration(seconds)} for one process{shared}; measured on {speed.chains} chains of "
        f"{speed.samples} samples in {duration(speed.seconds)}"
    )
    return lines


def expected(work: SplitWork) -> Expected:
    """Return what the search of a split's waiting samples will cost, by playing it for some of them."""
    search, waiting = work.search, work.waiting_encoded
    played = spread(waiting, PLAYED_SAMPLES)
    block = search.scorer.load(played)
    nominal = executed = verified = answers = size = 0.0
    simulations = 0
    for i, encoded in enumerate(played):
        found = play(search, encoded)
        chains = [result.chain for result in found]
        again = [found[j].chain for j in chains_to_verify(found, search.prefix_layers)] if search.verify else []
        rows = len(block.rows[i])
        nominal += rows * sum(chain.depth for chain in chains)
        simulations += len(chains)
        if encoded.task.mode == "generate":
            answers += len(chains)
        else:
            executed += rows * distinct_prefixes(chains)
        if encoded.task.judged_mode == "generate":
            answers += len(again)
        else:
            verified += rows * distinct_prefixes(again)
        size += _bytes(search, encoded, found)
    # Rows are about as long as the sample; the tokens of all waiting samples are known.
    tokens = sum(encoded.length for encoded in waiting)
    times = len(waiting) / len(played)
    return Expected(
        samples=len(waiting),
        simulations=round(simulations * times),
        nominal_layers=nominal * times,
        executed_layers=executed * times,
        work=executed / len(played) * tokens,
        again=verified / len(played) * tokens,
        answers=answers * times,
        bytes=size * times,
    )


def spread(samples: Sequence[EncodedSample], count: int) -> list[EncodedSample]:
    """Return at most `count` samples, evenly spread over the lengths that occur."""
    ordered = sorted(samples, key=lambda one: (one.length, one.sample.id))
    count = min(count, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def play(search: SplitSearch, encoded: EncodedSample) -> list[ChainResult]:
    """Search one sample against made-up scores; no model runs."""
    rng = random.Random(f"estimate/{encoded.sample.id}")
    searcher = search.searcher(encoded.sample.id)
    found: list[ChainResult] = []
    while chains := searcher.ask():
        results = [_made_up(encoded, chain, rng) for chain in chains]
        searcher.tell([search.settings.reward_for(one.correct, one.margin) for one in results])
        found += results
    return found


def _made_up(encoded: EncodedSample, chain: Chain, rng: random.Random) -> ChainResult:
    """Return a result as long as a real one; right in one of two cases."""
    right = rng.random() < 0.5
    if encoded.task.has_choices:
        assert isinstance(encoded.target, int)
        scores = [-20 * rng.random() for _ in encoded.continuations]
        best = max(range(len(scores)), key=scores.__getitem__)
        if right:
            scores[encoded.target], scores[best] = scores[best], scores[encoded.target]
        return ChainResult.from_scores(chain, scores, encoded.target)
    text = str(encoded.target)
    if encoded.task.mode == "generate":
        return ChainResult.from_answer(chain, text, right)
    scores = [-5 * rng.random() for _ in encoded.continuations[0]]
    return ChainResult.from_tokens(chain, scores, [(1 if right else -1) * 4 * rng.random()], right, text)


def distinct_prefixes(chains: Iterable[Chain]) -> int:
    """Return the number of different prefixes, but the empty one, of some chains: the nodes of their tree."""
    tree: dict[int, dict] = {}  # type: ignore[type-arg]
    nodes = 0
    for chain in chains:
        at = tree
        for layer in chain.layers:
            if layer not in at:
                at[layer] = {}
                nodes += 1
            at = at[layer]
    return nodes


def _bytes(search: SplitSearch, encoded: EncodedSample, found: Sequence[ChainResult]) -> int:
    record = search.record(encoded, found, rows=1, executed=sum(result.chain.depth for result in found))
    return len(json.dumps(record.to_json(), ensure_ascii=False).encode()) + 1


@dataclass(frozen=True)
class Speed:
    """What the calibration measured.

    Attributes:
        samples: samples that it ran.
        chains: chains that it ran on them.
        seconds: time that it took, seconds.
        per_work: seconds for one layer on one token in the search.
        per_again: the same in the verification, which shares nothing between samples.
        per_answer: seconds for one decoded answer.
    """

    samples: int
    chains: int
    seconds: float
    per_work: float
    per_again: float
    per_answer: float


def calibrate(work: SplitWork) -> Speed:
    """Begin the search of some samples, with the model, and measure it; nothing of it is kept.

    It plays as many rounds as fit in `CALIBRATION_SECONDS`, one at least.
    """
    search = work.search
    begun = time.monotonic()
    samples = spread(work.waiting_encoded, search.batch_samples)
    scorer, full = search.scorer, Chain.full(search.scorer.num_layers)
    forward = [one for one in samples if one.task.mode != "generate"]
    decoding = [one for one in samples if "generate" in (one.task.mode, search.verify and one.task.judged_mode)]
    decoded = decoding[:ANSWERS]
    per_work = per_again = per_answer = 0.0
    chains = 0
    if forward:
        first = scorer.load(forward[:1])
        scorer.score(first, [(0, full)])  # the first call is slow for reasons of its own
        block = scorer.load(forward)
        searchers = [search.searcher(one.sample.id) for one in forward]
        results: list[dict[Chain, ChainResult]] = [{} for _ in forward]
        start = time.monotonic()
        while count := search.advance(block, searchers, results):
            chains += count
            if time.monotonic() > start + CALIBRATION_SECONDS:
                break
        spent = time.monotonic() - start
        per_work = spent / sum(block.executed(i) * one.length for i, one in enumerate(forward))
    if search.verify and (again := [one for one in samples if one.task.judged_mode != "generate"][::2]):
        block = scorer.load(again, share=False)
        start = time.monotonic()
        scorer.judge(block, [(i, full) for i in range(len(again))])
        spent = time.monotonic() - start
        per_again = spent / sum(block.executed(i) * one.length for i, one in enumerate(again))
        chains += len(again)
    if decoded:
        block = scorer.load(decoded)
        start = time.monotonic()
        scorer.judge(block, [(i, full) for i in range(len(decoded))])
        per_answer = (time.monotonic() - start) / len(decoded)
        chains += len(decoded)
    return Speed(len(samples), chains, time.monotonic() - begun, per_work, per_again, per_answer)
