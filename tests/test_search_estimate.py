"""What a run is expected to cost, against what it costs."""

from __future__ import annotations

import random
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from data.records import read_records
from router.chain import Chain
from router.command import run_command
from search import estimate
from search.__main__ import main
from search.actions import ActionSpace
from search.estimate import distinct_prefixes
from tests.sums import write_sums
from tests.test_search_run import arguments
from tests.tiny import save_tiny, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"), train=24)


def figures(text: str) -> dict[str, float]:
    """Read the numbers of the estimate's lines."""
    found = {}
    for name, pattern in {
        "samples": r"expected: ([\d,]+) samples to search",
        "finished": r"\(([\d,]+) finished\)",
        "chains": r", ([\d,]+) chains;",
        "executed": r"chains; ([\d,]+) of",
        "nominal": r" of ([\d,]+) layers run",
        "megabytes": r"expected: ([\d.]+) MB of records",
    }.items():
        match = re.search(pattern, text)
        if match:
            found[name] = float(match[1].replace(",", ""))
    return found


def test_prefixes_are_counted_as_a_set_of_them() -> None:
    # Oracle: the set of all prefixes, written out.
    rng = random.Random(0)
    space = ActionSpace(12, 3)
    chains = [Chain.full(12)]
    for _ in range(60):
        chain = rng.choice(chains)
        chains.append(space.sample(chain, rng).apply(chain))
    assert distinct_prefixes(chains) == len({c.layers[:i] for c in chains for i in range(1, c.depth + 1)})
    assert distinct_prefixes([]) == 0


@pytest.mark.parametrize("kind", ["choices", "sums", "separate rows"])
def test_layers_and_bytes_are_about_what_a_run_has(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    # Oracle: the records of the real run. Its rewards are others than the made-up ones, so a quarter off is allowed.
    if kind == "sums":
        project = write_sums(tmp_path / "project", count=8, letters=4)
    elif kind == "separate rows":
        project = write_project(tmp_path, train=24)
        save_tiny(project / "model", "falcon_alibi")
    main(arguments(project, tmp_path / "out", search__simulations=40, search__max_depth=10))
    said = figures(capsys.readouterr().out)
    records = read_records(tmp_path / "out" / "train.jsonl")
    assert said["samples"] == len(records)
    assert said["finished"] == 0
    assert said["chains"] == sum(record.simulations for record in records) == 40 * len(records)
    assert said["executed"] == pytest.approx(sum(record.executed_layers for record in records), rel=0.25)
    assert said["nominal"] == pytest.approx(sum(record.nominal_layers for record in records), rel=0.25)
    size = (tmp_path / "out" / "train.jsonl").stat().st_size
    assert said["megabytes"] * 1e6 == pytest.approx(size, rel=0.15, abs=5e3)


def test_only_what_is_left_is_expected(tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: counting.
    words = arguments(project, tmp_path, splits="[train,validation]")
    main([*words, "--limit=3"])
    capsys.readouterr()
    main(words)
    said = figures(capsys.readouterr().out)
    assert (said["samples"], said["finished"], said["chains"]) == (22, 6, 22 * 12)
    main(words)
    assert "expected: nothing to search, all of 28 samples are finished" in capsys.readouterr().out


def test_an_estimate_alone_measures_and_searches_nothing(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(project, tmp_path / "out", estimate_only="true"))
    text = capsys.readouterr().out
    assert re.search(r"expected: about [\d.]+ s for one process; measured on \d+ chains of 24 samples", text)
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]


def test_the_calibration_changes_no_record(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the bytes of a run without it.
    words = {"dtype": "bfloat16", "batch_samples": 5}
    main(arguments(project, tmp_path / "a", **words))
    monkeypatch.setattr(estimate, "SMALL_RUN", 0)
    main(arguments(project, tmp_path / "b", **words))
    assert (tmp_path / "a" / "train.jsonl").read_bytes() == (tmp_path / "b" / "train.jsonl").read_bytes()


def test_decoded_answers_are_timed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = write_sums(tmp_path / "project", count=8)
    main(arguments(project, tmp_path / "out", estimate_only="true"))
    match = re.search(r"about ([\d.]+) s for one process; measured on (\d+) chains", capsys.readouterr().out)
    assert match
    assert float(match[1]) > 0
    assert int(match[2]) > 4


def test_records_that_do_not_fit_on_the_disk_are_refused_before_the_search(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 20_000, 20_000))
    assert run_command(main, arguments(project, tmp_path / "out")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"error: out: expected about [\d.]+ MB of free disk at '.*out', got 0.02 MB", error)
    assert not list((tmp_path / "out").glob("*.jsonl"))
