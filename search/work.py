"""One process's part of a run: it takes batches of all splits as long as there are any, beside other processes.

The unit of work is a batch of a fixed partition of a split's samples. It does not depend on what is finished, so a
sample always runs in the same company and the records do not depend on how many processes ran or were killed.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.encoding import EncodedSample
from data.records import SearchRecord
from data.sample import Sample
from data.scoring import batches_by_length
from data.state_files import StatesOrigin, write_states
from router.durable import read_json, sha256_file, sha256_json, write_json
from search.estimate import expected
from search.run import SplitSearch
from search.shards import SplitRecords
from search.summary import write_verification

Measured = Callable[[Sequence[EncodedSample], Sequence[SearchRecord], float], object]
"""Takes a batch, its records, and the seconds that its search took."""

POLL_SECONDS = 0.5
"""Time between two looks at what other processes have finished."""


class SplitWork:
    """The search of one split, shared with other processes.

    Attributes:
        name: the split.
        search: how its samples are searched.
        samples: the samples to search, by id, in their order.
        records: what is on the disk.
        before: ids of the samples that were finished when this process began.
    """

    def __init__(
        self,
        name: str,
        search: SplitSearch,
        samples: Sequence[Sample],
        limit: int | None,
        out: Path,
        run: dict[str, Any],
    ) -> None:
        """Look at what is there.

        Args:
            name: the split.
            search: how its samples are searched.
            samples: all its samples.
            limit: samples to search at most, the first ones; None: all.
            out: folder of the record file.
            run: what the settings file says of this process's run.

        Raises:
            InputError: where the folder holds records of another search or of other samples.
        """
        self.name, self.search = name, search
        self._targets = search.targets(samples)
        self.samples = {sample.id: sample for sample in samples[:limit]}
        self.records = SplitRecords(out / f"{name}.jsonl", self._check)
        self.before = frozenset(self.records.finished)
        self._run = {**run, "run": uuid.uuid4().hex[:12], "searched": 0, "seconds": 0.0}
        self._states = out / f"{name}.states"
        self._origin = StatesOrigin(search.scorer.fingerprints, search.scorer.dtype)
        self._began: float | None = None
        self.seconds = 0.0

    def _check(self, record: SearchRecord, path: Path) -> None:
        self.search.check(record, path, self.samples, self._targets)

    @property
    def waiting(self) -> list[Sample]:
        """Samples without a record."""
        return [sample for key, sample in self.samples.items() if key not in self.records.finished]

    @property
    def complete(self) -> bool:
        """Whether every sample has a record."""
        return self.records.finished.issuperset(self.samples)

    @cached_property
    def encoded(self) -> list[EncodedSample]:
        """The samples as token ids; all, since the partition depends on every length."""
        return self.search.scorer.encode_all(self.samples.values(), self._targets)

    @property
    def waiting_encoded(self) -> list[EncodedSample]:
        """Samples without a record, as token ids."""
        return [one for one in self.encoded if one.sample.id not in self.records.finished]

    @cached_property
    def batches(self) -> list[tuple[str, list[EncodedSample]]]:
        """The partition: each batch with a name that is the same in all processes that cut it alike."""
        made = batches_by_length([sample.length for sample in self.encoded], self.search.batch_samples)
        batches = [[self.encoded[i] for i in batch] for batch in made]
        key = sha256_json([[one.sample.id for one in batch] for batch in batches])[:8]
        return [(f"{key}-{number}", batch) for number, batch in enumerate(batches)]

    def work(self, told: Callable[[float], object], measured: Measured) -> bool:
        """Search every batch that no other process has; returns whether there was one.

        Args:
            told: called with the simulations made and not on the disk yet; below 0: they are.
            measured: called after each batch, when its records are on the disk.
        """
        self._began = self._began or time.monotonic()
        found = False
        if self.complete:
            return False
        try:
            for name, batch in self.batches:
                ids = [one.sample.id for one in batch]
                if self.records.finished.issuperset(ids):
                    continue
                with self.records.claim(name, ids) as missing:
                    if not missing:
                        continue
                    found, start = True, time.monotonic()
                    share = len(missing) / len(batch)  # a batch is searched whole, what is there is not counted again
                    keep = functools.partial(write_states, self._states / f"{name}.safetensors", self._origin)
                    records = self.search.search(batch, lambda count, share=share: told(count * share), keep)  # type: ignore[misc]
                    self.records.append([record for record in records if record.sample_id in missing])
                    told(-len(missing) * self.search.settings.simulations)  # they are on the disk now
                    self._run["searched"] += len(missing)
                    self._run["seconds"] = round(self._run["seconds"] + time.monotonic() - start, 3)
                    with self.records.alone():
                        self._note()
                    measured(batch, records, time.monotonic() - start)
        finally:
            self.records.leave()
        return found

    def finish(self) -> bool:
        """Merge the records if every sample has one; returns whether the split is done."""
        self.records.refresh()
        if not self.complete or not (self.records.merged or self.records.merge(list(self.samples), self._merged)):
            return False
        self.seconds = time.monotonic() - self._began if self._began else 0.0
        return True

    def _merged(self) -> None:
        merged_hash = sha256_file(self.records.path)
        self._note(merged_hash)
        write_verification(self.records.path, self.records.merged_records(), merged_hash)

    def _note(self, merged_hash: str | None = None) -> None:
        """Say in the settings file what this run searched, and which file the runs made."""
        path = self.records.path.with_suffix(".settings.json")
        before = read_json(path) if path.exists() else {}
        if before.get("search") != self.search.settings_hash:
            before = {"runs": [], "sha256": None}  # none, or left over from another search whose records were removed
        runs = [run for run in before["runs"] if run.get("run") != self._run["run"]]
        if self._run["searched"]:
            runs.append(self._run)
        known = before["sha256"] if merged_hash is None else merged_hash
        write_json(path, {"search": self.search.settings_hash, "sha256": known, "runs": runs})


def run_all(
    works: Sequence[SplitWork], *, shown: bool, done: Callable[[SplitWork], object], processes: int = 1
) -> None:
    """Search all splits, with whatever other processes are at it; returns when all is finished and merged.

    A process that finds no batch free goes on to the next split. When all are taken it waits: what a killed process
    had becomes free, and no process ends before the work has.

    Args:
        works: the splits in their order.
        shown: whether to show the progress, of all processes together, and after the first batch the expected cost.
        done: called with each split that is finished.
        processes: processes launched together.

    Raises:
        InputError: where, after the first batch, the records clearly do not fit on the disk.
    """
    with _Progress(works, shown, processes) as progress:
        left = list(works)
        while left:
            found = False
            for work in list(left):
                found = work.work(progress.add, progress.measured) or found
                if work.finish():
                    progress.look()
                    left.remove(work)
                    done(work)
            if left and not found:
                progress.look("waiting for other processes")
                time.sleep(POLL_SECONDS)


class _Progress:
    """A bar of simulations: of the finished samples of all processes, and of this process's own batch."""

    def __init__(self, works: Iterable[SplitWork], shown: bool, processes: int) -> None:
        self._works = list(works)
        self._processes = processes
        self._estimated = not shown
        self._own = 0.0
        self._looked = time.monotonic()
        self._total = sum(len(work.samples) * work.search.settings.simulations for work in self._works)
        self._bar = tqdm(
            total=self._total,
            initial=self._finished(),
            desc="search " + "+".join(work.name for work in self._works),
            unit="chain",
            disable=not shown,
        )

    def _finished(self) -> int:
        return sum(len(work.records.finished) * work.search.settings.simulations for work in self._works)

    def add(self, simulations: float) -> None:
        """Count simulations of this process's batch."""
        self._own += simulations
        if not self._bar.disable and time.monotonic() > self._looked + POLL_SECONDS:
            self._show()

    def measured(self, batch: Sequence[EncodedSample], records: Sequence[SearchRecord], seconds: float) -> None:
        """Say once, after the first batch, what the whole is expected to cost; nothing where the batch was all."""
        if self._estimated:
            return
        self._estimated = True
        left = [one for work in self._works for one in work.waiting_encoded]
        if left:
            out = self._works[0].records.path.parent
            tqdm.write(expected(batch, records, seconds, [*batch, *left], out, self._processes))

    def look(self, note: str = "") -> None:
        """Count what is on the disk, with no batch of this process under way."""
        self._own = 0.0
        self._show()
        self._bar.set_postfix_str(note)

    def _show(self) -> None:
        if self._bar.disable:
            return
        for work in self._works:
            work.records.refresh()
        self._looked = time.monotonic()
        self._bar.update(min(self._finished() + int(self._own), self._total) - self._bar.n)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
