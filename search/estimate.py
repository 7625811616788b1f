"""What a run costs in all: what its first batch cost, times what is to search. Times are estimates, not promises."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from data.encoding import EncodedSample
from data.records import SearchRecord
from router.command import InputError
from search.summary import duration, megabytes

MARGIN_OF_ERROR = 0.8
"""Share of the expected bytes that must fit on the disk."""


def expected(
    batch: Sequence[EncodedSample],
    records: Sequence[SearchRecord],
    seconds: float,
    samples: Sequence[EncodedSample],
    out: Path,
    processes: int,
) -> str:
    """Return a line on what it costs to search some samples.

    Layers and bytes grow with the number of samples. Time grows with their tokens, because the first batch has the
    shortest samples.

    Args:
        batch: samples that were searched.
        records: their records.
        seconds: time that their search took, verification included.
        samples: samples to search, the batch included.
        out: folder of the records.
        processes: processes that share the work.

    Raises:
        InputError: where the records clearly do not fit on the disk.
    """
    times = len(samples) / len(batch)
    layers = times * sum(record.executed_layers for record in records)
    size = times * sum(len(json.dumps(record.to_json(), ensure_ascii=False).encode()) + 1 for record in records)
    total = seconds * sum(one.length for one in samples) / sum(one.length for one in batch)
    free = shutil.disk_usage(out).free
    if size * MARGIN_OF_ERROR > free:
        raise InputError(f"out: expected about {megabytes(size)} of free disk at {str(out)!r}, got {megabytes(free)}")
    shared = f" for one process, {duration(total / processes)} if {processes} share it" if processes > 1 else ""
    return (
        f"expected: {layers:,.0f} layers run, about {duration(total)}{shared}, {megabytes(size)} of records "
        f"({megabytes(free)} free); measured on {len(batch)} of {len(samples):,} samples"
    )
