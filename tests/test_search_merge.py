"""`python -m search --part` and `merge`: several drivers write what one writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.states import StatesOrigin, read_states
from search.__main__ import main
from tests.conftest import Refusal
from tests.test_search_run import arguments as search_arguments
from tests.tiny import scorer_of, tiny_samples, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def arguments(project: Path, folder: Path, **changes: object) -> list[str]:
    return search_arguments(
        project, folder, **{"batch_samples": 2, "read_layers": "[2]", "search__simulations": 6, **changes}
    )


@pytest.fixture(scope="module")
def parts(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for number in (1, 2, 3):
        main(arguments(project, folder / str(number), part=f"{number}/3"))
    return folder


def merging(project: Path, folders: list[Path], out: Path) -> list[str]:
    named = ",".join(map(str, folders))
    return ["merge", f"--parts=[{named}]", f"--data={project / 'data'}", f"--out={out}", "--splits=[train]"]


def test_merged_parts_are_the_file_of_one_search(project: Path, parts: Path, tmp_path: Path) -> None:
    # Oracle: the same search in one go; its states are kept too.
    folders = [parts / name for name in "213"]
    main(merging(project, folders, tmp_path / "whole"))
    main(arguments(project, tmp_path / "one"))
    assert (tmp_path / "whole" / "train.jsonl").read_bytes() == (tmp_path / "one" / "train.jsonl").read_bytes()
    scorer = scorer_of(project)
    ids = [sample.id for sample in tiny_samples("train", 8)]
    found = read_states([tmp_path / "whole" / "train.states"], StatesOrigin(scorer.fingerprints, "float32"), ids, 2)
    assert sorted(found) == sorted(ids)
    before = {path: path.read_bytes() for path in (tmp_path / "whole").glob("train.*") if path.is_file()}
    main(merging(project, folders, tmp_path / "whole"))
    assert {path: path.read_bytes() for path in before} == before
    main(arguments(project, tmp_path / "whole"))  # a search goes on there, and finds all done
    assert (tmp_path / "whole" / "train.jsonl").read_bytes() == before[tmp_path / "whole" / "train.jsonl"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["1", "2"], "parts: expected 1/3, 2/3, 3/3, got 1/3, 2/3"),
        (["1", "2", "2"], "parts: expected 1/3, 2/3, 3/3, got 1/3, 2/3, 2/3"),
        (["1", "2", "other"], "to be of the same search as"),
        (["1", "2", "cut otherwise"], "same search as"),
        (["1", "2", "damaged"], "expected schema 1 with identity, count, sha256 and runs, got another"),
    ],
)
def test_parts_that_are_no_whole_are_refused(
    project: Path, parts: Path, tmp_path: Path, refusal: Refusal, folders: list[str], message: str
) -> None:
    changes: dict[str, dict[str, object]] = {"other": {"search__simulations": 5}, "cut otherwise": {"batch_samples": 1}}
    changes["damaged"] = {}
    made = folders[-1] if folders[-1] in changes else None
    if made:
        main(arguments(project, tmp_path / made, part="3/3", **changes[made]))
    if made == "damaged":
        (tmp_path / made / "train.meta.json").write_text("{}")
    where = [tmp_path / name if name == made else parts / name for name in folders]
    assert message in refusal(main, merging(project, where, tmp_path / "out"))
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_a_merge_does_not_cut_down_what_is_there(project: Path, parts: Path, tmp_path: Path, refusal: Refusal) -> None:
    main(arguments(project, tmp_path / "out"))
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    fewer = [tmp_path / "1", tmp_path / "2"]
    for number, folder in enumerate(fewer, start=1):
        main(arguments(project, folder, part=f"{number}/2", limit=4))
    assert "out: expected records of these parts in" in refusal(main, merging(project, fewer, tmp_path / "out"))
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before
    assert not (tmp_path / "out" / "train.partial.jsonl").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("3/2", "part: expected 1/2 to 2/2, got '3/2'"),
        ("0/2", "part: expected"),
        ("1/1\u0662", "part: expected text like"),  # a digit to Python, and no part that `merge` finds
        ("9/9", "part: expected one with a batch of the train split, got '9/9'; fewer parts do"),
    ],
)
def test_a_part_that_there_is_not_is_refused(
    project: Path, tmp_path: Path, refusal: Refusal, part: str, message: str
) -> None:
    assert message in refusal(main, arguments(project, tmp_path / "out", part=part))
