"""Controls of the oracle: an answer that is wrong and is told to the search as right."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data.judging import folded
from data.sample import Sample


def wrong_answers(samples: Sequence[Sample]) -> dict[str, int | str]:
    """Return for each sample, by id, a wrong answer drawn from its id: what a search "finds" for it is luck.

    Of choices, one of the wrong ones. Of free answers, the right answer of another sample of the task: one that
    reads differently and is as long as the own one, or as nearly as there is, so that it is as hard to hit.

    Raises:
        ValueError: where all samples of a task have the same free answer.
    """
    by_task: dict[str, dict[str, str]] = {}
    for sample in samples:
        if not sample.choices:
            by_task.setdefault(sample.task, {}).setdefault(folded(sample.gold), sample.gold)
    return {sample.id: _wrong(sample, by_task.get(sample.task, {})) for sample in samples}


def _wrong(sample: Sample, answers: dict[str, str]) -> int | str:
    if sample.choices:
        wrong = [i for i in range(len(sample.choices)) if i != sample.answer]
        return wrong[int(_draw(sample, ""), 16) % len(wrong)]
    own = folded(sample.gold)
    others = [
        (abs(len(text) - len(sample.gold)), _draw(sample, f"/{key}"), text)
        for key, text in answers.items()
        if key != own
    ]
    if not others:
        raise ValueError(
            f"reward_target: expected another answer than {sample.gold!r} in the task {sample.task}, got none"
        )
    return min(others)[2]


def _draw(sample: Sample, of: str) -> str:
    return hashlib.sha256(f"wrong/{sample.id}{of}".encode()).hexdigest()
