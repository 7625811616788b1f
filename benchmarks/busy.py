"""What a search keeps of its speed beside other busy processes.

    python benchmarks/busy.py [--quick] [--json PATH]

SmolLM2-135M-Instruct in bfloat16 on ARC-Easy questions, the small demo's search. Each run is a process of its own,
alone and beside one and two processes that count; each in two arrangements, in turns:

kept     as a command runs: waiting threads sleep early (`router/threads.py`)
stock    as OpenMP's defaults have it: they spin

Ratios are to the stock arrangement alone, medians over rounds. Timed is the search without loading.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from demo_samples import demo_samples

from router.command import run_command
from router.files import read_json, write_json

ROOT = Path(__file__).parents[1]
BESIDE = (0, 1, 2)
SPINNING = "300000"
"""What GNU OpenMP takes where nothing is said (its manual, GOMP_SPINCOUNT)."""


def environments() -> dict[str, dict[str, str]]:
    """Return the variables of each arrangement."""
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return {"kept": plain, "stock": plain | {"GOMP_SPINCOUNT": SPINNING}}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run so many processes that do nothing but count."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def searched_a_second(samples: int, environment: dict[str, str]) -> float:
    """Search so many samples in a process of its own; return chains a second."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "search", "--config", "configs/small/search.yaml", "--splits", "[test]"]
        command += ["--data", str(Path("runs/benchmarks/data").absolute()), "--out", folder, "--limit", str(samples)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
        run = read_json(Path(folder) / "test.meta.json")["runs"][-1]
        simulations = run["settings"]["search"]["simulations"]
        return float(samples * simulations / run["seconds"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 samples, one round: about three minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    samples, rounds = (16, 1) if options.quick else (128, 3)
    demo_samples("test", samples)
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for count in BESIDE:
            for name, environment in environments().items():
                with busy(count):
                    rate = searched_a_second(samples, environment)
                rates.setdefault(f"{name} beside {count}", []).append(rate)
                print(f"  {name} beside {count}: {rate:.1f} chains/s", flush=True)
    alone = statistics.median(rates["stock beside 0"])
    figures = {
        name: {"chains_a_second": found, "share": statistics.median(found) / alone} for name, found in rates.items()
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"search of {samples} samples, {cores} cores, {rounds} rounds")
    for name, found in figures.items():
        print(f"{name:<16} {statistics.median(rates[name]):7.1f} chains/s  {found['share']:.2f}")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
