"""A finished evaluation can be run again by any number of processes at once: nothing is locked, nothing changes."""

from __future__ import annotations

import os
import shutil

from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE
from eval.run import main
from router.command import run_command
from tests.evaluation import World, finished, world  # noqa: F401  (fixtures)


def test_a_finished_evaluation_is_run_again_by_several_processes(finished: World, world: World) -> None:
    # Oracle: processes of their own, started together; each ends well and leaves the same bytes.
    shutil.copytree(finished.out, world.out)
    arguments = world.arguments(model=finished.folder / "model")
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(run_command(main, arguments))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    for name in (RESULTS_FILE, "results.meta.json", REPORT_FILE):
        assert (world.out / name).read_bytes() == (finished.out / name).read_bytes()
