"""`python -m eval.analysis` on record folders written by hand: what it writes, prints, draws and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.records import SearchRecord
from eval.analysis.__main__ import ANALYSIS_FILE, main
from eval.analysis.figures import STYLES, draw_depths, draw_rates, draw_shares, draw_use
from router.command import run_command
from router.files import read_json, sha256_file
from router.fingerprint import Fingerprints
from tests.test_eval_analysis import FOUND, TOLD_WRONG, Tried, record

SIMULATIONS = 4
PLAN = {"first_editable": 0, "dtype": "float32", "verify": True, "shuffle": 0, "menu": None}
LABELS = ["all", "arc_easy, difficulty 1", "arc_easy, difficulty 2"]
LEVELS = {"a": 1, "b": 2, "c": 1, "d": 2, "e": 2, "f": 1, "g": 2}


def write(
    folder: Path, told: dict[str, Tried], action_set: str, settings: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Write a search's folder: records of a split and the settings beside them."""
    folder.mkdir(parents=True)
    split = changes.get("split", "test")
    records: list[SearchRecord] = [
        record(key, tried, **{"simulations": SIMULATIONS, "metadata": {"difficulty": LEVELS[key]}, **changes})
        for key, tried in told.items()
    ]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(one.to_json()) + "\n" for one in records))
    search = {"action_set": action_set, "simulations": SIMULATIONS, "seed": 0}
    run = {"settings": {**PLAN, "search": search, **(settings or {})}}
    (folder / f"{split}.settings.json").write_text(json.dumps({"search": "s" * 64, "runs": [run]}))
    return folder


@dataclasses.dataclass
class World:
    """Two searches of one model, the second with its control, and where to write."""

    folder: Path

    def cell(self, action_set: str, **changed: Any) -> dict[str, Any]:
        named = {"model": "toy", "variant": "base", "action_set": action_set}
        return {**named, "records": str(self.folder / action_set), **changed}

    @property
    def cells(self) -> list[dict[str, Any]]:
        return [self.cell("skip"), self.cell("both", wrong=str(self.folder / "wrong"))]

    def arguments(self, cells: list[dict[str, Any]] | None = None) -> list[str]:
        return [f"--cells={json.dumps(cells or self.cells)}", f"--out={self.folder / 'out'}"]

    def run(self) -> dict[str, Any]:
        main(self.arguments())
        return read_json(self.folder / "out" / ANALYSIS_FILE)


