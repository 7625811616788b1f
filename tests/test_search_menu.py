"""Menus: their file, and the search that runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.chain import Chain
from router.validation import InputError
from search.menu import Menu, MenuSearcher, read_menu, write_menu
from search.settings import SearchSettings
from tests.menus import FULL, chain


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
        ({"chains": []}, "chains: expected the full chain as the first, got another or none"),
        ({"chains": ["0-5", "0-4", "0,1-4"]}, "chains: expected every chain once, got one twice"),
        ({"chains": ["0-5", "1-5"]}, "chains: expected chains that begin with layers 0..1, got 1-5"),
        ({"chains": ["0-5", "0-6"]}, "layers[6]: expected an integer in 0..5, got 6"),
        ({"first_editable": 6}, "first_editable: expected 0..5, got 6"),
        ({"chains": None}, "menu.json: expected the field 'chains', got none"),
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


def test_the_searcher_of_a_menu_asks_all_at_once_and_then_nothing() -> None:
    # Oracle: by hand.
    chains, rewards = [FULL, chain("0-4"), chain("0-3")], [0.5, 1, 0]
    searcher = MenuSearcher(chains, SearchSettings(simulations=3))
    assert (searcher.ask(), searcher.ask(), searcher.simulations, searcher.done) == (chains, chains, 0, False)
    with pytest.raises(ValueError, match="rewards: expected one for each of 3 chains, got 2"):
        searcher.tell(rewards[:2])
    searcher.tell(rewards)
    assert searcher.evaluated == dict(zip(chains, rewards, strict=True))
    assert (searcher.ask(), searcher.simulations, searcher.done) == ([], 3, True)
    with pytest.raises(ValueError, match="simulations: expected 3, the menu's chains, got 4"):
        MenuSearcher(chains, SearchSettings(simulations=4))
