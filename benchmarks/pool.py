"""How many records a second one driver takes from its workers.

    python benchmarks/pool.py [--quick] [--json PATH]       needs Ray: pip install -c constraints.txt -e '.[cluster]'

Workers that do nothing send records of real size (32 simulations: 9 kB; 200: 52 kB), and the driver appends them as
in a real run: what it has acknowledged is on the disk. In one run and in turns:

each        a flush to the disk after every record, no workers: what a store without group commit would take
in process  the same records in batches of 32, no workers
workers     batches of 32 from two worker processes through Ray, which is what a cluster's driver does

Bar: 500 records a second.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.pool import Batch, PoolSettings, Report, Task, run_batches
from data.records import ChainResult, SearchRecord, pareto_front
from data.store import Store
from router.chain import Chain
from router.files import json_line, write_json
from router.fingerprint import Fingerprints
from router.validation import to_plain

BAR = 500.0
"""Records a second."""
BATCH = 32
"""Samples of a batch, as `python -m search` has it."""
LAYERS, CHOICES = 30, 4
IDENTITY = {"of": "records that say nothing"}


def made_up_record(simulations: int) -> SearchRecord:
    """Return a record as long as those of the small demo: a 30-layer model, four choices, so many simulations."""
    rng = random.Random(simulations)
    full = Chain.full(LAYERS)
    chains = {full: None}
    while len(chains) < simulations:
        start = rng.randrange(3, LAYERS - 4)
        shorter = full.skip(start, rng.randint(1, 4))
        chains[shorter.skip(rng.randrange(3, shorter.depth - 4), rng.randint(1, 4))] = None
    results = tuple(
        ChainResult.from_scores(chain, [rng.uniform(-40, -5) for _ in range(CHOICES)], 0) for chain in chains
    )
    return SearchRecord(
        sample_id="0" * 16,
        task="arc_easy",
        split="train",
        metadata={},
        mode="continuation",
        num_layers=LAYERS,
        first_editable=3,
        dtype="bfloat16",
        reward_target="gold",
        target=0,
        seed=0,
        simulations=simulations,
        nominal_layers=LAYERS * simulations,
        executed_layers=LAYERS * simulations,
        results=results,
        pareto=pareto_front(results),
        fingerprints=Fingerprints("0" * 64, "0" * 64, "0" * 64),
        search="0" * 64,
    )


@dataclass(frozen=True)
class Idle(Task[str, SearchRecord]):
    """Work that costs a worker nothing: the line is there, only the sample's id is put in.

    Attributes:
        template: the line.
    """

    template: bytes = b""

    def lines(self, batch: Batch[str], _: Report) -> list[tuple[str, bytes]]:
        """Return a line for each sample."""
        return [(key, self.template.replace(b"0" * 16, key.encode(), 1)) for key in batch.keys]


def idle(simulations: int) -> Idle:
    """Return the task that sends records of so many simulations."""
    line = json_line(to_plain(made_up_record(simulations)))
    return Idle(work=lambda *_: [], key=lambda record: record.sample_id, template=line)


def store_in(folder: str) -> Store[SearchRecord]:
    """Return a new store."""
    return Store(Path(folder) / "train.jsonl", SearchRecord, IDENTITY, lambda one: one.sample_id, num_layers=LAYERS)


def batches_of(count: int, size: int) -> list[Batch[str]]:
    """Return batches of so many samples in all."""
    keys = [f"{number:016x}" for number in range(count)]
    parts = [tuple(keys[start : start + size]) for start in range(0, count, size)]
    return [Batch(str(number), part, part, len(part)) for number, part in enumerate(parts)]


def rate(task: Idle, count: int, size: int, pool: Any) -> float:
    """Return records a second that reach the disk in a folder of this directory's disk."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store, began = store_in(folder), time.monotonic()
        added = run_batches(
            store, batches_of(count, size), task, label="pool", unit="record", pool=pool, run={"run": "x"}
        )
        seconds = time.monotonic() - began
        assert added == count == len(store.keys)
        return count / seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, and return the figures."""
    rounds, count = (2, 640) if options.quick else (5, 6400)
    found: dict[str, dict[str, list[float]]] = {}
    with PoolSettings(workers=2).pool() as workers, PoolSettings().pool() as here:
        ways: dict[str, tuple[Any, int, int]] = {
            "each": (here, 1, count // 10),
            "in process": (here, BATCH, count),
            "workers": (workers, BATCH, count),
        }
        for simulations in (32, 200):
            task, rates = idle(simulations), found.setdefault(str(simulations), {name: [] for name in ways})
            rate(task, BATCH * 4, BATCH, workers)  # they start
            for _ in range(rounds):
                for name, (pool, size, some) in ways.items():
                    rates[name].append(rate(task, some, size, pool))
            for name, values in rates.items():
                size_kb, median = len(task.template) / 1000, statistics.median(values)
                print(
                    f"{simulations:>4} simulations, {size_kb:5.1f} kB, {name:>10}: {median:8.0f} records/s"
                    f" ({min(values):.0f}..{max(values):.0f}), {median * size_kb / 1000:6.1f} MB/s"
                )
    kept = {size: statistics.median(rates["workers"]) for size, rates in found.items()}
    for simulated, value in kept.items():
        print(f"{simulated} simulations: {value:.0f} records/s ({'bar kept' if value >= BAR else 'BAR MISSED'})")
    print(f"half a second a record: one driver feeds {min(kept.values()) * 0.5:,.0f} workers")
    return {"rates": found, "bar": BAR, "quick": options.quick}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records and rounds")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