def make(folder: Path) -> World:
    skips = {key: {chain: one for chain, one in FOUND[key].items() if "*" not in chain} for key in FOUND}
    write(folder / "skip", skips, "skip")
    write(folder / "both", FOUND, "both")
    # Targets are other answers; the samples may stand in another order.
    told = dict(reversed(TOLD_WRONG.items()))
    write(folder / "wrong", told, "both", reward_target="wrong", target=2)
    return World(folder)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that was analysed once."""
    made = make(tmp_path_factory.mktemp("analysis"))
    main(made.arguments())
    return made


def test_the_file_holds_every_cell_group_and_what_made_them(finished: World) -> None:
    # Oracle: the records, by hand (tests/test_eval_analysis.py); level 1 is a, c, f and level 2 b, d, e, g.
    told = read_json(finished.folder / "out" / ANALYSIS_FILE)
    assert told["schema"] == 1
    assert [cell["label"] for cell in told["cells"]] == ["toy base, skip", "toy base, both"]
    skip, both = told["cells"]
    assert skip["inputs"] == {"records": sha256_file(finished.folder / "skip" / "test.jsonl"), "wrong": None}
    assert both["inputs"]["wrong"] == sha256_file(finished.folder / "wrong" / "test.jsonl")
    assert [group["label"] for group in both["groups"]] == LABELS
    assert [group["original"]["count"] for group in both["groups"]] == [2, 1, 1]
    assert [group["oracle"]["count"] for group in both["groups"]] == [6, 3, 3]
    assert [group["set_right"]["luck"]["net"] for group in both["groups"]] == pytest.approx([1 / 3, 0.0, 0.5])
    assert [group["depth"][-1]["mean"] for group in both["groups"]] == pytest.approx([20 / 6, 8 / 3, 4])
    assert skip["groups"][0]["set_right"]["luck"] is None
    assert any("toy base, skip" in note and "luck is not measured" in note for note in told["notes"])
    rows = told["table"]
    assert [(row["label"], row["n"]) for row in rows] == list(zip(LABELS, (7, 3, 4), strict=True))
    assert [row["oracle"]["skip"]["count"] for row in rows] == [5, 3, 2]  # d was set right by a repeat
    assert [row["oracle"]["both"]["count"] for row in rows] == [6, 3, 3]


def test_the_tables_are_printed_whole(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.run()
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "difficulty 1" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    third = "0.333 (0.061..0.792)"  # Wilson of 1 of 3
    whole = "1.000 (0.439..1.000)"
    assert cells == ["toy base", "test", "arc_easy, difficulty 1", "3", third, whole, whole]
    (found,) = [line for line in lines if "toy base, both" in line and "+0.333" in line]
    assert "0.800 (0.376..0.964)" in found  # 4 of 5 wrong samples set right
    assert re.search(r"0.571 \(0.\d{3}..1.000\) of 7", found)  # of the chains tried on them
    assert sum(line.startswith("caveat: ") for line in lines) == 5


def test_the_same_records_give_the_same_files(finished: World, world: World) -> None:
    world.run()
    for name in ("shares", "layer_use", "layer_rates", "depth_by_difficulty"):
        files = [one.folder / "out" / f"{name}.svg" for one in (finished, world)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert (world.folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    told = [read_json(one.folder / "out" / ANALYSIS_FILE) for one in (finished, world)]
    assert told[0]["cells"] == told[1]["cells"]


def test_the_figures_show_the_values_of_the_file(finished: World) -> None:
    # Oracle: analysis.json.
    cells = read_json(finished.folder / "out" / ANALYSIS_FILE)["cells"]
    skip, both = (cell["groups"][0] for cell in cells)
    axes, *_ = draw_use(cells).axes
    shown = np.asarray(axes.images[0].get_array())
    rows = [skip["use"], both["use"], both["use_told_wrong"]]
    assert shown == pytest.approx(np.array([use["mean_runs"] for use in rows]))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "skip (n 5)",
        "both (n 6)",
        "both, told wrong (n 3)",
    ]
    rates = draw_rates(cells).axes
    for panel, kind in zip(rates, ("skip", "repeat"), strict=True):
        assert [list(line.get_ydata()) for line in panel.lines] == [
            skip["use"][f"{kind}_rate"],
            both["use"][f"{kind}_rate"],
        ]
        assert [line.get_color() for line in panel.lines] == [STYLES["skip"][0], STYLES["both"][0]]
    (depths,) = draw_depths(cells).axes
    assert [label.get_text() for label in depths.get_xticklabels()] == ["arc_easy\n1\nn 3", "arc_easy\n2\nn 4"]
    lines = {line.get_label(): list(line.get_ydata()) for line in depths.containers[1].lines[:1]}
    assert list(lines.values()) == [pytest.approx([8 / 3, 4])]
    right, wrong = draw_shares(cells).axes
    points = [container.lines[0].get_xdata()[0] for container in wrong.containers]
    assert points == pytest.approx([3 / 5, 4 / 5, 1 / 3])  # skip, both, both told wrong
    assert [tick.get_text() for tick in right.get_yticklabels()] == [
        "toy base, skip\nn 2 / 5",
        "toy base, both\nn 2 / 5",
    ]


def test_searches_that_found_nothing_are_drawn_and_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    write(tmp_path / "skip", {"e": FOUND["e"]}, "skip", metadata={})
    write(tmp_path / "both", {"e": FOUND["e"]}, "both", metadata={})
    write(tmp_path / "wrong", {"e": TOLD_WRONG["e"]}, "both", metadata={}, reward_target="wrong", target=2)
    told = world.run()
    group = told["cells"][1]["groups"][0]
    assert (group["use"], group["depth"], group["oracle"]["share"]) == (None, [], 0.0)
    assert group["shortened"]["found"]["share"] is None


def test_searches_that_ran_out_of_chains_are_named(world: World) -> None:
    path = world.folder / "skip" / "test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["simulations"] = SIMULATIONS - 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes = world.run()["notes"]
    assert any("toy base, skip: 1 of 7 searches ended before 4 simulations" in note for note in notes)


def test_full_depth_that_rounds_otherwise_and_other_samples_of_another_model_are_named(world: World) -> None:
    changed = {**FOUND, "a": {"0-3": "0", "0-2": "1"}}
    write(world.folder / "repeat", changed, "repeat")
    few = {key: FOUND[key] for key in "ab"}
    write(world.folder / "chat", few, "both")
    cells = [*world.cells, world.cell("repeat"), world.cell("both", variant="chat", records=str(world.folder / "chat"))]
    main(world.arguments(cells))
    notes = read_json(world.folder / "out" / ANALYSIS_FILE)["notes"]
    assert any("toy base, repeat: full depth is judged otherwise" in note and "on 1 of 7" in note for note in notes)
    assert any("toy chat (test) has other samples than toy base" in note for note in notes)


OTHER = Fingerprints("n" * 64, "t" * 64, "p" * 64)
SEARCH = {"action_set": "both", "simulations": SIMULATIONS, "seed": 0}
Change = Callable[[World], object]
REFUSED: dict[str, tuple[Change, str]] = {
    "another budget": (
        lambda w: write(
            w.folder / "repeat", FOUND, "repeat", {"search": {**SEARCH, "action_set": "repeat", "simulations": 9}}
        ),
        "cells: expected the same simulations in {w}/skip/test.jsonl and {w}/repeat/test.jsonl, got 4 and 9",
    ),
    "another prefix": (
        lambda w: write(w.folder / "repeat", FOUND, "repeat", {"first_editable": 1}),
        "expected the same first_editable in {w}/skip/test.jsonl and {w}/repeat/test.jsonl, got 0 and 1",
    ),
    "other samples": (
        lambda w: write(w.folder / "repeat", {key: FOUND[key] for key in "abcde"}, "repeat"),
        "expected the same samples in {w}/skip/test.jsonl and {w}/repeat/test.jsonl, got 2 and 0 of their own (such as "
        "f)",
    ),
    "another model": (
        lambda w: write(w.folder / "repeat", FOUND, "repeat", fingerprints=OTHER),
        "cells: {w}/repeat/test.jsonl (beside {w}/skip/test.jsonl): expected it to be made for the model mmmmmmmmmmmm",
    ),
    "another action set": (
        lambda w: write(w.folder / "repeat", FOUND, "both"),
        "cells.records: expected a search with the action set repeat in {w}/repeat/test.jsonl, got both",
    ),
    "a control as records": (
        lambda w: write(w.folder / "repeat", FOUND, "repeat", reward_target="wrong"),
        "cells.records: expected reward_target gold in {w}/repeat/test.jsonl, got wrong (sample a)",
    ),
    "a menu table": (
        lambda w: write(w.folder / "repeat", FOUND, "repeat", {"menu": "menu.json"}),
        "cells.records: expected a search in {w}/repeat/test.jsonl, got a menu table",
    ),
    "settings of another search": (
        lambda w: write(w.folder / "repeat", FOUND, "repeat", search="z" * 64),
        "{w}/repeat/test.settings.json: expected the settings of the search in {w}/repeat/test.jsonl",
    ),
    "no settings": (
        lambda w: (write(w.folder / "repeat", FOUND, "repeat") / "test.settings.json").write_text('{"runs": []}'),
        "{w}/repeat/test.settings.json: expected the settings of python -m search, got none",
    ),
    "no records": (lambda w: w, "cells.records: expected an existing directory, got '{w}/repeat'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_cells_that_cannot_be_compared_are_refused(world: World, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, message = REFUSED[name]
    change(world)
    assert run_command(main, world.arguments([*world.cells, world.cell("repeat")])) == 2
    assert message.format(w=world.folder) in capsys.readouterr().err
    assert not (world.folder / "out" / ANALYSIS_FILE).exists()


CONTROLS: dict[str, tuple[Change, str]] = {
    "told the right answers": (
        lambda w: write(w.folder / "control", TOLD_WRONG, "both"),
        "cells.wrong: expected reward_target wrong in {w}/control/test.jsonl, got gold",
    ),
    "told the same answers": (
        lambda w: write(w.folder / "control", TOLD_WRONG, "both", reward_target="wrong"),
        "cells.wrong: expected other answers in {w}/control/test.jsonl than in {w}/both/test.jsonl",
    ),
    "another seed": (
        lambda w: write(
            w.folder / "control", TOLD_WRONG, "both", {"search": {**SEARCH, "seed": 1}}, reward_target="wrong"
        ),
        "cells: expected the same seed in {w}/both/test.jsonl and {w}/control/test.jsonl, got 0 and 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_of_another_search_are_refused(world: World, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, message = CONTROLS[name]
    change(world)
    assert run_command(main, world.arguments([world.cell("both", wrong=str(world.folder / "control"))])) == 2
    assert message.format(w=world.folder) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "cells: expected at least one"),
        ([("both", {}), ("both", {})], "cells: expected each once, got toy base, both on test again"),
        ([("both", {"variant": " "})], "cells.variant: expected a name"),
        ([("both", {"split": "dev"})], "cells.split: expected one of train, validation, calibration, test, got 'dev'"),
        ([("loop", {})], "action_set"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: list[tuple[str, dict[str, Any]]], message: str
) -> None:
    told = [World(tmp_path).cell(action_set, **changed) for action_set, changed in cells]
    assert run_command(main, [f"--cells={json.dumps(told)}", f"--out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
