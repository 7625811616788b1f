"""The tutorial's notebook runs from its first cell to its last, on a small model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_notebook_runs_and_shows_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: no cell raises, the commands leave a report, and two pictures are shown.
    monkeypatch.setenv("TUTORIAL_OUT", str(tmp_path / "run"))
    monkeypatch.setenv("PATH", f"{ROOT / '.venv' / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "tutorial.ipynb", as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert (tmp_path / "run" / "eval" / "report.html").exists()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in one for one in shown) == 2
    assert "in scope: False" in str(notebook.cells[-1].outputs)
