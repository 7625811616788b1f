"""The one store. Oracles: the rows that were appended; files cut or changed by hand; SIGKILL of a real process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from pydantic.dataclasses import dataclass

from data.pool import Batch, Task, run_batches
from data.store import Store, differences, meta_path, read_finished
from router.validation import STORED, InputError


@dataclass(frozen=True, config=STORED)
class Row:
    """A row.

    Attributes:
        name: its key.
        value: a number.
    """

    name: str
    value: int


def rows(*names: str) -> list[Row]:
    return [Row(name, len(name)) for name in names]


def opened(folder: Path, **identity: object) -> Store[Row]:
    return Store(folder / "rows.jsonl", Row, identity or {"of": "this"}, lambda row: row.name)


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("b", "a"))
        store.append(rows("c"))
        assert "a" in store
        assert not store.finished
    with opened(tmp_path) as again:
        assert list(again.rows()) == rows("b", "a", "c")
        again.finish(["a", "b", "c"])
        assert again.finished
    assert [value["name"] for _, value in read_finished(tmp_path / "rows.jsonl", "rows")] == ["a", "b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "rows.meta.json"]


def test_a_finished_store_takes_more_rows(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a"))
        store.finish(["a"])
        store.append(rows("b"))
        assert not store.finished
    with opened(tmp_path) as again:
        assert list(again.rows(["b", "a"])) == rows("b", "a")
        again.finish(["b", "a"])
    assert list(opened(tmp_path).rows()) == rows("b", "a")


def test_a_finished_store_is_read_by_many_and_written_by_none(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a"))
        store.finish(["a"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    first, second = opened(tmp_path), opened(tmp_path)
    assert list(first.rows()) == list(second.rows())
    first.finish(["a"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        one.append(rows("a"))
        with pytest.raises(InputError, match="expected to be its only writer"):
            other.append(rows("b"))


def test_what_another_process_has_written_meanwhile_is_kept(tmp_path: Path) -> None:
    # Oracle: the rows, of which the second process finishes all while the first one still works; a kill after its note.
    with opened(tmp_path) as store:
        store.append(rows("a", "b"))
    slow, noting = opened(tmp_path), opened(tmp_path)
    with opened(tmp_path) as quick:
        quick.append(rows("c"))
        with pytest.raises(InputError, match="expected to be its only writer"):
            noting.note({"run": "x"})
        quick.finish(["a", "b", "c"])
    noting.note({"run": "x"})
    assert list(opened(tmp_path).rows()) == rows("a", "b", "c")
    slow.append(rows("c"))
    slow.finish(["c", "b", "a"])
    assert list(opened(tmp_path).rows()) == rows("c", "b", "a")
    assert json.loads(meta_path(tmp_path / "rows.jsonl").read_text())["runs"] == [{"run": "x"}]


def test_another_run_that_began_meanwhile_is_not_gone_on_with(tmp_path: Path) -> None:
    with opened(tmp_path, search={"seed": 0}) as one, opened(tmp_path, search={"seed": 1}) as other:
        one.append(rows("a"))
        one.close()
        with pytest.raises(InputError, match=r"made with another search\.seed"):
            other.append(rows("b"))


def test_rows_of_something_else_are_refused_by_what_differs(tmp_path: Path) -> None:
    with opened(tmp_path, search={"seed": 0, "c": 1.0}) as store:
        store.append(rows("a"))
    with pytest.raises(InputError, match=r"^out: .* made with another search\.seed; choose another folder"):
        opened(tmp_path, search={"seed": 1, "c": 1.0})
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}}) == ["a", "b.c"]


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_finished_file_that_lost_a_line_is_refused(tmp_path: Path, line: int) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a", "b", "c"))
        store.finish(["a", "b", "c"])
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(InputError, match=r"expected 3 lines with SHA-256 .*, got 2 lines with"):
        list(read_finished(path, "rows"))
    with pytest.raises(InputError, match="expected 3 lines with SHA-256"):
        opened(tmp_path)


def test_an_unfinished_file_is_no_result(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a"))
    with pytest.raises(InputError, match=r"^rows: expected a finished .* got one that still grows"):
        list(read_finished(tmp_path / "rows.jsonl", "rows"))


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_does_not_count(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a", "b"))
    partial = tmp_path / "rows.partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-cut])
    with opened(tmp_path) as again:
        assert "a" in again
        assert "b" not in again
        again.append(rows("b"))
        assert list(again.rows(["a", "b"])) == rows("a", "b")


def test_a_corrupt_line_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a", "b"))
    partial = tmp_path / "rows.partial.jsonl"
    partial.write_text(partial.read_text().replace('"value": 1', '"value": "x"', 1))
    with pytest.raises(InputError, match=r"partial\.jsonl, line 1: value: expected an integer, got 'x'"):
        opened(tmp_path)


@pytest.mark.parametrize("after", ["meta", "rename"])
def test_a_kill_while_finishing_loses_nothing(tmp_path: Path, after: str) -> None:
    """A process of its own is killed between the two files that finishing writes."""
    with opened(tmp_path) as store:
        store.append(rows("a"))
        store.finish(["a"])
        store.append(rows("b"))
    program = f"""
        import os, signal
        import data.store
        from tests.test_data_store import *
        kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store = opened(Path({str(tmp_path)!r}))
        if {after!r} == "meta":
            write = data.store.write_json
            data.store.write_json = lambda *args: (write(*args), kill())
        else:
            replace = Path.replace
            Path.replace = lambda one, to: (replace(one, to), to.name == "rows.jsonl" and kill())
        store.finish(["b", "a"])
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, cwd=os.getcwd())
    assert ended.returncode == -signal.SIGKILL
    with opened(tmp_path) as again:
        assert sorted(row.name for row in again.rows()) == ["a", "b"]
        again.finish(["b", "a"])
    assert list(opened(tmp_path).rows()) == rows("b", "a")


def test_meta_says_what_the_runs_did(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("a"))
        store.note({"run": "one", "searched": 1})
        store.note({"run": "one", "searched": 2})
    meta = json.loads(meta_path(tmp_path / "rows.jsonl").read_text())
    assert (meta["runs"], meta["identity"]) == ([{"run": "one", "searched": 2}], {"of": "this"})


def test_the_pool_runs_only_batches_with_missing_rows_and_runs_them_whole(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append(rows("aa", "b"))
    batches = [Batch("0", ("aa",), ("aa",), 1), Batch("1", ("b", "c"), ("b", "c"), 2)]
    seen: list[str] = []

    def work(batch: Batch[str], tick: object) -> list[Row]:
        seen.append(batch.name)
        return rows(*batch.items)

    store = opened(tmp_path)
    run = {"run": "x"}
    assert run_batches(store, batches, Task(work, lambda row: row.name), label="test", unit="row", run=run) == 1
    assert seen == ["1"]
    assert list(opened(tmp_path).rows(["aa", "b", "c"])) == rows("aa", "b", "c")
    assert json.loads(meta_path(tmp_path / "rows.jsonl").read_text())["runs"][0]["searched"] == 1
