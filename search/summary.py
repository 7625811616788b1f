"""What a finished split is worth, in a few lines, and how far the second judging of its chains agrees."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from data.records import SearchRecord
from data.statistics import wilson_interval


class Summary:
    """What was found in a split, what this run did of it, and how far the second judging of chains agrees.

    Attributes:
        tables: flips of right chains, for each pair of modes.
    """

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
                "right": int(record.full.correct),
                "found": int(record.shortest is not None),
                "depth": 0 if record.shortest is None else record.shortest.chain.depth,
                "chains": record.simulations,
                "nominal": record.nominal_layers,
                "executed": record.executed_layers,
            }
            self._all.update(counted)
            if record.sample_id not in before:
                self._new.update(counted)
        self.tables = agreement.tables()
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
        if new:
            lines += ["\n".join(table.lines()) for table in self.tables]
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


BINS = (0.0, 0.05, 0.2, 1.0)
"""Lower bounds of the bins of margin (nats, in mode "exact" logits); the last has no upper one."""


@dataclass(frozen=True)
class Flips:
    """Right chains of one bin, and how many of them the second judging found wrong.

    Attributes:
        at_least: the bin's least margin; None: chains of mode "generate", which have none.
        below: the bin's upper bound; None: there is none.
        chains: right chains judged twice.
        flipped: those that were wrong the second time.
        rate: flipped of chains; None without chains.
        interval: its 95 % Wilson interval; None without chains.
    """

    at_least: float | None
    below: float | None
    chains: int
    flipped: int
    rate: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, at_least: float | None, below: float | None, chains: int, flipped: int) -> Flips:
        """Return a bin with its rate."""
        if not chains:
            return cls(at_least, below, 0, 0, None, None)
        low, high = wilson_interval(flipped, chains)
        return cls(at_least, below, chains, flipped, round(flipped / chains, 6), (round(low, 6), round(high, 6)))

    @property
    def name(self) -> str:
        """The bin in words."""
        if self.at_least is None:
            return "any"
        return f"{self.at_least:g} to {self.below:g}" if self.below is not None else f"{self.at_least:g} and more"


@dataclass(frozen=True)
class FlipTable:
    """Flips of right chains by margin, for one pair of modes.

    Attributes:
        mode: scoring mode of the search.
        verified_by: scoring mode of the second judging.
        unit: of the margin: "nats", "logits", or None where there is none.
        bins: by margin, ascending.
        wrong: wrong chains judged twice (full depth, where it is wrong).
        wrong_flipped: those that were right the second time.
    """

    mode: str
    verified_by: str
    unit: str | None
    bins: tuple[Flips, ...]
    wrong: int
    wrong_flipped: int

    def lines(self) -> list[str]:
        """Return the table as lines of text."""
        unit = "" if self.unit is None else f" ({self.unit})"
        head = f"right chains that were wrong when judged again, {self.mode} verified by {self.verified_by}, by margin"
        lines = [f"{head}{unit}", f"  {'margin':<12}{'chains':>8}{'flipped':>9}{'rate':>8}  95 % interval"]
        for one in self.bins:
            rate = "       -" if one.rate is None else f"{one.rate:>8.4f}"
            interval = "" if one.interval is None else f"  {one.interval[0]:.4f}..{one.interval[1]:.4f}"
            lines.append(f"  {one.name:<12}{one.chains:>8}{one.flipped:>9}{rate}{interval}")
        return lines


class Agreement:
    """Counts the chains that were judged twice, by mode and margin: how far that agrees with the search."""

    def __init__(self, records: Iterable[SearchRecord] = ()) -> None:
        """Count some records."""
        self._counts: dict[tuple[str, str], Counter[tuple[int, bool, bool]]] = defaultdict(Counter)
        for record in records:
            self.add(record)

    def add(self, record: SearchRecord) -> None:
        """Count a record's chains."""
        for result in record.results:
            if result.verified is not None:
                place = sum(abs(result.margin) >= least for least in BINS) - 1 if result.scores else -1
                counts = self._counts[record.mode, result.verified_by or ""]
                counts[place, result.correct, result.verified] += 1

    def tables(self) -> list[FlipTable]:
        """Return a table for each pair of modes that occurs."""
        return [_table(*modes, counts) for modes, counts in sorted(self._counts.items())]

    def line(self) -> str:
        """Return one line on it; empty where nothing was verified.

        Right and wrong chains are told apart: chains judged again are right, but for full depth where it is wrong.
        """
        lines, tables = [], self.tables()
        for by in sorted({table.verified_by for table in tables}):
            own = [table for table in tables if table.verified_by == by]
            bins = [one for table in own for one in table.bins]
            counts = {
                "right": (sum(one.chains for one in bins), sum(one.flipped for one in bins)),
                "wrong": (sum(table.wrong for table in own), sum(table.wrong_flipped for table in own)),
            }
            parts = [f"{n - flipped} of {n} {name} answers" for name, (n, flipped) in counts.items() if n]
            lines.append(f"verified by {by}: {' and '.join(parts)} confirmed")
        return "; ".join(lines)


def _table(mode: str, by: str, counts: Counter[tuple[int, bool, bool]]) -> FlipTable:
    """Return the table of two modes; counts are by bin (-1: no margin), whether right, and whether it stood."""
    bounds = enumerate(zip(BINS, (*BINS[1:], None), strict=True)) if mode != "generate" else [(-1, (None, None))]
    bins = []
    for place, (least, below) in bounds:
        flipped = counts[place, True, False]
        bins.append(Flips.of(least, below, flipped + counts[place, True, True], flipped))
    return FlipTable(
        mode=mode,
        verified_by=by,
        unit={"generate": None, "exact": "logits"}.get(mode, "nats"),
        bins=tuple(bins),
        wrong=sum(n for (_, correct, _), n in counts.items() if not correct),
        wrong_flipped=sum(n for (_, correct, stood), n in counts.items() if not correct and not stood),
    )
