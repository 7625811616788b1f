"""What a run is expected to cost, by its first batch, against what it costs."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from data.records import read_records
from router.command import run_command
from search.__main__ import main
from tests.sums import write_sums
from tests.test_search_run import arguments
from tests.tiny import write_project

LINE = re.compile(
    r"^expected: ([\d,]+) layers run, about ([\d.]+) s, ([\d.]+) MB of records .*measured on (\d+) of (\d+)", re.M
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"), train=24)


def figures(text: str) -> list[float]:
    """Layers, seconds, megabytes, samples of the batch and of the whole in the one line on the cost."""
    (found,) = LINE.findall(text.replace("\r", "\n"))
    return [float(number.replace(",", "")) for number in found]


@pytest.mark.parametrize("kind", ["choices", "sums"])
def test_layers_and_bytes_are_about_what_a_run_has(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    # Oracle: the records of the whole run. The first batch has other samples, so a quarter off is allowed.
    if kind == "sums":
        project = write_sums(tmp_path / "project", count=8, letters=4)
    words = arguments(project, tmp_path / "out", search__simulations=40, search__max_depth=10, batch_samples=4)
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


def test_only_what_is_left_is_expected(tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: counting.
    words = arguments(project, tmp_path, splits="[train,validation]", batch_samples=3)
    main([*words, "--limit=3"])
    assert "6 samples to search, 0 of 6 are finished" in capsys.readouterr().out
    main([*words, "--estimate_only=true"])
    text = capsys.readouterr().out
    assert "22 samples to search, 6 of 28 are finished" in text
    assert figures(text)[3:] == [3, 22]
    main(words)
    capsys.readouterr()
    main([*words, "--estimate_only=true"])
    text = capsys.readouterr().out
    assert "0 samples to search, 28 of 28 are finished" in text
    assert "expected" not in text


def test_records_that_do_not_fit_on_the_disk_end_the_run_after_the_first_batch(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    assert "20 samples to search, 4 of 24 are finished" in capsys.readouterr().out
    assert len(read_records(tmp_path / "out" / "train.jsonl")) == 24
