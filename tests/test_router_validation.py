"""Refusals in the house's sentence. Oracle: ten examples written by hand."""

from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from router.chain import Chain
from router.validation import (
    SETTINGS,
    STORED,
    ChainField,
    InputError,
    Positive,
    Share,
    describe,
    from_plain,
    parse_json,
    parse_yaml,
    to_plain,
)


@dataclass(frozen=True, config=STORED)
class Inner:
    """Inside.

    Attributes:
        share: a share.
        path: a place.
    """

    share: Share = 0.5
    path: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.share == 0.25:
            raise ValueError(f"share: expected another, got {self.share}")
        return self


@dataclass(frozen=True, config=STORED)
class Example:
    """An example.

    Attributes:
        chain: a chain.
        size: a size.
        kind: a kind.
        answer: a number or text.
        inner: what stands inside.
    """

    chain: ChainField
    size: Positive
    kind: Literal["a", "b"] = "a"
    answer: int | str | None = None
    inner: tuple[Inner, ...] = ()


GOOD = {"chain": [0, 2], "size": 3}


def test_plain_data_come_back_as_they_were_and_a_missing_field_is_named() -> None:
    made = from_plain(Example, GOOD, num_layers=3)
    assert made.chain == Chain((0, 2), 3)
    assert to_plain(made) == {**GOOD, "kind": "a", "answer": None, "inner": []}
    assert from_plain(Example, to_plain(made), num_layers=3) == made
    with pytest.raises(InputError, match="expected the field size, got none"):
        from_plain(Example, {"chain": [0]}, num_layers=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"size": "3"}, "size: expected an integer, got '3'"),
        ({"size": 2.0}, "size: expected an integer, got 2.0"),
        ({"size": True}, "size: expected an integer, got True"),
        ({"kind": "c"}, "kind: expected one of a, b, got 'c'"),
        ({"other": 1}, "expected no field other, got one"),
        ({"inner": [{"share": 0.1}, {"share": 2.0}]}, "inner[1].share: expected at most 1, got 2.0"),
        ({"inner": [{"share": 0.25}]}, "inner[0].share: expected another, got 0.25"),
        ({"inner": [{"path": 5}]}, "inner[0].path: expected text, got 5"),
        ({"chain": [0, 3]}, "layers[1]: expected an integer in 0..2, got 3"),
        ({"chain": "0,3"}, "chain: expected a list of layer indices, got '0,3'"),
        ({"answer": [1]}, "answer: expected an integer, got [1]"),
    ],
)
def test_a_refusal_names_field_bound_and_value(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_plain(Example, GOOD | change, "f.jsonl, line 7", num_layers=3)
    assert str(caught.value).endswith(said)
    assert str(caught.value).startswith("f.jsonl, line 7: ")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Positive, "an integer of at least 1"),
        (Positive | None, "an integer of at least 1, or null"),
        (Annotated[float, Field(gt=0, lt=1)], "a number above 0 and below 1"),
        (Literal["x", "y"], "one of x, y"),
        (tuple[Share, ...], "a list, each entry a number of at least 0 and of at most 1"),
        (Path | None, "a path, or null"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert describe(annotation) == words


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"^f: expected each key once, got 'a' twice"):
        parse_json('{"b": {"a": 1, "a": 1}}', "f")
    with pytest.raises(InputError, match=r"^f, line 3: expected each key once, got 'a' twice"):
        parse_yaml("x:\n  - a: 1\n    a: 2\n", "f")
    assert parse_yaml("x: &d {a: 1}\ny:\n  <<: *d\n  a: 2\n", "f") == {"x": {"a": 1}, "y": {"a": 2}}


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "{", "", "[" * 10_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^f: expected"):
        parse_json(text, "f")


def test_settings_take_whole_numbers_for_fractions() -> None:
    @dataclass(frozen=True, config=SETTINGS)
    class Settings:
        """Settings.

        Attributes:
            share: a share.
        """

        share: Share = 0.5

    assert Settings(share=1).share == 1.0
