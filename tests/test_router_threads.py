"""Threads on a busy machine: how they wait, unless the user has said so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from router.threads import SPINS, sleep_when_waiting


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, SPINS), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OTHER": "1"}, SPINS)],
)
def test_waiting_threads_sleep_early_unless_the_user_chose(given: dict[str, str], wanted: str | None) -> None:
    environment = dict(given)
    sleep_when_waiting(environment)
    assert environment.get("GOMP_SPINCOUNT") == wanted


@pytest.mark.parametrize("package", ["router", "data", "search", "train", "eval"])
def test_every_package_says_so_before_torch_is_there(package: str) -> None:
    # Oracle: a fresh process, in which the package alone is imported.
    code = f"import {package}, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [SPINS, "False"]
