"""`python -m search menu`: menus chosen from records, and of all subsets of layers; and on every bad input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.records import ChainResult, SearchRecord, pareto_front
from router.command import run_command
from router.fingerprint import Fingerprints
from router.validation import InputError
from search.menu import MOST_SUBSETS, main, read_menu
from tests.menus import record, write_records
from tests.tiny import save_tiny


def lucky_records() -> list[SearchRecord]:
    """Full depth right on 8 of 10; "0-4" on 6; "0-3" on the 2 where full depth fails, and nowhere else."""
    return [record(f"s{i}", {"0-5": i < 8, "0-4": 2 <= i < 8, "0-3": i >= 8, "1-5": True}) for i in range(10)]


def test_chains_that_are_right_by_luck_are_left_out(tmp_path: Path) -> None:
    # Oracle: by hand; "0-3" gains the most if outcomes could be foreseen, with a fourth of full depth's right answers.
    path = write_records(tmp_path / "train.jsonl", lucky_records())
    given = [f"--records=[{path}]", f"--out={tmp_path / 'menu.json'}", "--first_editable=2", "--predictable=1"]
    main(given)
    assert [str(one) for one in read_menu(tmp_path / "menu.json").chains] == ["0-5", "0-4"]
    main([*given, "--least=0"])
    menu = read_menu(tmp_path / "menu.json")
    assert [str(one) for one in menu.chains] == ["0-5", "0-4", "0-3"]
    assert (menu.first_editable, menu.made["samples"]) == (2, 10)
    main([*given, "--least=0", "--min_depth=5"])
    assert [str(one) for one in read_menu(tmp_path / "menu.json").chains] == ["0-5", "0-4"]
    main([*given, "--least=0", "--max_depth=4"])  # the full chain is in it all the same
    assert [str(one) for one in read_menu(tmp_path / "menu.json").chains] == ["0-5", "0-3"]
    with pytest.raises(InputError, match="expected a chain worth choosing besides the full one, got none"):
        main([*given, "--least=0", "--tried=11"])


def with_results(record: SearchRecord, results: Sequence[ChainResult]) -> SearchRecord:
    return dataclasses.replace(record, results=tuple(results), pareto=pareto_front(results))


def test_a_chain_whose_second_run_failed_is_worth_nothing(tmp_path: Path) -> None:
    # Oracle: the same records in which the chain was wrong at once. A label that was flipped teaches no menu anything.
    menus = []
    for flip in (True, False):
        records = []
        for one in lucky_records():
            results = [
                result
                if result.chain.depth != 5
                else dataclasses.replace(result, verified=False, verified_by="continuation")
                if flip
                else ChainResult(result.chain, (0.0, 1.0), 1, False, -1.0)
                for result in one.results
            ]
            records.append(with_results(one, results))
        path = write_records(tmp_path / "train.jsonl", records)
        main([f"--records=[{path}]", f"--out={tmp_path / 'menu.json'}", "--first_editable=2", "--least=0.1"])
        menus.append(read_menu(tmp_path / "menu.json"))
    assert menus[0] == menus[1]


def test_records_of_several_searches_are_joined_by_sample(tmp_path: Path) -> None:
    # Oracle: the menu of one search that tried it all.
    whole = lucky_records()
    parts = [[with_results(one, [one.results[i] for i in kept]) for one in whole] for kept in ((0, 1, 3), (0, 2, 3))]
    paths = [write_records(tmp_path / f"{name}.jsonl", part) for name, part in zip("abc", [*parts, whole], strict=True)]
    menus = {}
    for name, given in (("joined", paths[:2]), ("whole", paths[2:])):
        files = ",".join(map(str, given))
        main([f"--records=[{files}]", f"--out={tmp_path / name}.json", "--first_editable=2", "--least=0"])
        menus[name] = read_menu(tmp_path / f"{name}.json")
    assert menus["joined"] == menus["whole"]
    assert len(menus["whole"].chains) == 3
    assert menus["joined"].made["gains"] == menus["whole"].made["gains"]


def test_the_menu_of_all_subsets(tmp_path: Path) -> None:
    # Oracle: all subsets of layers 2..4 of the tiny model's five, listed by hand.
    model = save_tiny(tmp_path / "model")
    given = ["--kind=subsets", f"--model={model}", "--first_editable=2", f"--out={tmp_path / 'menu.json'}"]
    main(given)
    menu = read_menu(tmp_path / "menu.json")
    assert (menu.num_layers, menu.first_editable) == (5, 2)
    assert [str(one) for one in menu.chains] == ["0-4", "0-3", "0-2,4", "0-1,3-4", "0-2", "0-1,3", "0-1,4", "0-1"]
    main([*given, "--max_dropped=1"])
    assert [str(one) for one in read_menu(tmp_path / "menu.json").chains] == ["0-4", "0-3", "0-2,4", "0-1,3-4"]
    main([*given, "--min_depth=3", "--max_depth=3"])
    assert [str(one) for one in read_menu(tmp_path / "menu.json").chains] == ["0-4", "0-2", "0-1,3", "0-1,4"]
    assert MOST_SUBSETS == 4096


def refused(name: str, tmp_path: Path) -> tuple[dict[str, object], list[SearchRecord]]:
    """Return the settings and records that are to be refused."""
    good = lucky_records()
    if name == "test split":
        return {}, [dataclasses.replace(good[0], split="test")]
    if name == "wrong answers":
        return {}, [dataclasses.replace(good[0], reward_target="wrong")]
    if name == "two models":
        return {}, [good[0], dataclasses.replace(good[1], fingerprints=Fingerprints("x", "t", "p"))]
    changes: dict[str, dict[str, object]] = {
        "no records": {"records": "[]"},
        "missing file": {"records": f"[{tmp_path / 'none.jsonl'}]"},
        "share above 1": {"predictable": 2},
        "price below 0": {"prices": "[-1]"},
        "size of one": {"size": 1},
        "read layer of no model": {"kind": "subsets", "model": save_tiny(tmp_path / "model"), "first_editable": 5},
    }
    return changes[name], good


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test split", "records: expected a search of training samples for the right answers in"),
        ("wrong answers", "records: expected a search of training samples for the right answers in"),
        ("two models", "expected it to be made for the model"),
        ("no records", "records: expected a file at least with kind records, got none"),
        ("missing file", "records: expected an existing file"),
        ("share above 1", "predictable: expected at most 1, got 2.0"),
        ("price below 0", "prices[0]: expected at least 0, got -1.0"),
        ("size of one", "size: expected at least 2, got 1"),
        ("read layer of no model", "first_editable: expected 1..4, got 5"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    changes, records = refused(name, tmp_path)
    path = write_records(tmp_path / "train.jsonl", records)
    settings = {"records": f"[{path}]", "out": tmp_path / "menu.json", "first_editable": 2} | changes
    assert run_command(main, [f"--{key}={value}" for key, value in settings.items()]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "menu.json").exists()
