"""Progress of work in batches: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys

import pytest

from data.pool import progress


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: a hundred updates within the half minute are the first line and the last one.
    with progress(100, 20, "search train", "chain") as bar:
        for _ in range(80):
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "search train: 20 of 100 (20 %)",
        "search train: 100 of 100 (100 %)",
    ]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(2, 0, "search", "chain") as bar:
        bar.update(2)
    assert "\r" in capsys.readouterr().err
