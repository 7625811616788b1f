"""Progress of long work: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from router.progress import followed, progress

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("router", "data", "search", "train", "eval")


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: a hundred updates within the half minute are the first line and the last one.
    with progress(100, "search train", "chain", initial=20) as bar:
        for _ in range(80):
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "search train: 20 of 100 (20 %)",
        "search train: 100 of 100 (100 %)",
    ]
    assert lines[-1].endswith(" chain/s")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(2, "search", "chain") as bar:
        bar.update(2)
    assert "\r" in capsys.readouterr().err


def test_followed_items_come_out_as_they_are_counted_or_not(capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the items; the lines say of how many only where that is known.
    assert list(followed([5, 6], "profile", "layer")) == [5, 6]
    assert list(followed(iter([5, 6]), "rows", "row")) == [5, 6]
    lines = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["profile: 0 of 2 (0 %)", "profile: 2 of 2 (100 %)", "rows: 0", "rows: 2"]
    assert list(followed(iter([5]), "rows", "row", delay=60)) == [5]
    with progress(3, "search", "chain", disable=True) as bar:
        bar.update(3)
    assert not capsys.readouterr().err


def test_bars_are_made_in_one_place() -> None:
    # Oracle: the calls in every file of the packages, read as syntax.
    makers = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("tqdm", "trange")
    }
    assert makers == {ROOT / "router" / "progress.py"}
