"""`python -m search` on a tiny model: the same records at any batch size and after SIGKILL; cost; bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from data.records import SearchRecord, pareto_front, read_records
from data.scoring import ChainScorer
from data.tasks import TaskSet, load_task, write_tasks
from router.command import run_command
from router.engine.load import load_model
from search.__main__ import main
from search.actions import ActionSpace
from search.algorithms import make_searcher
from search.settings import SearchSettings
from tests.conftest import Refusal
from tests.tiny import NUM_LAYERS, save_tiny, tiny_samples, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def searched(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the train and validation splits, searched in one go; copy the folder to change it."""
    folder = tmp_path_factory.mktemp("searched")
    main(arguments(project, folder, splits="[train,validation]"))
    return folder


def arguments(project: Path, folder: Path, **changes: object) -> list[str]:
    settings = {
        "data": project / "data",
        "out": folder,
        "model": project / "model",
        "splits": "[train]",
        "first_editable": 1,
        "dtype": "float32",
        "search.simulations": 12,
        "search.max_depth": 9,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in settings.items()]


def assert_same(one: list[SearchRecord], other: list[SearchRecord]) -> None:
    """Same chains, predictions and correctness; scores within 1e-4 (float32, other batch shapes)."""
    assert {record.sample_id for record in one} == {record.sample_id for record in other}
    partner = {record.sample_id: record for record in other}
    for a in one:
        b = partner[a.sample_id]
        assert [r.chain for r in a.results] == [r.chain for r in b.results]
        assert [(r.prediction, r.correct) for r in a.results] == [(r.prediction, r.correct) for r in b.results]
        for x, y in zip(a.results, b.results, strict=True):
            assert x.margin == pytest.approx(y.margin, abs=1e-4)
            assert x.scores == pytest.approx(y.scores, abs=1e-4)
        assert (a.pareto, a.simulations, a.nominal_layers) == (b.pareto, b.simulations, b.nominal_layers)


def test_records_are_what_a_search_of_one_sample_alone_finds(project: Path, searched: Path) -> None:
    # Oracle: the search by hand, one sample, one chain at a time, unpacked rows, no reuse of states.
    settings = SearchSettings(simulations=12, max_depth=9)
    model, tokenizer = load_model(str(project / "model"))
    task, samples = load_task("arc_easy"), {sample.id: sample for sample in tiny_samples("validation", 4)}
    for record in read_records(searched / "validation.jsonl"):
        scorer = ChainScorer(model, tokenizer, task, packed=False, state_bytes=0, batch_tokens=1)
        encoded = [scorer.encode(samples[record.sample_id])]
        searcher = make_searcher(ActionSpace(settings, NUM_LAYERS, 1), settings.rng_for(record.sample_id))
        results = []
        while chains := searcher.ask():
            told = [scorer.score(scorer.load(encoded), [(0, chain)])[0] for chain in chains]
            searcher.tell([settings.reward_for(r.correct, r.margin) for r in told])
            results += told
        assert [r.chain for r in record.results] == [r.chain for r in results]
        assert [r.correct for r in record.results] == [r.correct for r in results]
        assert [r.margin for r in record.results] == pytest.approx([r.margin for r in results], abs=1e-4)
        assert record.pareto == pareto_front(results)
        assert record.nominal_layers == sum(r.chain.depth for r in results)
        assert 0 < record.executed_layers < record.nominal_layers
        assert all(r.chain.layers[:1] == (0,) and r.chain.depth <= 9 for r in record.results)


@pytest.mark.parametrize(("samples", "tokens", "state_bytes"), [(1, 1, 0), (3, 200, 10_000)])
def test_the_same_seed_gives_the_same_records_at_any_batch_size_and_another_seed_others(
    project: Path, searched: Path, tmp_path: Path, samples: int, tokens: int, state_bytes: int
) -> None:
    # Oracle: the records at the default batch sizes.
    sizes = {"batch_samples": samples, "batch_tokens": tokens, "state_bytes": state_bytes}
    main(arguments(project, tmp_path / "a", **sizes))
    usual = read_records(searched / "train.jsonl")
    assert_same(read_records(tmp_path / "a" / "train.jsonl"), usual)
    main(arguments(project, tmp_path / "b", search__seed=1, limit=3, **sizes))
    chains = {record.sample_id: [one.chain for one in record.results] for record in usual}
    for record in read_records(tmp_path / "b" / "train.jsonl"):
        assert [one.chain for one in record.results] != chains[record.sample_id]


