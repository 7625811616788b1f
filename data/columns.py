"""Columns: where a row of a data set keeps what makes a sample."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.answers import clean_number, last_boxed
from data.prompts import LETTERS

ANSWER_KINDS = ("label", "index", "text", "boolean", "boxed")


@dataclass(frozen=True, slots=True)
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
        metadata: columns kept with the sample, by their name there, such as `difficulty: level`. A mapping with
            `column` and `pattern` keeps the pattern's first group, and nothing where it does not match.
    """

    question: str
    answer: str
    choices: str | tuple[str, ...] | None = None
    labels: str | None = None
    id: str | None = None
    context: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Refuse what is not a column's name."""
        names: dict[str, Any] = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if isinstance(self.choices, list | tuple):
            object.__setattr__(self, "choices", tuple(self.choices))
            names |= {f"choices[{i}]": name for i, name in enumerate(names.pop("choices"))}
        metadata = names.pop("metadata")
        if not isinstance(metadata, dict):
            raise ValueError(f"columns.metadata: expected columns by name, got {metadata!r}")
        for key, value in metadata.items():
            names[f"metadata.{key}"] = value
            if isinstance(value, dict):
                if set(value) != {"column", "pattern"}:
                    raise ValueError(f"columns.metadata.{key}: expected column and pattern, got {', '.join(value)}")
                check_pattern(value["pattern"], f"columns.metadata.{key}.pattern")
                names[f"metadata.{key}"] = value["column"]
        for key, name in names.items():
            optional = key in ("choices", "labels", "id", "context") and name is None
            if not (isinstance(name, str) and name) and not optional:
                raise ValueError(f"columns.{key}: expected a column's name, got {name!r}")

    def names(self) -> set[str]:
        """Return the columns that are read of a row."""
        choices = (self.choices,) if isinstance(self.choices, str) else self.choices or ()
        kept = [value["column"] if isinstance(value, dict) else value for value in self.metadata.values()]
        named = [self.question, self.answer, self.labels, self.id, self.context, *choices, *kept]
        return {name for name in named if name is not None}

    def kept_metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a row goes with its sample; the row's id is `source_id`."""
        metadata: dict[str, Any] = {} if self.id is None else {"source_id": lookup(row, self.id)}
        for key, value in self.metadata.items():
            metadata[key] = _matched(row, value) if isinstance(value, dict) else lookup(row, value)
        return metadata


def check_pattern(pattern: Any, where: str) -> None:
    """Refuse what is no regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, TypeError) as error:
        raise ValueError(f"{where}: expected a regular expression, got {pattern!r} ({error})") from error
    if groups < 1:
        raise ValueError(f"{where}: expected a regular expression with a group, got {pattern!r}")


def _matched(row: Mapping[str, Any], rule: Mapping[str, str]) -> int | str | None:
    match = re.search(rule["pattern"], str(lookup(row, rule["column"])))
    if match is None:
        return None
    return int(match.group(1)) if match.group(1).isdecimal() else match.group(1)


def choices_of(row: Mapping[str, Any], columns: Columns, fixed: tuple[str, ...]) -> tuple[str, ...]:
    """Return a row's choices; none where the answer is free."""
    if columns.choices is None:
        return fixed
    if not isinstance(columns.choices, str):
        return tuple(text_at(row, name).strip() for name in columns.choices)
    return tuple(text.strip() for text in texts_at(row, columns.choices))


def chosen(row: Mapping[str, Any], columns: Columns, kind: str, choices: tuple[str, ...]) -> int:
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


def free_answer(row: Mapping[str, Any], columns: Columns, kind: str, pattern: str | None) -> str:
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
    """Return a column's value.

    Raises:
        ValueError: where the row has no such column.
    """
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
