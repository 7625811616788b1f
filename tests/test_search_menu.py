"""Menus: their file, the greedy choice against all subsets, and `python -m search menu`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.records import ChainResult, SearchRecord, pareto_front, read_records
from router.chain import Chain
from router.files import sha256_file
from router.fingerprint import Fingerprints
from router.validation import InputError
from search import menu as menu_module
from search.menu import (
    Menu,
    Outcomes,
    best_of_each_depth,
    choose_chains,
    main,
    outcomes_of,
    read_menu,
    write_menu,
)
from tests.conftest import Refusal
from tests.menus import FULL, N, chain, record, write_records
from tests.tiny import save_tiny


def test_a_menu_file_reads_back_and_its_hash_knows_chains_and_prefix_only(tmp_path: Path) -> None:
    # Oracle: the menu; the order by hand.
    menu = Menu.of([chain("0-3"), chain("0-1,3-5"), FULL, chain("0-4"), chain("0-3")], 2, {"why": "a test"})
    assert [str(one) for one in menu.chains] == ["0-5", "0-4", "0-1,3-5", "0-3"]
    write_menu(tmp_path / "menu.json", menu)
    again = read_menu(tmp_path / "menu.json")
    assert (again, again.made, again.sha256) == (menu, {"why": "a test"}, menu.sha256)
    assert Menu(menu.chains, 2, {}).sha256 == menu.sha256
    assert Menu(menu.chains, 1).sha256 != menu.sha256
    assert Menu(menu.chains[:-1], 2).sha256 != menu.sha256


GOOD = {"schema": 2, "num_layers": 6, "first_editable": 2, "chains": ["0-5", "0-4"], "made": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema: expected 2 or 1, got 3"),
        ({"num_layers": "six"}, "num_layers: expected an integer of at least 1, got 'six'"),
        ({"chains": ["0-5", [0, 1]]}, "chain: expected text, got [0, 1]"),
        ({"chains": []}, "chains: expected the full chain as the first, got another or none"),
        ({"chains": ["0-5", "0-4", "0,1-4"]}, "chains: expected every chain once, got one twice"),
        ({"chains": ["0-5", "1-5"]}, "chains: expected chains that begin with layers 0..1, got 1-5"),
        ({"chains": ["0-5", "0-6"]}, "layers[6]: expected an integer in 0..5, got 6"),
        ({"first_editable": 6}, "first_editable: expected 0..5, got 6"),
        ({"chains": None}, "menu.json: expected the field chains, got none"),
    ],
)
def test_a_damaged_menu_file_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "menu.json"
    path.write_text(json.dumps({key: value for key, value in (GOOD | changes).items() if value is not None}))
    with pytest.raises(InputError) as caught:
        read_menu(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="menu: expected an existing file"):
        read_menu(tmp_path / "none.json")


def test_a_menu_file_of_schema_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "menu.json"
    path.write_text(json.dumps({"schema": 1, "num_layers": 6, "prefix_layers": 2, "chains": ["0-5", "0-4"]}))
    assert read_menu(path) == Menu((FULL, chain("0-4")), 2)


def test_a_menu_of_two_models_is_none() -> None:
    with pytest.raises(ValueError, match="chains: expected chains of one model"):
        Menu((FULL, Chain.full(5)), 2)


def test_outcomes_of_sparse_records() -> None:
    # Oracle: by hand; "0-3" was tried once, "1-5" edits the prefix; full depth answers wrong on b.
    records = [
        record("a", {"0-5": True, "0-4": False, "0-3": True}),
        record("b", {"0-5": False, "0-4": False, "1-5": True}),
        record("c", {"0-5": True, "0-4": True, "1-5": True}),
    ]
    nan = math.nan
    for kind, full, first in (("correct", [1, 0, 1], [0, 0, 1]), ("agree", [1, 1, 1], [0, 1, 1])):
        found = outcomes_of(records, kind, 2, tried=2)
        assert found.chains == (FULL, chain("0-4"))
        assert found.values.T.tolist() == [full, first]
    both = outcomes_of(records, "both", 2)
    assert both.chains == (FULL, chain("0-4"), chain("0-3"))
    np.testing.assert_equal(both.values, [[1, 0, 1], [0.5, 0.5, nan], [1, 1, nan]])


def by_hand(values: np.ndarray, p: float) -> list[list[float]]:
    """Shrunk values by the formula of the module's text, in loops."""
    known = [[v for v in column if not math.isnan(v)] for column in values.T.tolist()]
    overall = sum(map(sum, known)) / sum(map(len, known))
    means = [(sum(column) + 4 * overall) / (len(column) + 4) for column in known]
    return [
        [m if math.isnan(v) else (1 - p) * m + p * v for v, m in zip(row, means, strict=True)]
        for row in values.tolist()
    ]


