"""What a finished split is worth, in a few lines, and how far the second judging of its chains agrees."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from data.records import SearchRecord


class Summary:
    """What was found in a split, what this run did of it, and how far the second judging of chains agrees."""

    def __init__(self, records: Iterable[SearchRecord], before: Collection[str]) -> None:
        """Count records one by one.

        Args:
            records: the split's records, at least one.
            before: ids of the samples that were finished before this run.
        """
        self._all: Counter[str] = Counter()
        self._new: Counter[str] = Counter()
        self._stand = ""
        agreement = Agreement()
        for record in records:
            agreement.add(record)
            if record.variants > 1:
                self._stand = f" in enough of {record.variants} variants"
            counted = {
                "samples": 1,
                "right": int(record.full.right),
                "found": int(record.shortest is not None),
                "depth": 0 if record.shortest is None else record.shortest.chain.depth,
                "chains": record.simulations,
                "nominal": record.nominal_layers,
                "executed": record.executed_layers,
            }
            self._all.update(counted)
            if record.sample_id not in before:
                self._new.update(counted)
        self._agreement = agreement.line()

    def lines(self, seconds: float, size: int) -> list[str]:
        """Return it as lines of text.

        Args:
            seconds: time that this run took, seconds.
            size: bytes of the record file.
        """
        every, new = self._all, self._new
        lines = [
            f"{every['samples']} samples ({new['samples']} searched now, "
            f"{new['chains'] / max(seconds, 1e-9):.0f} chains/s); full depth right "
            f"{every['right'] / every['samples']:.3f}; some chain right{self._stand} "
            f"{every['found'] / every['samples']:.3f} (has "
            f"seen the answers), shortest at mean depth {every['depth'] / max(1, every['found']):.1f}; "
            f"{every['executed'] / every['nominal']:.2f} of nominal layers run"
        ]
        if new:
            lines.append(
                f"took {duration(seconds)}: {new['chains']:,} chains, {new['executed']:,} of {new['nominal']:,} layers "
                f"run; {megabytes(size)} of records"
            )
        if self._agreement:
            lines.append(self._agreement)
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


BOUNDS = {"below 0.05": 0.05, "to 0.2": 0.2, "to 1": 1.0}
"""Upper bounds of the bins of margin (nats, in mode "exact" logits)."""
BINS = (*BOUNDS, "above")


def _bin(margin: float) -> str:
    return next((name for name, bound in BOUNDS.items() if margin < bound), BINS[-1])


class Agreement:
    """Counts the chains that were judged twice, by modes and margin: how far that agrees with the search."""

    def __init__(self, records: Iterable[SearchRecord] = ()) -> None:
        """Count some records."""
        self._counts: dict[tuple[str, str], Counter[tuple[str, bool, bool]]] = defaultdict(Counter)
        for record in records:
            self.add(record)

    def add(self, record: SearchRecord) -> None:
        """Count a record's chains."""
        for result in record.results:
            if result.verified is not None:
                place = _bin(abs(result.margin)) if result.scores else ""
                counts = self._counts[record.mode, result.verified_by or ""]
                counts[place, result.correct, result.verified] += 1

    def line(self) -> str:
        """Return one line on it; empty where nothing was verified.

        Right and wrong chains are told apart: chains judged again are right, but for full depth where it is wrong. Of
        right ones that were wrong the second time it says how many, by margin.
        """
        return "; ".join(_line(*modes, counts) for modes, counts in sorted(self._counts.items()))


def _line(mode: str, by: str, counts: Counter[tuple[str, bool, bool]]) -> str:
    """Return what is counted of two modes: by bin ("": no margin), whether right, and whether it stood."""
    told: dict[bool, Counter[bool]] = {True: Counter(), False: Counter()}
    for (_, correct, stood), count in counts.items():
        told[correct][stood] += count
    parts = [
        f"{of[True]} of {of.total()} {'right' if correct else 'wrong'} answers" for correct, of in told.items() if of
    ]
    line = f"{mode} verified by {by}: {' and '.join(parts)} confirmed"
    pairs = {name: (counts[name, True, False], counts[name, True, True]) for name in BINS}
    flipped = [f"{name} {wrong} of {wrong + right}" for name, (wrong, right) in pairs.items() if wrong + right]
    if not any(wrong for wrong, _ in pairs.values()):
        return line
    return f"{line}, right ones flipped by margin ({'logits' if mode == 'exact' else 'nats'}): {', '.join(flipped)}"
