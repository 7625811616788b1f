"""How far the verification of kept chains agrees with the search that found them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data.records import SearchRecord


def agreement_of(records: Sequence[SearchRecord]) -> str:
    """Return one line on it; empty where nothing was verified.

    Right and wrong chains are told apart: kept chains are right, but for full depth where it is wrong.
    """
    counts: Counter[tuple[str, bool, bool]] = Counter()
    for record in records:
        for result in record.results:
            if result.verified is not None:
                counts[result.verified_by or "", result.correct, result.verified] += 1
    lines = []
    for mode in sorted({mode for mode, _, _ in counts}):
        parts = []
        for correct, name in ((True, "right"), (False, "wrong")):
            agreed, differed = counts[mode, correct, True], counts[mode, correct, False]
            if agreed + differed:
                parts.append(f"{agreed} of {agreed + differed} {name} answers")
        lines.append(f"verified by {mode}: {' and '.join(parts)} confirmed")
    return "; ".join(lines)
