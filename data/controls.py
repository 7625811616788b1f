"""Controls of the oracle: an answer that is wrong and is told to the search as right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from data.answers import folded
from data.sample import Sample


def wrong_answers(samples: Sequence[Sample], same: Callable[[Sample, str], bool]) -> dict[str, int | str]:
    """Return for each sample, by id, a wrong answer drawn from its id: what a search "finds" for it is luck.

    Of choices, one of the wrong ones. Of free answers, the right answer of another sample of the task: one that
    means something else and is as long as the own one, or as nearly as there is, so that it is as hard to hit.

    Args:
        samples: the samples of a split.
        same: whether an answer would count as right for a sample (`ChainScorer.means_the_same`).

    Raises:
        ValueError: where all samples of a task have the same free answer.
    """
    by_task: dict[str, dict[int, dict[str, str]]] = {}
    for sample in samples:
        if not sample.choices:
            lengths = by_task.setdefault(sample.task, {})
            lengths.setdefault(len(sample.gold), {}).setdefault(folded(sample.gold), sample.gold)
    return {sample.id: _wrong(sample, by_task.get(sample.task, {}), same) for sample in samples}


def _wrong(sample: Sample, answers: dict[int, dict[str, str]], same: Callable[[Sample, str], bool]) -> int | str:
    """Return a wrong answer for a sample; `answers`: those of its task, by length and folded text."""
    if sample.choices:
        wrong = [i for i in range(len(sample.choices)) if i != sample.answer]
        return wrong[int(_draw(sample, ""), 16) % len(wrong)]
    for length in sorted(answers, key=lambda length: (abs(length - len(sample.gold)), length)):
        for text in sorted(answers[length].values(), key=lambda text: _draw(sample, f"/{text}")):
            if not same(sample, text):
                return text
    raise ValueError(f"reward_target: expected another answer than {sample.gold!r} in the task {sample.task}, got none")


def _draw(sample: Sample, of: str) -> str:
    return hashlib.sha256(f"wrong/{sample.id}{of}".encode()).hexdigest()
