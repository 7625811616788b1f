"""Workers on Ray: batches run on many GPUs or machines, while this process hands them out and alone writes the rows.

A worker is a process that holds the base model. It gets batches, samples and tasks included, and sends back lines of
the store, so nothing but the base model's files need be where it runs. docs/scale.md says what a run costs and where it
breaks.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from ray import cloudpickle
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # what `ray symmetric-run` asks too; nothing public answers in bounded time
from ray.exceptions import ActorDiedError, AuthenticationError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from data.pool import Batch, Done, ItemT, Report, States, Task, Tick, nowhere
from data.store import RowT
from router.command import one_line
from router.validation import InputError, UnfinishedError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone unless the user wants it
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what a later release will do

FATAL = 3
"""Workers that a batch may kill before it is set aside, and that may die while they load before a node is given up."""
LOST = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors after which a worker is given up as if it had died: memory ran out, or its GPU is broken."""
PIECE_BYTES = 64 * 2**20
"""Bytes of hidden states that travel at once; one sample's states of one layer are never cut."""
LOOK_SECONDS = 1.0
"""Time between two looks for new machines while nothing else happens."""
TOKEN_HINT = "; it asks for a token: set RAY_AUTH_MODE=token"
CONNECT_SECONDS = 10.0
"""Time in which a cluster must answer."""
PATIENCE_SECONDS = 30.0
"""Time without any worker after which the user is told that the run waits."""
UNSURE_SECONDS = 30.0
"""Time after which Ray knows whether a node is gone; until then a silent worker's batch waits."""
START_SECONDS = 10.0
"""Time after which a worker that could not start, as its place is taken, no longer counts as one of `workers`."""


@dataclass(frozen=True)
class Reply:
    """What a worker made of a batch.

    Attributes:
        lines: key and line of each row.
        pieces: references to hidden states that are to be kept, in the worker's store of objects.
        seconds: time that the work took.
        unjudged: answers that could not be judged.
    """

    lines: list[tuple[str, bytes]]
    pieces: list[ray.ObjectRef]
    seconds: float
    unjudged: int


