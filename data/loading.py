"""Loading: a source's rows as samples, with a count of what was left out and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.columns import lookup
from data.sample import Sample
from data.sources import Row, read_rows
from data.tasks import Task
from router.command import InputError, one_line

ON_BAD_ROW = ("stop", "skip")


@dataclass
class BadRows:
    """Rows left out for one reason.

    Attributes:
        rows: how many.
        first: the first of them: file and line, and what was expected and got.
    """

    rows: int
    first: str


@dataclass
class Loaded:
    """The samples of a source split, and what became of its rows.

    rows = samples + other_metadata + same_question + all bad rows.

    Attributes:
        samples: one a row that was kept, in the source's order.
        rows: rows read.
        other_metadata: rows whose metadata is not what `Task.keep` wants.
        same_question: rows whose question was read before, of a task with `distinct`.
        bad: rows that are no questions, by reason.
    """

    samples: list[Sample] = field(default_factory=list)
    rows: int = 0
    other_metadata: int = 0
    same_question: int = 0
    bad: dict[str, BadRows] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """Return what became of the rows, as JSON data."""
        bad = {reason: {"rows": one.rows, "first": one.first} for reason, one in self.bad.items()}
        counts = {name: getattr(self, name) for name in ("rows", "other_metadata", "same_question")}
        return {**counts, "samples": len(self.samples), "bad": bad}


def load_samples(
    task: Task, source: str, source_split: str, split: str, path: Path | None = None, on_bad_row: str = "stop"
) -> Loaded:
    """Return the samples of a source split, marked as samples of `split`.

    Args:
        task: the task.
        source: one of `data.sources.SOURCES`.
        source_split: the source's split.
        split: the samples' split.
        path: folder or file of a local source.
        on_bad_row: "stop" at a row that is no question, or "skip" and count it.

    Raises:
        InputError: where `read_rows` raises it, at a bad row (for "stop"; for "skip" where all are bad), or where no
            sample is left.
    """
    name = f"{source} split {source_split!r}" + (f" of {path}" if path is not None else "")
    rows = tqdm(read_rows(task, source, source_split, path), desc=f"{task.name} {source_split}", unit="row", delay=10)
    loaded = _converted(task, rows, split, on_bad_row)
    if not loaded.samples:
        bad = sum(one.rows for one in loaded.bad.values())
        if bad:
            first = next(iter(loaded.bad.values())).first
            raise InputError(f"{first} ({'like this all' if bad == loaded.rows else bad} of {loaded.rows} rows)")
        if loaded.other_metadata:
            raise InputError(f"keep: expected rows with {task.keep}, got none of {loaded.rows} in {name}")
        raise InputError(f"{name}: expected at least one row, got none")
    return loaded


def _converted(task: Task, rows: Iterable[Row], split: str, on_bad_row: str) -> Loaded:
    loaded = Loaded()
    questions: set[str] = set()
    by_id: dict[tuple[str, str], tuple[str, str]] = {}
    for row in rows:
        loaded.rows += 1
        try:
            question = _distinct_question(task, row)
            if question in questions:
                loaded.same_question += 1
                continue
            sample = _sample(task, row, split)
            questions |= {question} if question is not None else set()
            if not task.keeps(sample):
                loaded.other_metadata += 1
                continue
            _check_id(task, row, sample, by_id)
        except ValueError as error:
            message = f"{row.where}: {one_line(error)}"
            if on_bad_row == "stop":
                raise InputError(f"{message} (on_bad_row: skip leaves such rows out)") from error
            loaded.bad.setdefault(_reason(one_line(error)), BadRows(0, message)).rows += 1
            continue
        loaded.samples.append(sample)
    return loaded


def _distinct_question(task: Task, row: Row) -> str | None:
    """Return the question by which rows of a task with `distinct` are told apart; None: of no such task."""
    if not task.distinct or row.problem:
        return None
    question = lookup(row.values, task.columns.question)
    return question if isinstance(question, str) else None


def _sample(task: Task, row: Row, split: str) -> Sample:
    """Make a sample that can be asked and written.

    Raises:
        ValueError: where the row is none, or `Task.sample` or `Task.query` raises it.
    """
    if row.problem:
        raise ValueError(row.problem)
    sample = task.sample(row.values, split)
    task.query(sample)
    try:
        json.dumps(sample.metadata, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"columns.metadata: expected JSON values, got others ({one_line(error)})") from error
    return sample


def _check_id(task: Task, row: Row, sample: Sample, by_id: dict[tuple[str, str], tuple[str, str]]) -> None:
    """Refuse an id that stood at another content; the same content again is a repeated question."""
    given = sample.metadata.get("source_id")
    if task.columns.id is None or given is None:
        return
    content, where = by_id.setdefault((row.part, repr(given)), (sample.id, row.where))
    if content != sample.id:
        raise ValueError(
            f"column {task.columns.id!r}: expected each id once, got {given!r} again with other content than in {where}"
        )


def _reason(message: str) -> str:
    """Return what a refusal shares with others of its kind: not the row's own values."""
    field_name, colon, expected = message.partition(", got")[0].partition(": expected")
    expected = re.sub(r"\d+", "N", re.sub(r"one of .*", "one of the choices", expected))
    return re.sub(r"\[\d+\]", "", field_name) + colon + expected
