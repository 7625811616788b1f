"""`python -m train calibrate` on a tiny model: what is written is what running the chains says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.records import read_records
from data.sample import read_samples, write_samples
from data.states import compute_states
from router.decision import Operation
from router.storage import GUARANTEE_FILE, TRAINED_ON_FILE, load_router, save_router
from router.validation import InputError
from search.__main__ import main as search
from search.menu import Menu, write_menu
from tests.conftest import Refusal
from tests.menus import record, write_records
from tests.test_search_run import arguments as search_arguments
from tests.tiny import FULL, NUM_LAYERS, random_router, scorer_of, tiny_samples, untrained, write_project
from train.calibrate import Calibration, main, settings_of, static_settings
from train.guarantee import certify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples and a random router with operating points, calibrated; copy it to change it."""
    folder = write_project(tmp_path_factory.mktemp("calibrate"), train=12, validation=12)
    write_samples(folder / "data" / "calibration.jsonl", tiny_samples("calibration", 40))
    scorer = scorer_of(folder)
    states = compute_states(scorer, read_samples(folder / "data" / "validation.jsonl"), 2, "states")
    save_router(folder / "router", untrained(random_router(scorer, 2).config, list(states.values())))
    (folder / "router" / TRAINED_ON_FILE).write_text(json.dumps({"split_hashes": []}))
    main(arguments(folder))
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


def test_a_menu_table_of_the_split_says_the_same_as_running_the_chains(project: Path, refusal: Refusal) -> None:
    # Oracle: the guarantee of the run without a table; a table that lacks a chain, or the states, is refused.
    run = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    router = load_router(project / "router")
    samples = read_samples(project / "data" / "calibration.jsonl")
    states = list(compute_states(scorer_of(project), samples, 2, "states").values())
    settings = settings_of(router.config.budget_points, 5, ())
    chains = [one.chain for point in settings for one in router.decide(states, Operation(point=point))]
    for name, of_menu, layers in (("whole", chains, "[2]"), ("stateless", chains, "[]"), ("poor", [FULL], "[2]")):
        write_menu(project / f"{name}.json", Menu.of([FULL, *of_menu], 2))
        table = {"splits": "[calibration]", "first_editable": 2, "verify": "false", "read_layers": layers}
        search(search_arguments(project, project / name, menu=project / f"{name}.json", **table))
    wrong = [
        dataclasses.replace(one, reward_target="wrong") for one in read_records(project / "poor/calibration.jsonl")
    ]
    write_records(project / "control" / "calibration.jsonl", wrong)
    for name, message in (
        ("control", "the reward target gold, got wrong"),
        ("poor", "every chain of the router"),
        ("stateless", "the states that the router reads (hidden_states[2]) of calibration"),
    ):
        assert f": expected {message}" in refusal(main, arguments(project, records=project / name))
    main(arguments(project, records=project / "whole"))
    told = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    assert told["key"] != run["key"]
    assert told["depths"] == run["depths"]
    assert told["certificate"] == run["certificate"]


