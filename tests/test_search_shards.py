"""Many processes on one search: real launches, real kills, and the files through which they meet."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.records import SearchRecord, read_records
from router.command import run_command
from router.files import sha256_file
from router.validation import InputError
from search.__main__ import main
from search.shards import SplitRecords
from tests.test_search_run import arguments
from tests.tiny import write_project

SAMPLES = 24
LAUNCH = [
    *("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--num_processes", "2", "--multi_gpu"),  # accelerate starts one process alone on a machine without GPUs else
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"), train=SAMPLES)


@pytest.fixture(scope="module")
def whole(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of one process that nothing interrupts, of the search that `words` gives."""
    out = tmp_path_factory.mktemp("whole")
    process = launched(1, words(project, out), out / ".log")
    assert process.wait(timeout=240) == 0, (out / ".log").read_text()
    return out


def words(project: Path, out: Path, **changes: object) -> list[str]:
    """A search of some seconds on the tiny model, in 12 batches of train and 2 of validation."""
    return arguments(
        project, out, **{"splits": "[train,validation]", "batch_samples": 2, "search__simulations": 300} | changes
    )


def launched(number: int, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a search: by hand (1), or by the real `accelerate launch` (2); its output goes to a file."""
    program = [] if number == 1 else [*LAUNCH, "--main_process_port", "0"]
    with log.open("wb") as stream:
        return subprocess.Popen([sys.executable, *program, "-m", "search", *command], stdout=stream, stderr=stream)


def records_in(out: Path, split: str = "train") -> int:
    """Whole lines in the shards."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob(f"{split}.shards/*.jsonl"))


def wait_for(condition: object, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes that a launcher started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def assert_like(out: Path, whole: Path) -> None:
    """The same bytes as one process writes, nothing left over, and notes that agree with them."""
    for split in ("train", "validation"):
        assert (out / f"{split}.jsonl").read_bytes() == (whole / f"{split}.jsonl").read_bytes()
        note = json.loads((out / f"{split}.settings.json").read_text())
        assert note["sha256"] == sha256_file(whole / f"{split}.jsonl")
    visible = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert visible == sorted(path.name for path in whole.iterdir() if not path.name.startswith("."))


def searched(out: Path, split: str = "train") -> list[int]:
    return [run["searched"] for run in json.loads((out / f"{split}.settings.json").read_text())["runs"]]


def test_two_launched_processes_write_what_one_writes(project: Path, whole: Path, tmp_path: Path) -> None:
    # Oracle: the bytes of one process's files.
    log = tmp_path / "log"
    process = launched(2, words(project, tmp_path / "out"), log)
    assert process.wait(timeout=240) == 0, log.read_text()
    assert_like(tmp_path / "out", whole)
    assert sum(searched(tmp_path / "out")) == SAMPLES
    assert len(searched(tmp_path / "out")) == 2  # both had a part in it
    text = log.read_text()
    for line in (f"train: {SAMPLES} samples", "validation: 4 samples", "records: ", r"\d+ samples to search"):
        assert len(re.findall(rf"^{line}", text.replace("\r", "\n"), re.MULTILINE)) == 1
    assert not re.search("warn|error|Traceback|destroy_process_group", text, re.IGNORECASE), text


def test_of_two_processes_started_by_hand_one_is_killed_and_the_other_does_its_work(
    project: Path, whole: Path, tmp_path: Path
) -> None:
    # Oracle: the bytes of one process's files; the survivor ends by itself.
    out, command = tmp_path / "out", words(project, tmp_path / "out")
    one = launched(1, command, tmp_path / "one")
    other = launched(1, command, tmp_path / "other")
    wait_for(lambda: len(list(out.glob("train.shards/*.jsonl"))) == 2 and records_in(out) >= 2, one, tmp_path / "one")
    one.kill()
    one.wait()
    assert other.wait(timeout=240) == 0, (tmp_path / "other").read_text()
    assert_like(out, whole)


@pytest.mark.parametrize("resumed", [1, 2])
def test_a_launch_with_a_killed_process_is_resumed_by_any_number(
    project: Path, whole: Path, tmp_path: Path, resumed: int
) -> None:
    # Oracle: the bytes of one process's files. A worker is really killed; the worst moment is made by hand.
    out, command = tmp_path / "out", words(project, tmp_path / "out")
    process = launched(2, command, tmp_path / "first")
    wait_for(lambda: records_in(out) >= 2, process, tmp_path / "first")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    kept = records_in(out)
    assert 2 <= kept < SAMPLES
    shard = next(path for path in out.glob("train.shards/*.jsonl") if path.stat().st_size)
    with shard.open("ab") as stream:
        stream.write(b'{"schema": 2, "sample_id": "torn')
    process = launched(resumed, command, tmp_path / "second")
    assert process.wait(timeout=240) == 0, (tmp_path / "second").read_text()
    finished = re.search(r"\((\d+) finished\)", (tmp_path / "second").read_text())
    assert finished
    assert int(finished[1]) == kept if resumed == 1 else int(finished[1]) >= kept  # the second may be ahead
    assert_like(out, whole)


@pytest.mark.parametrize("number", [1, 2])
def test_sigterm_ends_with_one_line_a_process_and_keeps_what_is_finished(
    project: Path, whole: Path, tmp_path: Path, number: int
) -> None:
    # Oracle: the line and status; the bytes of one process's files after the next run. Slurm and `kill` signal the
    # launcher, which passes it on and adds its own words.
    out, command, log = tmp_path / "out", words(project, tmp_path / "out"), tmp_path / "log"
    process = launched(number, command, log)
    wait_for(lambda: len(list(out.glob("train.shards/*.jsonl"))) == number and records_in(out) >= 2, process, log)
    process.terminate()
    status = process.wait(timeout=120)
    text = log.read_text()
    assert text.count("interrupted: finished work is saved; run the same command again to go on") == number, text
    assert status == 130 if number == 1 else status != 0
    assert number == 2 or "Traceback" not in text
    assert 2 <= records_in(out) < SAMPLES
    process = launched(1, command, tmp_path / "second")
    assert process.wait(timeout=240) == 0, (tmp_path / "second").read_text()
    assert_like(out, whole)


def test_a_batch_is_run_again_whole_so_that_bfloat16_rounds_alike(project: Path, tmp_path: Path) -> None:
    # Oracle: the bytes of an unbroken run in bfloat16, where another batch gives other scores.
    changes = {"dtype": "bfloat16", "batch_samples": 4, "search__simulations": 12}
    main(words(project, tmp_path / "a", **changes))
    lines = (tmp_path / "a" / "train.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.jsonl").write_bytes(b"".join(lines[::5]) + lines[1][:50])  # of many batches a part
    main(words(project, tmp_path / "b", **changes))
    assert_like(tmp_path / "b", tmp_path / "a")
    main(words(project, tmp_path / "c", **changes | {"batch_samples": 3}))
    assert (tmp_path / "c" / "train.jsonl").read_bytes() != (tmp_path / "a" / "train.jsonl").read_bytes()


def in_shards(whole: Path, out: Path, parts: list[list[int]]) -> None:
    """Lay lines of the finished records into shards, as processes that were killed leave them."""
    lines = (whole / "train.jsonl").read_bytes().splitlines(keepends=True)
    (out / "train.shards").mkdir(parents=True)
    for number, part in enumerate(parts):
        (out / "train.shards" / f"{number}.jsonl").write_bytes(b"".join(lines[i] for i in part))


def accept(record: SearchRecord, path: Path) -> None:
    """Take every record."""


def ids_of(whole: Path) -> list[str]:
    return [record.sample_id for record in read_records(whole / "train.jsonl")]


def test_shards_merge_in_the_samples_order_each_sample_once(whole: Path, tmp_path: Path) -> None:
    # Oracle: the merged file that they came from. Samples 3 and 4 stand in two shards, one line is torn.
    in_shards(whole, tmp_path, [[23, *range(0, 5)], [4, 3, *range(11, 4, -1)], [], list(range(12, 23))])
    with (tmp_path / "train.shards" / "2.jsonl").open("ab") as stream:
        stream.write(b'{"schema": 2, "samp')
    records = SplitRecords(tmp_path / "train.jsonl", accept)
    assert records.finished == set(ids_of(whole))
    assert records.merge(ids_of(whole), lambda: None)
    assert (tmp_path / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()
    assert not (tmp_path / "train.shards").exists()
    assert records.finished == set(ids_of(whole))


@pytest.mark.parametrize("moment", ["while it is written", "before the notes", "while shards are removed"])
def test_a_merge_that_is_killed_is_made_again(whole: Path, tmp_path: Path, moment: str) -> None:
    # Oracle: the merged file. What a kill at each moment leaves is made by hand, or by an interruption there.
    in_shards(whole, tmp_path, [list(range(12)), list(range(12, SAMPLES))])
    folder = tmp_path / "train.shards"
    if moment == "while it is written":
        (folder / "merged.tmp").write_bytes(b'{"schema": 2')
    elif moment == "before the notes":
        with pytest.raises(KeyboardInterrupt):
            SplitRecords(tmp_path / "train.jsonl", accept).merge(ids_of(whole), interrupt)
    else:
        shutil.copy(whole / "train.jsonl", tmp_path)
        (folder / "0.jsonl").unlink()
    finished: list[bool] = []
    records = SplitRecords(tmp_path / "train.jsonl", accept)
    assert records.merge(ids_of(whole), lambda: finished.append((tmp_path / "train.jsonl").exists()))
    assert finished == [True]
    assert (tmp_path / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()
    assert not folder.exists()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_batch_has_one_owner_and_nobody_merges_under_it(whole: Path, tmp_path: Path) -> None:
    # Oracle: the protocol by hand, two processes' views of one folder.
    ids = ids_of(whole)
    found = {record.sample_id: record for record in read_records(whole / "train.jsonl")}
    one, other = (SplitRecords(tmp_path / "train.jsonl", accept) for _ in range(2))
    with one.claim("0", ids[:2]) as mine:
        assert mine == ids[:2]
        with other.claim("0", ids[:2]) as theirs:
            assert theirs == []
        with other.claim("1", ids[1:4]) as theirs:
            assert theirs == ids[1:4]
            one.append([found[key] for key in mine])
            other.append([found[key] for key in theirs])
    with one.claim("0", ids[:2]) as mine:
        assert mine == []
    with one.claim("1", ids[1:4]) as mine:  # what another process finished is seen
        assert mine == []
    other.leave()
    assert not other.merge(ids[:4], lambda: None)  # `one` has its shard open
    one.leave()
    assert one.merge(ids[:4], lambda: None)
    assert other.merge(ids[:4], interrupt)  # it is done, nothing is written again
    assert [record.sample_id for record in read_records(tmp_path / "train.jsonl")] == ids[:4]


@pytest.mark.parametrize("case", ["other settings", "corrupt line", "other samples"])
def test_shards_of_something_else_are_refused_and_stay(
    project: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    in_shards(whole, tmp_path, [[0, 1], [2, 3]])
    shard = tmp_path / "train.shards" / "1.jsonl"
    changes: dict[str, object] = {}
    if case == "other settings":
        changes, message = {"search__seed": 1}, "expected no records or records of the same search settings"
    elif case == "corrupt line":
        shard.write_bytes(shard.read_bytes().replace(b'{"schema"', b"{schema"))
        message = f"{shard}, line 1: expected a JSON object, got a corrupt line"
    else:
        value = json.loads(shard.read_text().splitlines()[0])
        shard.write_text(json.dumps(value | {"sample_id": "0" * 16}) + "\n")
        message = f"expected records of these samples in {shard}, got sample 0000000000000000"
    before = shard.read_bytes()
    assert run_command(main, words(project, tmp_path, **changes)) == 2
    assert message in capsys.readouterr().err
    assert shard.read_bytes() == before
    assert not (tmp_path / "train.jsonl").exists()


def test_a_sample_that_stands_twice_in_one_file_is_refused(whole: Path, tmp_path: Path) -> None:
    in_shards(whole, tmp_path, [[0, 1, 0]])
    with pytest.raises(InputError, match=r"0.jsonl, line 3: expected each sample once, got [0-9a-f]{16} again"):
        SplitRecords(tmp_path / "train.jsonl", accept)
