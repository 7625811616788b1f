"""`python -m search --menu`: the table of all its chains, and the states that are kept beside it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from data.encoding import batches_by_length
from data.records import SearchRecord, read_records
from data.scoring import ChainScorer
from data.states import StatesOrigin, kept_at_each, read_states, states_of, write_states
from router.chain import Chain
from router.fingerprint import Fingerprints
from router.validation import InputError
from search.__main__ import main
from search.menu import Menu, write_menu
from tests.conftest import Refusal
from tests.test_search_run import arguments
from tests.tiny import NUM_LAYERS, scorer_of, tiny_samples, write_project

TEXTS = ["0-4", "0-3", "0-2,4", "0-1,3-4", "0-2", "0-1,4", "0-4,3-4", "0-1"]
CHAINS = [Chain.parse(text, NUM_LAYERS) for text in TEXTS]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project, a menu, and `table/`: the menu's table with the states of layers 2 and 3."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    write_menu(folder / "menu.json", Menu(tuple(CHAINS), 2))
    main(table_arguments(folder, folder / "table", read_layers="[3,2]"))
    return folder


def table_arguments(project: Path, out: Path, **changes: object) -> list[str]:
    return arguments(project, out, **({"menu": project / "menu.json", "first_editable": 2} | changes))


def table_of(folder: Path) -> list[SearchRecord]:
    return read_records(folder / "train.jsonl")


def test_the_table_holds_what_each_chain_alone_scores(project: Path) -> None:
    # Oracle: the scorer on one sample and one chain at a time, plain rows, no reuse of states.
    scorer = scorer_of(project, packed=False, state_bytes=0, batch_tokens=1)
    records = table_of(project / "table")
    assert [record.sample_id for record in records] == [sample.id for sample in tiny_samples("train", 8)]
    for record, sample in zip(records[:4], tiny_samples("train", 4), strict=True):
        assert [result.chain for result in record.results] == CHAINS
        assert (record.simulations, record.first_editable) == (len(CHAINS), 2)
        for result in record.results:
            (alone,) = scorer.score(scorer.load([scorer.encode(sample)]), [(0, result.chain)])
            assert (result.prediction, result.correct) == (alone.prediction, alone.correct)
            assert result.scores == pytest.approx(alone.scores, abs=1e-4)
    assert len({result.correct for record in records for result in record.results}) == 2


def test_the_settings_of_the_search_do_not_decide_a_table_but_the_menu_does(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    # Oracle: a table that is there already is taken for the same one, or refused.
    shutil.copytree(project / "table", tmp_path / "table")
    before = (tmp_path / "table" / "train.jsonl").read_bytes()
    main(table_arguments(project, tmp_path / "table", search__simulations=99, search__seed=5))
    assert "0 samples to search, 8 of 8 are finished" in capsys.readouterr().out
    write_menu(tmp_path / "menu.json", Menu(tuple(CHAINS[:-1]), 2))
    line = refusal(main, table_arguments(project, tmp_path / "table", menu=tmp_path / "menu.json"))
    assert "made with another menu; choose another folder" in line
    assert (tmp_path / "table" / "train.jsonl").read_bytes() == before


def origin_of(scorer: ChainScorer) -> StatesOrigin:
    return StatesOrigin(scorer.fingerprints, scorer.dtype)


def ids_of(count: int = 8) -> list[str]:
    return [sample.id for sample in tiny_samples("train", count)]


def test_kept_states_are_the_scorers_own_and_the_stock_models(project: Path) -> None:
    # Oracle: the scorer in the same company, to the bit; and hidden_states of the stock model, prompt by prompt.
    scorer = scorer_of(project)
    encoded = scorer.encode_all(tiny_samples("train", 8))
    (order,) = batches_by_length([one.length for one in encoded], 32)
    for layer in (2, 3):
        kept = read_states([project / "table" / "train.states"], origin_of(scorer), ids_of(), layer)
        own = scorer.states(scorer.load([encoded[i] for i in order]), layer)
        assert all(torch.equal(kept[ids_of()[i]], state) for i, state in zip(order, own, strict=True))
        for one, name in zip(encoded, ids_of(), strict=True):
            hidden = scorer.model(torch.tensor([one.prompt]), output_hidden_states=True).hidden_states[layer][0]
            assert torch.allclose(kept[name][: len(one.prompt)], hidden, atol=1e-4)
            assert len(kept[name]) == len(one.prompt) + sum(len(tokens) - 1 for tokens in one.continuations)


def test_states_of_something_else_are_not_used(project: Path, tmp_path: Path) -> None:
    # Oracle: nothing, where the origin or the layer is another; an unknown sample does not hide the others.
    folder, origin = [project / "table" / "train.states"], origin_of(scorer_of(project))
    assert set(read_states(folder, origin, ids_of(), 2)) == set(ids_of())
    assert set(read_states(folder, origin, [*ids_of(), "0" * 16], 2)) == set(ids_of())
    prints = dataclasses.replace(origin.fingerprints, model="another")
    assert not read_states(folder, StatesOrigin(prints, origin.dtype), ids_of(), 2)
    assert not read_states(folder, StatesOrigin(origin.fingerprints, "bfloat16"), ids_of(), 2)
    assert not read_states(folder, origin, ids_of(), 4)
    assert not read_states([tmp_path / "none"], origin, ids_of(), 2)


def test_a_damaged_file_of_states_counts_as_none(project: Path, tmp_path: Path) -> None:
    # Oracle: the whole files; samples in the other file are still found.
    origin = origin_of(scorer_of(project))
    made = {name: torch.randn(3, 4) for name in "abcd"}
    write_states(tmp_path / "s" / "0.safetensors", origin, {2: {name: made[name] for name in "ab"}})
    write_states(tmp_path / "s" / "1.safetensors", origin, {2: {name: made[name] for name in "cd"}})
    found = read_states([tmp_path / "s"], origin, list("dacb"), 2)
    assert all(torch.equal(found[name], made[name]) for name in "abcd")
    path = tmp_path / "s" / "0.safetensors"
    for content in (path.read_bytes()[:70], b"", b"junk" * 50):
        path.write_bytes(content)
        assert set(read_states([tmp_path / "s"], origin, list("abcd"), 2)) == {"c", "d"}


def test_states_in_parts_open_a_file_for_what_it_holds_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the states as written; each file is opened once for its names, and once more for each part and layer that
    # has a sample in it, not for every part.
    origin = StatesOrigin(Fingerprints("", "", ""), "float32")
    ids = [f"{number:02}" for number in range(24)]
    made = {layer: {one: torch.randn(2, 4) for one in ids} for layer in (2, 3)}
    for start in range(0, 24, 4):
        file = {layer: {one: of[one] for one in ids[start : start + 4]} for layer, of in made.items()}
        write_states(tmp_path / "s" / f"{start:02}.safetensors", origin, file)
    opened = []

    def opening(path: Path, framework: str) -> Any:
        opened.append(path)
        return safe_open(path, framework)

    monkeypatch.setattr("data.states.safe_open", opening)
    monkeypatch.setattr("data.states.READ_AT_ONCE", 4)
    parts = list(kept_at_each(tmp_path / "s", origin, ids, (3, 2), "train"))
    assert len(opened) == 6 + 6 * 2
    for place, layer in enumerate((3, 2)):
        read = [state for part in parts for state in part[place]]
        assert all(torch.equal(state, made[layer][one]) for state, one in zip(read, ids, strict=True))
    with pytest.raises(
        InputError, match=r"hidden_states\[4\]\) of train in .*, got none for some; run python -m search"
    ):
        list(kept_at_each(tmp_path / "s", origin, ids, (2, 4), "train"))


def test_training_takes_kept_states_and_computes_those_of_another_layer(project: Path, tmp_path: Path) -> None:
    # Oracle: the kept ones; the scorer must not be opened for them, and must be for layer 4.
    scorer, samples = scorer_of(project), tiny_samples("train", 8)
    kept, opened = [project / "table" / "train.states"], []

    def once() -> ChainScorer:
        opened.append(True)
        return scorer

    for layer in (2, 3, 4, 4):  # those of layer 4 are kept the first time
        states = states_of(tmp_path / "features", origin_of(scorer), samples, layer, once, kept=kept)
        assert len(opened) == int(layer == 4)
        wanted = scorer.states(scorer.load(scorer.encode_all(samples)), layer)
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(states, wanted, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"menu": "other.json"}, "menu: expected chains of 5 layers, got 6"),
        ({"first_editable": 3}, "first_editable: expected at most the menu's 2, got 3"),
        ({"read_layers": "[2,5]"}, "read_layers: expected fewer than the model's 5 layers, got 5"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    project: Path, tmp_path: Path, refusal: Refusal, changes: dict[str, object], message: str
) -> None:
    menu = project / str(changes.get("menu", "menu.json"))
    write_menu(project / "other.json", Menu((Chain.full(6), Chain.parse("0-4", 6)), 2))
    assert message in refusal(main, table_arguments(project, tmp_path / "out", **(changes | {"menu": menu})))
    assert not list(tmp_path.rglob("*.jsonl"))
