"""`python -m eval curves`: baselines on a dense table by hand, and a tiny menu table routed and looked up by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data.records import DenseTable, SearchRecord, read_records
from data.sample import read_samples, write_samples
from data.states import StatesOrigin, read_states
from data.statistics import permutation_p
from eval.curves import (
    CURVES_FILE,
    FIGURE_FILES,
    Tables,
    draw,
    main,
    measure,
    print_curves,
    random_of_depth,
    same_menu,
    summary_of,
)
from router.chain import Chain
from router.decision import Operation, Router
from router.heads.head import pad_states
from router.storage import TRAINED_ON_FILE, load_router, save_router
from router.validation import InputError
from search.__main__ import main as search
from search.menu import Menu, write_menu
from tests.conftest import Refusal
from tests.menus import record
from tests.tiny import FULL, tiny_samples, write_project
from train.__main__ import main as train

SIX = Chain.full(6)
CHAINS = (SIX, SIX.skip(5, 1), SIX.skip(4, 2), SIX.skip(3, 1), SIX.skip(3, 2))
MENU = Menu.of([FULL, FULL.skip(2, 1), FULL.skip(3, 1), FULL.skip(4, 1), FULL.skip(3, 2), FULL.skip(2, 2)], 2)


def table(correct: np.ndarray, tasks: list[str] | None = None) -> DenseTable:
    n, k = correct.shape
    return DenseTable(
        chains=CHAINS[:k],
        sample_ids=tuple(f"s{i}" for i in range(n)),
        tasks=tuple(tasks or ["t"] * n),
        correct=correct.astype(bool),
    )


def test_the_same_menu_and_random_chains_by_hand() -> None:
    correct = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 1, 0, 1]])
    one = table(correct, ["a", "a", "b", "b"])
    choices = np.array([0, 1, 3, 2])
    # Task a: full and column 1, half each; task b: columns 3 and 2.
    assert same_menu(one, choices).tolist() == [0.5, 0.5, 0.5, 0.5]
    # Depth 6: full alone; depth 5: columns 1 and 3; depth 4: columns 2 and 4.
    assert random_of_depth(one, choices).tolist() == [1.0, 0.5, 1.0, 1.0]


def test_permutations_tell_reading_from_none() -> None:
    # Oracle: a router that knows every outcome, and one that draws.
    rng = np.random.default_rng(0)
    correct = rng.random((200, 2)) < 0.5
    knowing = np.where(correct[:, 0], 0, 1)
    p, mean = permutation_p(correct, knowing, ["t"] * 200, 0)
    assert p == 1 / 10_001
    assert abs(mean - 0.5) < 0.1
    drawing = rng.integers(0, 2, 200)
    p, mean = permutation_p(correct, drawing, ["t"] * 200, 0)
    assert p > 0.01
    assert mean == pytest.approx(same_menu(table(correct), drawing).mean(), abs=0.003)
    by_task = np.repeat([0, 1], 100)
    assert permutation_p(correct, by_task, ["a"] * 100 + ["b"] * 100, 0)[0] == 1.0  # nothing beyond the task


def test_measure_tells_kinds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: by hand. Column 2 (4 layers) is right on every sample of a and on none of b, column 1 (5 layers) on all of
    # b, column 3 (5 layers) on a's odd samples. The router gives a column 2 and b, in turn, columns 1, 1, 0 and 0.
    right = {"a": [1, 0, 1, 0, 0], "b": [1, 1, 0, 0, 0]}
    kinds = ["a"] * 8 + ["b"] * 4
    one = table(np.array([right[kind] for kind in kinds]), kinds)
    one.correct[1:8:2, 3] = True
    choices = np.array([2] * 8 + [1, 1, 0, 0])
    found = measure(Tables(one, one, one), choices, choices, 5.0, 0)
    assert found["static_chain"] == str(CHAINS[2])
    assert (found["accuracy"], found["depth"], found["against"]["full"]["difference"]) == (1, 54 / 12, 0)
    assert found["against"]["mixture"]["depth"] <= found["depth"] + 1e-9
    a, b = found["kinds"]["a"], found["kinds"]["b"]
    assert (a["n"], a["accuracy"], a["depth"], a["full"], a["static"], a["static_by_kind"]) == (8, 1, 4, 1, 1, 1)
    assert (b["n"], b["accuracy"], b["depth"], b["full"], b["static"], b["static_by_kind"]) == (4, 1, 5.5, 1, 0, 1)
    assert (a["static_by_kind_chain"], b["static_by_kind_chain"]) == (str(CHAINS[2]), str(CHAINS[1]))
    by_kind = found["against"]["static_by_kind"]
    assert (by_kind["accuracy"], by_kind["depth"], by_kind["difference"]) == (1, (8 * 4 + 4 * 5) / 12, 0)
    assert found["entropy_within_bits"] == 0.5  # 0 in a, 1 in b
    shares = (8 / 12, 2 / 12, 2 / 12)
    assert found["entropy_bits"] == pytest.approx(-sum(share * np.log2(share) for share in shares))
    assert found["against"]["same_menu"]["difference"] == 0  # all that it read is the kind
    assert found["permutation_p"] == 1.0
    worse = np.array([2] * 8 + [1, 1, 2, 2])
    lost = measure(Tables(one, one, one), worse, worse, 5.0, 0)
    points = [{"name": "menu", **point} for point in (found, lost)]
    print_curves({"full": {"accuracy": 1, "depth": 6}, "n": 12, "points": points, "summary": summary_of(points)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    # Means of the two: of b 1 and 1/2 are right, at 5.5 and 4.5 layers.
    assert ["menu", "5", "a", "4.00", "1.0000", "1.0000", "+0.0000", "1.0000", "1.0000 at 4.00"] in rows
    b_row = ["menu", "5", "b (worst)", "5.00", "0.7500", "1.0000", "-0.2500", "0.0000"]
    assert b_row in [row[:8] for row in rows]


def tried(sample_id: str, chains: Sequence[Chain]) -> SearchRecord:
    """A record of some chains, every other one right."""
    return record(sample_id, {str(chain): i % 2 == 0 for i, chain in enumerate(chains)})


def test_a_table_holds_what_all_records_tried() -> None:
    one = DenseTable.of([tried("a", CHAINS), tried("b", (SIX, CHAINS[2], CHAINS[1]))])
    assert one.chains == (SIX, CHAINS[1], CHAINS[2])
    assert one.correct.tolist() == [[True, False, True], [True, True, False]]
    with pytest.raises(InputError, match="for every sample, got none for b"):
        DenseTable.of([tried("b", (SIX, CHAINS[1]))], CHAINS[:3])


def test_what_a_second_run_refuted_is_not_right_in_a_table() -> None:
    # Oracle: docs/search.md: a result that flipped is not right for any head, nor for full depth.
    one = tried("a", CHAINS[:3])
    marks = (False, None, True)
    results = tuple(dataclasses.replace(of, verified=mark) for of, mark in zip(one.results, marks, strict=True))
    assert DenseTable.of([dataclasses.replace(one, results=results)]).correct.tolist() == [[False, False, True]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Menu tables of three splits and two routers."""
    folder = write_project(tmp_path_factory.mktemp("curves"), train=40, validation=20, test=30)
    write_menu(folder / "menu.json", MENU)
    search(
        [
            f"--data={folder / 'data'}", f"--out={folder / 'table'}", f"--model={folder / 'model'}",
            f"--menu={folder / 'menu.json'}", "--first_editable=2", "--dtype=float32", "--verify=false",
            "--read_layers=[2]",
        ]
    )  # fmt: skip
    for seed in (0, 1):
        train(
            [
                f"--out={folder / f'router-{seed}'}", f"--data={folder / 'data'}",
                f"--records={folder / 'table'}", f"--model={folder / 'model'}", "--head.kind=menu",
                f"--seed_everything={seed}", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
                "--tracking.mode=disabled",
            ]
        )  # fmt: skip
        scatter(folder, seed)
    return folder