class Worker:
    """A process that runs batches; what it is to do with them comes first (`open`)."""

    def __init__(self, threads: int | None) -> None:
        """Use so many threads; None: as torch likes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
        if threads is not None:
            torch.set_num_threads(threads)
        self._task: Task[Any, Any] | None = None

    def here(self) -> None:
        """Return as soon as the process runs."""

    def open(self, payload: bytes) -> str | None:
        """Load a task and with it the base model; return why it cannot be done, None where it can."""
        try:
            self._task = cloudpickle.loads(payload)
        except (InputError, ImportError) as error:  # no other worker of this machine would fare better
            return one_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(error)}"
        return None

    def run(self, batch: Batch[Any]) -> Reply:
        """Run a batch; what it raises can be read by the driver."""
        try:
            return self._run(batch)
        except Exception as error:
            try:
                cloudpickle.loads(cloudpickle.dumps(error))
            except Exception:  # of a class that only its own module could make again
                raise RuntimeError(f"{type(error).__name__}: {one_line(error)}") from None
            raise

    def _run(self, batch: Batch[Any]) -> Reply:
        assert self._task is not None
        scorer, began = self._task.scorer, time.monotonic()
        pieces: list[ray.ObjectRef] = []
        before = 0 if scorer is None else scorer.unjudged

        def keep(states: States) -> None:
            pieces.extend(ray.put(piece) for piece in pieces_of(states))

        lines = self._task.lines(batch, Report(lambda _: None, keep))
        unjudged = 0 if scorer is None else scorer.unjudged - before
        return Reply(lines, pieces, time.monotonic() - began, unjudged)


def pieces_of(states: States, limit: int = PIECE_BYTES) -> Iterator[States]:
    """Cut states into pieces of at most so many bytes, or of one sample and layer where that alone is more."""
    piece: dict[int, dict[str, torch.Tensor]] = {}
    size = 0
    for layer, of_layer in states.items():
        for sample_id, state in of_layer.items():
            if piece and size + state.nbytes > limit:
                yield piece
                piece, size = {}, 0
            piece.setdefault(layer, {})[sample_id] = state.detach().cpu().contiguous()
            size += state.nbytes
    if piece:
        yield piece


@dataclass(eq=False)
class Hired:
    """A worker as the driver sees it.

    Attributes:
        actor: handle of the process.
        node: id of its node.
        place: its number on that node.
        asked: when it was asked for (`time.monotonic`).
        begun: ready as soon as its process runs.
        loaded: whether it has loaded the task that runs now.
    """

    actor: Any
    node: str
    place: int
    asked: float
    begun: ray.ObjectRef
    loaded: bool = False

    @property
    def started(self) -> bool:
        """Whether its process runs."""
        return self.loaded or bool(ray.wait([self.begun], timeout=0)[0])


@dataclass(frozen=True)
class Unsure:
    """A worker that fell silent: by its batch, or with its whole node.

    Attributes:
        batch: what it did; None: it loaded.
        node: id of its node.
        reason: what Ray says.
        since: when it was noticed (`time.monotonic`).
    """

    batch: Batch[Any] | None
    node: str
    reason: str
    since: float


@dataclass
class Fate:
    """What became of the batches and nodes of one run.

    Attributes:
        queue: batches that wait, the next one last.
        running: what each worker does now: a batch, or None where it loads.
        deaths: why workers died of a batch, by its name.
        failed: workers that died while they loaded, by node, since one could.
        unsure: workers that fell silent; their batches wait until it is known why.
        aside: batches that are not tried any more.
    """

    queue: deque[Batch[Any]]
    running: dict[ray.ObjectRef, tuple[Hired, Batch[Any] | None]] = field(default_factory=dict)
    deaths: dict[str, list[str]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    unsure: list[Unsure] = field(default_factory=list)
    aside: list[Batch[Any]] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        """Whether a batch waits or runs."""
        waiting = self.queue or any(one.batch is not None for one in self.unsure)
        return bool(waiting) or any(batch is not None for _, batch in self.running.values())


class Cluster:
    """The pool of all workers that a Ray cluster has for us.

    Attributes:
        limit: workers at most; 0: all that there are.
        share: GPUs and threads of a worker on this machine; None: a cluster that others started, where a worker is a
            GPU, or a whole node where none has GPUs.
    """

    def __init__(self, limit: int, share: tuple[float, int] | None) -> None:
        """Hire nobody yet; Ray must be connected."""
        self._limit, self._share = limit, share
        self._staff: list[Hired] = []
        self._refused: dict[str, str] = {}
        self._actor = ray.remote(max_restarts=0, max_task_retries=0)(Worker)

    def run(
        self, task: Task[ItemT, RowT], batches: Sequence[Batch[ItemT]], tick: Tick
    ) -> Iterator[Sequence[Done[ItemT]]]:
        """Run batches, the long ones first, so that short ones fill the end; see `data.pool.Pool`."""
        if not batches:
            return
        payload = ray.put(cloudpickle.dumps(replace(task, keep=nowhere)))
        fate = Fate(deque(batches))  # they ascend by length
        for worker in self._staff:
            worker.loaded = False
            fate.running[worker.actor.open.remote(payload)] = worker, None
        began, patient, looked = time.monotonic(), True, float("-inf")
        while fate.busy:
            if not self._staff or time.monotonic() - looked >= LOOK_SECONDS:
                nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
                self._settle(nodes, fate)
                self._hire(nodes, payload, fate)
                looked = time.monotonic()
            self._hand_out(fate)
            if any(one.loaded for one in self._staff):
                began = time.monotonic()
            elif patient and time.monotonic() - began > PATIENCE_SECONDS:
                patient, asked = False, len(fate.running)
                tqdm.write(f"no worker is ready yet: {asked} asked for, waiting for the cluster", file=sys.stderr)
            done = [
                one
                for ref in _ready(list(fate.running))
                if (one := self._take(task, ref, *fate.running.pop(ref), fate)) is not None
            ]
            if done:
                yield done
                tick(sum(one.batch.units for one in done))
        if fate.aside:
            raise UnfinishedError("; ".join(_told(batch, fate.deaths[batch.name]) for batch in fate.aside))

    def _hire(self, nodes: dict[str, Any], payload: ray.ObjectRef, fate: Fate) -> None:
        """Start a worker at each place that has none.

        Raises:
            InputError: where no node can load the model.
        """
        self._staff = [one for one in self._staff if one.node in nodes]
        places = list(self._places(nodes))
        taken = {(one.node, one.place) for one in self._staff}
        free = self._free(fate)
        for node, place, options in places:
            if (node, place) in taken or node in self._refused or not free:
                continue
            free -= 1
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
            threads = options.pop("threads", None)
            actor = self._actor.options(**options).remote(threads)
            worker = Hired(actor, node, place, time.monotonic(), actor.here.remote())
            self._staff.append(worker)
            fate.running[worker.actor.open.remote(payload)] = worker, None
        if places and not self._staff and all(node in self._refused for node, _, _ in places):
            raise InputError(f"workers: expected one that can load the model, got {next(iter(self._refused.values()))}")

    def _free(self, fate: Fate) -> int:
        """Return how many more workers may be asked for; workers too many, whose places are taken, are let go."""
        if not self._limit:
            return sys.maxsize
        started = [one for one in self._staff if one.started]
        if len(started) >= self._limit:
            busy = {worker for worker, batch in fate.running.values() if batch is not None}
            idle = sorted((one for one in self._staff if one not in busy), key=lambda one: one.started)
            for worker in idle[: len(self._staff) - self._limit]:
                fate.running = {ref: doing for ref, doing in fate.running.items() if doing[0] is not worker}
                self._dismiss(worker)
            return 0
        now = time.monotonic()
        young = sum(1 for one in self._staff if now - one.asked < START_SECONDS and not one.started)
        return max(0, self._limit - len(started) - young)

    def _places(self, nodes: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Give node, number and Ray's options of each place where a worker can be."""
        any_gpu = any(node["Resources"].get("GPU") for node in nodes.values())
        for name, node in nodes.items():
            resources = node["Resources"]
            if self._share is not None:
                gpus, threads = self._share
                for place in range(self._limit):
                    yield name, place, {"num_cpus": 1, "num_gpus": gpus, "threads": threads}
            elif any_gpu:
                for place in range(int(resources.get("GPU", 0))):
                    yield name, place, {"num_cpus": 0, "num_gpus": 1}
            elif cores := int(resources.get("CPU", 0)):
                yield name, 0, {"num_cpus": cores, "num_gpus": 0, "threads": cores}

    def _hand_out(self, fate: Fate) -> None:
        """Give each idle worker a batch."""
        busy = {worker for worker, _ in fate.running.values()}
        for worker in self._staff:
            if worker.loaded and worker not in busy and fate.queue:
                batch = fate.queue.pop()
                fate.running[worker.actor.run.remote(batch)] = worker, batch

    def _take(
        self, task: Task[ItemT, RowT], ref: ray.ObjectRef, worker: Hired, batch: Batch[ItemT] | None, fate: Fate
    ) -> Done[ItemT] | None:
        """Take what a worker gives; None: it has loaded, or it is lost and its batch waits again.

        Raises:
            InputError: where the work refuses its input.
        """
        try:
            reply = ray.get(ref)
            if batch is None:
                worker.loaded = reply is None
                if reply is not None:  # it cannot load the model
                    self._dismiss(worker)
                    self._give_up(worker.node, reply)
                else:
                    fate.failed.pop(worker.node, None)
                return None
            for number, piece in enumerate(reply.pieces):
                task.keep(f"{batch.name}-{number}", ray.get(piece))
        except RayTaskError as error:
            if batch is not None and not isinstance(error.cause, LOST):
                raise error.cause from error
            self._lose(worker, batch, f"{type(error.cause).__name__}: {one_line(error.cause)}", fate)
            return None
        except ActorDiedError as error:
            self._lose(worker, batch, one_line(error), fate)
            return None
        except RayError as error:  # silent, or what it sent is lost
            self._dismiss(worker)
            fate.unsure.append(Unsure(batch, worker.node, one_line(error), time.monotonic()))
            return None
        if task.scorer is not None:
            task.scorer.unjudged += reply.unjudged
        return Done(batch, reply.lines, reply.seconds)

    def _settle(self, nodes: dict[str, Any], fate: Fate) -> None:
        """Decide what silent workers died of: of their node, which costs the batch nothing, or of their batch."""
        unsure, fate.unsure = fate.unsure, []
        for one in unsure:
            if one.node not in nodes:
                if one.batch is not None:
                    fate.queue.append(one.batch)
            elif time.monotonic() - one.since < UNSURE_SECONDS:
                fate.unsure.append(one)
            else:
                self._blame(one.node, one.batch, one.reason, fate)

    def _lose(self, worker: Hired, batch: Batch[Any] | None, reason: str, fate: Fate) -> None:
        """Dismiss a worker that died; its batch runs elsewhere, unless it has killed too many."""
        self._dismiss(worker)
        if any(node["NodeID"] == worker.node and node["Alive"] for node in ray.nodes()):
            self._blame(worker.node, batch, reason, fate)
        elif batch is not None:  # that was not the batch's doing
            fate.queue.append(batch)

    def _blame(self, node: str, batch: Batch[Any] | None, reason: str, fate: Fate) -> None:
        """Count a death against the batch, or against the node where a worker died while it loaded."""
        if batch is None:
            fate.failed[node] += 1
            if fate.failed[node] >= FATAL:
                self._give_up(node, f"{FATAL} workers died while they loaded: {reason}")
            return
        died = fate.deaths.setdefault(batch.name, [])
        died.append(reason)
        if len(died) < FATAL:
            fate.queue.append(batch)
        else:
            fate.aside.append(batch)

    def _give_up(self, node: str, reason: str) -> None:
        """Hire nobody on a node any more, and say so once."""
        name = next((one["NodeManagerAddress"] for one in ray.nodes() if one["NodeID"] == node), node)
        if node not in self._refused:
            self._refused[node] = f"node {name}: {reason}"
            tqdm.write(f"no worker on {self._refused[node]}", file=sys.stderr)

    def _dismiss(self, worker: Hired) -> None:
        """Take a worker off the list and end its process."""
        self._staff = [one for one in self._staff if one is not worker]
        ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._staff):
            self._dismiss(worker)


