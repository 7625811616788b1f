"""Splits that share no question: not in other words of case or punctuation, not across source splits, nor tasks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from data.manifest import SplitCount
from data.sample import Sample, Split
from router.storage import TRAINED_ON_FILE, trained_questions
from router.validation import InputError

ORDER: tuple[Split, ...] = ("test", "calibration", "validation", "train")
"""Who chooses first: what is held out must not shrink because training data has the same question."""


@dataclass(frozen=True)
class Splits:
    """Samples chosen so that no question stands in two splits.

    Attributes:
        samples: by split; each task's in an order drawn by the seed, and so mixed that any first part has its share.
        counts: what became of the candidates, by split and task.
        examples: the solved samples to be shown, by task; their questions stand in no split.
    """

    samples: dict[str, list[Sample]]
    counts: dict[str, dict[str, SplitCount]]
    examples: dict[str, tuple[Sample, ...]] = field(default_factory=dict)


def build_splits(
    candidates: Mapping[str, Mapping[str, Sequence[Sample]]],
    sizes: Mapping[str, Mapping[str, int | None]],
    seed: int,
    shots: Mapping[str, tuple[Sequence[Sample], int]] | None = None,
) -> Splits:
    """Choose every split's samples so that no question (`Sample.split_key`) stands in two, or twice in one.

    The choice hangs on the seed and the questions, not on the order of the candidates. Examples come from the end of
    the order in which training samples are taken, so that a split with a size is the same with and without them.

    Args:
        candidates: all samples that a split may take, by split and task; several splits may have the same ones.
        sizes: samples to take, by split and task; None: all that are left.
        seed: draws another order of the questions.
        shots: by task, the samples of its training source split to draw examples from, and how many.

    Raises:
        InputError: where a split gets fewer samples of a task than its size, or none; or where examples are lacking.
    """
    used: set[str] = set()
    result = Splits({}, {})
    for split in ORDER:
        if split == "train":
            for task, (drawn_from, wanted) in (shots or {}).items():
                result.examples[task] = _examples(drawn_from, wanted, used, seed)
        if split not in candidates:
            continue
        result.counts[split] = {}
        placed: list[tuple[Fraction, Sample]] = []
        for task, samples in candidates[split].items():
            size = sizes[split][task]
            taken, count = _take(samples, size, used, seed)
            if count.taken < (1 if size is None else size):
                raise InputError(
                    f"{split}.size: expected at most {count.taken + count.not_needed} of {count.candidates} candidates"
                    f"{f' of {task}' if len(candidates[split]) > 1 else ''} ({count.used_elsewhere} stand in an "
                    f"earlier split, {count.repeated} are repeated), got {'all' if size is None else size}"
                )
            result.counts[split][task] = count
            placed += [(Fraction(2 * i + 1, 2 * len(taken)), sample) for i, sample in enumerate(taken)]
        placed.sort(key=lambda one: one[0])  # the tasks evenly mixed, each in its drawn order
        result.samples[split] = [dataclasses.replace(sample, split=split) for _, sample in placed]
    return result


def shares(size: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide a number of samples by weight: rounded down, and what is left to the largest remainders.

    Raises:
        ValueError: where the number is too small for a sample of each.
    """
    total = sum(map(Fraction, weights.values()))
    exact = {name: size * Fraction(weight) / total for name, weight in weights.items()}
    parts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(parts, key=lambda name: parts[name] - exact[name])
    for name in by_remainder[: size - sum(parts.values())]:
        parts[name] += 1
    if size and not all(parts.values()):
        poor = next(name for name, part in parts.items() if not part)
        raise ValueError(f"expected a size that gives {poor} a sample, got {size} for the mixture's weights")
    return parts


def _take(
    samples: Sequence[Sample], size: int | None, used: set[str], seed: int, last: bool = False
) -> tuple[list[Sample], SplitCount]:
    """Take the first samples whose questions are not used, or the last, and use them."""
    unused = [sample for sample in samples if sample.split_key not in used]
    by_question: dict[str, Sample] = {}
    for sample in sorted(unused, key=lambda sample: _place(seed, sample)):
        by_question.setdefault(sample.split_key, sample)
    ordered = list(by_question.values())
    taken = (ordered[::-1] if last else ordered)[:size]
    used.update(sample.split_key for sample in taken)
    count = SplitCount(
        candidates=len(samples),
        taken=len(taken),
        used_elsewhere=len(samples) - len(unused),
        repeated=len(unused) - len(ordered),
        not_needed=len(ordered) - len(taken),
    )
    return taken, count


def _examples(candidates: Sequence[Sample], size: int, used: set[str], seed: int) -> tuple[Sample, ...]:
    taken, count = _take(candidates, size, used, seed, last=True)
    if len(taken) < size:
        raise InputError(
            f"shots: expected at most {len(taken)}, the questions that test and validation leave of "
            f"{count.candidates}, got {size}"
        )
    return tuple(dataclasses.replace(sample, split="train") for sample in taken)


def _place(seed: int, sample: Sample) -> tuple[bytes, str]:
    key = sample.split_key
    return hashlib.sha256(f"{seed}:{key}".encode()).digest(), sample.id


def require_unseen(folder: Path, samples: Sequence[Sample], setting: str) -> None:
    """Refuse samples whose questions a router was trained or chosen on; says so where it does not tell them.

    Args:
        folder: the router's folder.
        samples: the samples in question.
        setting: the setting that names them, for refusals.

    Raises:
        InputError: where there are some.
    """
    seen = trained_questions(folder)
    if seen is None:
        path = folder / TRAINED_ON_FILE
        print(f"note: {path} is missing, so it could not be checked that the router never saw these questions")
        return
    known = [sample for sample in samples if sample.split_hash in seen]
    if known:
        raise InputError(
            f"{setting}: expected questions that the router {folder} was not trained on, got {len(known)} that it was, "
            f"for example {known[0].id}"
        )