def scatter(folder: Path, seed: int) -> None:
    """Give a router random weights, so that it chooses many chains, and operating points to match."""
    router = load_router(folder / f"router-{seed}")
    torch.manual_seed(seed)
    for parameter in router.head.parameters():
        parameter.data.normal_(0, 1)
    with torch.inference_mode():
        router.head.calibrate(router.head(*pad_states(states_of(folder, router, "validation"))))
    config = dataclasses.replace(router.config, budget_points=router.head.budget_points)
    save_router(folder / f"router-{seed}", Router(config, router.head))


def states_of(folder: Path, router: Router, split: str) -> list[torch.Tensor]:
    """The states that the search kept of a split, in the order of its records."""
    ids = [record.sample_id for record in read_records(folder / "table" / f"{split}.jsonl")]
    origin = StatesOrigin(router.config.fingerprints, router.config.dtype)
    found = read_states([folder / "table" / f"{split}.states"], origin, ids, 2)
    return [found[key] for key in ids]


def budget_of(project: Path) -> float:
    """A budget within both routers' operating points."""
    points = [load_router(project / f"router-{seed}").config.budget_points for seed in (0, 1)]
    low = max(min(one.mean_depth for one in of) for of in points)
    high = min(max(one.mean_depth for one in of) for of in points)
    assert low < high
    return (low + high) / 2


