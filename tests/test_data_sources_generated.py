"""Generated sources: reasoning-gym, and a stand-in of it where the package is not installed."""

import sys
import types

import pytest

from data.sources import read_rows
from data.tasks import load_task
from router.validation import InputError

SETTINGS = {"dataset": "chain_sum", "settings": {1: {"min_terms": 2}, 2: {"min_terms": 3}}}


class Generated:
    """A generator that shows what it was made with, as reasoning-gym's data sets do: row i is drawn with seed + i."""

    def __init__(self, name: str, seed: int, size: int, **settings: int) -> None:
        if name != "chain_sum" or settings.get("min_terms", 0) > 6:
            raise ValueError(f"Dataset '{name}' not registered")
        self.seed, self.size, self.settings = seed, size, settings

    def __getitem__(self, index: int) -> dict:
        question = f"{self.seed + index} + {self.settings['min_terms']}"
        return {"question": question, "answer": "0", "metadata": {"source_index": index}}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package reasoning_gym with one generator."""
    module = types.ModuleType("reasoning_gym")
    module.create_dataset = Generated  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def test_generated_rows_have_a_difficulty_and_every_split_its_own_seed(stand_in: None) -> None:
    # Oracle: the stand-in's questions show seed and settings: 5 levels of `size` rows, no row drawn twice.
    task = load_task("chain_sum", reasoning_gym={**SETTINGS, "size": 50})
    rows = {split: list(read_rows(task, "reasoning_gym", split)) for split in ("train", "validation", "test")}
    everything = [row.values["question"] for found in rows.values() for row in found]
    assert len(everything) == len(set(everything)) == 3 * 2 * 50
    first, last = rows["train"][0], rows["train"][-1]
    assert (first.values["difficulty"], last.values["difficulty"]) == (1, 2)
    assert first.values["question"].endswith("+ 2")
    assert (first.where, last.part) == ("chain_sum, split train, difficulty 1, row 1", "2")
    assert rows["train"] == list(read_rows(task, "reasoning_gym", "train"))
    other = load_task("chain_sum", reasoning_gym={**SETTINGS, "seed": 1})
    assert next(read_rows(other, "reasoning_gym", "train")).values != first.values


def test_a_generator_that_refuses_is_one_line(stand_in: None) -> None:
    # Oracle: an unknown generator, settings that it refuses, a split that no seed belongs to.
    for changes, message in (
        ({"dataset": "x"}, "x, split train, difficulty 1: expected settings that reasoning-gym takes, got Dataset 'x'"),
        ({"settings": {3: {"min_terms": 7}}}, "chain_sum, split train, difficulty 3: expected settings"),
        ({"settings": {3: {"seed": 7}}}, "expected settings that reasoning-gym takes, got .*multiple values"),
    ):
        task = load_task("chain_sum", reasoning_gym={**SETTINGS, **changes})
        with pytest.raises(InputError, match=message):
            list(read_rows(task, "reasoning_gym", "train"))
    with pytest.raises(
        InputError, match="source_split: expected one of train, validation, calibration, test with source"
    ):
        list(read_rows(load_task("chain_sum"), "reasoning_gym", "dev"))


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: an import that fails, as Python's own marker in sys.modules makes it.
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"pip install -c constraints.txt '\.\[reasoning\]'"):
        list(read_rows(load_task("chain_sum"), "reasoning_gym", "train"))


@pytest.mark.parametrize("name", ["chain_sum", "basic_arithmetic", "products", "spell_backward"])
def test_the_shipped_generators_run(name: str) -> None:
    # Oracle: the answers, computed here from the questions; every difficulty has its rows.
    pytest.importorskip("reasoning_gym")
    source = load_task(name).reasoning_gym
    assert source is not None
    task = load_task(name, reasoning_gym={"dataset": source.dataset, "settings": source.settings, "size": 40})
    samples = [task.sample(row.values, "test") for row in read_rows(task, "reasoning_gym", "test")]
    assert [one.metadata["difficulty"] for one in samples] == [level for level in source.settings for _ in range(40)]
    for one in samples:
        text = one.question.removesuffix(" =").removesuffix(".")
        if name == "spell_backward":
            assert one.answer == text.split(": ")[-1][::-1]
        else:
            expression = text.split(":")[-1].split(". Give")[0].removeprefix("Calculate ")
            assert set(expression) <= set("0123456789+-*/() ")
            assert eval(expression) == int(str(one.answer))
