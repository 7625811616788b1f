"""`python -m train.sweep` on a tiny model: every combination is a training of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.command import run_command
from router.storage import load_router
from search.__main__ import main as search
from tests.tiny import write_project
from train.__main__ import main as train
from train.sweep import SWEEP_FILE, main


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("sweep"), train=20, validation=10)
    search(
        [
            f"--data={folder / 'data'}", f"--out={folder / 'records'}", f"--model={folder / 'model'}",
            "--splits=[train,validation]", "--prefix_layers=2", "--dtype=float32", "--search.simulations=6",
        ]
    )  # fmt: skip
    (folder / "train.yaml").write_text(
        f"out: {folder / 'unused'}\ndata: {{data: {folder / 'data'}, records: {folder / 'records'}, "
        f"base_model: {folder / 'model'}}}\ntrainer: {{max_epochs: 2, enable_progress_bar: false}}\n"
        "tracking: {mode: disabled}\n"
    )
    return folder


def arguments(project: Path, out: Path, vary: str) -> list[str]:
    return [f"--train={project / 'train.yaml'}", f"--out={out}", f"--vary={vary}"]


def test_a_sweep_trains_each_combination_as_a_training_alone_would(project: Path, tmp_path: Path) -> None:
    # Oracle: the training command with the same settings.
    main(arguments(project, tmp_path / "s", "{model.hidden: [4, 8], seed_everything: [0, 1]}"))
    told = json.loads((tmp_path / "s" / SWEEP_FILE).read_text())
    assert [run["settings"] for run in told["runs"]] == [
        {"model.hidden": hidden, "seed_everything": seed} for hidden in (4, 8) for seed in (0, 1)
    ]
    train([f"--config={project / 'train.yaml'}", f"--out={tmp_path / 'r'}", "--model.hidden=8", "--seed_everything=1"])
    last = Path(told["runs"][-1]["router"])
    assert (last / "router.safetensors").read_bytes() == (tmp_path / "r" / "router.safetensors").read_bytes()
    assert load_router(last).config.head_settings["hidden"] == 8
    assert [one["settings"] for one in told["summary"]] == [{"model.hidden": 4}, {"model.hidden": 8}]
    depths = [run["validation"]["mean_depth"] for run in told["runs"][:2]]
    assert told["summary"][0]["mean"]["mean_depth"] == pytest.approx(sum(depths) / 2)
    assert told["summary"][0]["deviation"]["mean_depth"] == pytest.approx(abs(depths[0] - depths[1]) / 2**0.5)


def test_a_stopped_sweep_goes_on(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(project, tmp_path / "s", "{data.limit: [5]}"))
    before = json.loads((tmp_path / "s" / SWEEP_FILE).read_text())["runs"]
    capsys.readouterr()
    main(arguments(project, tmp_path / "s", "{data.limit: [5, 15]}"))
    assert capsys.readouterr().out.count("already") == 1
    assert json.loads((tmp_path / "s" / SWEEP_FILE).read_text())["runs"][0] == before[0]


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        ("{}", "vary: expected settings with values to try"),
        ("{model.hidden: []}", "vary: expected settings with values to try"),
        ("{out: [a]}", "which the sweep sets"),
        ("{model.hiden: [4]}", "model.hiden"),
        ("{model.hidden: [0]}", "hidden: expected at least 1, got 0"),
    ],
)
def test_a_bad_sweep_gets_one_line(
    project: Path, tmp_path: Path, vary: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, arguments(project, tmp_path / "s", vary)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
