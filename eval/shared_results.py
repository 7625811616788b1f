"""A results file that any number of processes write: one shard each, merged when everything is there.

    <out>/results.jsonl               the merged file
    <out>/results.shards/<n>.jsonl    results not merged yet, one file for each process and turn
    <out>/results.shards/<batch>.lock held by the process that runs the batch

Locks are `flock`s: they vanish with a process that is killed, and another one takes its batch.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data.launch import Launch
from eval.results import PolicyResult, read_results
from router.files import JsonLog, replacing, writable_directory

ALONE = Launch(0, 1, "auto")
"""The only process."""


class ResultsBook:
    """The results of one file, of this process and all others of its launch.

    Attributes:
        results: all results read or written so far, each (policy, sample) once.
    """

    def __init__(self, path: Path, num_layers: int, launch: Launch = ALONE) -> None:
        """Read what is there.

        Args:
            path: the merged file.
            num_layers: layers of the model.
            launch: this process among the others; alone, it writes the merged file itself.

        Raises:
            InputError: where a line is corrupt, or another process writes the file.
        """
        self._path, self._num_layers, self._launch = path, num_layers, launch
        self._folder = path.with_suffix(".shards")
        self.results: dict[tuple[str, str], PolicyResult] = {}
        self._log: JsonLog | None = None
        self.refresh()
        if launch.processes == 1:
            if self._folder.exists():  # of an earlier launch of several
                self._merge()
            self._log = JsonLog(path)  # cuts a line off that a killed run left torn
            self.refresh()
        else:
            while self._log is None:
                writable_directory(self._folder, "out")
                with suppress(FileNotFoundError):  # merged and removed in this moment
                    self._log = JsonLog(self._folder / f"{launch.rank}-{os.getpid()}.jsonl")

    def refresh(self) -> None:
        """Read what was added by whatever process."""
        # The merged file comes last: it is in its place before the shards are removed, so nothing can be missed.
        for path in [*sorted(self._folder.glob("*.jsonl")), self._path]:
            try:
                found = read_results(path, self._num_layers, torn=True)
            except FileNotFoundError:
                continue
            for one in found:
                self.results.setdefault((one.policy, one.sample_id), one)

    @contextmanager
    def claimed(self, batch: int) -> Iterator[bool]:
        """Hold a batch; False where another process runs it now. What was finished meanwhile is read."""
        if self._launch.processes == 1:
            yield True
            return
        try:
            lock = (self._folder / f"{batch}.lock").open("a")
        except FileNotFoundError:  # merged already, and removed: there is nothing to run
            self.refresh()
            yield True
            return
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by close or death
            except BlockingIOError:
                yield False
                return
            self.refresh()
            yield True

    def append(self, results: Sequence[PolicyResult]) -> None:
        """Add results, durably."""
        assert self._log is not None
        self._log.append(*(one.to_json() for one in results))
        self.results.update({(one.policy, one.sample_id): one for one in results})

    def finish(self) -> None:
        """Merge, once everything is there; the first process does it."""
        if self._launch.processes > 1 and self._launch.is_main:
            self.refresh()
            self._merge()

    def _merge(self) -> None:
        with replacing(self._path) as aside, JsonLog(aside) as log:
            log.append(*(one.to_json() for one in self.results.values()))
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> ResultsBook:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()
        if self._launch.processes > 1 and self._path.exists() and not list(self._folder.glob("*.jsonl")):
            shutil.rmtree(self._folder, ignore_errors=True)  # made anew after all was merged


def merge_shards(path: Path, num_layers: int) -> None:
    """Merge shards that nobody has merged, because the first process of the launch came when all was done.

    Raises:
        InputError: where a line is corrupt.
    """
    if path.with_suffix(".shards").exists():
        with ResultsBook(path, num_layers):
            pass
