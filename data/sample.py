"""One question of a task, independent of any model."""

from __future__ import annotations

import hashlib
import json
import operator
import re
import unicodedata
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from data.manifest import require_as_prepared
from router.files import read_json_lines, require_file, write_text
from router.validation import STORED, InputError, from_plain, to_plain

SCHEMA = 1
"""Version of the sample file's format."""
Mode = Literal["continuation", "letter", "exact", "generate"]
"""How a chain is scored on a sample (`Task`)."""
Split = Literal["train", "validation", "calibration", "test"]
"""The side of a split on which a sample stands."""
SPLITS: tuple[Split, ...] = get_args(Split)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected text, got {text!r}") from error
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(f"expected text, got {text!r}")
    return text


AnyText = Annotated[str, AfterValidator(_encodable)]
"""Text that can be written as UTF-8: no half of a surrogate pair."""
Text = Annotated[AnyText, AfterValidator(_not_blank)]
"""Text that is not blank, and can be written as UTF-8."""


@dataclass(frozen=True, slots=True, config=STORED)
class Sample:
    """One question, multiple-choice or with a free answer.

    Attributes:
        task: name of the task, for example "arc_easy".
        split: the split that it stands in.
        question: question text as in the data set.
        choices: answer texts, at least two, all different; empty where the answer is free.
        answer: index of the right choice, or the right answer's text where there are no choices.
        metadata: what the data set says besides (source id, difficulty, subject), JSON values.
        context: text that the question is about; empty: none.
        images: names of the pictures that it is about, files in `images/` beside the sample file (`data.pictures`).
        aliases: other texts that count as the right answer, where it is free and generated. Left out of files where
            there are none.
    """

    task: Text
    split: Split
    question: Text
    choices: tuple[Text, ...]
    answer: Text | int
    metadata: dict[str, Any] = field(default_factory=dict)
    context: AnyText = ""
    images: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.png$")], ...] = ()
    aliases: Annotated[tuple[Text, ...], Field(exclude_if=operator.not_)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse choices and an answer that do not fit each other."""
        if not self.choices:
            if not isinstance(self.answer, str):
                raise ValueError(f"answer: expected text, got {self.answer!r}")
            return self
        if self.aliases:
            raise ValueError("aliases: expected none beside choices, got some")
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"choices: expected at least two different texts, got {list(self.choices)!r}")
        if not isinstance(self.answer, int) or not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer: expected an index in 0..{len(self.choices) - 1}, got {self.answer!r}")
        return self

    @property
    def gold(self) -> str:
        """Text of the right answer."""
        return self.answer if isinstance(self.answer, str) else self.choices[self.answer]

    def label(self, name: str) -> str | int | float | None:
        """Return a metadata value by which samples are grouped; true, false, a list or an object as text."""
        value = self.metadata.get(name)
        if isinstance(value, bool | list | dict):
            return json.dumps(value, ensure_ascii=False, sort_keys=True)
        label: str | int | float | None = value
        return label

    @property
    def id(self) -> str:
        """Stable hash of task and content (not of split or metadata): 16 hex digits."""
        parts = [self.task, self.question, list(self.choices), self.answer, *([self.context] if self.context else [])]
        parts += [list(extra) for extra in (self.images, self.aliases) if extra]
        content = json.dumps(parts, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def split_hash(self) -> str:
        """SHA-256 of the split key, 16 hex digits: what a router remembers of the questions that it was trained on."""
        return hashlib.sha256(self.split_key.encode()).hexdigest()[:16]

    @property
    def split_key(self) -> str:
        """Normalised question text and pictures: samples that share it, in any task, stand on one side of a split."""
        return " ".join([normalise_question(self.question), *self.images])


def normalise_question(text: str) -> str:
    """Fold case, accents' encoding, punctuation and white space, so that reprints of a question agree.

    Letters, digits, marks and symbols stay, and so do `-`, `*`, `/`, `%` and `^` before a digit: they make other
    questions of the same words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = _SIGN.sub(_as_symbol, folded)
    words = "".join(
        char if char in _SIGNS.values() or unicodedata.category(char)[0] in "LNMS" else " " for char in kept
    )
    # A sign that is a symbol itself (^) can come to stand before a digit only now.
    return " ".join(_SIGN.sub(_as_symbol, words).split()) or " ".join(folded.split())


_SIGN = re.compile(r"[-*/%^](?=\s*\d)")
_SIGNS = {"-": "\u2212", "*": "\u00d7", "/": "\u00f7", "%": "\u2030", "^": "\u2191"}


def _as_symbol(match: re.Match[str]) -> str:
    return f" {_SIGNS[match.group()]} "


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write samples as JSON Lines, one object a line with the schema version and the id; complete or absent."""
    lines = (json.dumps({"schema": SCHEMA, "id": s.id, **to_plain(s)}, ensure_ascii=False) for s in samples)
    write_text(path, "".join(line + "\n" for line in lines))


def read_samples(path: Path, setting: str = "samples") -> list[Sample]:
    """Read a sample file.

    Raises:
        InputError: where the file is missing, empty, of another schema, or not the one that the manifest beside it
            names, or a line is corrupt; names file and line.
    """
    require_file(path, setting)
    samples: list[Sample] = []
    seen: set[str] = set()
    for number, value in read_json_lines(path):
        where = f"{path}, line {number}"
        if value.pop("schema", None) != SCHEMA:
            raise InputError(f"{where}: expected a sample of schema {SCHEMA}")
        stored = value.pop("id", None)
        sample = from_plain(Sample, value, where)
        if stored != sample.id:
            raise InputError(f"{where}: expected id {sample.id} for this content, got {stored!r}")
        if sample.id in seen:
            raise InputError(f"{where}: expected each sample once, got {sample.id} again")
        seen.add(sample.id)
        samples.append(sample)
    if not samples:
        raise InputError(f"{setting}: expected at least one sample, got the empty split {str(path)!r}")
    require_as_prepared(path, f"{len(samples)} lines")
    return samples
