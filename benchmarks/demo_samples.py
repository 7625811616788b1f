"""Real samples for the benchmarks: the small demo's splits of ARC-Easy, made once from the pinned wheel."""

from __future__ import annotations

from pathlib import Path

from data.prepare import PrepareSettings, SplitSettings, prepare
from data.sample import Sample, read_samples
from data.tasks import TaskSet, read_tasks

SIZES = {"train": 400, "validation": 100, "test": 400}
"""So many as the small demo of the log had, which the benchmarks' figures are of."""


def demo_samples(split: str, count: int) -> tuple[list[Sample], TaskSet]:
    """Return the first samples of a split, and the tasks that they are asked with.

    Args:
        split: train, validation or test.
        count: number of samples.

    Raises:
        ValueError: where the split has fewer.
    """
    if count > SIZES[split]:
        raise ValueError(f"samples: expected at most the {SIZES[split]} of {split}, got {count}")
    out = Path("runs") / "benchmarks" / "data"
    settings = PrepareSettings(
        task="arc_easy",
        source="wheel",
        out=out,
        train=SplitSettings(size=SIZES["train"]),
        validation=SplitSettings(size=SIZES["validation"]),
        test=SplitSettings(size=SIZES["test"]),
    )
    prepare(settings, {})
    return read_samples(out / f"{split}.jsonl", "data")[:count], read_tasks(out)
