"""`python -m router new` and `run` from nothing to a report, killed, stopped and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

from data.__main__ import main as data
from router.__main__ import main
from router.files import sha256_file
from router.steps import STEPS
from search.__main__ import main as search
from tests.conftest import Refusal
from tests.newcomer import write_desk
from train.__main__ import main as train

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
# Here the commands' modules are imported already when they are run.
pytestmark = pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
RESULTS = ("data/train.jsonl", "table/train.jsonl", "table/test.jsonl", "router/router.safetensors")


def start(desk: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "router", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=desk, env=ENVIRONMENT, text=True, **pipes)


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} did not come: {lines}")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_desk(tmp_path_factory.mktemp("desk"))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.chdir(folder)
        main(["new", "--model=./model", "--task=quiz.yaml", "--path=rows", "--out=run"])
    assert printed.getvalue().rstrip().endswith("python -m router run run")
    return folder


def test_a_killed_run_goes_on_to_the_report(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the commands given one by one, each file to the byte; the order of the steps as they are written down.
    with start(desk, "run", "run") as process:
        read_until(process, "4/6")
        process.kill()
    assert (desk / "run" / "table" / "test.jsonl").exists()
    assert not (desk / "run" / "router" / "train.json").exists()
    monkeypatch.chdir(desk)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main(["run", "run"])
    printed = capsys.readouterr().out
    steps = [step for step in STEPS if (desk / "run" / step.config).exists()]
    said = [f"{i}/6  {step.does}: python -m {' '.join(step.command(Path('run')))}" for i, step in enumerate(steps, 1)]
    assert [line for line in printed.splitlines() if "/6  " in line] == said
    assert sum(line.startswith("made: run") for line in printed.splitlines()) == 6
    assert "run/data: the splits are there already" in printed
    assert "0 samples to search, 126 of 126 are finished" in printed
    arms = [arm["name"] for arm in json.loads((desk / "run" / "eval" / "report.json").read_text())["arms"]]
    assert {"full", "router", "guarantee", "mixture"} <= set(arms)
    records = [json.loads(line) for line in (desk / "run" / "table" / "train.jsonl").read_text().splitlines()]
    assert {record["executed_layers"] for record in records} == {5}  # as `new` reckons: 4 first ones and 1

    for config in (desk / "run").glob("*.yaml"):
        (desk / "hand").mkdir(exist_ok=True)
        (desk / "hand" / config.name).write_text(config.read_text().replace(" run/", " hand/"))
    with redirect_stdout(StringIO()):
        for command, step in zip((data, search, search, train), steps[:4], strict=True):
            command(step.command(Path("hand"))[1:])
    for name in RESULTS:
        assert sha256_file(desk / "run" / name) == sha256_file(desk / "hand" / name), name


@pytest.mark.parametrize("folder", ["demo", "small"])
def test_the_shipped_folders_are_ones_that_run_takes(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: each command's own parser; no config lies there that no step names.
    monkeypatch.chdir(ROOT)
    files = {path.name for path in (ROOT / "configs" / folder).glob("*.yaml")} - {"curves.yaml"}
    steps = [step for step in STEPS if step.config in files]
    assert {step.config for step in steps} == files
    assert {step.config for step in STEPS if step.needed} <= files
    for step in steps:
        words = step.command(Path("configs") / folder)
        package = import_module(f"{words[0]}.__main__")
        with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit) as ended:
            package.main([*words[1:], "--print_config"])
        assert ended.value.code in (0, None)
        assert f"{step.made}: runs/{folder}" in printed.getvalue()


def test_ctrl_c_ends_it_with_one_line(desk: Path) -> None:
    process = start(desk, "run", "run")
    read_until(process, "1/6")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: finished work is saved; run the same command again to go on" in error
    assert "Traceback" not in error


def test_the_first_step_that_fails_ends_it_with_its_status(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    broken = desk / "broken"
    broken.mkdir()
    for config in (desk / "run").glob("*.yaml"):
        (broken / config.name).write_text(config.read_text())
    (broken / "menu.yaml").write_text("kind: subsets\nout: broken/menu.json\nfirst_editable: 9\nmodel: ./model\n")
    monkeypatch.chdir(desk)
    with pytest.raises(SystemExit) as ended:
        main(["run", "broken"])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2
    assert "error: first_editable: expected 1..4, got 9" in error
    assert "stopped at step 2" in error
    assert "2/6" in printed
    assert "3/6" not in printed
    (broken / "eval.yaml").unlink()
    line = refusal(main, ["run", "broken"], alone=True)
    assert line.startswith("error: folder: expected a folder of settings, as python -m router new writes one, got")
