"""Results files of `python -m eval` that are no results: refused when the report is rebuilt, by file and line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.records import ChainResult
from data.sample import Sample
from eval.report import REPORT_FILE, write_report
from eval.results import RESULTS_FILE, RUN_FILE, ArmResult
from router.heads.head import Decision
from router.validation import InputError, from_plain, to_plain
from tests.evaluation import World
from tests.reports import FULL, NUM_LAYERS, write_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation made by hand."""
    folder = tmp_path_factory.mktemp("made") / "out"
    write_evaluation(folder)
    (folder / REPORT_FILE).unlink()
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> World:
    """A folder with what the report is rebuilt from, to be changed."""
    return World(Path(shutil.copytree(made, tmp_path / "out")))


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, (None, None)),
        ({"difficulty": 3, "subject": "algebra", "source_id": "x"}, (3, "algebra")),
        ({"difficulty": 0.5, "subject": None}, (0.5, None)),
        ({"difficulty": True}, ("true", None)),
        ({"difficulty": ["a", 1], "subject": {"b": 2, "a": "\u00e9"}}, ('["a", 1]', '{"a": "\u00e9", "b": 2}')),
    ],
)
@pytest.mark.parametrize("prediction", [None, "no", 2])
def test_a_line_is_read_back(
    metadata: dict[str, Any], told: tuple[object, object], prediction: int | str | None
) -> None:
    # Oracle: the result itself, after a round through JSON; difficulty and subject by hand.
    choices = ("a", "b", "c") if prediction == 2 else ()
    sample = Sample("t", "test", "Why?", choices, 1 if choices else "four", metadata)
    decided = Decision(FULL, 0.0, in_scope=prediction is None, one_token=prediction == 2)
    result = ArmResult.of("full", sample, 7, ChainResult.from_answer(FULL, prediction, False), decided)
    assert from_plain(ArmResult, json.loads(json.dumps(to_plain(result))), "line", num_layers=NUM_LAYERS) == result
    assert (result.difficulty, result.subject) == told
    assert (result.in_scope, result.one_token) == (decided.in_scope, decided.one_token)
    assert (result.task, result.choices, result.prediction) == ("t", len(choices), prediction)


@pytest.mark.parametrize("name", [RUN_FILE, RESULTS_FILE])
def test_results_of_the_old_schema_are_refused(copied: World, name: str) -> None:
    # Oracle: schema 1 had no task on a line; the refusal names the file, and no report is there.
    if name == RUN_FILE:
        run = json.loads((copied.folder / name).read_text())
        assert run["schema"] == 4
        (copied.folder / name).write_text(json.dumps(run | {"schema": 1}))
    else:
        copied.edit_lines(name, lambda lines: [line.pop("task") for line in lines])
    message = "schema: expected one of 4, got 1" if name == RUN_FILE else "line 1: expected the field task, got none"
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        write_report(copied.folder)
    assert not (copied.folder / REPORT_FILE).exists()


BAD_LINES: dict[str, tuple[dict[str, Any], str]] = {
    "difficulty": ({"difficulty": [3]}, r"difficulty: expected .*, got \[3\]"),
    "depth": ({"depth": 99}, "depth: expected"),
    "scores": ({"scores": [0.0, float("nan"), 1.0]}, "finite number"),
    "another subject in one arm": ({"subject": "botany"}, "alike in all arms, got it otherwise"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_changed_line_is_refused(copied: World, case: str) -> None:
    # Oracle: one field changed by hand; the refusal names it.
    changed, message = BAD_LINES[case]
    copied.edit_lines(RESULTS_FILE, lambda lines: lines[3].update(changed))
    with pytest.raises(InputError, match=message):
        write_report(copied.folder)
