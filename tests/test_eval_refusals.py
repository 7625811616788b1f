"""What `python -m eval` refuses: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.sample import write_samples
from eval.__main__ import main
from eval.baselines import StaticChoice
from eval.inputs import EvalSettings, read_inputs
from eval.run import CANDIDATES_FILE
from router.command import parse_settings
from tests.conftest import Refusal
from tests.evaluation import ROOT, World, finished, make_data, make_samples, vouch, world  # noqa: F401  (fixtures)
from tests.tiny import edit_json


def empty(path: Path) -> None:
    path.write_text("")


def copy_question(world: World) -> None:
    """Let a test sample have the question of a training sample, in capitals."""
    samples = make_samples()
    question = samples["train"][0].question.upper()
    samples["test"][0] = dataclasses.replace(samples["test"][0], question=question)
    make_data(world.folder / "data", samples)


def copy_to_calibration(world: World) -> None:
    sample = dataclasses.replace(make_samples()["test"][0], split="calibration")
    write_samples(world.folder / "data" / "calibration.jsonl", [sample])
    vouch(world.folder / "data")


def set_all(key: str, value: object) -> Callable[[list[dict[str, Any]]], None]:
    def change(values: list[dict[str, Any]]) -> None:
        for one in values:
            one[key] = value

    return change


def reprint(key: str) -> Callable[[list[dict[str, Any]]], None]:
    """Make records another model's, tokenizer's or prompt's."""

    def change(values: list[dict[str, Any]]) -> None:
        for one in values:
            one["fingerprints"][key] = "f" * 64

    return change


def edit_tasks(world: World, **changed: object) -> None:
    """Let the folder be prepared with another task."""
    path = world.folder / "data" / "tasks.json"
    (task,) = json.loads(path.read_text())["tasks"].values()
    path.write_text(json.dumps({"schema": 1, "tasks": {"arc_easy": task | changed}}))
    vouch(path.parent)


BEFORE_LOADING: dict[str, tuple[Callable[[World], object], str]] = {
    "no records": (lambda w: shutil.rmtree(w.folder / "records"), "records: expected an existing directory"),
    "no manifest": (lambda w: (w.folder / "data/manifest.json").unlink(), "data: expected an existing file"),
    "manifest without a split": (
        lambda w: edit_json(w.folder / "data/manifest.json", files={}),
        "manifest.json to name tasks.json, got none",
    ),
    "no test split": (lambda w: (w.folder / "data/test.jsonl").unlink(), "data: test: expected an existing file"),
    "empty split": (lambda w: empty(w.folder / "data/validation.jsonl"), "got the empty split"),
    "samples of another split": (
        lambda w: shutil.copy(w.folder / "data/train.jsonl", w.folder / "data/test.jsonl"),
        "with the SHA-256 in manifest.json, got",
    ),
    "test question in train": (copy_question, "of test in train too"),
    "test question in calibration": (copy_to_calibration, "of test in calibration too"),
    "empty records": (lambda w: empty(w.folder / "records/train.jsonl"), "expected 20 lines with SHA-256"),
    "records of other samples": (
        lambda w: w.edit_lines("records/test.jsonl", lambda v: v[3].update(sample_id="f" * 16)),
        "expected only samples of the test split",
    ),
    "records of fewer samples": (
        lambda w: w.edit_lines("records/test.jsonl", list.pop),
        "for each of 14 test samples, got none for 1 of them",
    ),
    "tasks with another prompt": (
        lambda w: edit_tasks(w, prompt={"ask": "Tell me: {question}"}),
        "expected it to be made for the prompt",
    ),
    "tasks of other samples": (
        lambda w: edit_tasks(w, name="arc_hard"),
        "data: expected samples of the tasks arc_hard, got one of arc_easy",
    ),
    "records of another task": (
        lambda w: w.edit_lines("records/test.jsonl", lambda v: v[2].update(task="boolq")),
        "expected task arc_easy in",
    ),
    "records with another target": (
        lambda w: w.edit_lines("records/test.jsonl", lambda v: v[2].update(target=(v[2]["target"] + 1) % 3)),
        "expected gold answers of the samples as targets",
    ),
    "records of a control": (
        lambda w: w.edit_lines("records/test.jsonl", set_all("reward_target", "wrong")),
        "expected reward_target gold",
    ),
    "the oracle's records as those of the control": (
        lambda w: shutil.copytree(w.folder / "records", w.folder / "wrong", dirs_exist_ok=True),
        "wrong_records: expected reward_target wrong",
    ),
    "records of another mode": (
        lambda w: w.edit_lines("records/train.jsonl", set_all("mode", "letter")),
        "expected mode continuation",
    ),
    "records of another prefix": (
        lambda w: w.edit_lines("records/test.jsonl", set_all("first_editable", 3)),
        "expected first_editable of at most 2 in",
    ),
    "records of two prefixes": (
        lambda w: w.edit_lines("records/test.jsonl", lambda v: v[5].update(first_editable=1)),
        "expected first_editable 2",
    ),
    "records of another prompt": (
        lambda w: w.edit_lines("records/test.jsonl", reprint("prompt")),
        "expected it to be made for the prompt",
    ),
    "changed router": (
        lambda w: (w.folder / "router/router.safetensors").write_bytes(b"x"),
        "with the SHA-256 in config.json",
    ),
    "out is a file": (lambda w: w.out.write_text("x"), "out: expected a directory that can be written"),
}


