"""Groups of an analysis's samples, and the one table of all its cells; no files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.analysis.measures import measures_of
from eval.analysis.outcomes import Outcome
from eval.analysis.settings import ACTION_SETS
from eval.measures import natural_order
from router.command import plain_values


@dataclass(frozen=True)
class GroupKey:
    """Samples that have something in common.

    Attributes:
        kind: "all", "task" or "difficulty" (within its task).
        task: their task; None: all.
        value: their difficulty; None: samples that have none, of a task whose others have one; or another kind.
    """

    kind: str
    task: str | None = None
    value: str | None = None

    @property
    def label(self) -> str:
        """Its name for readers."""
        if self.kind == "difficulty":
            return f"{self.task}, difficulty {'none given' if self.value is None else self.value}"
        return self.task or "all"


def groups_of(outcomes: Sequence[Outcome]) -> dict[GroupKey, list[int]]:
    """Return the places of each group's samples: all, each task where there are several, each task's difficulties.

    Tasks stand by name, each before its difficulties, which stand in their natural order (9 before 10).
    """
    groups: dict[GroupKey, list[int]] = {GroupKey("all"): list(range(len(outcomes)))}
    tasks: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(outcomes):
        tasks[one.task].append(i)
    for task in sorted(tasks):
        if len(tasks) > 1:
            groups[GroupKey("task", task)] = tasks[task]
        levels: dict[str | None, list[int]] = defaultdict(list)
        for i in tasks[task]:
            levels[outcomes[i].difficulty].append(i)
        if set(levels) != {None}:
            for level in sorted(levels, key=natural_order):
                groups[GroupKey("difficulty", task, level)] = levels[level]
    return groups


def measured_groups(found: Sequence[Outcome], wrong: Sequence[Outcome] | None, seed: int) -> list[dict[str, Any]]:
    """Measure each group of a cell's samples; arguments as of `measures_of`."""
    told = []
    for key, places in groups_of(found).items():
        measures = measures_of([found[i] for i in places], None if wrong is None else [wrong[i] for i in places], seed)
        told.append({**plain_values(key), "label": key.label, **plain_values(measures)})
    return told


def table_of(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the one table: a row for each model, variant, split and group, a column for full depth and each search.

    Args:
        cells: the cells of analysis.json.

    Returns:
        Rows of `original` (full depth, as the first of the cells ran it) and, by action set, `oracle` shares.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: ACTION_SETS.index(cell["action_set"])):
        for group in cell["groups"]:
            named = {name: cell[name] for name in ("model", "variant", "split")}
            named |= {name: group[name] for name in ("kind", "task", "value", "label", "n")}
            row = rows.setdefault(tuple(named.values()), {**named, "original": group["original"], "oracle": {}})
            row["oracle"][cell["action_set"]] = group["oracle"]
    order = list(dict.fromkeys((cell["model"], cell["variant"], cell["split"]) for cell in cells))
    return sorted(rows.values(), key=lambda row: order.index((row["model"], row["variant"], row["split"])))
