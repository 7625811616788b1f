"""The format of `report.json`: `report.schema.json` (JSON Schema 2020-12) and what a schema cannot say.

The schema's descriptions are the documentation of every field; `docs/report.md` prints them.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from router.validation import InputError

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
ROUNDING = 1e-9
"""By how much a stored share may differ from its own counts."""
PATH_WIDTH = 120
"""Characters of a path in a message, about."""
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "minLength": "text of at least {} characters",
    "pattern": "text like {}",
    "const": "{!r}",
}
"""Keywords of the schema in words."""


@cache
def report_schema() -> dict[str, Any]:
    """Return the schema."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_bytes())
    return schema


def validate_report(report: Any, where: str = "report.json") -> None:
    """Check a report: its schema number, finite numbers, the schema, and that names and counts agree.

    Args:
        report: the parsed content.
        where: what the message calls it, such as its path.

    Raises:
        InputError: at what is wrong; the message names the field, what was expected and what came.
    """
    version = report_schema()["properties"]["schema"]["const"]
    if not isinstance(report, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(report).__name__}")
    if type(report.get("schema")) is not int or report["schema"] != version:
        raise InputError(
            f"{where}: expected schema {version}, got {reprlib.repr(report.get('schema'))}; "
            f"python -m eval writes the report of a finished run anew"
        )
    _check_finite(report, where)
    error = best_match(Draft202012Validator(report_schema()).iter_errors(report))
    if error is not None:
        raise InputError(f"{where}: {_told(error)}")
    for path, expected, got in _disagreements(report):
        raise InputError(f"{where}: {path}: expected {expected}, got {got}")


def _check_finite(report: dict[str, Any], where: str) -> None:
    """Refuse NaN and infinity, which Python reads from JSON and no bound of a schema catches."""
    unseen: list[tuple[Any, Any]] = [(report, None)]  # value, and its place: (place of what holds it, key)
    while unseen:
        value, place = unseen.pop()
        if isinstance(value, dict):
            unseen += [(item, (place, key)) for key, item in value.items()]
        elif isinstance(value, list):
            unseen += [(item, (place, i)) for i, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            parts: list[str | int] = []
            while place is not None:
                place, part = place
                parts.append(part)
            raise InputError(f"{where}: {_path(reversed(parts))}: expected a finite number, got {value}")


def _told(error: Any) -> str:
    """Return an error of jsonschema as path, what was expected and what came."""
    while error.context:
        error = next((one for one in error.context if one.validator_value != "null"), error.context[0])
    keyword, wanted, got = error.validator, error.validator_value, reprlib.repr(error.instance)
    if keyword == "required":
        missing = next(name for name in wanted if name not in error.instance)
        expected, got = f"the field {missing!r}", "none"
    elif keyword == "additionalProperties":
        expected, got = "only known fields", repr(min(set(error.instance) - set(error.schema.get("properties", {}))))
    elif keyword == "type":
        expected = " or ".join([wanted] if isinstance(wanted, str) else wanted)
    elif keyword == "enum":
        expected = " or ".join(map(repr, wanted))
    elif keyword == "contains":
        expected = f"an entry of {json.dumps({name: one['const'] for name, one in wanted['properties'].items()})}"
        got = "none"
    else:
        expected = BOUNDS.get(keyword, f"{keyword} {{}}").format(wanted)
    return f"{_path(error.absolute_path)}: expected {expected}, got {got}"


def _path(parts: Iterable[str | int]) -> str:
    """Return a path for readers, such as `arms[0].accuracy`, its middle cut out where it is long.

    The whole report is `report`.
    """
    told = (part if isinstance(part, int) or part.isprintable() else ascii(part) for part in parts)
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in told).removeprefix(".")
    if len(text) > PATH_WIDTH:
        text = f"{text[: PATH_WIDTH // 2]}...{text[-PATH_WIDTH // 2 :]}"
    return text or "report"


def _disagreements(report: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Give (path, expected, got) wherever a report of the right form contradicts itself."""
    names = [arm["name"] for arm in report["arms"]]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"arms[{i}].name", "each arm once", f"{name!r} again"
    for i, arm in enumerate(report["arms"]):
        yield from _wrong_counts(arm, f"arms[{i}]", report["n"])
    for g, group in enumerate(report["groups"]):
        if [arm["name"] for arm in group["arms"]] != names:
            yield f"groups[{g}].arms", "the report's arms in their order", "others"
        for i, arm in enumerate(group["arms"]):
            yield from _wrong_counts(arm, f"groups[{g}].arms[{i}]", group["n"])
    for field in ("router_against", "layer_use"):
        for name in report[field]:
            if name not in names:
                yield field, "arms of the report", repr(name)
    layers = report["model"]["num_layers"]
    for name, use in report["layer_use"].items():
        for field in ("mean_runs", "skip_rate", "repeat_rate"):
            if len(use[field]) != layers:
                yield f"layer_use.{name}.{field}", f"a value for each of {layers} layers", f"{len(use[field])}"


def _wrong_counts(arm: dict[str, Any], path: str, n: int) -> Iterable[tuple[str, str, str]]:
    """Give what contradicts itself in one arm's counts on `n` samples."""
    if arm["n"] != n:
        yield f"{path}.n", str(n), str(arm["n"])
    if arm["correct"] + arm["no_answer"] > n:
        yield f"{path}.correct", f"with no_answer at most {n} samples", f"{arm['correct']} + {arm['no_answer']}"
    if abs(arm["accuracy"] - arm["correct"] / n) > ROUNDING:
        yield f"{path}.accuracy", f"{arm['correct']} / {n}", str(arm["accuracy"])
    low, high = arm["accuracy_interval"]
    if not low - ROUNDING <= arm["accuracy"] <= high + ROUNDING:
        yield f"{path}.accuracy_interval", f"an interval around {arm['accuracy']}", f"{low}..{high}"