def test_the_guarantee_is_what_running_every_chain_by_hand_certifies(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: every sample routed and run alone, setting by setting; a second run says the same and changes nothing.
    told = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    scorer = scorer_of(project)
    router = load_router(project / "router")
    settings = settings_of(router.config.budget_points, 5, ())
    samples = read_samples(project / "data" / "calibration.jsonl")
    losses, depths = np.zeros((len(settings), len(samples)), int), np.zeros(len(settings))
    for j, sample in enumerate(samples):
        block = scorer.load([scorer.encode(sample)])
        states = scorer.states(block, 2)
        for i, one in enumerate(settings):
            chain = router.decide(states, Operation(point=one))[0].chain
            full, routed = scorer.judge(block, [(0, FULL), (0, chain)])
            losses[i, j] = int(full.correct) - int(routed.correct)
            depths[i] += chain.depth / len(samples)
    assert told["depths"] == pytest.approx(depths.tolist())
    assert told["certificate"]["mean_losses"] == pytest.approx(losses.mean(1).tolist())
    expected = certify(losses, depths, 0.9, 0.1)
    assert expected.chosen is not None
    assert router.guarantee is not None
    assert router.guarantee.offset == settings[expected.chosen].offset
    assert router.guarantee.mean_depth == pytest.approx(depths[expected.chosen])
    routed = router.decide(list(compute_states(scorer, samples, 2, "states").values()), Operation(guaranteed=True))
    assert sum(one.chain.depth for one in routed) / len(routed) == pytest.approx(router.guarantee.mean_depth)
    main(arguments(project))  # the model's folder is another one than the first time
    before = (project / "router" / GUARANTEE_FILE).read_bytes()
    capsys.readouterr()
    main(arguments(project))
    out = capsys.readouterr().out
    assert "calibrated already" in out
    assert "certified on 40 samples" in out
    assert (project / "router" / GUARANTEE_FILE).read_bytes() == before
    main(arguments(project, delta=0.2))
    assert "already" not in capsys.readouterr().out


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
    # Oracle: the certificate and the results of the run that was not stopped.
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


def test_fallbacks_share_delta_and_static_chains_get_the_same_test(project: Path) -> None:
    menu = Menu.of([FULL, FULL.skip(3, 1), FULL.skip(3, 2), FULL.skip(2, 1)], 2)
    write_menu(project / "menu.json", menu)
    table = {"menu": project / "menu.json", "splits": "[train,validation]", "first_editable": 2, "verify": "false"}
    search(search_arguments(project, project / "table", **table))
    main(arguments(project, least_scores="[-1e9, 1e9]", static=project / "table"))
    told = json.loads((project / "router" / GUARANTEE_FILE).read_text())
    half = len(told["tried"]) // 2
    # A score that none reaches sends all to full depth: no loss, all layers.
    assert told["depths"][half:] == [float(NUM_LAYERS)] * half
    assert told["certificate"]["mean_losses"][half:] == [0.0] * half
    assert len(told["static"]["certificate"]["mean_losses"]) == len({chain.depth for chain in menu.chains}) - 1


def test_static_settings_are_the_best_of_each_depth(made: Path, tmp_path: Path) -> None:
    # Oracle: by hand. Of depth 5 "0-4" is right on both samples, of depth 4 "0-2,4".
    # Tables of another model, or of the control, are refused.
    router = load_router(made / "router")

    def best(**changes: object) -> list[str]:
        for split, right in (("train", True), ("validation", False)):
            rights = {"0-5": True, "0-3,5": False, "0-4": True, "0-3": right, "0-2,4": True}
            write_records(tmp_path / f"{split}.jsonl", [record(split, rights, **changes)])
        return list(map(str, static_settings(tmp_path, router)))

    own = {"fingerprints": router.config.fingerprints}
    assert best(**own) == ["0-4", "0-2,4"]
    with pytest.raises(InputError, match=r"static .*: expected it to be made for the model"):
        best()
    with pytest.raises(InputError, match=r"static .*: expected the reward target gold, got wrong"):
        best(**own, reward_target="wrong")


def test_what_a_second_run_refuted_is_a_loss() -> None:
    # Oracle: by hand. Full depth and its skip are right on three samples, but a second run refuted the skip's first
    # answer and full depth's others. On the third sample the skip had no second run, so there full depth's counts as
    # little: else a chain that answers just as full depth does would gain.
    full, skip = record("a", {"0-5": True, "0-4": True}).results
    stood, refuted = ([dataclasses.replace(one, verified=kept) for one in (full, skip)] for kept in (True, False))
    done = Calibration((stood[0], refuted[0], refuted[0]), ((refuted[1], stood[1], skip),))
    assert done.losses("accuracy").tolist() == [[1, -1, 0]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"router": "nowhere"}, "router: expected"),
        ({"least_scores": "[0.1, 0.2, 0.3]", "delta": 1e-4}, "delta / starts: expected above 0.0001"),
    ],
)
def test_bad_input_gets_one_line(project: Path, refusal: Refusal, change: dict[str, object], told: str) -> None:
    assert told in refusal(main, arguments(project, **change))


def test_a_router_that_saw_the_questions_is_refused(project: Path, refusal: Refusal) -> None:
    seen = [sample.split_hash for sample in read_samples(project / "data" / "calibration.jsonl")][:3]
    (project / "router" / TRAINED_ON_FILE).write_text(json.dumps({"split_hashes": seen}))
    assert "got 3 that it was" in refusal(main, arguments(project))
