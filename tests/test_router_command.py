"""The frame of every command: how it ends."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from typing import Any

import pytest

from router.command import require_unique_keys, run_command, without_places


@pytest.mark.parametrize(
    ("sent", "ignored"),
    [(signal.SIGTERM, False), (signal.SIGINT, True)],
    ids=["polite kill", "Ctrl-C in the background"],
)
def test_a_signal_ends_a_command_with_one_line(sent: signal.Signals, ignored: bool) -> None:
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
    process.send_signal(sent)
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
        ("/no_think\nIs a/b more than 1?", "/no_think\nIs a/b more than 1?"),  # a prompt, which is told as it is
        ({"a": ["/x/y", None, 3, 0.5, True]}, {"a": ["y", None, 3, 0.5, True]}),
    ],
)
def test_absolute_paths_are_cut_down(value: Any, expected: Any) -> None:
    assert without_places(value) == expected


def test_a_text_that_ends_like_a_file_is_a_text() -> None:
    # Oracle: a prompt about a file, longer than any file's name.
    require_unique_keys(["--prompt", f"What does {'x' * 300} mean in config.yaml", "--prompt=config.yaml"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_an_output_does_not_have_are_spelt_out(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: Python's own spelling of them; a command prints its result and ends well.
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    assert run_command(lambda _: print("a → b"), []) == 0
    output.flush()
    assert output.buffer.getvalue() == b"a \\u2192 b\n"
