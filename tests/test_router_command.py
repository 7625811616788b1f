"""The frame of every command: how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from router.command import without_places


@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "background"])
def test_a_polite_kill_ends_a_command_also_in_the_background(ignored: bool) -> None:
    # Oracle: status 130 and one line; a shell starts background jobs with SIGINT ignored.
    script = (
        "import time; from router.command import run_command\n"
        "def main(argv):\n    print('ready', flush=True); time.sleep(60)\n"
        "raise SystemExit(run_command(main, []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "interrupted: finished work is saved; run the same command again to go on\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/ada/models/qwen", "qwen"),
        ("/", ""),
        ("~/models/qwen/", "qwen"),
        ("runs/demo", "runs/demo"),
        ("Qwen/Qwen2.5", "Qwen/Qwen2.5"),
        ({"a": ["/x/y", None, 3, 0.5, True]}, {"a": ["y", None, 3, 0.5, True]}),
    ],
)
def test_absolute_paths_are_cut_down(value: Any, expected: Any) -> None:
    assert without_places(value) == expected
