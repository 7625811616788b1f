"""The one way to run work in batches: a function from a batch of samples to rows, and one writer of the rows.

Search, menu tables, evaluation, `data accuracy`, `data profile` and `train calibrate` all run through `run_batches`, in
this process or on the workers of `data.cluster`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from pydantic import model_validator
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from data.store import RowT, Store
from router.files import json_line
from router.progress import progress
from router.validation import SETTINGS, Count, Positive, to_plain

ItemT = TypeVar("ItemT")
Tick = Callable[[float], object]
"""Told how many units of work (chains, samples) were done since the last call."""
States = Mapping[int, Mapping[str, Tensor]]
"""Hidden states of a batch by layer and sample id."""


@dataclass(frozen=True)
class Batch(Generic[ItemT]):
    """Samples that run together. The partition does not depend on what is finished, nor do the rows.

    Attributes:
        name: what tells it from the others, the same in every run.
        items: the samples.
        keys: keys of the rows that it makes.
        units: units of work in it, for the progress bar.
    """

    name: str
    items: tuple[ItemT, ...]
    keys: tuple[str, ...]
    units: int


@dataclass(frozen=True)
class Report:
    """What work says while it runs a batch.

    Attributes:
        tick: told of units of work.
        keep: takes hidden states of the batch's samples that are to stay; they are kept before its rows are.
    """

    tick: Tick
    keep: Callable[[States], object]


class Scorer(Protocol):
    """Counts answers that could not be judged, wherever they were asked for."""

    unjudged: int


def nowhere(*_: object) -> None:
    """Keep nothing."""


@dataclass(frozen=True)
class Task(Generic[ItemT, RowT]):
    """What is done with each batch; its parts but `keep` travel to the workers.

    Attributes:
        work: makes the rows of a batch.
        key: a row's key.
        scorer: runs the model for `work`; None: none does.
        keep: writes states that the work of a batch wants kept, given the name of a file for them.
    """

    work: Callable[[Batch[ItemT], Report], Sequence[RowT]]
    key: Callable[[RowT], str]
    scorer: Scorer | None = None
    keep: Callable[[str, States], object] = nowhere

    def lines(self, batch: Batch[ItemT], report: Report) -> list[tuple[str, bytes]]:
        """Return the key of each row of a batch, and its line as the store has it."""
        return [(self.key(row), json_line(to_plain(row))) for row in self.work(batch, report)]


@dataclass(frozen=True)
class Done(Generic[ItemT]):
    """A batch that has run.

    Attributes:
        batch: the batch.
        lines: key and line of each of its rows.
        seconds: time that its work took.
    """

    batch: Batch[ItemT]
    lines: list[tuple[str, bytes]]
    seconds: float


class Pool(Protocol):
    """Runs batches somewhere."""

    def run(
        self, task: Task[ItemT, RowT], batches: Sequence[Batch[ItemT]], tick: Tick
    ) -> Iterator[Sequence[Done[ItemT]]]:
        """Run batches in any order; give those that are done by now, again and again.

        Raises:
            InputError: where the work refuses its input, or there is no worker.
            UnfinishedError: after all others, where some batches could not be run.
        """
        ...


class ThisProcess:
    """The pool without workers: one batch after the other."""

    def run(
        self, task: Task[ItemT, RowT], batches: Sequence[Batch[ItemT]], tick: Tick
    ) -> Iterator[Sequence[Done[ItemT]]]:
        """Run batches in their order; see `Pool`."""
        for batch in batches:
            began = time.monotonic()
            lines = task.lines(batch, Report(tick, partial(task.keep, batch.name)))
            yield [Done(batch, lines, time.monotonic() - began)]


@settings(frozen=True, kw_only=True, config=SETTINGS)
class PoolSettings:
    """Where batches run; the results are the same.

    Attributes:
        workers: 0: in this process; else so many worker processes on this machine, each on a GPU or on its share of the
            cores. With `cluster`: at most so many of its workers, 0: all.
        cluster: address of a running Ray cluster, `HOST:PORT`, or "auto" for the one that this machine is part of:
            every GPU that it has or gets later is a worker, or every machine where none has a GPU; null: none.
    """

    workers: Count = 0
    cluster: str | None = None

    @model_validator(mode="after")
    def _needs_ray(self) -> Self:
        """Refuse an empty address, and workers where Ray, which is optional, is not installed."""
        if self.cluster == "":
            raise ValueError("cluster: expected HOST:PORT, 'auto' or null, got ''")
        if (self.workers or self.cluster is not None) and find_spec("ray") is None:
            name = "workers" if self.workers else "cluster"
            raise ValueError(
                f"{name}: expected Ray to be installed, got none; pip install -c constraints.txt -e '.[cluster]'"
            )
        return self

    @contextmanager
    def pool(self) -> Iterator[Pool]:
        """Give the pool, and end its workers afterwards.

        Raises:
            InputError: where there is no cluster at that address.
        """
        if not self.workers and self.cluster is None:
            yield ThisProcess()
            return
        from data.cluster import open_cluster  # needs Ray, which is optional

        with open_cluster(self.workers, self.cluster) as pool:
            yield pool


@settings(frozen=True, kw_only=True, config=SETTINGS)
class RunSettings(PoolSettings):
    """What a command that runs a model on prepared samples works on, and where.

    Attributes:
        data: folder of `python -m data prepare`.
        out: folder for the results; a run that was stopped goes on there.
        limit: samples of each split at most, the first ones; null: all.
        batch_samples: samples that run together.
        batch_tokens: tokens in one call of a layer at most.
    """

    data: Path
    out: Path
    limit: Positive | None = None
    batch_samples: Positive = 32
    batch_tokens: Positive = 1024


def run_batches(
    store: Store[RowT],
    batches: Sequence[Batch[ItemT]],
    task: Task[ItemT, RowT],
    *,
    label: str,
    unit: str,
    pool: Pool | None = None,
    run: dict[str, Any] | None = None,
    told: Callable[[Done[ItemT]], object] = lambda _: None,
) -> int:
    """Run every batch of which a row is missing, and add the missing rows to the store; shows the progress.

    A batch of which only some rows are there runs whole, so that no row depends on what was killed before. Batches that
    are done at the same time are written together, with one flush to the disk.

    Args:
        store: where the rows go.
        batches: all batches of the work.
        task: what is done with a batch.
        label: what the progress bar says.
        unit: name of a unit of work.
        pool: where they run; None: in this process.
        run: what the store's meta file says of this run (with its name, `run`); its `searched` and `seconds` are
            brought up to date after every batch. None: nothing.
        told: told of each batch whose rows are on the disk.

    Returns:
        Rows that were added.

    Raises:
        InputError: where the work refuses its input, or there is no worker.
        UnfinishedError: where some batches could not be run; the rows of all others are on the disk.
    """
    missing = [batch for batch in batches if not all(one in store for one in batch.keys)]
    total = sum(batch.units for batch in batches)
    added = 0
    began = time.monotonic()
    before = total - sum(batch.units for batch in missing)
    with progress(total, label, unit, initial=before) as bar, store:
        shown = bar.n

        def tick(units: float) -> None:
            nonlocal shown
            shown += units
            bar.update(min(int(shown), total) - bar.n)

        for group in (pool or ThisProcess()).run(task, missing, tick):
            new = [line for done in group for line in done.lines if line[0] not in store]
            store.append_lines(new)
            added += len(new)
            if run is not None:
                run |= {"searched": added, "seconds": round(time.monotonic() - began, 3)}
                store.note(run)
            for done in group:
                told(done)
        bar.update(total - bar.n)
    return added
