"""`python -m train calibrate` on a tiny model: what is written is what running the chains says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.sample import read_samples, write_samples
from data.scoring import ChainScorer
from data.states import compute_states
from data.tasks import load_task
from router.chain import Chain
from router.command import run_command
from router.engine.load import load_model
from router.heads.head import pad_states
from router.storage import GUARANTEE_FILE, TRAINED_ON_FILE, Operation, Router, load_router, save_router
from search.__main__ import main as search
from search.menu import Menu, write_menu
from tests.tiny import NUM_LAYERS, random_router, tiny_samples, write_project
from train.calibrate import main, settings_of, static_settings
from train.guarantee import certify

FULL = Chain.full(NUM_LAYERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples and a random router with operating points."""
    folder = write_project(tmp_path_factory.mktemp("calibrate"), train=12, validation=12)
    write_samples(folder / "data" / "calibration.jsonl", tiny_samples("calibration", 40))
    model, tokenizer = load_model(str(folder / "model"))
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"))
    router = random_router(scorer, 2)
    states = compute_states(scorer, read_samples(folder / "data" / "validation.jsonl"), 2, "states")
    router.head.calibrate(router.head(*pad_states(list(states.values()))))
    config = type(router.config)(**{**vars(router.config), "budget_points": router.head.budget_points})
    save_router(folder / "router", Router(config, router.head))
    (folder / "router" / TRAINED_ON_FILE).write_text(json.dumps({"split_hashes": []}))
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project"))


def arguments(project: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "router": project / "router",
        "data": project / "data",
        "model": project / "model",
        "dtype": "float32",
        "points": 5,
        "epsilon": 0.9,
    } | changes
    return [f"--{name}={value}" for name, value in settings.items()]


def losses_by_hand(project: Path, points: int) -> tuple[list[list[int]], list[float]]:
    """Route and run every sample alone, setting by setting."""
    model, tokenizer = load_model(str(project / "model"))
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"))
    router = load_router(project / "router")
    rows, depths = [], []
    for one in settings_of(router.config.budget_points, points, ()):
        losses, depth = [], 0
        for sample in read_samples(project / "data" / "calibration.jsonl"):
            block = scorer.load([scorer.encode(sample)])
            assert one.offset is not None
            chain = router.decide(scorer.states(block, 2), Operation(point=one))[0].chain
            full, routed = scorer.judge(block, [(0, FULL), (0, chain)])
            losses.append(int(full.correct) - int(routed.correct))
            depth += chain.depth
        rows.append(losses)
        depths.append(depth / len(losses))
    return rows, depths


def test_the_guarantee_is_what_running_every_chain_by_hand_certifies(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(project))
    told = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    rows, depths = losses_by_hand(project, 5)
    assert told["depths"] == pytest.approx(depths)
    assert told["certificate"]["mean_losses"] == pytest.approx([sum(row) / len(row) for row in rows])
    expected = certify(np.array(rows), depths, 0.9, 0.1)
    assert expected.chosen is not None
    router = load_router(project / "router")
    assert router.guarantee is not None
    settings = settings_of(router.config.budget_points, 5, ())
    assert router.guarantee.offset == settings[expected.chosen].offset
    assert router.guarantee.mean_depth == pytest.approx(depths[expected.chosen])
    assert "certified on 40 samples" in capsys.readouterr().out
    model, tokenizer = load_model(str(project / "model"))
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"))
    samples = read_samples(project / "data" / "calibration.jsonl")
    routed = router.decide(list(compute_states(scorer, samples, 2, "states").values()), Operation(guaranteed=True))
    assert sum(one.chain.depth for one in routed) / len(routed) == pytest.approx(router.guarantee.mean_depth)


def test_too_little_data_falls_back_to_full_depth_and_says_what_they_are_enough_for(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(project, epsilon=0.01))
    out = capsys.readouterr().out
    assert "not certified on 40 samples" in out
    assert "epsilon 0." in out
    router = load_router(project / "router")
    assert router.guarantee is not None
    assert (router.guarantee.offset, router.guarantee.mean_depth) == (None, NUM_LAYERS)
    states = [torch.zeros(3, router.config.d_model)] * 2
    assert [one.chain for one in router.decide(states, Operation(guaranteed=True))] == [FULL, FULL]


