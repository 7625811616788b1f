"""Groups of samples, each with every arm's measures: the tasks of a mixture, and each task's difficulties and subjects.

A difficulty or subject counts within its task: level 3 of one task is not level 3 of another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.arms import FULL
from eval.metrics import arm_of, chance_accuracy
from eval.results import PolicyResult

KINDS = ("task", "difficulty", "subject")


@dataclass(frozen=True)
class GroupArm:
    """One arm's measures on a group.

    Attributes:
        name: the policy's name.
        n: samples.
        correct: samples answered rightly.
        accuracy: correct / n.
        accuracy_interval: 95 % Wilson score interval.
        no_answer: samples in whose generated text no answer could be read; they count as wrong.
        mean_depth: layers executed, mean over samples.
        mean_depth_interval: its 95 % percentile bootstrap interval over samples; of no width with one sample.
        difference: accuracy minus full depth's on the same samples; None for full depth itself.
        difference_interval: its 95 % percentile bootstrap interval; of no width with one sample.
    """

    name: str
    n: int
    correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    no_answer: int
    mean_depth: float
    mean_depth_interval: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Group:
    """Samples that have something in common.

    Attributes:
        kind: one of `KINDS`.
        task: their task.
        value: their difficulty or subject as text, or their task's name; None: samples that have none, of a task
            whose other samples have one.
        n: samples.
        chance_accuracy: accuracy of guessing; see `eval.metrics.chance_accuracy`.
        arms: every arm's measures, in the order of the report.
    """

    kind: str
    task: str
    value: str | None
    n: int
    chance_accuracy: float
    arms: tuple[GroupArm, ...]


def groups_of(by_arm: Mapping[str, Sequence[PolicyResult]], seed: int) -> list[Group]:
    """Return the groups, by kind, task and value (numbers in it by their value).

    Tasks are groups where there are several, difficulties and subjects where a sample of the task has one.

    Args:
        by_arm: results of each arm on the same samples in the same order, full depth among them.
        seed: seed of the bootstrap.

    Raises:
        ValueError: where the arms' samples differ.
    """
    members: dict[tuple[str, str, str | None], list[int]] = defaultdict(list)
    for i, result in enumerate(by_arm[FULL]):
        for kind in KINDS:
            value = getattr(result, kind)
            members[kind, result.task, None if value is None else str(value)].append(i)
    several = len({task for _, task, _ in members}) > 1
    told = {(kind, task) for kind, task, value in members if value is not None and (kind != "task" or several)}
    ordered = sorted(
        (key for key in members if key[:2] in told),
        key=lambda key: (KINDS.index(key[0]), key[1], natural_order(key[2])),
    )
    return [
        _group(*key, {name: [results[i] for i in members[key]] for name, results in by_arm.items()}, seed)
        for key in ordered
    ]


def _group(kind: str, task: str, value: str | None, by_arm: Mapping[str, list[PolicyResult]], seed: int) -> Group:
    full = by_arm[FULL]
    arms = []
    for name, results in by_arm.items():
        arm = arm_of(results, full, seed)
        against = arm.against_full
        arms.append(
            GroupArm(
                name=name,
                n=arm.n,
                correct=arm.correct,
                accuracy=arm.accuracy,
                accuracy_interval=arm.accuracy_interval,
                no_answer=arm.no_answer,
                mean_depth=arm.mean_depth,
                mean_depth_interval=arm.mean_depth_interval,
                difference=None if against is None else against.difference,
                difference_interval=None if against is None else against.difference_interval,
            )
        )
    return Group(kind, task, value, len(full), chance_accuracy(full), tuple(arms))


def natural_order(value: str | None) -> tuple[bool, list[Any]]:
    """Return a key that sorts Level 9 before Level 10, and what has no value last."""
    if value is None:
        return True, []
    # Texts stand at even places and digits at odd ones, so that only like is compared with like.
    return False, [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]{1,18})", value))]
