"""`python -m eval` end to end on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from data.headroom import Headroom
from data.records import read_records
from eval.__main__ import main
from eval.arms import LABELS
from eval.baselines import MixtureChoice, StaticChoice
from eval.controls import Controls
from eval.measures import arm_of, paired
from eval.report import REPORT_FILE, write_report
from eval.results import RESULTS_FILE, RUN_FILE, read_results
from eval.run import CANDIDATES_FILE
from eval.tables import print_report
from router.chain import Chain
from router.decision import Operation
from router.files import read_json, sha256_file
from router.heads.head import pad_states
from router.scope import pooled
from router.storage import load_router, save_router
from router.validation import to_plain
from tests.evaluation import ARM_NAMES, PREFIX, World, finished, make_samples, world  # noqa: F401  (fixtures)
from tests.reports import read_report
from tests.tiny import FULL, NUM_LAYERS, scorer_of
from train.scope import scope_of


def test_every_arm_answers_every_test_sample(finished: World) -> None:
    # Oracle: each chain run alone, one sample a batch, choices in rows of their own.
    scorer = scorer_of(finished.folder, packed=False)
    samples = {sample.id: sample for sample in make_samples()["test"]}
    results = read_results(finished.out / RESULTS_FILE, NUM_LAYERS)
    assert {(one.arm, one.sample_id) for one in results} == {(arm, key) for arm in ARM_NAMES for key in samples}
    alone = {
        (key, chain): scorer.score(scorer.load([scorer.encode(samples[key])]), [(0, chain)])[0]
        for key, chain in {(one.sample_id, one.chain) for one in results}
    }
    for one in results:
        expected = alone[one.sample_id, one.chain]
        assert one.scores == pytest.approx(expected.scores, abs=1e-4)
        assert (one.prediction, one.correct) == (expected.prediction, expected.correct)
        assert one.correct == (one.prediction == samples[one.sample_id].answer)
    assert len({one.correct for one in results}) == 2


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
    # Oracle: the report of the run, and the metrics of the results read back.
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for path in finished.out.iterdir():
        if path.suffix in (".json", ".jsonl") and path.name != REPORT_FILE:
            shutil.copy(path, copied)
    report = to_plain(write_report(copied))
    assert report == json.loads((copied / REPORT_FILE).read_text())
    assert (copied / REPORT_FILE).read_bytes() == (finished.out / REPORT_FILE).read_bytes()
    by_arm: dict[str, list[Any]] = {name: [] for name in ARM_NAMES}
    for one in sorted(read_results(copied / RESULTS_FILE, NUM_LAYERS), key=lambda one: one.sample_id):
        by_arm[one.arm].append(one)
    for arm in report["arms"]:
        measured = to_plain(arm_of(by_arm[arm["name"]], by_arm["full"], 0))
        if arm["against_full"] is not None:  # corrected for all comparisons: tests/test_eval_report.py
            measured["against_full"]["mcnemar_p_holm"] = arm["against_full"]["mcnemar_p_holm"]
        assert measured.items() <= arm.items()
        knob = {
            "router": ", budget 4.2 layers",
            "router@4.5": ", budget 4.5 layers",
            "guarantee": " (loss of at most 0.5 with probability 0.9)",
        }.get(arm["name"], "")
        assert arm["label"] == LABELS[arm["name"].split("@")[0]] + knob
    against = to_plain(paired(by_arm["router"], by_arm["random"], 0))
    corrected = report["router_against"]["random"]["mcnemar_p_holm"]
    assert report["router_against"]["random"] == against | {"mcnemar_p_holm": corrected}
    assert "has seen the answer" in report["arms"][-1]["label"]
    assert (report["n"], report["split"], report["task"]) == (14, "test", "arc_easy")
    assert report["inputs"]["router/router.safetensors"] == sha256_file(
        finished.folder / "router" / "router.safetensors"
    )
    assert {"settings", "commit", "versions"} <= report["provenance"].keys()
    router = next(arm for arm in report["arms"] if arm["name"] == "router")
    random = next(arm for arm in report["arms"] if arm["name"] == "random")
    assert router["mean_depth"] == random["mean_depth"]


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
    for arm in report["arms"]:
        line = next(line for line in printed.splitlines() if f"| {arm['label']} " in line)
        assert f" {arm['accuracy']:.3f} " in line
        assert f" {arm['mean_depth']:.2f} " in line


@pytest.mark.parametrize("name", [RESULTS_FILE, CANDIDATES_FILE])
def test_a_run_killed_in_the_middle_of_a_line_goes_on(
    world: World, finished: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: the unbroken run's files, byte by byte; figures have tests of their own.
    monkeypatch.setattr("eval.figures.DRAWINGS", ())
    world.out.mkdir()
    names = [RUN_FILE, "results.meta.json", "candidates.meta.json"]
    if name == RESULTS_FILE:
        names += [CANDIDATES_FILE, MixtureChoice.FILE, StaticChoice.FILE]
    for one in names:
        shutil.copy(finished.out / one, world.out / one)
    whole = (finished.out / name).read_bytes()
    cut = whole[: len(whole) * 2 // 5]
    assert not cut.endswith(b"\n")
    (world.out / name).with_suffix(".partial.jsonl").write_bytes(cut)
    main(world.arguments(model=finished.folder / "model"))
    assert (world.out / name).read_bytes() == whole
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
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    main(world.arguments(control_samples=0, baselines="[random]"))
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
