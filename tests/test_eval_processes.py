"""Several processes on one evaluation: a real launch, and the files through which they meet."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.launch import Launch
from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE, ArmResult, read_results
from eval.shared_results import ResultsBook, merge_shards
from eval.static import CANDIDATES_FILE
from router.chain import Chain
from router.files import JsonLog, read_json
from router.validation import InputError
from tests.evaluation import ROOT, World, finished, world  # noqa: F401  (fixtures)
from tests.test_search_shards import LAUNCH
from tests.tiny import NUM_LAYERS

FULL = Chain.full(NUM_LAYERS)


def result(number: int, policy: str = "full") -> ArmResult:
    return ArmResult(policy, f"s{number}", "t", None, None, 2, 9, FULL, 0, True, (1.0, 0.0), 1.0)


def keys(results: list[ArmResult]) -> list[tuple[str, str]]:
    return sorted((one.policy, one.sample_id) for one in results)


def test_two_processes_leave_what_one_does(finished: World, world: World) -> None:
    # Oracle: the run of one process: the same lines in another order, the same report.
    command = [sys.executable, *LAUNCH, "--main_process_port", "0", "-m", "eval"]
    command += world.arguments(model=finished.folder / "model")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    for name in (RESULTS_FILE, CANDIDATES_FILE):
        ours, alone = ((out / name).read_bytes().splitlines() for out in (world.out, finished.out))
        assert sorted(ours) == sorted(alone)
    assert not list(world.out.glob("*.shards"))
    for key in ("arms", "static", "baselines", "router_against", "controls"):
        assert read_json(world.out / REPORT_FILE)[key] == read_json(finished.out / REPORT_FILE)[key]
    assert done.stdout.count("\np: Holm") == 1  # one process talks


def test_results_of_others_are_seen_and_merged(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_FILE
    first, second = (ResultsBook(path, NUM_LAYERS, Launch(rank, 2, "cpu")) for rank in (0, 1))
    with first, second:
        second.append([result(1), result(2)])
        assert not first.results
        with first.claimed(0) as mine:
            assert mine
            assert keys(list(first.results.values())) == [("full", "s1"), ("full", "s2")]
            with second.claimed(0) as theirs:
                assert not theirs
            with second.claimed(1) as theirs:
                assert theirs
        first.append([result(3)])
        second.finish()  # the second one leaves it to the first
        assert not path.exists()
        first.finish()
        with second.claimed(5) as mine:  # merged meanwhile: there is nothing to run
            assert mine
            assert len(second.results) == 3
    assert keys(read_results(path, NUM_LAYERS)) == [("full", "s1"), ("full", "s2"), ("full", "s3")]
    assert not path.with_suffix(".shards").exists()


def test_shards_that_the_first_process_never_saw_are_merged(tmp_path: Path) -> None:
    # The second process has run everything before the first one came, which then found nothing to do.
    path = tmp_path / CANDIDATES_FILE
    with ResultsBook(path, NUM_LAYERS, Launch(1, 2, "cpu")) as book:
        book.append([result(1), result(2)])
        book.finish()
    assert not path.exists()
    merge_shards(path, NUM_LAYERS)
    assert keys(read_results(path, NUM_LAYERS)) == [("full", "s1"), ("full", "s2")]
    assert not path.with_suffix(".shards").exists()
    merge_shards(path, NUM_LAYERS)  # nothing left to do


def test_what_a_killed_launch_left_is_merged_by_one_process(tmp_path: Path) -> None:
    # A shard with a line torn in the middle, and a result that stands in the merged file too.
    path, folder = tmp_path / RESULTS_FILE, tmp_path / "results.shards"
    folder.mkdir()
    with JsonLog(path) as log:
        log.append(result(1).to_json())
    with JsonLog(folder / "1-77.jsonl") as log:
        log.append(result(1).to_json(), result(2).to_json(), result(3).to_json())
    whole = (folder / "1-77.jsonl").read_bytes()
    (folder / "1-77.jsonl").write_bytes(whole[:-20])
    with ResultsBook(path, NUM_LAYERS) as book:
        assert keys(list(book.results.values())) == [("full", "s1"), ("full", "s2")]
        book.append([result(3)])
    assert keys(read_results(path, NUM_LAYERS)) == [("full", "s1"), ("full", "s2"), ("full", "s3")]
    assert not folder.exists()


def hold(path: Path, claimed: multiprocessing.synchronize.Event) -> None:
    with ResultsBook(path, NUM_LAYERS, Launch(1, 2, "cpu")) as book, book.claimed(0):
        claimed.set()
        claimed.wait()
        multiprocessing.Event().wait()


def test_a_batch_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / RESULTS_FILE
    context = multiprocessing.get_context("spawn")
    claimed = context.Event()
    other = context.Process(target=hold, args=(path, claimed))
    other.start()
    assert claimed.wait(60)
    with ResultsBook(path, NUM_LAYERS, Launch(0, 2, "cpu")) as book:
        with book.claimed(0) as mine:
            assert not mine
        other.kill()
        other.join()
        with book.claimed(0) as mine:
            assert mine


def test_a_corrupt_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "results.shards"
    folder.mkdir()
    (folder / "0-1.jsonl").write_text("no JSON\n")
    with pytest.raises(InputError, match=r"0-1\.jsonl, line 1: expected a JSON object"):
        ResultsBook(tmp_path / RESULTS_FILE, NUM_LAYERS)
