"""Files that are complete or absent."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import BinaryIO

import pytest

from router.command import run_command
from router.files import JsonLog, json_line, read_json_lines, replacing, sha256_json, writable_directory, write_json
from router.validation import InputError


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def interrupted() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLog(path) as log:
        log.append(json_line({"i": 0}), json_line({"i": 1}))
    with path.open("ab") as stream:
        stream.write(b'{"i": 2')
    with JsonLog(path) as log:
        log.append(json_line({"i": 3}))
    assert [value["i"] for _, value in read_json_lines(path)] == [0, 1, 3]


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with JsonLog(path), pytest.raises(InputError, match="expected to be its only writer"):
        JsonLog(path)
    with JsonLog(path) as log:
        log.append(json_line({"i": 0}))
    assert path.read_text() == '{"i": 0}\n'


def test_a_log_that_was_removed_while_it_was_opened_takes_no_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the first writer ends, and removes its empty file, between the second one's opening and locking it.
    path, lock = tmp_path / "log.jsonl", fcntl.flock
    first = JsonLog(path)

    def late(stream: BinaryIO, how: int) -> None:
        first.close()
        lock(stream, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="expected to be its only writer"):
        JsonLog(path)
    monkeypatch.undo()
    with JsonLog(path) as log:
        log.append(json_line({"i": 0}))
    assert path.read_text() == '{"i": 0}\n'


@pytest.mark.parametrize(
    ("line", "wanted"),
    [(b"{", "JSON"), (b"[1]", "a JSON object"), (b'{"a": "\xff"}', "JSON"), (b"", "JSON")],
)
def test_a_corrupt_line_is_named(tmp_path: Path, line: bytes, wanted: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"log\.jsonl, line 2: expected {wanted}, got"):
        list(read_json_lines(path))


def test_an_unwritable_directory_is_named_before_any_work(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="out: expected a directory that can be written"):
        writable_directory(blocked / "below", "out")
    assert writable_directory(tmp_path / "new" / "deep", "out").is_dir()
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_hashes_ignore_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 2, "b": 1})


def test_commands_end_with_the_promised_status(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: object) -> None:
        raise InputError("out: expected this,\n got that")

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    assert run_command(refuse, []) == 2
    assert capsys.readouterr().err == "error: out: expected this, got that\n"
    assert run_command(interrupt, []) == 130
    assert run_command(lambda _: None, []) == 0
