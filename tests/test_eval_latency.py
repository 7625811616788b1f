"""`python -m eval latency`: which chains are timed, how times become an arm's, and the file as a budget."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from eval.arms import plan_arms
from eval.inputs import EvalSettings
from eval.latency import LatencySettings, chains_to_time, latency_of, main, prompt_length, spread_of
from eval.report import REPORT_FILE
from eval.run import with_budget
from router.chain import Chain
from router.command import parse_settings
from router.files import read_json, write_json
from router.latency import LATENCY_FILE, ChainTimes, LatencyProfile, Line, budget_for, read_latency
from router.storage import load_router, save_router
from router.validation import InputError
from tests.conftest import Refusal
from tests.evaluation import ARM_NAMES, World, finished  # noqa: F401  (fixture)
from tests.reports import result_of
from tests.tiny import tiny_model

N = 6
FULL, SHORT = Chain.full(N), Chain((0, 1, 2), N)


def test_few_chains_are_timed_by_their_shares_many_at_equal_steps_of_depth() -> None:
    assert chains_to_time([FULL] * 7, 4) == [FULL]
    timed = chains_to_time([SHORT] * 30 + [FULL] * 10, 4)
    assert (timed.count(SHORT), timed.count(FULL)) == (30, 10)
    many = [Chain(tuple(range(depth)), 100) for depth in range(1, 101)]
    timed = chains_to_time(many[::-1], 4)
    # The middles of four equal parts of 1..100.
    assert [chain.depth for chain in timed] == [13, 38, 63, 88]


def test_an_arms_latency_is_the_mean_of_its_chains_round_by_round() -> None:
    # By hand: full takes 10, 20, 30; the short chain half; three of four samples are short: 6.25, 12.5, 18.75.
    times = {
        FULL: ChainTimes((10.0, 20.0, 30.0), (2.0, 2.0, 2.0), None),
        SHORT: ChainTimes((5.0, 10.0, 15.0), (1.0, 1.0, 1.0), None),
    }
    found = latency_of(
        times, [SHORT, SHORT, SHORT, FULL], [result_of(chain=SHORT)] * 3 + [result_of(chain=FULL)], (1.0, 1.0, 1.0)
    )
    assert found["prefill_ms"]["median"] == pytest.approx(13500)
    assert found["ratio_prefill_without_router"] == pytest.approx(spread_of([0.625] * 3))
    assert found["ratio_prefill"]["median"] == pytest.approx(0.675)  # of 0.725, 0.675 and 0.6583
    assert found["ratio_decode"]["median"] == pytest.approx(0.625)
    assert found["depth_ratio"] == pytest.approx((3 * 3 + 6) / 4 / 6)
    none = {chain: dataclasses.replace(one, decode=(0.0, 0.0, 0.0)) for chain, one in times.items()}
    assert latency_of(none, [FULL], [result_of(chain=FULL)], None)["ratio_decode"] is None


@pytest.fixture(scope="module")
def timed(finished: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("timed")
    shutil.copytree(finished.out, folder / "out")
    shutil.copytree(finished.folder / "router", folder / "router")
    sizes = ["--batches=[1, 2]", "--new_tokens=2", "--rounds=3", "--chains=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.figures.DRAWINGS", ())  # drawing them takes longer than all else
        main([f"--evaluation={folder / 'out'}", f"--router={folder / 'router'}", "--device=cpu", *sizes])
    return World(folder)


def test_every_arm_is_timed_and_stands_in_the_report(timed: World) -> None:
    report = read_json(timed.out / REPORT_FILE)
    content = read_latency(timed.out / LATENCY_FILE)
    assert content is not None
    assert report["latency"] == content
    assert [cell["profile"]["batch"] for cell in content["cells"]] == [1, 2]
    for cell in content["cells"]:
        assert [arm["name"] for arm in cell["arms"]] == ARM_NAMES
        by_name = {arm["name"]: arm for arm in cell["arms"]}
        assert by_name["full"]["ratio_prefill"] == pytest.approx({"median": 1, "low": 1, "high": 1, "n": 3})
        assert (
            by_name["router"]["ratio_prefill"]["median"] > by_name["router"]["ratio_prefill_without_router"]["median"]
        )
        assert by_name["static"]["ratio_prefill"] == by_name["static"]["ratio_prefill_without_router"]
        depths = {arm["name"]: arm["mean_depth"] for arm in report["arms"]}
        assert {name: arm["mean_depth"] for name, arm in by_name.items()} == pytest.approx(depths)
    assert not any("latency was not measured" in caveat for caveat in report["caveats"])
    page = (timed.out / "report.html").read_text()
    assert "Batch 2, prompts of" in page
    quartiles = report["latency"]["cells"][1]["router_ms"]
    assert "The router itself: {median:.2f} ({low:.2f} to {high:.2f}) ms a batch.".format(**quartiles) in page


PROFILE = LatencyProfile(10, 1, 8, Line(2.0, 1.0, 0.0), Line(0.0, 0.0, 0.0), 0.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "x"}, "expected model [0-9a-f]{64} in .*, got x"),
        ({"device": "cuda"}, "expected device cpu in .*, got cuda"),
        ({"dtype": "bfloat16"}, "expected dtype float32 in .*, got bfloat16"),
        ({"schema": 9}, "expected schema 1, got 9"),
        ({"cells": [{"profile": {}}]}, "profile: expected the field num_layers, got none"),
    ],
)
def test_a_profile_of_something_else_is_refused(
    timed: World, tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    write_json(tmp_path / LATENCY_FILE, read_json(timed.out / LATENCY_FILE) | changed)
    expected = load_router(timed.folder / "router").config.fingerprints
    with pytest.raises(InputError, match=message):
        budget_for(tmp_path / LATENCY_FILE, 0.75, expected, "cpu", "float32")


def test_evaluation_takes_a_latency_factor(
    timed: World, finished: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tiny model's times are noise; a line written by hand makes factor 0.84 a mean depth of 4.2.
    profile = dataclasses.replace(PROFILE, num_layers=5, prefill=Line(0.0, 1.0, 0.0))
    content = read_json(timed.out / LATENCY_FILE) | {
        "new_tokens": 0,
        "cells": [{"profile": dataclasses.asdict(profile)}],
    }
    write_json(tmp_path / LATENCY_FILE, content)
    words = [word for word in finished.arguments() if not word.startswith("--budget=")]
    words += ["--latency_factor=0.84", f"--latency_profile={tmp_path / LATENCY_FILE}"]
    settings = with_budget(parse_settings(EvalSettings, words, "eval", "")[0])
    assert settings.budget == pytest.approx(4.2)
    assert "latency factor 0.84: a mean depth of 4.20 layers" in capsys.readouterr().out
    assert "router, budget 4.2 layers" in [arm.label for arm in plan_arms(settings.budget, (), (), None, False)]


def test_evaluation_takes_a_share_of_the_routers_range(finished: World) -> None:
    # By hand, from the depths measured for the router; to two digits, and never outside of them.
    router = load_router(finished.folder / "router")
    depths = [point.mean_depth for point in router.config.budget_points]
    words = [word for word in finished.arguments() if not word.startswith("--budget=")]
    for share, depth in ((0, min(depths)), (0.25, 0.75 * min(depths) + 0.25 * max(depths)), (1, max(depths))):
        settings = with_budget(parse_settings(EvalSettings, [*words, f"--budget_share={share}"], "eval", "")[0])
        assert settings.budget == pytest.approx(depth, abs=0.005)
        router.head.offset_for(settings.budget)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latency_factor=0.9"], "latency_factor: expected it and latency_profile together, got one of them"),
        (["--latency_factor=0.9", "--latency_profile=x.json"], "latency_factor: expected it or budget, got both"),
        (["--budget_share=0.5"], "budget_share: expected it or budget, got both"),
        (["--budgets=[4.5, 4.5000001]"], "budgets: expected each once"),  # one name: router@4.5
    ],
)
def test_wishes_that_do_not_go_together_are_refused(finished: World, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_settings(EvalSettings, [*finished.arguments(), *flags], "eval", "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--rounds=2", "rounds: expected at least 3, got 2"),
        ("--batches=[]", "batches: expected at least 1 entries"),
        ("--dtype=int8", "dtype: expected"),
        ("--new_tokens=512", "new_tokens: expected fewer than the model's 512 positions, got 512"),
        ("--prompt_tokens=500", "prompt_tokens: expected at most 496 of the model's 512 positions beside 16 new"),
    ],
)
def test_bad_settings_are_one_line(timed: World, refusal: Refusal, flag: str, message: str) -> None:
    words = [f"--evaluation={timed.out}", f"--router={timed.folder / 'router'}", flag]
    assert message in refusal(main, words)


def test_prompts_that_fill_the_models_positions_are_timed_shorter(timed: World) -> None:
    # Oracle: GPT2 of 512 positions, whose embedding has no other row: 511 tokens of prompt leave no room for 16 more.
    settings = LatencySettings(evaluation=timed.out, router=timed.folder / "router")
    long = [result_of(tokens=511)] * 3
    assert prompt_length(tiny_model("gpt2"), long, settings) == 512 - 16
    assert prompt_length(tiny_model("gpt2"), [result_of()], settings) == 9


def test_another_router_than_the_evaluated_one_is_refused(timed: World, tmp_path: Path, refusal: Refusal) -> None:
    router = load_router(timed.folder / "router")
    next(router.head.parameters()).data += 1
    save_router(tmp_path / "router", router)
    words = [f"--evaluation={timed.out}", f"--router={tmp_path / 'router'}"]
    assert "router: expected the one that was evaluated" in refusal(main, words)
