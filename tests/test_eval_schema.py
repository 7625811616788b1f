"""The report's schema: real reports fit it, and what does not is refused with field, expected and got."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from eval.report import REPORT_FILE, SCHEMA
from eval.schema import SCHEMA_FILE, report_schema, validate_report
from router.validation import InputError
from tests.evaluation import World, finished  # noqa: F401
from tests.report_fields import PAGE, with_tables
from tests.reports import NUM_LAYERS, write_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of an evaluation made by hand, as it is read back; tests never change it."""
    folder = tmp_path_factory.mktemp("made") / "eval"
    write_evaluation(folder)
    report: dict[str, Any] = json.loads((folder / REPORT_FILE).read_bytes())
    return report


def parts(schema: Any, path: str = "schema") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema that describes a value, with its path."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield from ((f"{path}.{name}", field) for name, field in schema["properties"].items())
        for name, inner in schema.items():
            yield from parts(inner, f"{path}.{name}")
    elif isinstance(schema, list):
        for i, inner in enumerate(schema):
            yield from parts(inner, f"{path}[{i}]")


def test_the_schema_is_one_and_describes_every_field() -> None:
    # Oracle: the metaschema of JSON Schema 2020-12.
    schema = report_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"]["const"] == SCHEMA
    fields = {path: field for path, field in parts(schema) if ".allOf" not in path}
    assert len(fields) > 100
    assert [path for path, field in fields.items() if not field.get("description", "").strip()] == []
    assert SCHEMA_FILE.is_file()


def test_reports_fit_the_schema(made: dict[str, Any], finished: World) -> None:
    # Real reports: one made by hand, one of a real evaluation with all arms and controls.
    real = json.loads((finished.out / REPORT_FILE).read_bytes())
    assert all(value is not None for value in (*real["baselines"].values(), real["controls"]))
    for report in (made, real):
        validate_report(report)
        # The schema leaves nothing out either: every field of the report stands in it.
        assert set(report) == set(report_schema()["properties"])


ABSENT = object()
NAN = float("nan")


