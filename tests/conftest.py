"""Shared test settings: no hub, no W&B server, few threads a worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from router.command import run_command

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tiny models gain nothing from threads, and the tests run in two workers on two cores.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

Refusal = Callable[..., str]
"""Runs a command that must end with exit status 2 and one line, which it returns."""


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """A `Refusal` of a command's `main` and its arguments; progress may stand before the line, unless `alone`."""

    def run(main: Callable[..., None], arguments: Iterable[object], *, alone: bool = False) -> str:
        capsys.readouterr()
        assert run_command(main, list(map(str, arguments))) == 2
        printed, error = capsys.readouterr()
        assert "Traceback" not in error
        assert not alone or (printed, error.count("\n")) == ("", 1)
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert error.endswith(f"{line}\n")
        return line

    return run


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("COLA_ROUTER_CACHE", str(tmp_path / "cache"))
    return shelf
