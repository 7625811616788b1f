"""`python -m data accuracy` on a tiny mixture: figures by hand, a stop, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.__main__ import main
from data.accuracy import Answered, accuracies
from data.tasks import read_tasks
from router.command import run_command
from tests.conftest import Refusal
from tests.sums import SUMS, sums, write_sums
from tests.test_data_scoring import greedy
from tests.tiny import FULL, scorer_of, tiny_samples


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sums(tmp_path_factory.mktemp("sums"), count=30, letters=10)


def arguments(project: Path, out: Path, **changes: object) -> list[str]:
    settings = {"data": project / "data", "out": out, "model": project / "model", "split": "train", "dtype": "float32"}
    return ["accuracy", *(f"--{name}={value}" for name, value in (settings | changes).items())]


@pytest.fixture(scope="module")
def measured(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken measurement."""
    out = tmp_path_factory.mktemp("measured")
    assert run_command(main, arguments(project, out, batch_samples=4)) == 0
    return out


def test_each_task_is_measured_in_both_modes_and_by_difficulty(project: Path, measured: Path) -> None:
    # Oracle: uncached greedy decoding by hand; the count of samples by task and difficulty.
    value = json.loads((measured / "accuracy.json").read_text())
    groups = {(one["task"], one["mode"], one["difficulty"]): one for one in value["accuracy"]}
    assert {key for key in groups if key[2] is None} == {
        ("arc_easy", "letter", None),
        ("sums", "exact", None),
        ("sums", "generate", None),
    }
    assert [groups["sums", "exact", level]["n"] for level in (0, 1, 2)] == [10, 10, 10]
    scorer = scorer_of(project, read_tasks(project / "data"))
    model, tokenizer = scorer.model, scorer.tokenizer
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


def test_a_stopped_measurement_goes_on(
    project: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the answers of an unbroken run; the lines that a killed run left are kept as they are.
    broken = tmp_path / "broken"
    shutil.copytree(measured, broken)
    lines = (broken / "results.jsonl").read_text().splitlines(keepends=True)
    changed = next(i for i, line in enumerate(lines) if isinstance(json.loads(line)["prediction"], str))
    lines[changed] = json.dumps(json.loads(lines[changed]) | {"prediction": "kept as it is"}) + "\n"
    (broken / "results.partial.jsonl").write_text("".join(lines[: changed + 5]) + lines[changed + 5][:9])
    for name in ("results.jsonl", "accuracy.json"):
        (broken / name).unlink()
    assert run_command(main, arguments(project, broken, batch_samples=7)) == 0
    assert (broken / "results.jsonl").read_text().splitlines(keepends=True) == lines
    values = [json.loads((folder / "accuracy.json").read_text())["accuracy"] for folder in (measured, broken)]
    assert values[0] == values[1]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("sums")]
    assert next(row[:4] for row in rows) == ["sums", "exact", "all", "30"]


def test_another_measurement_is_never_mixed_in(project: Path, measured: Path, refusal: Refusal) -> None:
    # Oracle: the answers' bytes before and after; the message names what differs.
    before = (measured / "results.jsonl").read_bytes()
    assert "made with another samples" in refusal(main, arguments(project, measured, limit=6))
    assert (measured / "results.jsonl").read_bytes() == before


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


BAD = {
    "no data": ({"data": "/nowhere"}, "data: expected an existing directory, got '/nowhere'"),
    "no split": ({"split": "dev"}, "split: expected one of train, validation, calibration, test, got 'dev'"),
    "no test split": ({"split": "test"}, "data: test: expected an existing file"),
    "no sample": ({"limit": 0}, "limit: expected at least 1, got 0"),
    "no dtype": ({"dtype": "int3"}, "dtype: expected one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(project: Path, tmp_path: Path, refusal: Refusal, name: str) -> None:
    changes, message = BAD[name]
    assert message in refusal(main, arguments(project, tmp_path / "out", **changes))
