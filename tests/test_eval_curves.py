"""`python -m eval curves` on a tiny menu table: every figure follows from routing and looking up by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data.records import read_records
from data.sample import read_samples
from data.states import StatesOrigin, read_states
from eval.curves import CURVES_FILE, FIGURE_FILES, main
from router.chain import Chain
from router.command import run_command
from router.heads.head import pad_states
from router.storage import TRAINED_ON_FILE, Operation, Router, load_router, save_router
from search.__main__ import main as search
from search.menu import Menu, write_menu
from tests.tiny import NUM_LAYERS, write_project
from train.__main__ import main as train

FULL = Chain.full(NUM_LAYERS)
MENU = Menu.of([FULL, FULL.skip(2, 1), FULL.skip(3, 1), FULL.skip(4, 1), FULL.skip(3, 2), FULL.skip(2, 2)], 2)


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


def test_the_curves_are_what_routing_and_looking_up_gives(project: Path, tmp_path: Path) -> None:
    main(arguments(project, tmp_path / "out"))
    told = json.loads((tmp_path / "out" / CURVES_FILE).read_text())
    records = read_records(project / "table" / "test.jsonl")
    assert told["n"] == 30
    assert told["full"]["accuracy"] == pytest.approx(sum(record.full.stands for record in records) / 30)
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in FIGURE_FILES)
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
    assert summary["accuracy"] == pytest.approx(sum(point["accuracy"] for point in told["points"]) / 2)
    assert {one["depth"] for one in told["static"]} == {chain.depth for chain in MENU.chains}


def test_the_same_inputs_give_the_same_file(project: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        main(arguments(project, tmp_path / name))
    one, other = (json.loads((tmp_path / name / CURVES_FILE).read_text()) for name in ("a", "b"))
    for of in (one, other):
        del of["settings"], of["started"]
    assert one == other
    assert (tmp_path / "a" / FIGURE_FILES[0]).read_bytes() == (tmp_path / "b" / FIGURE_FILES[0]).read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budgets": "[]"}, "budgets: expected at least 1 entries"),
        ({"routers": "{menu: [nowhere]}"}, "routers: expected"),
        ({"tasks": "[boolq]"}, "tasks: expected tasks of the records, got boolq"),
        ({"records": "nowhere"}, "records: expected"),
        ({"budgets": "[1.5]"}, "budgets: expected"),
    ],
)
def test_bad_input_gets_one_line(
    project: Path, tmp_path: Path, changes: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, arguments(project, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_router_that_saw_the_test_questions_is_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "router-1" / TRAINED_ON_FILE
    before = path.read_text()
    seen = [sample.split_hash for sample in read_samples(project / "data" / "test.jsonl")][:2]
    path.write_text(json.dumps({"split_hashes": seen}))
    try:
        assert run_command(main, arguments(project, tmp_path / "out")) == 2
    finally:
        path.write_text(before)
    assert "trained on 2 of them" in capsys.readouterr().err