def random_outcomes(seed: int) -> Outcomes:
    """Eight chains of several depths on 12 samples, a quarter of it not tried; two chains do the same everywhere."""
    rng = random.Random(seed)
    texts = ["0-5", "0-4", "0-3,5", "0-1,3-5", "0-3", "0-1,4-5", "0-2,5", "0-5,5"]
    values = np.array([[float(rng.random() < 0.5) for _ in texts] for _ in range(12)])
    values[np.array([[i > 0 and rng.random() < 0.25 for i in range(len(texts))] for _ in range(12)])] = math.nan
    values[:, 2] = values[:, 1]
    return Outcomes(tuple(chain(text) for text in texts), values)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("predictable", [0.0, 0.4, 1.0])
def test_the_greedy_choice_against_all_subsets(seed: int, predictable: float) -> None:
    # Oracle: the worth of every subset by the text's formula, in loops.
    outcomes, prices = random_outcomes(seed), (0.0, 0.2, 1.0)
    values = by_hand(outcomes.values, predictable)
    np.testing.assert_allclose(outcomes.shrunk(predictable), values)

    def worth(menu: Sequence[int]) -> float:
        total = 0.0
        for price in prices:
            for row in values:
                total += max(row[i] - price * outcomes.chains[i].depth / N for i in menu)
        return total / len(prices) / len(values)

    places = range(1, len(outcomes.chains))
    for size in (1, 2, 3, 4, 8):
        chosen = choose_chains(outcomes, size, predictable=predictable, prices=prices)
        menu = [outcomes.chains.index(one) for one, _ in chosen]
        assert menu[0] == 0
        assert len(set(menu)) == len(menu) <= size
        for k in range(1, len(menu)):  # each the best to add, and what it adds
            gains = [worth([*menu[:k], i]) - worth(menu[:k]) for i in places]
            assert chosen[k][1] == pytest.approx(max(gains)) == pytest.approx(gains[menu[k] - 1])
        assert chosen[0][1] == pytest.approx(worth([0]))
        if len(menu) < size:  # nothing was left to gain
            assert max(worth([*menu, i]) for i in places) == pytest.approx(worth(menu))
        best = max(worth([0, *rest]) for rest in itertools.combinations(places, size - 1))
        assert worth(menu) - worth([0]) >= (1 - 1 / math.e) * (best - worth([0])) - 1e-12
        assert not {1, 2} <= set(menu)  # the second of two that do the same adds nothing


def test_the_best_of_each_depth_are_kept_in_any_case() -> None:
    # Oracle: by hand: of two chains of depth 5 the better on average; a useless one of depth 4 is kept all the same.
    chains = (FULL, chain("0-4"), chain("0-3,5"), chain("0-3"))
    outcomes = Outcomes(chains, np.array([[1.0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0]]))
    keep = best_of_each_depth(outcomes)
    assert keep == [FULL, chain("0-3,5"), chain("0-3")]
    chosen = choose_chains(outcomes, 4, predictable=1.0, prices=[0.0], keep=keep)
    assert [one for one, _ in chosen] == [FULL, chain("0-3,5"), chain("0-3"), chain("0-4")]
    assert [gain for _, gain in chosen][1:3] == [0.0, 0.0]
    assert len(choose_chains(outcomes, 2, predictable=1.0, prices=[0.0], keep=keep)) == 2


