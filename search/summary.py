"""What a finished split is worth, in a few lines, and the file on its verification."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from data.records import SearchRecord
from router.durable import write_json
from search.agreement import Agreement

VERIFICATION_SCHEMA = 1
"""Version of `<split>.verification.json`."""


def write_verification(path: Path, records: Iterable[SearchRecord], sha256: str) -> None:
    """Write `<split>.verification.json` beside a record file, unless nothing was verified.

    Args:
        path: the record file.
        records: what it holds.
        sha256: its hash.
    """
    tables = Agreement(records).tables()
    if tables:
        content = {"schema": VERIFICATION_SCHEMA, "sha256": sha256, "tables": [table.to_json() for table in tables]}
        write_json(path.with_suffix(".verification.json"), content)


def summary(
    split: str, records: Iterable[SearchRecord], before: Collection[str], seconds: float, size: int
) -> list[str]:
    """Return lines on what was found, on what this run cost, and on the verification.

    Args:
        split: the split.
        records: its records, at least one.
        before: ids of the samples that were finished before this run.
        seconds: time that this run took, seconds.
        size: bytes of the record file.
    """
    agreement = Agreement()
    samples = right = found = depth = nominal = executed = 0
    new = chains = new_nominal = new_executed = 0
    for record in records:
        agreement.add(record)
        samples += 1
        right += record.full.correct
        if record.shortest is not None:
            found += 1
            depth += record.shortest.chain.depth
        nominal += record.nominal_layers
        executed += record.executed_layers
        if record.sample_id not in before:
            new += 1
            chains += record.simulations
            new_nominal += record.nominal_layers
            new_executed += record.executed_layers
    lines = [
        f"{split}: {samples} samples ({new} searched now, {chains / max(seconds, 1e-9):.0f} chains/s); "
        f"full depth right {right / samples:.3f}; some chain right {found / samples:.3f} (has seen the "
        f"answers), shortest at mean depth {depth / max(1, found):.1f}; {executed / nominal:.2f} of nominal layers run"
    ]
    if new:
        lines.append(
            f"{split}: took {duration(seconds)}: {chains:,} chains, {new_executed:,} of {new_nominal:,} layers run; "
            f"{megabytes(size)} of records"
        )
    if line := agreement.line():
        lines.append(f"{split}: {line}")
    for table in agreement.tables():
        if new:
            head, *rest = table.lines()
            lines += [f"{split}: {head}", *rest]
    return lines


def duration(seconds: float) -> str:
    """Return a time in a readable unit."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def megabytes(size: float) -> str:
    """Return bytes in a readable unit (powers of ten)."""
    return f"{size / 1e9:.1f} GB" if size >= 2e9 else f"{size / 1e6:.2f} MB"
