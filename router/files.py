"""Files that are complete or absent, and append-only logs that survive SIGKILL."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from router.validation import InputError, parse_json


def require_directory(path: Path, setting: str) -> Path:
    """Return `path`, which must be an existing directory.

    Raises:
        InputError: where it is not; the message names `setting`.
    """
    return _existing(path, path.is_dir(), setting, "directory")


def require_file(path: Path, setting: str) -> Path:
    """Return `path`, which must be an existing file; raises as `require_directory` does."""
    return _existing(path, path.is_file(), setting, "file")


def _existing(path: Path, exists: bool, setting: str, kind: str) -> Path:
    if not exists:
        raise InputError(f"{setting}: expected an existing {kind}, got {str(path)!r}")
    return path


def writable_directory(path: Path, setting: str) -> Path:
    """Make `path` a directory, if need be, and check before any work that files can be made there.

    Raises:
        InputError: where they cannot; the message names `setting`.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{setting}: expected a directory that can be written, got {str(path)!r} ({reason})"
        ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success fsync it and rename it to `path`, else remove it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        # mkstemp makes files private; a finished file gets the permissions that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        fsync(aside)
        aside.replace(path)
        fsync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is complete or absent."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file that is complete or absent."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return a value as an indented JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Give all that is in a folder the permissions that open() would have given, and flush it to the disk."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o777 & ~umask if path.is_dir() else 0o666 & ~umask)  # some libraries make files private
        fsync(path)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON (sorted keys, no white space)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def json_line(value: Any) -> bytes:
    """Return a value as a line of a JSON Lines file."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


class JsonLog:
    """An append-only JSON Lines file: each append is on the disk before the call returns.

    A process killed in the middle of an append leaves a last line without an end; opening the log again cuts it off.
    One process at a time may hold it open.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the log.

        Raises:
            InputError: where another process holds it open.
        """
        self.path = path
        self._made = not path.exists()
        self._stream = path.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by close or death
            held = self._has_its_name()
        except BlockingIOError:
            held = False
        if not held:
            self._stream.close()
            raise InputError(f"{path}: expected to be its only writer, got another process that writes it now")
        if self._made:
            fsync(path.parent)
        else:
            self._cut_torn_line()

    def _has_its_name(self) -> bool:
        """Whether the open file is the one of that name; another process may have removed it since it was opened."""
        return self.path.exists() and os.path.samestat(os.fstat(self._stream.fileno()), self.path.stat())

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._stream.truncate(content.rfind(b"\n") + 1)
            os.fsync(self._stream.fileno())

    def append(self, *lines: bytes) -> list[tuple[int, int]]:
        """Append lines (`json_line`), durably and together; returns each line's offset and length, bytes."""
        offset = self._stream.seek(0, os.SEEK_END)
        self._stream.write(b"".join(lines))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        ends = list(itertools.accumulate(map(len, lines), initial=offset))
        return [(start, len(line)) for start, line in zip(ends, lines, strict=False)]

    def close(self) -> None:
        """Close the file; one that was made here and got no line is removed."""
        empty = self._made and not self._stream.closed and not os.fstat(self._stream.fileno()).st_size
        if empty and self._has_its_name():
            self.path.unlink()
        self._stream.close()

    def __enter__(self) -> JsonLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each line of a JSON Lines file.

    Raises:
        InputError: at a line that is not a JSON object or not UTF-8; the message names file and line.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            yield number, _object(line, f"{path}, line {number}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: where the file is missing or holds something else, or a key stands twice.
    """
    require_file(path, path.name)
    return _object(path.read_bytes(), str(path))


def _object(text: bytes, where: str) -> dict[str, Any]:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value