def test_a_stopped_run_goes_on_and_other_claims_use_what_was_run(project: Path) -> None:
    main(arguments(project))
    whole = (project / "router" / GUARANTEE_FILE).read_text()
    (results,) = (project / "router" / "calibration").glob("*[0-9a-f].jsonl")
    finished = results.read_text()
    lines = finished.splitlines(keepends=True)
    partial = results.with_suffix(".partial.jsonl")
    partial.write_text("".join(lines[: len(lines) // 3]) + lines[-1][:20])  # killed in the middle of a line
    results.unlink()
    (project / "router" / GUARANTEE_FILE).unlink()
    main(arguments(project))
    again = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    assert again["certificate"] == json.loads(whole)["certificate"]
    assert results.read_text() == finished
    before = results.stat().st_mtime_ns
    main(arguments(project, loss="disagreement", delta=0.2))
    assert results.stat().st_mtime_ns == before


def test_a_finished_calibration_is_not_made_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(project))
    before = (project / "router" / GUARANTEE_FILE).read_bytes()
    capsys.readouterr()
    main(arguments(project))
    assert "calibrated already" in capsys.readouterr().out
    assert (project / "router" / GUARANTEE_FILE).read_bytes() == before
    main(arguments(project, delta=0.2))
    assert "already" not in capsys.readouterr().out


def test_fallbacks_share_delta_and_static_chains_get_the_same_test(project: Path) -> None:
    menu = Menu.of([FULL, FULL.skip(3, 1), FULL.skip(3, 2), FULL.skip(2, 1)], 2)
    write_menu(project / "menu.json", menu)
    search(
        [
            f"--data={project / 'data'}", f"--out={project / 'table'}", f"--model={project / 'model'}",
            f"--menu={project / 'menu.json'}", "--splits=[train,validation]", "--first_editable=2", "--dtype=float32",
            "--verify=false",
        ]
    )  # fmt: skip
    main(arguments(project, least_scores="[-1e9, 1e9]", static=project / "table"))
    told = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    half = len(told["tried"]) // 2
    # A score that none reaches sends all to full depth: no loss, all layers.
    assert told["depths"][half:] == [float(NUM_LAYERS)] * half
    assert told["certificate"]["mean_losses"][half:] == [0.0] * half
    assert len(told["static"]["certificate"]["mean_losses"]) == len({chain.depth for chain in menu.chains}) - 1


def test_static_settings_are_the_best_of_each_depth(project: Path) -> None:
    from tests.test_eval_curves import CHAINS, record

    # In these records even columns are right: of depth 5 columns 1 and 3 are wrong both, of depth 4 both are right.
    found = static_settings([record("a", CHAINS), record("b", CHAINS)])
    assert found == [min(CHAINS[1], CHAINS[3], key=lambda c: c.layers), CHAINS[2]]
    assert project.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"delta": 0}, "delta: expected above 0, got 0.0"),
        ({"split": "nothing"}, "split: expected one of"),
        ({"router": "nowhere"}, "router: expected"),
        ({"least_scores": "[0.1, 0.2, 0.3]", "delta": 1e-4}, "delta"),
    ],
)
def test_bad_input_gets_one_line(
    project: Path, change: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, arguments(project, **change)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_a_router_that_saw_the_questions_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [sample.split_hash for sample in read_samples(project / "data" / "calibration.jsonl")][:3]
    (project / "router" / TRAINED_ON_FILE).write_text(json.dumps({"split_hashes": seen}))
    assert run_command(main, arguments(project)) == 2
    assert "got 3 that it was" in capsys.readouterr().err


def test_a_guarantee_of_other_weights_does_not_count(project: Path) -> None:
    main(arguments(project))
    router = load_router(project / "router")
    for parameter in router.head.parameters():
        parameter.data.add_(1.0)
    save_router(project / "router", Router(router.config, router.head))
    assert load_router(project / "router").guarantee is None
