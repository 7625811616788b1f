"""`python -m data accuracy` and `profile` on a tiny mixture: figures by hand, kills, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.__main__ import main
from data.accuracy import Answered, accuracies
from data.profile import observe
from data.sample import read_samples, write_samples
from data.scoring import ChainScorer
from data.tasks import read_tasks
from router.command import run_command
from router.engine.load import load_model
from tests.sums import SUMS, sums, write_sums
from tests.test_data_exact import FULL, greedy
from tests.tiny import tiny_samples


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sums(tmp_path_factory.mktemp("sums"), count=30, letters=10)


def arguments(project: Path, out: Path, command: str, **changes: object) -> list[str]:
    settings = {"data": project / "data", "out": out, "model": project / "model", "split": "train", "dtype": "float32"}
    return [command, *(f"--{name}={value}" for name, value in (settings | changes).items())]


def test_each_task_is_measured_in_both_modes_and_by_difficulty(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: uncached greedy decoding by hand; the count of samples by task and difficulty.
    assert run_command(main, arguments(project, tmp_path, "accuracy")) == 0
    value = json.loads((tmp_path / "accuracy.json").read_text())
    groups = {(one["task"], one["mode"], one["difficulty"]): one for one in value["accuracy"]}
    assert {key for key in groups if key[2] is None} == {
        ("arc_easy", "letter", None),
        ("sums", "exact", None),
        ("sums", "generate", None),
    }
    assert [groups["sums", "exact", level]["n"] for level in (0, 1, 2)] == [10, 10, 10]
    model, tokenizer = load_model(str(project / "model"))
    scorer = ChainScorer(model, tokenizer, read_tasks(project / "data"))
    exact, generated, unread = 0, 0, 0
    for sample in sums("train", 30):
        encoded = scorer.encode(sample)
        text = tokenizer.decode(greedy(model, encoded.prompt, FULL, SUMS.max_new_tokens))
        exact += text.startswith(f"{sample.answer}\n")
        generated += text.split("\n")[0] == sample.answer and "\n" in text
        unread += not text.split("\n")[0] or "\n" not in text
    assert groups["sums", "exact", None]["correct"] == exact
    assert groups["sums", "generate", None]["correct"] == generated > 0
    assert groups["sums", "generate", None]["no_answer"] == unread > 0
    letters = groups["arc_easy", "letter", None]
    assert letters["chance"] == pytest.approx(sum(1 / len(s.choices) for s in tiny_samples("train", 10)) / 10)
    low, high = letters["interval"]
    assert 0 <= low <= letters["correct"] / 10 <= high <= 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("sums")]
    assert next(row[:4] for row in rows) == ["sums", "exact", "all", "30"]


def test_a_stopped_measurement_goes_on(project: Path, tmp_path: Path) -> None:
    # Oracle: the answers of an unbroken run; the lines that a killed run left are kept as they are.
    whole, broken = tmp_path / "a", tmp_path / "b"
    assert run_command(main, arguments(project, whole, "accuracy", batch_samples=4)) == 0
    shutil.copytree(whole, broken)
    lines = (broken / "results.jsonl").read_text().splitlines(keepends=True)
    changed = next(i for i, line in enumerate(lines) if isinstance(json.loads(line)["prediction"], str))
    lines[changed] = json.dumps(json.loads(lines[changed]) | {"prediction": "kept as it is"}) + "\n"
    (broken / "results.partial.jsonl").write_text("".join(lines[: changed + 5]) + lines[changed + 5][:9])
    for name in ("results.jsonl", "accuracy.json"):
        (broken / name).unlink()
    assert run_command(main, arguments(project, broken, "accuracy", batch_samples=7)) == 0
    assert (broken / "results.jsonl").read_text().splitlines(keepends=True) == lines
    values = [json.loads((folder / "accuracy.json").read_text())["accuracy"] for folder in (whole, broken)]
    assert values[0] == values[1]


def test_accuracy_by_hand() -> None:
    # Oracle: counted by hand.
    def one(i: int, mode: str, difficulty: int | None, prediction: str | None, correct: bool) -> Answered:
        return Answered(str(i), "t", mode, difficulty, 0, prediction, correct)

    answered = [
        one(0, "generate", 10, "a", True),
        one(1, "generate", 9, None, False),
        one(2, "generate", None, "b", False),
    ]
    whole, nine, ten = accuracies(answered)
    assert (whole.n, whole.correct, whole.no_answer, whole.chance, whole.difficulty) == (3, 1, 1, 0, None)
    assert (nine.difficulty, nine.n, nine.no_answer) == (9, 1, 1)
    assert (ten.difficulty, ten.n, ten.correct) == (10, 1, 1)


def test_the_profile_of_a_mixture_is_that_of_its_observations(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the observations of one unbroken pass, in the samples' order; a second run changes nothing.
    words = arguments(project, tmp_path, "profile", resamples=20, folds=4, components=4)
    assert run_command(main, words) == 0
    value = json.loads((tmp_path / "profile.json").read_text())["profile"]
    assert [layer["read_layer"] for layer in value["layers"]] == [1, 2, 3, 4]
    assert value["samples"] == 40
    assert (tmp_path / "profile.png").stat().st_size > 5000
    assert "suggestion:" in capsys.readouterr().out
    model, tokenizer = load_model(str(project / "model"))
    samples = read_samples(project / "data" / "train.jsonl")
    seen = observe(ChainScorer(model, tokenizer, read_tasks(project / "data")), samples, [(2,), (3,), (4,)])
    assert value["accuracy"] == pytest.approx(np.mean(seen.correct))
    kept = {tuple(one["layers"]): one["share_kept"] for one in value["skips"]}
    assert kept == {skip: pytest.approx(np.mean(array)) for skip, array in seen.kept.items()}
    assert run_command(main, words) == 0
    assert json.loads((tmp_path / "profile.json").read_text())["profile"] == value


def test_a_profile_killed_between_chunks_goes_on(project: Path, tmp_path: Path) -> None:
    # Oracle: the profile of an unbroken run; the first chunk is not made again.
    data = tmp_path / "data"
    data.mkdir()
    (data / "tasks.json").write_bytes((project / "data" / "tasks.json").read_bytes())
    write_samples(data / "train.jsonl", sums("train", 140))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model").symlink_to(project / "model")
    (folder / "data").symlink_to(data)
    quick = {"resamples": 10, "folds": 3, "components": 3}
    words = arguments(folder, tmp_path / "killed", "profile", batch_samples=2, **quick)
    process = subprocess.Popen([sys.executable, "-m", "data", *words], stderr=subprocess.DEVNULL)
    first = tmp_path / "killed" / "observations" / "000000.safetensors"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "profile.json").exists()
    made = first.stat().st_mtime_ns
    assert run_command(main, words) == 0
    assert first.stat().st_mtime_ns == made
    assert run_command(main, arguments(folder, tmp_path / "whole", "profile", **quick)) == 0
    found = [json.loads((tmp_path / name / "profile.json").read_text())["profile"] for name in ("killed", "whole")]
    for one, other in zip(found[0]["layers"], found[1]["layers"], strict=True):
        assert one["correct"]["value"] == pytest.approx(other["correct"]["value"], abs=0.02)


BAD = {
    "no data": ("accuracy", {"data": "/nowhere"}, "data: expected an existing directory, got '/nowhere'"),
    "no split": (
        "accuracy",
        {"split": "dev"},
        "split: expected one of train, validation, calibration, test, got 'dev'",
    ),
    "no test split": ("accuracy", {"split": "test"}, "data: test: expected an existing file"),
    "no sample": ("accuracy", {"limit": 0}, "limit: expected at least 1, got 0"),
    "no dtype": ("accuracy", {"dtype": "int3"}, "dtype: expected one of"),
    "first skip": ("profile", {"first_skip": 5}, "first_skip: expected 1..4, got 5"),
    "too few": ("profile", {"limit": 10}, "folds: expected at least 4 samples each, got 10 for 5 folds"),
    "folds": ("profile", {"folds": 1}, "folds: expected at least 2, got 1"),
    "unwritable": ("profile", {"place": "/proc/profile"}, "out: expected a directory that can be written"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command, given, message = BAD[name]
    changes = dict(given)
    out = Path(changes.pop("place", tmp_path / "out"))
    assert run_command(main, arguments(project, out, command, **changes)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]


def test_another_measurement_is_never_mixed_in(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, arguments(project, tmp_path, "accuracy", limit=5)) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert run_command(main, arguments(project, tmp_path, "accuracy", limit=6)) == 2
    assert "made with another samples" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before
    quick = {"resamples": 2, "folds": 2, "components": 1, "limit": 8}
    assert run_command(main, arguments(project, tmp_path / "profile", "profile", **quick)) == 0
    assert run_command(main, arguments(project, tmp_path / "profile", "profile", **quick | {"first_skip": 3})) == 2
    assert "of another first_skip" in capsys.readouterr().err