def test_a_killed_run_goes_on_and_ends_with_the_same_records(project: Path, tmp_path: Path) -> None:
    # Oracle: an uninterrupted run. The process is really killed, after its first finished samples.
    command = arguments(project, tmp_path / "killed", search__simulations=30, batch_samples=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "search", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    path, shard = tmp_path / "killed" / "train.jsonl", tmp_path / "killed" / "train.partial.jsonl"
    deadline = time.monotonic() + 120
    while not (shard.exists() and shard.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = shard.read_bytes()
    kept = finished[: finished.rfind(b"\n") + 1]
    assert 2 <= kept.count(b"\n") < 8
    with shard.open("ab") as stream:
        stream.write(b'{"sample_id": "torn')  # the worst moment to be killed
    main(command)
    assert set(kept.splitlines()) <= set(path.read_bytes().splitlines())
    main(arguments(project, tmp_path / "whole", search__simulations=30, batch_samples=2))
    assert path.read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()


def test_a_run_goes_on_where_it_stopped_and_a_finished_one_does_nothing(
    project: Path, searched: Path, tmp_path: Path
) -> None:
    # Oracle: the records made in one go, the order of the samples; 3 samples are searched, then the other 5, then none.
    main(arguments(project, tmp_path, limit=3))
    main(arguments(project, tmp_path, batch_samples=3))
    records = read_records(tmp_path / "train.jsonl")
    assert [record.sample_id for record in records] == [sample.id for sample in tiny_samples("train", 8)]
    assert_same(records, read_records(searched / "train.jsonl"))
    assert [run["searched"] for run in json.loads((tmp_path / "train.meta.json").read_text())["runs"]] == [3, 5]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    main(arguments(project, tmp_path))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_a_space_smaller_than_the_simulations_ends(project: Path, tmp_path: Path) -> None:
    # Oracle: counting by hand. With layers 0-3 fixed and skips only there are two chains: 0-4 and 0-3.
    main(arguments(project, tmp_path, first_editable=4, search__action_set="skip", limit=3))
    records = read_records(tmp_path / "train.jsonl")
    assert len(records) == 3
    assert all([str(r.chain) for r in record.results] == ["0-4", "0-3"] for record in records)


def corrupt(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{oops\n" + "".join(lines[1:]))


BAD = {
    "shuffled cloze": ({"shuffle": 1}, "shuffle: expected 0 for arc_easy, whose prompt lists no choices, got 1"),
    "a split twice": ({"splits": "[train,train]"}, "splits: expected each split once, got ['train', 'train']"),
    "prefix too long": ({"first_editable": 5}, "first_editable: expected fewer than the model's 5 layers, got 5"),
    "missing directory": ({"data": "/nonexistent"}, "data: expected an existing directory, got '/nonexistent'"),
    "missing model": ({"model": "./nowhere"}, "model: expected a directory with config.json, got './nowhere'"),
    "depth below the model's": ({"search__max_depth": 4}, "search.max_depth: expected"),
    "unwritable output": ({"out": "/proc/records"}, "out: expected a directory that can be written"),
    "missing device": ({"device": "cuda:77"}, "device: expected auto, cpu or a device of this machine"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(project: Path, tmp_path: Path, refusal: Refusal, name: str) -> None:
    changes, message = BAD[name]
    assert message in refusal(main, arguments(project, tmp_path / "out", **changes))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_samples_of_another_task_or_prompt_are_refused_before_the_search(
    project: Path, tmp_path: Path, refusal: Refusal
) -> None:
    quiz = dataclasses.replace(load_task("arc_easy"), name="quiz")
    shutil.copytree(project / "data", tmp_path / "data")
    write_tasks(tmp_path / "data", TaskSet.of(quiz))
    words = arguments(project, tmp_path / "out", data=tmp_path / "data")
    assert "data: expected samples of the tasks quiz, got one of arc_easy" in refusal(main, words)
    manifest = {"prompt_hash": load_task("arc_easy").prompt_hash()}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    write_tasks(tmp_path / "data", TaskSet.of(load_task("arc_easy", "letter")))
    assert "data: expected tasks.json with the prompt that" in refusal(main, words)
    (tmp_path / "data" / "tasks.json").unlink()
    assert "data: expected an existing file" in refusal(main, words)
    assert not list(tmp_path.glob("out/*"))


def test_an_empty_split_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    write_project(tmp_path, train=0)
    line = refusal(main, arguments(tmp_path, tmp_path / "out"))
    assert "expected at least one sample, got the empty split" in line


@pytest.mark.parametrize("case", ["other settings", "corrupt line", "other model", "other samples"])
def test_records_of_something_else_are_never_mixed_or_lost(
    project: Path, searched: Path, tmp_path: Path, refusal: Refusal, case: str
) -> None:
    # Oracle: the message, and the file as it was.
    shutil.copytree(searched, tmp_path / "out")
    path, changes = tmp_path / "out" / "train.jsonl", {}
    if case == "other settings":
        changes, message = {"search__simulations": 13}, "made with another search.simulations; choose another folder"
    elif case == "corrupt line":
        corrupt(path)
        message = f"{path}: expected 8 lines with SHA-256"
    elif case == "other model":
        changes = {"model": save_tiny(tmp_path / "other", seed=3)}
        message = "made with another fingerprints.model; choose another folder"
    else:
        changes, message = {"limit": 3}, "expected records of these samples"
    before = path.read_bytes()
    assert message in refusal(main, arguments(project, tmp_path / "out", **changes))
    assert path.read_bytes() == before


COST = re.compile(
    r"^expected: ([\d,]+) layers run, about ([\d.]+) s in one process, ([\d.]+) MB of records "
    r".*measured on (\d+) of (\d+)",
    re.M,
)


def figures(text: str) -> list[float]:
    """Layers, seconds, megabytes, samples of the batch and of the whole in the one line on the cost."""
    (found,) = COST.findall(text.replace("\r", "\n"))
    return [float(number.replace(",", "")) for number in found]


def test_layers_and_bytes_are_expected_to_be_about_what_a_run_has(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the records of the whole run. The first batch has other samples, so a quarter off is allowed.
    words = arguments(project, tmp_path / "out", batch_samples=4)
    main([*words, "--estimate_only=true"])
    alone = figures(capsys.readouterr().out)
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    main(words)
    said = figures(capsys.readouterr().out)
    records = read_records(tmp_path / "out" / "train.jsonl")
    assert said[3:] == alone[3:] == [4, len(records)]
    assert said[0] == alone[0] == pytest.approx(sum(record.executed_layers for record in records), rel=0.25)
    assert said[2] == alone[2]
    assert said[2] * 1e6 == pytest.approx((tmp_path / "out" / "train.jsonl").stat().st_size, rel=0.15, abs=5e3)
    assert said[1] > 0


def test_only_what_is_left_is_expected(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: counting.
    words = arguments(project, tmp_path, splits="[train,validation]", batch_samples=3, search__simulations=3)
    main([*words, "--limit=3"])
    assert "6 samples to search, 0 of 6 are finished" in capsys.readouterr().out
    main([*words, "--estimate_only=true"])
    text = capsys.readouterr().out
    assert "6 samples to search, 6 of 12 are finished" in text
    assert figures(text)[3:] == [3, 6]
    main(words)
    capsys.readouterr()
    main([*words, "--estimate_only=true"])
    text = capsys.readouterr().out
    assert "0 samples to search, 12 of 12 are finished" in text
    assert "expected" not in text


def test_records_that_do_not_fit_on_the_disk_end_the_run_after_the_first_batch(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the message; what was searched stays, so a run with room goes on from there.
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5_000, 5_000))
        assert run_command(main, arguments(project, tmp_path / "out", batch_samples=4)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"error: out: expected about [\d.]+ MB of free disk at '.*out', got 0.01 MB", error)
    assert not (tmp_path / "out" / "train.jsonl").exists()
    main(arguments(project, tmp_path / "out", batch_samples=4))
    assert "4 samples to search, 4 of 8 are finished" in capsys.readouterr().out
    assert len(read_records(tmp_path / "out" / "train.jsonl")) == 8