@pytest.mark.parametrize("case", BEFORE_LOADING)
def test_bad_files_are_refused_before_the_model_is_loaded(world: World, case: str, refusal: Refusal) -> None:
    # Oracle: one line that says so, nothing written; the model does not exist, so it cannot have been loaded.
    change, message = BEFORE_LOADING[case]
    change(world)
    (world.folder / "model").unlink()
    assert message in refusal(main, world.arguments())
    assert not world.out.is_dir()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("batch_samples", 0, "batch_samples: expected at least 1, got 0"),
        ("budget", 99, "budget: expected a mean depth in"),
        ("device", "abacus", "device: expected auto, cpu or a device"),
        ("task", "arc_easy", "--task=arc_easy"),  # the data folder says it
    ],
)
def test_bad_settings_are_refused(world: World, setting: str, value: object, message: str, refusal: Refusal) -> None:
    # Oracle: one line that names the setting, nothing written.
    assert message in refusal(main, world.arguments(**{setting: value}))
    assert not world.out.exists()


@pytest.mark.parametrize(("what", "part"), [("records", "tokenizer"), ("router", "model")])
def test_another_models_files_are_refused(world: World, what: str, part: str, refusal: Refusal) -> None:
    # Oracle: one line that names what was made for another model; no results.
    if what == "records":
        for name in ("records", "random", "wrong"):
            world.edit_lines(f"{name}/test.jsonl", reprint(part))
    else:
        path = world.folder / "router/config.json"
        edit_json(path, fingerprints=json.loads(path.read_text())["fingerprints"] | {part: "f" * 64})
    line = refusal(main, world.arguments())
    assert line.startswith(f"error: {what} ")
    assert f"made for the {part}" in line
    assert list(world.out.iterdir()) == []


def test_records_need_no_more_samples_than_are_evaluated(world: World, refusal: Refusal) -> None:
    # Oracle: records of the first five test samples alone, as of a search with the same limit.
    for name in ("records", "random", "wrong"):
        world.edit_lines(f"{name}/test.jsonl", lambda lines: lines.__delitem__(slice(5, None)))
    settings = parse_settings(EvalSettings, world.arguments(limit=5), "eval", "")[0]
    assert len(read_inputs(settings).records["test"]) == 5
    assert "for each of 6 test samples, got none for 1" in refusal(main, world.arguments(limit=6))
    world.edit_lines("records/train.jsonl", lambda lines: lines.__delitem__(slice(0, 5)))
    assert "for some of 5 train samples, got none for 5" in refusal(main, world.arguments(limit=5))


def test_a_router_that_has_seen_a_test_question_is_refused(world: World, refusal: Refusal) -> None:
    sample = make_samples()["test"][3]
    (world.folder / "router" / "trained_on.json").write_text(
        json.dumps({"split_hashes": ["0" * 16, sample.split_hash]})
    )
    message = refusal(main, world.arguments())
    assert "data: expected questions that the router" in message
    assert f"got 1 that it was, for example {sample.id}" in message


def test_a_missing_model_is_refused(world: World, refusal: Refusal) -> None:
    # Oracle: one line; no results.
    assert "model: expected" in refusal(main, world.arguments(model="./nowhere"))
    assert list(world.out.iterdir()) == []


@pytest.mark.parametrize(("setting", "value"), [("seed", 5), ("batch_samples", 6)])
def test_other_settings_never_go_on_in_the_same_folder(
    world: World, finished: World, setting: str, value: object, refusal: Refusal
) -> None:
    # Oracle: the folder's bytes before and after; the line names what differs and what to do.
    shutil.copytree(finished.out, world.out)
    before = {path.name: path.read_bytes() for path in world.out.iterdir()}
    line = refusal(main, world.arguments(model=finished.folder / "model", **{setting: value}))
    assert f"made with another {setting}; choose another folder, or remove" in line
    assert {path.name: path.read_bytes() for path in world.out.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.edit_lines("records/test.jsonl", set_all("seed", 9)),
        lambda w: edit_tasks(w, max_new_tokens=33),  # not in this mode's prompt hash, but it can decide a judgement
    ],
    ids=["records", "tasks"],
)
def test_other_inputs_never_go_on_in_the_same_folder(
    world: World, finished: World, change: Callable[[World], object], refusal: Refusal
) -> None:
    # Oracle: one line that names the inputs.
    shutil.copytree(finished.out, world.out)
    change(world)
    assert "made with another inputs" in refusal(main, world.arguments(model=finished.folder / "model"))


def test_a_corrupt_file_of_an_earlier_run_is_named(world: World, finished: World, refusal: Refusal) -> None:
    # Oracle: one line that names the file; results are kept.
    shutil.copytree(finished.out, world.out)
    kept = (world.out / CANDIDATES_FILE).read_bytes()
    (world.out / StaticChoice.FILE).write_text("no JSON\n")
    assert StaticChoice.FILE in refusal(main, world.arguments(model=finished.folder / "model"))
    assert (world.out / CANDIDATES_FILE).read_bytes() == kept