def test_values_are_drawn_towards_the_mean_on_the_samples_task() -> None:
    # Oracle: by hand, with 16 samples' worth of the chain's overall mean, itself with 4 of the mean of all (0.5).
    values = np.array([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8)
    outcomes = Outcomes((chain("0-5"), chain("0-4")), values, ("a",) * 8 + ("b",) * 8)
    high, low = (8 + 16 * 0.5) / 24, (0 + 16 * 0.5) / 24
    np.testing.assert_allclose(outcomes.shrunk(0.0), [[high, low]] * 8 + [[low, high]] * 8)
    assert outcomes.shrunk(0.5)[0].tolist() == [(high + 1) / 2, low / 2]


def lucky_records() -> list[SearchRecord]:
    """Full depth right on 8 of 10; "0-4" on 6; "0-3" on the 2 where full depth fails, and nowhere else."""
    return [record(f"s{i}", {"0-5": i < 8, "0-4": 2 <= i < 8, "0-3": i >= 8, "1-5": True}) for i in range(10)]


def menu_of(*given: object) -> list[str]:
    """Run the command; the chains of the menu that it writes."""
    main(list(map(str, given)))
    (out,) = [str(one).removeprefix("--out=") for one in given if str(one).startswith("--out=")]
    return [str(one) for one in read_menu(Path(out)).chains]


def test_chains_that_are_right_by_luck_are_left_out(tmp_path: Path) -> None:
    # Oracle: by hand; "0-3" gains the most if outcomes could be foreseen, with a fourth of full depth's right answers.
    path, out = write_records(tmp_path / "train.jsonl", lucky_records()), tmp_path / "menu.json"
    given = [f"--records=[{path}]", f"--out={out}", "--first_editable=2", "--predictable=1"]
    assert menu_of(*given) == ["0-5", "0-4"]
    assert menu_of(*given, "--least=0") == ["0-5", "0-4", "0-3"]
    assert (read_menu(out).first_editable, read_menu(out).made["samples"]) == (2, 10)
    assert menu_of(*given, "--least=0", "--min_depth=5") == ["0-5", "0-4"]
    assert menu_of(*given, "--least=0", "--max_depth=4") == ["0-5", "0-3"]  # the full chain is in it all the same
    with pytest.raises(InputError, match="expected a chain worth choosing besides the full one, got none"):
        main([*given, "--least=0", "--tried=11"])


def with_results(record: SearchRecord, results: Sequence[ChainResult]) -> SearchRecord:
    return dataclasses.replace(record, results=tuple(results), pareto=pareto_front(results))


def test_a_chain_whose_second_run_failed_is_worth_nothing() -> None:
    # Oracle: by hand. A label that was flipped teaches no menu anything.
    one = record("a", {"0-5": True, "0-4": True})
    flipped = dataclasses.replace(one.results[1], verified=False, verified_by="continuation")
    assert outcomes_of([with_results(one, [one.full, flipped])], "correct", 2).values.tolist() == [[1.0, 0.0]]


def test_records_of_several_searches_are_joined_by_sample(tmp_path: Path) -> None:
    # Oracle: the menu of one search that tried it all.
    whole = lucky_records()
    parts = [[with_results(one, [one.results[i] for i in kept]) for one in whole] for kept in ((0, 1, 3), (0, 2, 3))]
    paths = [write_records(tmp_path / f"{name}.jsonl", part) for name, part in zip("abc", [*parts, whole], strict=True)]
    menus = []
    for given in (paths[:2], paths[2:]):
        out = tmp_path / f"{len(given)}.json"
        assert (
            len(menu_of(f"--records={list(map(str, given))}", f"--out={out}", "--first_editable=2", "--least=0")) == 3
        )
        menus.append(read_menu(out))
    assert menus[0] == menus[1]
    assert menus[0].made["gains"] == menus[1].made["gains"]


def test_the_menu_of_all_subsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: all subsets of layers 2..4 of the tiny model's five, listed by hand.
    out = tmp_path / "menu.json"
    given = ["--kind=subsets", f"--model={save_tiny(tmp_path / 'model')}", "--first_editable=2", f"--out={out}"]
    assert menu_of(*given) == ["0-4", "0-3", "0-2,4", "0-1,3-4", "0-2", "0-1,3", "0-1,4", "0-1"]
    assert (read_menu(out).num_layers, read_menu(out).first_editable) == (5, 2)
    assert menu_of(*given, "--max_dropped=1") == ["0-4", "0-3", "0-2,4", "0-1,3-4"]
    assert menu_of(*given, "--min_depth=3", "--max_depth=3") == ["0-4", "0-2", "0-1,3", "0-1,4"]
    assert menu_of(*given, "--blocks=2") == ["0-4", "0-3", "0-1,4", "0-1"]
    assert menu_of(*given, "--blocks=2", "--max_dropped=2") == ["0-4", "0-3", "0-1,4"]
    assert menu_of(*given, "--blocks=9", "--max_dropped=1") == ["0-4", "0-3", "0-2,4", "0-1,3-4"]
    # As a deep model's, of whose choices of layers hardly any are allowed: they are not looked through.
    monkeypatch.setattr(menu_module, "outline_of", lambda *_: SimpleNamespace(num_layers=60))
    assert menu_of(*given, "--first_editable=1", "--max_depth=2") == [
        "0-59",
        "0-1",
        *(f"0,{i}" for i in range(2, 60)),
        "0",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(menu_module, "MOST_SUBSETS", 7)
    with pytest.raises(InputError, match="max_dropped: expected at most 7 chains in all, got more"):
        main(given)


def test_the_menu_of_all_repeats(tmp_path: Path) -> None:
    # Oracle: by hand, on the tiny model's five layers.
    out = tmp_path / "menu.json"
    given = ["--kind=repeats", f"--model={save_tiny(tmp_path / 'model')}", f"--out={out}"]
    every = ["0-4", "0-3,2-4", "0-4,3-4", "0-1,2*2,3-4", "0-2,3*2,4", "0-3,4*2"]
    assert menu_of(*given, "--first_editable=2") == every
    assert read_menu(out).first_editable == 2
    assert menu_of(*given, "--first_editable=3", "--max_block=1") == ["0-4", "0-2,3*2,4", "0-3,4*2"]
    with pytest.raises(InputError, match=r"first_editable: expected 1\.\.4, got 5"):
        main([*given, "--first_editable=5"])


def gaining_records(gain: float, chains: int = 12, samples: int = 80) -> list[SearchRecord]:
    """Two kinds on which full depth and all chains are right by the toss of a coin, but one chain on one kind."""
    draw = random.Random(0)
    names = [str(FULL), *(str(FULL.repeat(2 + i // 4, 1, 1 + i % 4)) for i in range(chains))]
    found = []
    for i in range(2 * samples):
        rights = {name: draw.random() < 0.5 for name in names}
        kind = ("words", "letters")[i % 2]
        if kind == "words" and draw.random() < gain:
            rights[names[5]] = True
        found.append(record(f"s{i}", rights, task=kind))
    return found


def wrong_but_full(one: SearchRecord) -> dict[str, bool]:
    return {str(result.chain): result.chain.is_full for result in one.results}


def test_what_gains_on_a_kind_is_told_from_luck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: what was put in. By luck alone the best of twelve chains is 10 points above full depth on such samples.
    base, out, gaining = tmp_path / "base.json", tmp_path / "menu.json", str(chain("0-2,3*2,4-5"))
    write_menu(base, Menu.of([chain("0-4")], 2))
    path = write_records(tmp_path / "train.jsonl", gaining_records(0.0))
    given = [f"--records=[{path}]", f"--out={out}", "--first_editable=2", "--kind=gains"]
    assert menu_of(*given, f"--base={base}") == ["0-5", "0-4"]
    assert capsys.readouterr().out.count(" on 80, p ") == 2
    with pytest.raises(InputError, match="expected a chain worth choosing besides the full one, got none"):
        main(given)
    some = [with_results(one, one.results[: 13 - i % 2]) for i, one in enumerate(gaining_records(0.9))]
    write_records(path, some)
    with pytest.raises(InputError, match="records: expected menu tables, every chain on every sample"):
        main(given)
    write_records(path, gaining_records(0.9))
    assert menu_of(*given, f"--base={base}") == ["0-5", gaining, "0-4"]
    made = read_menu(out).made
    assert all(said.startswith(f"{gaining} on words: +0.") for said in made["gains"])
    assert made["records"] == {str(path): sha256_file(path)}
    assert menu_of(*given, f"--base={out}") == ["0-5", gaining, "0-4"]  # it is known
    for menu, message in (
        (Menu.of([chain("1-5")], 0), "expected chains that begin with layers 0..1, got 1-5"),
        (Menu.of([Chain.parse("0-3", 5)], 2), "expected chains of one model"),
    ):
        write_menu(base, menu)
        fits = "base: expected a menu that fits the records and first_editable, got .*"
        with pytest.raises(InputError, match=fits + message):
            main([*given, f"--base={base}"])
    # However bad it is on the other kind, for which a choice from records would leave it out.
    bad = [
        one if one.task == "words" else record(one.sample_id, wrong_but_full(one), task="letters")
        for one in read_records(path)
    ]
    capsys.readouterr()
    write_records(path, bad)
    assert gaining in menu_of(*given, "--value=agree", "--least=1")
    assert "note: chosen on calibration" not in capsys.readouterr().out
    write_records(path, [dataclasses.replace(one, split="calibration") for one in bad])
    assert gaining in menu_of(*given)
    assert "note: chosen on calibration samples too; a guarantee" in capsys.readouterr().out


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
        "all layers fixed": {"first_editable": 6},
        "no depth allowed": {"kind": "subsets", "model": save_tiny(tmp_path / "model"), "min_depth": 9},
        "read layer of no model": {"kind": "subsets", "model": save_tiny(tmp_path / "model"), "first_editable": 5},
    }
    return changes[name], good


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test split", "records: expected a search of training samples for the right answers in"),
        ("wrong answers", "records: expected a search of training samples for the right answers in"),
        ("two models", "expected it to be made for the model"),
        ("all layers fixed", "first_editable: expected 0..5, got 6"),
        ("no depth allowed", "min_depth or max_depth: expected a chain worth choosing besides the full one, got none"),
        ("no records", "records: expected a file at least with kind records, got none"),
        ("read layer of no model", "first_editable: expected 1..4, got 5"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, refusal: Refusal, name: str, message: str) -> None:
    changes, records = refused(name, tmp_path)
    path = write_records(tmp_path / "train.jsonl", records)
    settings = {"records": f"[{path}]", "out": tmp_path / "menu.json", "first_editable": 2} | changes
    assert message in refusal(main, [f"--{key}={value}" for key, value in settings.items()])
    assert not (tmp_path / "menu.json").exists()