def change(report: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with another value at a path such as `arms/0/n`, or without it."""
    changed = copy.deepcopy(report)
    *way, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    place: Any = changed
    for part in way:
        place = place[part]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return changed


BAD = [
    ("schema", 2, "expected schema 4, got 2"),
    ("schema", 3.0, "expected schema 4, got 3.0"),
    ("schema", True, "expected schema 4, got True"),
    ("schema", ABSENT, "expected schema 4, got None"),
    ("n", ABSENT, "report: expected the field 'n', got none"),
    ("n", 0, "n: expected at least 1, got 0"),
    ("n", "12", "n: expected integer, got '12'"),
    ("n", True, "n: expected integer, got True"),
    ("extra", 1, "report: expected only known fields, got 'extra'"),
    ("arms/1/accuracy", NAN, "arms[1].accuracy: expected a finite number, got nan"),
    ("arms/1/mean_depth", float("inf"), "arms[1].mean_depth: expected a finite number, got inf"),
    ("static/candidates/0/share", -float("inf"), "static.candidates[0].share: expected a finite number, got -inf"),
    ("arms/1/accuracy", 1.5, "arms[1].accuracy: expected at most 1, got 1.5"),
    ("arms/1/accuracy", None, "arms[1].accuracy: expected number, got None"),
    ("arms/1/mean_depth", 0, "arms[1].mean_depth: expected more than 0, got 0"),
    ("arms/1/accuracy_interval", [0.1], "arms[1].accuracy_interval: expected at least 2 entries, got [0.1]"),
    ("arms/1/best", 1, "arms[1]: expected only known fields, got 'best'"),
    ("arms/1/flops_ratio", ABSENT, "arms[1]: expected the field 'flops_ratio', got none"),
    ("arms/1/against_full/difference", -2, "arms[1].against_full.difference: expected at least -1, got -2"),
    ("arms/1/against_full/mcnemar_p", ABSENT, "arms[1].against_full: expected the field 'mcnemar_p', got none"),
    ("arms/1/against_full", 3, "arms[1].against_full: expected object, got 3"),
    ("arms/2/name", "router@", "arms[2].name: expected text like"),
    ("arms/0/name", "router@1", 'arms: expected an entry of {"name": "full"}, got none'),
    ("arms", [], 'arms: expected an entry of {"name": "full"}, got none'),
    ("groups/0/arms", [], "groups[0].arms: expected at least 5 entries, got []"),
    ("groups/0/kind", "colour", "groups[0].kind: expected 'task' or 'difficulty' or 'subject', got 'colour'"),
    ("results_sha256", "f" * 63, "results_sha256: expected text like"),
    ("inputs/data\\test", "x", "inputs.data\\test: expected text like"),
    ("inputs", {}, "inputs: expected the field 'data/test', got none"),
    ("task", "", "task: expected text of at least 1 characters, got ''"),
    ("router_against/luck", {}, "router_against: expected text like"),
    ("baselines/early_exit", {"layer": 0}, "baselines.early_exit"),
    ("latency", {"device": "cpu"}, "latency: expected the field 'dtype', got none"),
    ("controls", {"luck": 3}, "controls"),
    ("notes", [1], "notes[0]: expected string, got 1"),
    # Of the right form, but at odds with itself:
    ("arms/2/name", "router", "arms[2].name: expected each arm once, got 'router' again"),
    ("arms/1/n", 11, "arms[1].n: expected 12, got 11"),
    ("arms/1/correct", 3, "arms[1].accuracy: expected 3 / 12, got 0.58"),
    ("arms/1/no_answer", 6, "arms[1].correct: expected with no_answer at most 12 samples, got 7 + 6"),
    ("arms/1/accuracy_interval", [0.9, 0.95], "arms[1].accuracy_interval: expected an interval around 0.58"),
    ("groups/1/arms/0/n", 12, "groups[1].arms[0].n: expected 6, got 12"),
    ("model/num_layers", NUM_LAYERS + 1, "layer_use.full.mean_runs: expected a value for each of 5 layers, got 4"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    BAD,
    ids=[f"{path}={'absent' if value is ABSENT else value}" for path, value, _ in BAD],
)
def test_what_does_not_fit_is_refused_with_field_expected_and_got(
    made: dict[str, Any], path: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        validate_report(change(made, path, value), "the report")
    text = str(caught.value)
    assert text.startswith("the report: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("value", [None, [], "report", 3, NAN])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="expected a JSON object"):
        validate_report(value)


def test_any_single_field_that_is_missing_is_refused(made: dict[str, Any]) -> None:
    # Property: no field of a closed object can be left out.
    def places(value: Any, way: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                yield (*way, name)
            if isinstance(inner, (dict, list)) and name not in ("settings", "versions", "static", "baselines"):
                yield from places(inner, (*way, name))

    optional = {("router_against",), ("layer_use",), ("inputs",)}  # what stands there depends on arms and files
    every = [way for way in places(made, ()) if way[:-1] not in optional and len(way) < 4]
    assert len(every) > 100
    for way in every:
        changed = copy.deepcopy(made)
        place: Any = changed
        for part in way[:-1]:
            place = place[part]
        del place[way[-1]]
        with pytest.raises(InputError, match="expected"):
            validate_report(changed)


def test_towers_of_values_in_open_parts_do_not_topple_the_check(made: dict[str, Any]) -> None:
    # Deeper than Python's recursion: a report that was built, or read by another parser.
    tower: Any = NAN
    for _ in range(100_000):
        tower = [tower]
    with pytest.raises(InputError, match="expected a finite number, got nan") as caught:
        validate_report(made | {"static": made["static"] | {"more": tower}})
    assert len(str(caught.value)) < 400


def test_the_documented_fields_are_those_of_the_schema() -> None:
    # Oracle: the schema; `python -m tests.report_fields` writes the tables.
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_tables(text)