def share_of_machine(workers: int) -> tuple[float, int]:
    """Return GPUs, a fraction where there are more workers than GPUs, and threads of each of this machine's workers."""
    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 / -(-workers // gpus) if gpus else 0.0, max(1, cores // workers)


def _ready(refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Return what is ready, after at most `LOOK_SECONDS`."""
    if not refs:
        time.sleep(LOOK_SECONDS)
        return []
    first, _ = ray.wait(refs, num_returns=1, timeout=LOOK_SECONDS)
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []


def _told(batch: Batch[Any], reasons: Sequence[str]) -> str:
    keys = f"{', '.join(batch.keys[:3])}{' ...' if len(batch.keys) > 3 else ''}"
    return f"batch {batch.name} ({len(batch.keys)} rows: {keys}) killed {len(reasons)} workers: {reasons[-1]}"


@contextmanager
def open_cluster(workers: int, address: str | None) -> Iterator[Cluster]:
    """Start Ray on this machine, or join a running cluster, and end all our workers afterwards.

    Args:
        workers: workers at most; 0: all that the cluster has.
        address: address of the cluster; None: this machine alone.

    Raises:
        InputError: where there is no cluster at that address.
    """
    with _own_sigterm():
        _start(workers) if address is None else _join(address)
    pool = Cluster(workers, share_of_machine(workers) if address is None else None)
    try:
        yield pool
    finally:
        pool.close()
        ray.shutdown()


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}


def _start(workers: int) -> None:
    """Start Ray on this machine alone."""
    # Else Ray writes a token into the user's home, and every cluster that is started there later wants it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **QUIET)
    except (RuntimeError, RayError) as error:
        raise InputError(f"workers: expected Ray to start on this machine, got {one_line(error)}") from error


def _join(address: str) -> None:
    """Connect to a running cluster; one that does not answer is refused in bounded time."""
    try:
        if address != "auto":  # Ray itself asks for minutes, and then ends the process
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            _ask(address)
        ray.init(address=address, **QUIET)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        hint = TOKEN_HINT if isinstance(error, AuthenticationError) and "RAY_AUTH_MODE" not in os.environ else ""
        got = f"got {address!r} ({one_line(error) or type(error).__name__}){hint}"
        raise InputError(f"cluster: expected a running Ray cluster, {got}") from error


def _ask(address: str) -> None:
    """Ask whether Ray answers at an address.

    Raises:
        RayError, TimeoutError: where it does not.
    """
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            GcsClient(address=address).check_alive([], timeout=CONNECT_SECONDS)
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # to something else than Ray it goes on asking
    asking.start()
    asking.join(CONNECT_SECONDS)
    if failed:
        raise failed[0]
    if asking.is_alive():
        raise TimeoutError(f"no answer of Ray within {CONNECT_SECONDS:g} s")


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
