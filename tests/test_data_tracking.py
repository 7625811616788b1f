"""Tracking that training and evaluation share: keys, prompts and inputs of runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.tracking import TrackingSettings, start_run, use_files

KEY = "0123456789abcdef" * 3


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "expected an API key for an online run"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid"),
    ],
)
def test_an_online_run_without_a_good_key_is_refused_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    # In a process of its own, since W&B keeps its session; standard input is closed: a prompt would fail otherwise.
    script = (
        "from data.tracking import *\n"
        "from router.command import run_command\n"
        f"settings, folder = TrackingSettings(mode='online'), Path({str(tmp_path)!r})\n"
        "raise SystemExit(run_command(lambda _: start_run(settings, folder, {})))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1


def test_a_key_for_another_server_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}")
    assert TrackingSettings().resolved_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443")
    assert TrackingSettings().resolved_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine wandb.example.org login user password {KEY}")
    assert TrackingSettings().resolved_mode() == "online"


def test_inputs_are_named_to_online_runs_only(tmp_path: Path) -> None:
    # Oracle: W&B itself, which raises where an offline run names an input.
    (tmp_path / "file").write_text("x")
    assert not use_files(None, "router", "router", [tmp_path / "file"], {})
    run = start_run(TrackingSettings(mode="offline"), tmp_path, {})
    try:
        assert not use_files(run, "router", "router", [tmp_path / "file"], {})
        with pytest.raises(TypeError, match="offline"):
            run.use_artifact("router:latest")
    finally:
        run.finish()
