"""A finished evaluation can be run again by any number of processes at once: nothing is locked, nothing changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE
from tests.evaluation import ROOT, World, finished, world  # noqa: F401  (fixtures)


def test_a_finished_evaluation_is_run_again_by_several_processes(finished: World, world: World) -> None:
    # Oracle: real processes, started together; each ends well and leaves the same bytes.
    shutil.copytree(finished.out, world.out)
    command = [sys.executable, "-m", "eval", *world.arguments(model=finished.folder / "model")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "\np: Holm" in output
    for name in (RESULTS_FILE, "results.meta.json", REPORT_FILE):
        assert (world.out / name).read_bytes() == (finished.out / name).read_bytes()
