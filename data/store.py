"""The one store of results: rows of one type in JSON Lines, written by one process, resumable after any kill.

    <name>.jsonl            the finished rows, in the order of the samples
    <name>.partial.jsonl    rows in the order in which they were found, while work goes on
    <name>.meta.json        what the rows are of (`identity`), how many finished ones there are, and their SHA-256

A file whose rows do not match count and hash is refused: a lost line does not pass for a smaller result. An append is
on the disk when it returns. A last line without an end, which a killed process leaves, does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from router.files import JsonLog, json_line, read_json, replacing, sha256_file, writable_directory, write_json
from router.validation import InputError, from_plain, parse_json, shown, to_plain

SCHEMA = 1
"""Version of `<name>.meta.json`."""
RowT = TypeVar("RowT")


class Store(Generic[RowT]):
    """Rows on the disk, each under a key, written by this process alone.

    Attributes:
        path: the finished file.
        identity: what the rows are of: settings, hashes of inputs, model. JSON data.
        key: a row's key.
    """

    def __init__(
        self,
        path: Path,
        kind: type[RowT],
        identity: Mapping[str, Any],
        key: Callable[[RowT], str],
        *,
        num_layers: int | None = None,
    ) -> None:
        """Read what is there; nothing is written yet.

        Args:
            path: the finished file, `<name>.jsonl`.
            kind: type of a row, a validated dataclass.
            identity: what rows of this file must be of.
            key: a row's key; each stands once.
            num_layers: layers of the model whose chains stand in the rows; None: there are none.

        Raises:
            InputError: where rows of another identity are there, a line is corrupt, or lines are missing.
        """
        self.path, self.identity = path, dict(identity)
        self.key, self._kind, self._num_layers = key, kind, num_layers
        self._log: JsonLog | None = None
        self._read()

    def _read(self) -> None:
        path, meta = self.path, read_meta(self.path)
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._partial_bytes = 0
        if meta is None and (path.exists() or self._partial.exists()):
            raise InputError(f"out: expected {meta_path(path)} beside {path.name}, got none; {self._remedy}")
        self._require_identity(meta)
        self._meta = meta or {"schema": SCHEMA, "identity": self.identity, "count": None, "sha256": None, "runs": []}
        if path.exists():
            _require_sealed(path, self._meta, also=self._meta.get("replaces"))
            self._scan(path)
        if self._partial.exists():
            self._partial_bytes = self._scan(self._partial)

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(".partial.jsonl")

    @property
    def _remedy(self) -> str:
        return f"choose another folder, or remove {str(self.path)!r} and what lies beside it"

    def _require_identity(self, meta: Mapping[str, Any] | None) -> None:
        if meta is None or meta["identity"] == self.identity:
            return
        differing = differences(meta["identity"], self.identity)
        raise InputError(
            f"out: expected an empty folder or results of the same settings and inputs, got {self.path} "
            f"made with another {', '.join(differing[:3]) or 'version'}; {self._remedy}"
        )

    def _scan(self, path: Path) -> int:
        """Read and check each row of a file, and remember where it stands; returns the bytes of all whole lines."""
        offset = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                key = self.key(self._parse(line, f"{path}, line {number}"))
                if path == self.path and key in self._places:
                    raise InputError(f"{path}, line {number}: expected each row once, got {key} again")
                self._places.setdefault(key, (path, offset, len(line)))
                offset += len(line)
        return offset

    def _parse(self, line: bytes, where: str) -> RowT:
        return from_plain(self._kind, parse_json(line, where), where, num_layers=self._num_layers)

    def __contains__(self, key: str) -> bool:
        """Whether a row of that key is on the disk."""
        return key in self._places

    @property
    def keys(self) -> list[str]:
        """Keys of all rows on the disk."""
        return list(self._places)

    @property
    def finished(self) -> bool:
        """Whether there is nothing that was not merged into the finished file."""
        return self.path.exists() and not self._partial.exists()

    def rows(self, keys: Iterable[str] | None = None) -> Iterator[RowT]:
        """Give the rows of some keys (None: all), in their order, one by one, so that they need not fit in memory.

        Raises:
            KeyError: where a key has no row.
        """
        for path, line in self._lines(list(self._places) if keys is None else keys):
            yield self._parse(line, str(path))

    def _lines(self, keys: Iterable[str]) -> Iterator[tuple[Path, bytes]]:
        """Give each row's file and line; a file is opened once."""
        streams: dict[Path, BinaryIO] = {}
        with ExitStack() as opened:
            for path, offset, length in map(self._places.__getitem__, keys):
                if path not in streams:
                    streams[path] = opened.enter_context(path.open("rb"))
                streams[path].seek(offset)
                yield path, streams[path].read(length)

    def append(self, rows: Sequence[RowT]) -> None:
        """Add rows; they are on the disk when this returns. Errors as of `append_lines`."""
        self.append_lines([(self.key(row), json_line(to_plain(row))) for row in rows])

    def append_lines(self, lines: Sequence[tuple[str, bytes]]) -> None:
        """Add rows, each given as its key and its line; they are on the disk when this returns.

        Raises:
            InputError: where another process writes them too, or the folder cannot be written.
        """
        places = self._writing().append(*(line for _, line in lines))
        for (key, _), (offset, length) in zip(lines, places, strict=True):
            self._places[key] = (self._partial, offset, length)
            self._partial_bytes = offset + length

    def _writing(self) -> JsonLog:
        """Be the only writer until `close`; what another process has written since the rows were read is read now."""
        if self._log is None:
            writable_directory(self.path.parent, "out")
            if not meta_path(self.path).exists():
                self._write_meta()
            self._log = JsonLog(self._partial)
            if read_meta(self.path) != self._meta or self._partial.stat().st_size != self._partial_bytes:
                try:
                    self._read()
                except InputError:
                    self.close()
                    raise
        return self._log

    def note(self, run: Mapping[str, Any]) -> None:
        """Say in the meta file what this run did; a run is known by its `run`, a later note replaces an earlier one.

        Raises:
            InputError: where another process writes the rows.
        """
        waiting = self._log is None
        self._writing()
        self._meta["runs"] = [one for one in self._meta["runs"] if one.get("run") != run["run"]] + [dict(run)]
        self._write_meta()
        if waiting:
            self.close()

    def finish(self, order: Sequence[str]) -> None:
        """Write the finished file: a row for each key, in that order. Killed anywhere, it can be called again.

        Raises:
            InputError: where another process writes the rows.
            KeyError: where a key has no row.
        """
        if self._log is None and self.finished and list(self._places) == list(order):
            return
        with self:
            self._writing()
            with replacing(self.path) as aside:
                with aside.open("wb") as out:
                    out.writelines(line for _, line in self._lines(order))
                # Before the rename: whichever of the two files a kill leaves, its hash stands in the meta file.
                self._meta |= {"replaces": self._meta["sha256"], "count": len(order), "sha256": sha256_file(aside)}
                self._write_meta()
            self._partial.unlink(missing_ok=True)
        self._places, self._partial_bytes = {}, 0
        self._scan(self.path)

    def _write_meta(self) -> None:
        write_json(meta_path(self.path), self._meta)

    def close(self) -> None:
        """Let another process write."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Store[RowT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_finished(path: Path, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give (file and line, JSON object) of a finished file's rows.

    Raises:
        InputError: where the file is missing or not finished, a line is corrupt, or lines are missing.
    """
    if path.with_suffix(".partial.jsonl").exists():
        raise InputError(f"{setting}: expected a finished {path}, got one that still grows; run its command again")
    if not path.is_file():
        raise InputError(f"{setting}: expected an existing file, got {str(path)!r}")
    meta = read_meta(path)
    if meta is None:
        raise InputError(f"{setting}: expected {meta_path(path)} beside {path.name}, got none")
    _require_sealed(path, meta)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}, line {number}"
            value = parse_json(line, where)
            if not isinstance(value, dict):
                raise InputError(f"{where}: expected a JSON object, got {shown(value)}")
            yield where, value


