"""What it saves to run layers on part of the tokens: on the readouts in a chain's last layer, on shared tokens once.

    python benchmarks/partial_layers.py [--quick] [--json PATH]

SmolLM2-135M-Instruct in bfloat16 on ARC-Easy, the same chains on the same samples by two executors that differ in
nothing else, in turns. Tasks: choices as continuations, by letter, as continuations after 4 solved examples. Chains: a
menu that every sample runs through, and random chains of each sample's own, four at a time, as a search asks for them.
No bars.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from demo_samples import demo_samples

from data.scoring import ChainScorer, EncodedSample, batches_by_length
from data.tasks import TaskSet, load_task
from router.chain import Chain
from router.engine.load import load_model
from router.files import write_json
from search.actions import ActionSpace
from search.algorithms import RandomSearcher
from search.settings import SearchSettings

PREFIX_LAYERS, AT_ONCE = 12, 4

Jobs = list[list[tuple[int, Chain]]]
"""Calls of the scorer: in each, (index of the sample, chain)."""


def random_chains(space: ActionSpace, settings: SearchSettings, rng: random.Random) -> list[Chain]:
    """Return the chains that a random search would try."""
    searcher, chains = RandomSearcher(space, settings, rng), list[Chain]()
    while asked := searcher.ask():
        chains += asked
        searcher.tell([0.0] * len(asked))
    return chains


def jobs_of(samples: int, count: int, *, menu: bool) -> Jobs:
    """Return the calls for a menu of `count` chains, or for as many random ones of each sample."""
    settings = SearchSettings(simulations=count, max_depth=36, algorithm="random")
    space = settings.action_space(30, PREFIX_LAYERS)
    rngs = [random.Random(0 if menu else i) for i in range(samples)]
    chains = [random_chains(space, settings, rng) for rng in rngs]
    if menu:
        return [[(i, chain) for i in range(samples) for chain in chains[i]]]
    return [
        [(i, chain) for i in range(samples) for chain in chains[i][start : start + AT_ONCE]]
        for start in range(0, count, AT_ONCE)
    ]


def run(scorer: ChainScorer, samples: Sequence[EncodedSample], calls: Jobs) -> tuple[float, list[int | str | None]]:
    """Return the seconds that the calls take, and the predictions."""
    start = time.perf_counter()
    block = scorer.load(samples)
    predictions = [result.prediction for jobs in calls for result in scorer.score(block, jobs)]
    return time.perf_counter() - start, predictions


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, chains and repetitions")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    repetitions, size, count = (2, 12, 8) if options.quick else (3, 24, 16)
    model, tokenizer = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    plain, shown = demo_samples("test", 400), demo_samples("test", 400, shots=4)
    tasks = {
        "continuation": plain,
        "letter": (plain[0], TaskSet.of(load_task("arc_easy", "letter"))),
        "4 shots": shown,
    }
    print(
        f"SmolLM2-135M-Instruct, bfloat16, {torch.get_num_threads()} threads; ARC-Easy, {size} samples, "
        f"{count} chains, layers below {PREFIX_LAYERS} unedited; median of {repetitions} (least..greatest)"
    )
    rows = {}
    for task, (samples, task_set) in tasks.items():
        scorers = [ChainScorer(model, tokenizer, task_set, partial=partial) for partial in (True, False)]
        encoded = scorers[0].encode_all(samples)
        batches = batches_by_length([one.length for one in encoded], size)
        batch = [encoded[i] for i in batches[len(batches) // 2]]
        for menu in (True, False):
            calls = jobs_of(size, count, menu=menu)
            total = sum(map(len, calls))
            rates: list[list[float]] = [[], []]
            answers: list[list[int | str | None]] = [[], []]
            for scorer in scorers:
                run(scorer, batch, calls[:1])  # shapes and masks that are made on first use do not count
            for repetition in range(repetitions):
                for i, scorer in list(enumerate(scorers))[:: -1 if repetition % 2 else 1]:
                    seconds, answers[i] = run(scorer, batch, calls)
                    rates[i].append(total / seconds)
            ratios = [part / whole for part, whole in zip(*rates, strict=True)]
            same = statistics.mean(a == b for a, b in zip(*answers, strict=True))
            name = f"{task}, {'menu' if menu else 'random'}"
            rows[name] = {
                "tokens_a_row": statistics.mean(one.length for one in batch),
                "partial": statistics.median(rates[0]),
                "whole": statistics.median(rates[1]),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "same_prediction": same,
            }
            row = rows[name]
            print(
                f"{name:>20}: {row['tokens_a_row']:4.0f} tokens a row, {row['partial']:6.1f} chains a second, whole "
                f"layers {row['whole']:6.1f}, ratio {row['ratio']:.2f} ({min(ratios):.2f}..{max(ratios):.2f}), "
                f"same prediction {same:.3f}",
                flush=True,
            )
    if options.json:
        write_json(options.json, {"rows": rows, "quick": options.quick})


if __name__ == "__main__":
    main()
