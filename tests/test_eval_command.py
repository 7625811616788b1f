"""`python -m eval` end to end on a tiny model."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from data.headroom import Headroom
from data.records import read_records
from eval.__main__ import main
from eval.baselines import StaticChoice
from eval.controls import Controls
from eval.page import NBSP, points, points_interval
from eval.report import REPORT_FILE, write_report
from eval.results import RESULTS_FILE, RUN_FILE, read_results
from eval.run import CANDIDATES_FILE, OF_RESULTS
from eval.tables import print_report
from router.chain import Chain
from router.command import run_command
from router.decision import Operation
from router.files import read_json, sha256_file
from router.heads.head import pad_states
from router.scope import pooled
from router.storage import load_router, save_router
from tests.evaluation import ARM_NAMES, PREFIX, World, finished, make_samples, world  # noqa: F401  (fixtures)
from tests.reports import read_report
from tests.tiny import FULL, NUM_LAYERS, edit_json, scorer_of
from train.scope import scope_of


def test_chains_are_those_of_their_arms(finished: World) -> None:
    # Oracle: router and records read by hand.
    scorer = scorer_of(finished.folder)
    router = load_router(finished.folder / "router")
    chains: dict[str, dict[str, Chain]] = {name: {} for name in ARM_NAMES}
    for one in read_results(finished.out / RESULTS_FILE, NUM_LAYERS):
        chains[one.arm][one.sample_id] = one.chain
    records = read_records(finished.folder / "records" / "test.jsonl")
    for sample, record in zip(make_samples()["test"], records, strict=True):
        block = scorer.load([scorer.encode(sample)])
        (routed,) = router.decide(scorer.states(block, PREFIX), Operation(budget=4.2))
        assert chains["router"][sample.id] == routed.chain
        assert chains["full"][sample.id] == FULL
        assert chains["random"][sample.id].depth == routed.chain.depth
        right = [result.chain.depth for result in record.results if result.stands]
        assert chains["oracle"][sample.id].depth == min(right, default=NUM_LAYERS)
    assert len(set(chains["router"].values())) > 1
    assert len(set(chains["static"].values())) == 1
    assert all(chain.layers[:PREFIX] == (0, 1) for chain in chains["random"].values())


def test_the_static_chain_is_chosen_without_the_test_split(finished: World) -> None:
    # Oracle: the dense table, added up by hand; it holds train and validation only.
    static = read_json(finished.out / StaticChoice.FILE)
    results = read_results(finished.out / CANDIDATES_FILE, NUM_LAYERS)
    samples = make_samples()
    seen = {sample.id for split in ("train", "validation") for sample in samples[split]}
    assert {one.sample_id for one in results} == seen
    score: dict[Chain, int] = {}
    for one in results:
        score[one.chain] = score.get(one.chain, 0) + one.correct
    assert len(results) == len(score) * len(seen)
    bound = static["router_validation_depth"]
    within = {chain: right for chain, right in score.items() if chain.depth <= bound}
    chosen = Chain.from_json(static["chain"], NUM_LAYERS)
    assert within[chosen] == max(within.values()) == static["correct"]
    assert FULL in score
    assert chosen.depth <= bound < NUM_LAYERS


def test_report_is_rebuilt_from_files_alone(finished: World, tmp_path: Path) -> None:
    # Oracle: the report of the run.
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for path in finished.out.iterdir():
        if path.suffix in (".json", ".jsonl") and path.name != REPORT_FILE:
            shutil.copy(path, copied)
    report = write_report(copied)
    assert (copied / REPORT_FILE).read_bytes() == (finished.out / REPORT_FILE).read_bytes()
    assert [arm.name for arm in report.arms] == ARM_NAMES
    assert "has seen the answer" in report.arms[-1].label
    assert (report.n, report.split, report.task) == (14, "test", "arc_easy")
    assert report.inputs["router/router.safetensors"] == sha256_file(finished.folder / "router/router.safetensors")


def test_a_second_run_needs_no_model_and_prints_the_same_table(
    world: World, finished: World, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the model is gone; files and lines stay the same.
    shutil.copytree(finished.out, world.out)
    (world.folder / "model").unlink()
    before = {path.name: path.read_bytes() for path in world.out.iterdir()}
    # The model's name belongs to what was run, so the run is asked for under the same one.
    main(world.arguments(model=finished.folder / "model"))
    assert {path.name: path.read_bytes() for path in world.out.iterdir()} == before
    printed = capsys.readouterr().out
    assert "oracle: upper bound, has seen the answer" in printed
    assert "\x1b" not in printed
    report = read_json(world.out / REPORT_FILE)
    page = (world.out / "report.html").read_text().replace(NBSP, " ")
    assert "Controls: what of the oracle's gain is luck?" in page
    controls = read_report(world.out / REPORT_FILE).controls
    assert controls is not None
    assert controls.luck is not None
    gain = controls.luck.net_gain
    assert gain is not None
    left = f"{points(gain.value)} ({points_interval(gain.interval)}) are left minus what the wrong-answer search finds"
    assert left in page
    for arm in report["arms"]:
        line = next(line for line in printed.splitlines() if f"| {arm['label']} " in line)
        assert f" {arm['accuracy']:.3f} " in line
        assert f" {arm['mean_depth']:.2f} " in line


def test_a_finished_evaluation_is_run_again_by_several_processes(
    world: World, finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: processes of their own, started together; each ends well and leaves the same bytes.
    monkeypatch.setattr("eval.figures.DRAWINGS", ())
    shutil.copytree(finished.out, world.out)
    arguments = world.arguments(model=finished.folder / "model")
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            os._exit(run_command(main, arguments))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    for name in (RESULTS_FILE, "results.meta.json", REPORT_FILE):
        assert (world.out / name).read_bytes() == (finished.out / name).read_bytes()


def test_a_run_killed_in_the_middle_of_a_line_goes_on(
    world: World, finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the unbroken run's files, byte by byte; figures have tests of their own.
    monkeypatch.setattr("eval.figures.DRAWINGS", ())
    world.out.mkdir()
    for one in (RUN_FILE, "results.meta.json", "candidates.meta.json"):
        shutil.copy(finished.out / one, world.out / one)
    for name in (CANDIDATES_FILE, RESULTS_FILE):
        whole = (finished.out / name).read_bytes()
        cut = whole[: len(whole) * 2 // 5]
        assert not cut.endswith(b"\n")
        (world.out / name).with_suffix(".partial.jsonl").write_bytes(cut)
    main(world.arguments(model=finished.folder / "model"))
    for name in (CANDIDATES_FILE, RESULTS_FILE):
        assert (world.out / name).read_bytes() == (finished.out / name).read_bytes()
    for one in ("arms", "static", "router_collapse"):
        assert read_json(world.out / REPORT_FILE)[one] == read_json(finished.out / REPORT_FILE)[one]


def test_an_oracle_is_judged_anew_where_records_have_variants(
    world: World, finished: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the records' own measures, formatted here; without variants the report says how to get them.
    monkeypatch.setattr("eval.figures.DRAWINGS", ())
    how = "oracle judged anew: not measured; python -m search with variants: 4"
    print_report(read_report(finished.out / REPORT_FILE), sys.stdout)
    assert how in capsys.readouterr().out
    rng = random.Random(0)

    def varied(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["variants"] = 4
            for result in line["results"]:
                margins = [rng.uniform(-1, 1) for _ in range(3)]
                answers = [{"prediction": 0, "correct": one > 0, "margin": one} for one in margins]
                result["variants"] = [{"scores": result["scores"], **one} for one in answers]
                result["robust"] = result["correct"]

    world.edit_lines("records/test.jsonl", varied)
    few = {"control_samples": 0, "random_search": "null", "wrong_records": "null", "baselines": "[mixture]"}
    main(world.arguments(model=finished.folder / "model", **few))
    printed = capsys.readouterr().out
    headroom = Headroom.of(read_records(world.folder / "records" / "test.jsonl"), 0)
    assert headroom is not None
    report = read_report(world.out / REPORT_FILE)
    assert report.controls == Controls(None, None, None, None, headroom)
    assert how not in printed
    assert f"control, oracle judged anew: {headroom.advice}" in printed
    anew, gain = headroom.accuracy["anew"], headroom.over_full["anew"]
    assert anew is not None
    assert gain is not None
    row = next(line for line in printed.splitlines() if "| oracle, judged anew " in line)
    assert f" {anew.share:.3f} " in row
    assert f" {headroom.depth['anew']:.2f} " in row
    assert f" {gain.value:+.3f} (" in row
    page = (world.out / "report.html").read_text()
    assert f"<td>{headroom.depth['anew']:.2f}<small>" in page
    assert headroom.advice in page
    assert "judged on others, it gains" in page


def test_what_is_out_of_scope_runs_at_full_depth_and_is_counted(
    world: World, finished: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the router on each test sample; figures have tests of their own.
    monkeypatch.setattr("eval.figures.DRAWINGS", ())
    scorer, samples = scorer_of(world.folder), make_samples()
    states = {split: scorer.states(scorer.load(scorer.encode_all(samples[split])), PREFIX) for split in samples}
    train, validation = (pooled(*pad_states(states[split])) for split in ("train", "validation"))
    router = dataclasses.replace(
        load_router(world.folder / "router"), scope=scope_of(train, validation, 0.5, [True] * len(train))
    )
    save_router(world.folder / "router", router)
    world.out.mkdir()
    for name in OF_RESULTS:  # another router's, whose results somebody removed: nothing of them is taken
        if (finished.out / name).exists():
            shutil.copy(finished.out / name, world.out)
    edit_json(world.out / StaticChoice.FILE, router_validation_depth=99.0)
    few = {"control_samples": 0, "random_search": "null", "wrong_records": "null", "baselines": "[random]"}
    main(world.arguments(**few))
    report = read_report(world.out / REPORT_FILE)
    assert report.inputs["router/router.safetensors"] == sha256_file(world.folder / "router/router.safetensors")
    depths = [one.chain.depth for one in router.decide(states["validation"], Operation(budget=4.2))]
    assert (report.controls, report.static.router_validation_depth) == (None, sum(depths) / len(depths))
    decided = router.decide(states["test"], Operation(budget=4.2))
    outside = {one.id for one, routed in zip(samples["test"], decided, strict=True) if not routed.in_scope}
    assert 0 < len(outside) < len(decided)
    results = read_results(world.out / RESULTS_FILE, NUM_LAYERS)
    assert {one.sample_id for one in results if not one.in_scope} == outside
    assert all(one.chain == FULL for one in results if not one.in_scope)
    assert {one.sample_id for one in results if one.one_token} == {
        one.id for one, routed in zip(samples["test"], decided, strict=True) if routed.one_token
    }
    arms = {arm["name"]: arm["out_of_scope"] for arm in read_json(world.out / REPORT_FILE)["arms"]}
    assert (arms["router"], arms["full"], arms["random"]) == (len(outside), 0, 0)
    assert f"out of the router's scope, so at full depth: {len(outside)} of 14 samples" in capsys.readouterr().out
    assert f"at full depth: {len(outside)} of 14 samples" in (world.out / "report.html").read_text()