def arguments(project: Path, out: Path, **changes: object) -> list[str]:
    routers = "{menu: [" + ", ".join(str(project / f"router-{seed}") for seed in (0, 1)) + "]}"
    settings: dict[str, object] = {
        "data": project / "data",
        "records": project / "table",
        "out": out,
        "routers": routers,
        "budgets": f"[{budget_of(project)}]",
    } | changes
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def curves(project: Path) -> Path:
    """The folder of a finished run."""
    main(arguments(project, project / "curves"))
    return project / "curves"


def test_the_curves_are_what_routing_and_looking_up_gives(project: Path, curves: Path) -> None:
    told = json.loads((curves / CURVES_FILE).read_text())
    records = read_records(project / "table" / "test.jsonl")
    assert told["n"] == 30
    assert told["full"]["accuracy"] == pytest.approx(sum(record.full.stands for record in records) / 30)
    assert all((curves / name).stat().st_size > 1000 for name in FIGURE_FILES)
    assert [point["router"] for point in told["points"]] == [str(project / f"router-{seed}") for seed in (0, 1)]
    for seed, point in enumerate(told["points"]):
        router = load_router(project / f"router-{seed}")
        routed = router.decide(states_of(project, router, "test"), Operation(budget=budget_of(project)))
        right = [
            {result.chain: result.stands for result in record.results}[one.chain]
            for record, one in zip(records, routed, strict=True)
        ]
        assert point["accuracy"] == pytest.approx(sum(right) / 30)
        assert point["depth"] == pytest.approx(sum(one.chain.depth for one in routed) / 30)
        full = point["against"]["full"]
        assert full["difference"] == pytest.approx(point["accuracy"] - told["full"]["accuracy"])
    (summary,) = told["summary"]
    assert summary["seeds"] == 2
    (kind,) = summary["kinds"].values()  # one task: its figures are those of all samples
    assert kind["accuracy"] == pytest.approx(summary["accuracy"])
    assert kind["difference"] == pytest.approx(summary["against"]["full"])
    assert summary["accuracy"] == pytest.approx(sum(point["accuracy"] for point in told["points"]) / 2)
    assert {one["depth"] for one in told["static"]} == {chain.depth for chain in MENU.chains}


def test_the_same_inputs_give_the_same_file(project: Path, curves: Path, tmp_path: Path) -> None:
    main(arguments(project, tmp_path))
    one, other = (json.loads((folder / CURVES_FILE).read_text()) for folder in (curves, tmp_path))
    for of in (one, other):
        del of["settings"], of["started"]
    assert one == other
    assert (curves / FIGURE_FILES[0]).read_bytes() == (tmp_path / FIGURE_FILES[0]).read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budgets": "[]"}, "budgets: expected at least 1 entries"),
        ({"routers": "{menu: [nowhere]}"}, "routers: expected"),
        ({"tasks": "[boolq]"}, "tasks: expected tasks of the records, got boolq"),
        ({"records": "nowhere"}, "records: expected"),
        ({"budgets": "[1.5]"}, "budgets: expected"),
        ({"budgets": "[4, 4.0]"}, "budgets: expected each once, got ['4.0', '4.0']"),
        ({"routers": "{menu: [a, b, a]}"}, "routers.menu: expected each once"),
    ],
)
def test_bad_input_gets_one_line(
    project: Path, tmp_path: Path, changes: dict[str, object], told: str, refusal: Refusal
) -> None:
    assert told in refusal(main, arguments(project, tmp_path / "out", **changes))


def test_data_without_the_test_samples_are_refused(project: Path, tmp_path: Path, refusal: Refusal) -> None:
    # Of other samples it could not be said whether a router has seen those of the table.
    write_samples(tmp_path / "test.jsonl", tiny_samples("test", 29))
    (gone,) = {one.id for one in tiny_samples("test", 30)} - {one.id for one in tiny_samples("test", 29)}
    told = refusal(main, arguments(project, tmp_path / "out", data=tmp_path))
    assert told.startswith(f"error: data: expected the samples of the test records, got none with id {gone}")


def test_the_figure_tells_how_many_seeds_met_a_budget(curves: Path) -> None:
    content = json.loads((curves / CURVES_FILE).read_text())
    (one,) = content["summary"]
    drawn = draw(content | {"summary": [one, one | {"budget": 9.0, "seeds": 1}]})
    labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert "router menu (mean and range of 1 or 2 seeds)" in labels


def test_a_router_that_saw_the_test_questions_is_refused(project: Path, tmp_path: Path, refusal: Refusal) -> None:
    path = project / "router-1" / TRAINED_ON_FILE
    before = path.read_text()
    seen = [sample.split_hash for sample in read_samples(project / "data" / "test.jsonl")][:2]
    path.write_text(json.dumps({"split_hashes": seen}))
    try:
        assert "got 2 that it was" in refusal(main, arguments(project, tmp_path / "out"))
    finally:
        path.write_text(before)
