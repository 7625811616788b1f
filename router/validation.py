"""What is validated is a pydantic dataclass; here its first error becomes one line: `field: expected ..., got ...`.

Bounds stand in the types (`Positive`, `Share`, `Literal[...]`), so a settings class, a file's line and the tables of
docs/formats.md say the same. What no type says is said by a `model_validator` that raises `ValueError`.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    WrapSerializer,
)

from router.chain import Chain

T = TypeVar("T")

SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False)
"""For settings: Python values of the annotated types, finite numbers; whole numbers pass for fractions."""
STORED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""For what stands in files: JSON's types as they are, no text for a number and no 1.0 for 1."""

Count = Annotated[int, Field(ge=0)]
"""A whole number of at least 0."""
Positive = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number in 0..1."""
NotNegative = Annotated[float, Field(ge=0)]
"""A number of at least 0."""


class InputError(ValueError):
    """Bad input of the user's: one line that says what was expected and what came."""


class UnfinishedError(Exception):
    """Work of which a part could not be done, though its input is good; one line that says which part, and why."""


def _as_chain(value: object, info: ValidationInfo) -> Chain:
    if isinstance(value, Chain):
        return value
    layers = (info.context or {}).get("num_layers")
    if not isinstance(layers, int):
        raise ValueError("chain: expected the number of the model's layers beside it, got none")
    return Chain.from_json(value, layers)


def _to_list(value: Chain, _: SerializerFunctionWrapHandler) -> list[int]:
    return value.to_json()


ChainField = Annotated[
    Chain,
    BeforeValidator(_as_chain),
    WrapSerializer(_to_list),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}),
]
"""A chain, in files the list of its layer indices; reading it needs `num_layers` (see `from_plain`)."""


_adapters: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's reader and writer of a type, made once."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_plain(value: Any) -> Any:
    """Return a validated value as JSON data, fields in their order."""
    return adapter(type(value)).dump_python(value, mode="json")


def from_plain(kind: type[T], value: Any, where: str = "", *, num_layers: int | None = None) -> T:
    """Make a validated value of JSON data.

    Args:
        kind: a pydantic dataclass.
        value: JSON data, as `parse_json` returns it.
        where: file and line, with which the message of a refusal begins; empty: nothing.
        num_layers: layers of the model whose chains stand in it; None: there are none.

    Raises:
        InputError: where a field is missing, unknown or out of its bounds; the message names it.
    """
    try:
        # JSON text and not Python data: only so do strict types take a list for a tuple.
        made: T = adapter(kind).validate_json(json.dumps(value), context={"num_layers": num_layers})
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error)}" if where else explain(error)) from error
    return made


def explain(error: ValidationError) -> str:
    """Return the first thing that a type refused as `field: expected ..., got ...`."""
    first = error.errors(include_url=False)[0]
    place = _place(first["loc"])
    kind, given, bounds = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "missing":
        return f"expected the field {place}, got none"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        whole = [_place(first["loc"][:-1]), str(first["loc"][-1])]  # a key of the user's, whatever it looks like
        return f"expected no field {'.'.join(filter(None, whole))}, got one"
    if kind == "value_error":
        said = str(bounds["error"])
        if not place or said.startswith(place):
            return said
        if ": " not in said:
            return f"{place}: {said}"
        return f"{place}.{said}" if isinstance(given, dict) else said  # an object's check names one of its fields
    return f"{place or 'value'}: expected {_wanted(kind, bounds, first['msg'])}, got {shown(given)}"


_WANTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "none_required": "null",
    "path_type": "a path",
    "string_unicode": "text",
}


def _wanted(kind: str, bounds: Mapping[str, Any], message: str) -> str:
    if kind in _WANTED:
        return _WANTED[kind]
    told = {
        "greater_than_equal": "at least {ge}",
        "greater_than": "above {gt}",
        "less_than_equal": "at most {le}",
        "less_than": "below {lt}",
        "literal_error": "one of {expected}",
        "too_short": "at least {min_length} entries",
        "too_long": "at most {max_length} entries",
        "string_too_short": "text that is not empty",
        "string_pattern_mismatch": "text like {pattern}",
    }.get(kind)
    if told is None:
        return message.removeprefix("Input should be ").removeprefix("Value should be ")
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in bounds.items()}
    return told.format(**values).replace("'", "").replace(" or ", ", ")


def _place(location: Sequence[int | str]) -> str:
    """Return a field's name as in `results[3].margin`; what names a member of a union is left out."""
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and part not in _UNION_WORDS:
            place += f".{part}" if place else part
    return place


_UNION_WORDS = frozenset(("int", "str", "float", "bool", "none"))


def shown(value: object) -> str:
    """Return what came as a message shows it: at most 200 characters."""
    text = repr(str(value)) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def describe(annotation: Any) -> str:
    """Return in words what a type takes, for example `an integer of at least 1, or null`."""
    origin, given = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        words = [describe(given[0])]
        for note in given[1:]:
            for bound in getattr(note, "metadata", [note]):
                words += _bound(bound)
        return _join_bounds(words)
    if origin is Literal:
        return "one of " + ", ".join(map(str, given))
    if origin in (types.UnionType, typing.Union):
        parts = [describe(part) for part in given if part is not type(None)]
        return ", or ".join([*parts, *(["null"] if type(None) in given else [])])
    if origin in (tuple, list):
        return f"a list, each entry {describe(given[0])}"
    if origin is dict:
        return "an object" if given[1] is Any else f"an object, each value {describe(given[1])}"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def _bound(bound: object) -> list[str]:
    match bound:
        case Ge():
            return [f"of at least {bound.ge}"]
        case Gt():
            return [f"above {bound.gt}"]
        case Le():
            return [f"of at most {bound.le}"]
        case Lt():
            return [f"below {bound.lt}"]
        case _:
            return []


def _join_bounds(words: Sequence[str]) -> str:
    return words[0] + (" " + " and ".join(words[1:]) if len(words) > 1 else "")


def parse_json(text: str | bytes, where: str) -> Any:
    """Read JSON; a key that stands twice in an object and numbers that are not finite are refused.

    Raises:
        InputError: where it is no such JSON; the message begins with `where`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise InputError(f"{where}: expected each key once, got {twice!r} twice")
        return found

    def finite(literal: str) -> float:
        raise InputError(f"{where}: expected finite numbers, got {literal}")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=finite)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, got something corrupt ({error})") from error


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML; a key that stands twice in a mapping is refused.

    Raises:
        InputError: where it is no such YAML; the message begins with `where`.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        _refuse_twice(node, where)
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{where}: expected YAML, got something corrupt ({' '.join(str(error).split())})") from error


def _refuse_twice(node: yaml.Node | None, where: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, where)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise InputError(f"{where}, line {line}: expected each key once, got {key.value!r} twice")
                seen.add(key.value)
            _refuse_twice(value, where)
