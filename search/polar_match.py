"""Which samples of a PoLar file are which of ours, which of its chains can be run, and how far its labels agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.answers import last_boxed
from data.grading import Grader
from data.judging import folded
from data.records import SearchRecord
from data.sample import Sample, normalise_question
from data.tasks import TaskSet
from router.chain import Chain
from router.command import InputError
from search.polar_file import PolarSample, verdict

NAMED = 3
"""Samples without a partner that are named."""


@dataclass(frozen=True)
class Matches:
    """Which of their samples are which of ours.

    Attributes:
        theirs: by the id of our sample (in our order) those of theirs that ask it; several: their file has it twice.
        other_question: theirs whose question we do not have.
        other_answer: theirs whose question we have, with another answer.
    """

    theirs: dict[str, list[PolarSample]]
    other_question: list[PolarSample]
    other_answer: list[PolarSample]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of their samples, by what became of them."""
        return {
            "matched": sum(map(len, self.theirs.values())),
            "other_question": len(self.other_question),
            "other_answer": len(self.other_answer),
        }

    def lines(self, split: str) -> list[str]:
        """Return lines on what was matched, and names of what was not."""
        counts = self.counts
        lines = [f"{split}: {counts['matched']} of their {sum(counts.values())} samples are {len(self.theirs)} of ours"]
        for reason, left in (("no such question", self.other_question), ("another answer", self.other_answer)):
            if left:
                named = ", ".join(f"{one.question[:60]!r} ({one.where.rpartition(', ')[2]})" for one in left[:NAMED])
                lines.append(f"{split}: left out, {reason} here: {len(left)}: {named}{', ...' * (len(left) > NAMED)}")
        return lines


def match_samples(theirs: Sequence[PolarSample], samples: Sequence[Sample], tasks: TaskSet) -> Matches:
    """Find their samples among ours: by question, case and punctuation folded (`Sample.split_key`), and answer.

    Raises:
        InputError: where one of theirs is several of ours (same question and answer, other choices or context).
    """
    ours: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        ours[sample.split_key].append(sample)
    matches = Matches({sample.id: [] for sample in samples}, [], [])
    with Grader() as grader:
        for one in theirs:
            asked = ours.get(normalise_question(one.question), [])
            found = [sample for sample in asked if _same_answer(one.answer, sample, tasks, grader)]
            if len(found) > 1:
                raise InputError(
                    f"{one.where}: expected a question and answer of one sample, got {', '.join(s.id for s in found)}"
                )
            if found:
                matches.theirs[found[0].id].append(one)
            else:
                (matches.other_answer if asked else matches.other_question).append(one)
    return replace(matches, theirs={key: of_sample for key, of_sample in matches.theirs.items() if of_sample})


def _same_answer(answer: str, sample: Sample, tasks: TaskSet, grader: Grader) -> bool:
    inner = last_boxed(answer)
    answer = answer if inner is None else inner
    if folded(answer) == folded(sample.gold):
        return True
    task = tasks[sample.task]
    if task.has_choices or task.grading == "text":
        return False
    return grader.equal(sample.gold, answer) or grader.equal(answer, sample.gold)


@dataclass(frozen=True)
class TheirChains:
    """Their chains on our samples.

    Attributes:
        verdicts: by sample id, the chains that can be run, each once, and whether each was right there; None: there
            are both verdicts. Samples without such a chain are left out.
        counts: numbers of chains: `given`, `different` (a sample's, each once), `edit_prefix` (left out),
            `contradictory` (both verdicts; run, but not compared); and of samples `without_chains` (left out).
    """

    verdicts: dict[str, dict[Chain, bool | None]]
    counts: dict[str, int]

    @classmethod
    def of(cls, matches: Matches, num_layers: int, prefix_layers: int) -> TheirChains:
        """Collect the chains of a model with `num_layers` layers that leave the prefix alone.

        Raises:
            InputError: where one is no chain of the model, or none is left.
        """
        counts = Counter(given=0, different=0, contradictory=0, edit_prefix=0, without_chains=0)
        verdicts: dict[str, dict[Chain, bool | None]] = {}
        for key, theirs in matches.theirs.items():
            merged: dict[Chain, bool | None] = {}
            for one in theirs:
                for chain, right in one.verdicts(num_layers).items():
                    merged[chain] = right if merged.get(chain, right) is right else None
                counts["given"] += len(one.valid) + len(one.invalid)
            counts["different"] += len(merged)
            kept = {chain: right for chain, right in merged.items() if chain.unedited_prefix >= prefix_layers}
            counts["edit_prefix"] += len(merged) - len(kept)
            counts["contradictory"] += sum(right is None for right in kept.values())
            if kept:
                verdicts[key] = kept
            else:
                counts["without_chains"] += 1
        if not verdicts:
            raise InputError(
                f"file: expected chains that leave the first {prefix_layers} layers alone, got {counts['given']} "
                f"chains on {len(matches.theirs)} samples of the split, and none that does"
            )
        return cls(verdicts, dict(counts))

    def to_run(self, num_layers: int) -> dict[str, tuple[Chain, ...]]:
        """Return the chains to run on each sample: the full chain, then theirs in their order."""
        full = Chain.full(num_layers)
        return {key: (full, *(chain for chain in of if chain != full)) for key, of in self.verdicts.items()}

    def line(self, split: str) -> str:
        """Return a line on the chains."""
        c = self.counts
        return (
            f"{split}: {c['given']} chains there, {c['different']} different; {c['edit_prefix']} edit the prefix and "
            f"are left out, {c['contradictory']} are both valid and invalid; "
            f"{c['without_chains']} samples have no chain left"
        )


def agreement(records: Iterable[SearchRecord], verdicts: Mapping[str, Mapping[Chain, bool | None]]) -> dict[str, Any]:
    """Compare their verdicts with ours.

    Args:
        records: what was measured.
        verdicts: theirs, see `TheirChains`.

    Returns:
        For "valid" and "invalid" the numbers of `chains`, of those `right` and of those `wrong` here; the rest were
        right in one of our two runs only.
    """
    table = {name: {"chains": 0, "right": 0, "wrong": 0} for name in ("valid", "invalid")}
    for record in records:
        for result in record.results:
            there = verdicts[record.sample_id].get(result.chain)
            if there is None:
                continue
            row, here = table["valid" if there else "invalid"], verdict(result)
            row["chains"] += 1
            if here is not None:
                row["right" if here else "wrong"] += 1
    return table
