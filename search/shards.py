"""The records of a split on the disk, written by any number of processes at once.

    <out>/<split>.jsonl              the merged records, in the order of the samples
    <out>/<split>.shards/<n>.jsonl   records not merged yet, one file for each process and turn
    <out>/<split>.shards/<batch>.lock   held by the process that searches the batch
    <out>/.<split>.lock              held for a moment by whoever claims a batch or merges

Processes meet through these files alone. All locks are `flock`s: they vanish with a process that is killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.records import SearchRecord, parse_record
from router.files import JsonLog, fsync, parse_json_line
from router.validation import InputError


@dataclass
class _Read:
    """What was read of a file so far.

    Attributes:
        version: what tells a file from another one of the same name.
        offset: bytes of its whole lines.
        lines: whole lines.
        places: for each sample id its line's start and length, bytes.
    """

    version: tuple[int, int]
    offset: int = 0
    lines: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


class SplitRecords:
    """The records of a split, of this process and all others.

    A last line without an end, which a killed process leaves, does not count; merging drops it.

    Attributes:
        path: the merged file.
        folder: folder of the shards; there as long as something is not merged.
        finished: ids of the samples that have a record, as of the last `refresh`.
    """

    def __init__(self, path: Path, check: Callable[[SearchRecord, Path], None]) -> None:
        """Read what is there.

        Args:
            path: the merged file; shards and locks lie beside it.
            check: raises InputError at a record that does not belong here; called once for each record and file.

        Raises:
            InputError: where a line is corrupt (file and line), or `check` refuses a record.
        """
        self.path = path
        self.folder = path.with_suffix(".shards")
        self.finished: set[str] = set()
        self._check = check
        self._mutex = FileLock(path.with_name(f".{path.stem}.lock"))
        self._reads: dict[Path, _Read] = {}
        self._shard: JsonLog | None = None
        self.refresh()

    @property
    def merged(self) -> bool:
        """Whether there is nothing to merge."""
        return not self.folder.exists()

    @property
    def total_bytes(self) -> int:
        """Bytes of all records read."""
        return sum(read.offset for read in self._reads.values())

    def refresh(self) -> None:
        """Read the records that were added, by whatever process, since the last call.

        Raises:
            InputError: as the constructor does.
        """
        # The merged file comes last: it is in its place before its shards are removed, so nothing can be missed.
        paths = [*_shards(self.folder), self.path]
        for gone in self._reads.keys() - set(paths):
            del self._reads[gone]
        for path in paths:
            try:
                self._read(path)
            except FileNotFoundError:
                self._reads.pop(path, None)
        self.finished = {sample for read in self._reads.values() for sample in read.places}

    def _read(self, path: Path) -> None:
        with path.open("rb") as stream:
            stat = os.fstat(stream.fileno())
            # A shard grows; the merged file is only ever replaced.
            version = (stat.st_ino, stat.st_mtime_ns if path == self.path else 0)
            read = self._reads.get(path)
            if read is None or read.version != version or stat.st_size < read.offset:
                read = self._reads[path] = _Read(version)
            stream.seek(read.offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                record = _parse(line, f"{path}, line {read.lines + 1}")
                self._check(record, path)
                if record.sample_id in read.places:
                    raise InputError(
                        f"{path}, line {read.lines + 1}: expected each sample once, got {record.sample_id} again"
                    )
                read.places[record.sample_id] = (read.offset, len(line))
                read.offset += len(line)
                read.lines += 1

    @contextmanager
    def claim(self, batch: str, samples: Collection[str]) -> Iterator[list[str]]:
        """Claim a batch for the time of the block; gives those of its samples that have no record, in their order.

        None are given where there are none or another process has the batch. With the first claim this process opens
        a shard, which stays open until `leave`; while one is open nobody merges.

        Args:
            batch: the batch's name, the same in all processes.
            samples: ids of its samples.
        """
        lock = None
        with self._mutex:
            self.refresh()
            if not self.finished.issuperset(samples):
                self.folder.mkdir(exist_ok=True)
                lock = FileLock(self.folder / f"{batch}.lock")
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    lock = None
            if lock is not None and self._shard is None:
                # Never one of an earlier process: what that one left torn then stays at an end.
                numbers = [int(path.stem) for path in _shards(self.folder)]
                self._shard = JsonLog(self.folder / f"{max(numbers, default=-1) + 1}.jsonl")
        if lock is None:
            yield []
            return
        try:
            self.refresh()  # whoever had it until now may have finished it
            yield [sample for sample in samples if sample not in self.finished]
        finally:
            lock.release()

    def append(self, records: Sequence[SearchRecord]) -> None:
        """Put records on the disk, in a claim."""
        assert self._shard is not None, "append: expected to be called in a claim"
        self._shard.append(*(record.to_json() for record in records))
        self.refresh()

    def leave(self) -> None:
        """Close this process's shard: it claims no batch for now."""
        if self._shard is not None:
            with self._mutex:
                self._shard.close()
            self._shard = None

    def merged_records(self) -> Iterator[SearchRecord]:
        """Give the merged file's records one by one, so that they need not fit in memory."""
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield _parse(line, f"{self.path}, line {number}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all others from claiming and merging, for a short piece of work on the split's files."""
        with self._mutex:
            yield

    def merge(self, order: Sequence[str], finish: Callable[[], Any]) -> bool:
        """Make the merged file of all records, unless a process still writes or claims; safe against kills anywhere.

        Args:
            order: ids of the samples, each of which has a record, in the order wanted.
            finish: called with the merged file in its place, before the shards are removed: again, if need be.

        Returns:
            Whether everything is merged now, by this process or by another one.
        """
        self.leave()
        with self._mutex:
            if self.merged:
                self.refresh()
                return True
            if any(_is_locked(path) for path in self.folder.iterdir() if path.suffix in (".jsonl", ".lock")):
                return False
            self.refresh()
            aside = self.folder / "merged.tmp"
            with aside.open("wb") as stream:
                for line in self._lines(order):
                    stream.write(line)
            fsync(aside)
            aside.replace(self.path)
            fsync(self.path.parent)
            self.refresh()
            finish()
            shutil.rmtree(self.folder)
            self.refresh()
            return True

    def _lines(self, order: Sequence[str]) -> Iterator[bytes]:
        """Give the samples' lines; of one that has several (batches of other sizes met), the merged or first one."""
        paths = [self.path, *_shards(self.folder)]
        known = [(path, self._reads[path]) for path in paths if path in self._reads]
        streams = {path: path.open("rb") for path, _ in known}
        try:
            for sample in order:
                path, read = next((path, read) for path, read in known if sample in read.places)
                start, length = read.places[sample]
                streams[path].seek(start)
                yield streams[path].read(length)
        finally:
            for stream in streams.values():
                stream.close()


def _shards(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:  # not made yet, or another process has merged and removed it
        return []
    return sorted((folder / name for name in names if name.endswith(".jsonl")), key=lambda path: int(path.stem))


def _is_locked(path: Path) -> bool:
    """Whether another process, or another object of this one, holds a file's lock."""
    with path.open("r+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _parse(line: bytes, where: str) -> SearchRecord:
    return parse_record(parse_json_line(line, where), where)
