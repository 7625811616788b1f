"""Splits that share no question: not in other words of case or punctuation, and not across source splits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data.sample import Sample
from router.command import InputError

ORDER = ("test", "validation", "train")
"""Who chooses first: what is held out must not shrink because training data has the same question."""


@dataclass(frozen=True, slots=True)
class SplitCount:
    """What became of one split's candidates: taken + used_elsewhere + repeated + not_needed = candidates.

    Attributes:
        candidates: samples of the source split.
        taken: samples of the finished split.
        used_elsewhere: left out, for an earlier split (test, then validation) has the question.
        repeated: left out, for the source split has the question twice.
        not_needed: left out, for the split has its size.
    """

    candidates: int
    taken: int
    used_elsewhere: int
    repeated: int
    not_needed: int


def build_splits(
    candidates: Mapping[str, Sequence[Sample]], sizes: Mapping[str, int | None], seed: int
) -> tuple[dict[str, list[Sample]], dict[str, SplitCount]]:
    """Choose every split's samples so that no question (`Sample.split_key`) stands in two, or twice in one.

    The choice hangs on the seed and the questions, not on the order of the candidates.

    Args:
        candidates: all samples that a split may take, by split; several splits may have the same ones.
        sizes: samples to take, by split; None: all that are left.
        seed: draws another order of the questions.

    Returns:
        The samples by split, each with its `split` set, and what became of the candidates.

    Raises:
        InputError: where a split gets fewer samples than its size, or none.
    """
    used: set[str] = set()
    splits: dict[str, list[Sample]] = {}
    counts: dict[str, SplitCount] = {}
    for split in sorted(candidates, key=ORDER.index):
        size = sizes[split]
        unused = [sample for sample in candidates[split] if sample.split_key not in used]
        by_question: dict[str, Sample] = {}
        for sample in sorted(unused, key=lambda sample: (_draw(seed, sample.split_key), sample.id)):
            by_question.setdefault(sample.split_key, sample)
        taken = [dataclasses.replace(sample, split=split) for sample in list(by_question.values())[:size]]
        counts[split] = SplitCount(
            candidates=len(candidates[split]),
            taken=len(taken),
            used_elsewhere=len(candidates[split]) - len(unused),
            repeated=len(unused) - len(by_question),
            not_needed=len(by_question) - len(taken),
        )
        if len(taken) < (1 if size is None else size):
            count = counts[split]
            raise InputError(
                f"{split}.size: expected at most {len(by_question)} of {count.candidates} candidates "
                f"({count.used_elsewhere} stand in an earlier split, {count.repeated} are repeated), "
                f"got {'all' if size is None else size}"
            )
        used.update(sample.split_key for sample in taken)
        splits[split] = taken
    return splits, counts


def _draw(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()
