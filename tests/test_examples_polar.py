"""PoLar's file: records exported, a menu imported, bad files refused. Oracles: by hand, and the records themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data.records import read_records
from examples.polar_files import Paths, chains_by_reason, main
from router.chain import Chain
from search.__main__ import main as search
from search.menu import read_menu
from tests.conftest import Refusal
from tests.menus import write_records
from tests.tiny import NUM_LAYERS, write_project

VALID, INVALID = "final_valid_transitions", "final_invalid_transitions"
FULL, SKIP, REPEAT, MOVED = [0, 1, 2, 3, 4], [0, 1, 2, 4], [0, 1, 2, 2, 3, 4], [0, 2, 1, 3, 4]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples, and a finished search of the training split."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    named = {"data": folder / "data", "model": folder / "model", "out": folder / "records", "splits": "[train]",
             "first_editable": 1, "dtype": "float32", "search.simulations": 12, "search.max_depth": 9}  # fmt: skip
    search([f"--{name}={value}" for name, value in named.items()])
    return folder


def arguments(**values: object) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def theirs(valid: list[list[int]], invalid: list[list[int]]) -> dict[str, Any]:
    return {"question": "q", "gt_ans": "7", VALID: valid, INVALID: invalid}


def test_every_path_is_counted_by_what_becomes_of_it() -> None:
    samples = [
        Paths([FULL, SKIP, SKIP, MOVED], [MOVED, REPEAT, [0, 9]]),
        Paths([SKIP, [1, 2, 3, 4]], [[]]),
    ]
    valid, reasons = chains_by_reason(samples, 5, 1)
    assert valid == {Chain.full(5): 1, Chain(tuple(SKIP), 5): 2}
    assert reasons == {
        "taken": 3, "repeated": 1, "valid and invalid": 2, "invalid": 1, "edits the prefix": 1,
        "not a chain of this model": 2,
    }  # fmt: skip


def test_an_export_holds_the_records_and_becomes_a_menu_that_a_search_takes(project: Path, tmp_path: Path) -> None:
    records = read_records(project / "records" / "train.jsonl")
    first, *others = records
    doubted = [dataclasses.replace(one, verified=i >= 3) for i, one in enumerate(first.results)]
    write_records(tmp_path / "r" / "train.jsonl", [dataclasses.replace(first, results=tuple(doubted)), *others])
    file, menu = tmp_path / "merged_mcts_samples.json", tmp_path / "menu.json"
    main(arguments(kind="export", records=tmp_path / "r" / "train.jsonl", data=project / "data", file=file))
    samples = json.loads(file.read_text())["samples"]
    assert [one["sample_info"]["query_id"] for one in samples] == [record.sample_id for record in records]
    for record, one in zip(others, samples[1:], strict=True):
        kept = [result for result in record.results if result.verified is not False]
        assert one[VALID] == [list(r.chain.layers) for r in kept if r.correct]
        assert one[INVALID] == [list(r.chain.layers) for r in kept if not r.correct]
    # The second run of the first three chains disagreed, full depth among them.
    assert sorted(samples[0][VALID] + samples[0][INVALID]) == sorted(list(r.chain.layers) for r in first.results[3:])
    assert "initial_score" not in samples[0]

    main(arguments(kind="import", file=file, num_layers=NUM_LAYERS, first_editable=1, size=4, menu=menu))
    chains = read_menu(menu).chains
    assert len(chains) == 4
    counts = {
        str(c): sum(list(c.layers) in one[VALID] for one in samples)
        for r in records
        for c in (x.chain for x in r.results)
    }
    best = sorted((count for chain, count in counts.items() if not Chain.parse(chain, NUM_LAYERS).is_full))[-3:]
    assert sorted(counts[str(chain)] for chain in chains[1:]) == best
    search(arguments(
        data=project / "data", model=project / "model", out=tmp_path / "table", splits="[train]", first_editable=1,
        dtype="float32", menu=menu,
    ))  # fmt: skip
    for record in read_records(tmp_path / "table" / "train.jsonl"):
        assert tuple(result.chain for result in record.results) == chains


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, got something corrupt"),
        ([], "expected a list 'samples' with at least one, got list"),
        ([{"question": "q"}], f"sample 0: expected the field {VALID}, got none"),
        ([theirs([["a"]], [])], f"sample 0: {VALID}[0][0]: expected an integer, got 'a'"),  # type: ignore[list-item]
        ([theirs([FULL], [SKIP])], "expected valid chains besides full depth that can be taken, got none"),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(
    tmp_path: Path, refusal: Refusal, content: Any, message: str
) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    assert message in refusal(main, arguments(kind="import", file=file, num_layers=5, menu=tmp_path / "menu.json"))
    assert not (tmp_path / "menu.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_target": "wrong"}, "records: expected a search for the right answers"),
        ({"sample_id": "0" * 16}, "records: expected samples of"),
    ],
)
def test_records_that_cannot_be_exported_leave_no_file(
    project: Path, tmp_path: Path, refusal: Refusal, changes: dict[str, Any], message: str
) -> None:
    record = read_records(project / "records" / "train.jsonl")[0]
    write_records(tmp_path / "r" / "train.jsonl", [dataclasses.replace(record, **changes)])
    file = tmp_path / "theirs.json"
    named = arguments(kind="export", records=tmp_path / "r" / "train.jsonl", data=project / "data", file=file)
    assert message in refusal(main, named)
    assert not file.exists()