def meta_path(path: Path) -> Path:
    """Return the meta file of a finished file."""
    return path.with_suffix(".meta.json")


def read_meta(path: Path) -> dict[str, Any] | None:
    """Return what the meta file of a finished file says; None: there is none.

    Raises:
        InputError: where it says less than it should.
    """
    where = meta_path(path)
    if not where.exists():
        return None
    meta = read_json(where)
    if meta.get("schema") != SCHEMA or not {"identity", "count", "sha256", "runs"} <= meta.keys():
        raise InputError(f"{where}: expected schema {SCHEMA} with identity, count, sha256 and runs, got another")
    return meta


def identity_of(path: Path, setting: str) -> dict[str, Any]:
    """Return what the rows of a finished file are of.

    Raises:
        InputError: where no meta file says it (older formats have none), or it is another file's.
    """
    meta = read_meta(path)
    if meta is None:
        raise InputError(
            f"{setting}: expected {meta_path(path)} beside {path.name}, got none (older records have none)"
        )
    _require_sealed(path, meta)
    identity: dict[str, Any] = meta["identity"]
    return identity


def _require_sealed(path: Path, meta: Mapping[str, Any], also: str | None = None) -> None:
    """Refuse a file that is not the one which its meta file names."""
    found = sha256_file(path)
    if found not in (meta["sha256"], also):
        with path.open("rb") as stream:
            lines = sum(1 for _ in stream)
        raise InputError(
            f"{path}: expected {meta['count']} lines with SHA-256 {str(meta['sha256'])[:12]}, got {lines} lines with "
            f"{found[:12]}: it was changed or cut after it was made"
        )


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """Return the dotted names of what differs between two JSON values, ascending."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            found
            for key in sorted(stored.keys() | wanted.keys())
            for found in differences(stored.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if stored == wanted else [name]
