"""The report: what it derives of the arms, and which arms a run has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval.arms import ArmPlan, is_routed, plan_arms
from eval.report import REPORT_FILE, caveats_of, compared
from eval.results import ArmResult, RunArm, read_run
from tests.evaluation import World, finished  # noqa: F401  (fixture)
from tests.reports import GOLDEN, read_report, result_of, write_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation made by hand; tests never change it."""
    folder = tmp_path_factory.mktemp("made") / "eval"
    write_evaluation(folder)
    return folder


def results(arm: str, right: str) -> list[ArmResult]:
    return [result_of(arm=arm, sample_id=f"s{i}", correct=one == "1") for i, one in enumerate(right)]


def test_arms_stand_in_a_fixed_order_with_further_budgets_after_the_router() -> None:
    arms = plan_arms(3.0, (2.5, 4.0), ("pruned", "random"), "loss 0.02, delta 0.1", False)
    assert [arm.name for arm in arms] == [
        "full",
        "router",
        "router@2.5",
        "router@4",
        "guarantee",
        "static",
        "random",
        "pruned",
        "oracle",
    ]
    assert arms[1] == ArmPlan("router", "router, budget 3 layers", 3.0)
    assert arms[3] == ArmPlan("router@4", "router, budget 4 layers", 4.0)
    assert arms[4].label == "router with guarantee (loss 0.02, delta 0.1)"
    least = [arm.name for arm in plan_arms(None, (), (), None, False)]
    assert least == ["full", "router", "static", "oracle"]
    assert "random_search" in [arm.name for arm in plan_arms(None, (), (), None, True)]
    assert [name for name in ("router", "router@2", "guarantee", "random", "full") if is_routed(name)] == [
        "router",
        "router@2",
        "guarantee",
    ]


def test_arms_that_saw_the_answers_are_compared_but_not_tested() -> None:
    by_arm = {
        "full": results("full", "11110000"),
        "router": results("router", "11101110"),
        "static": results("static", "11000000"),
        "oracle": results("oracle", "11111111"),
    }
    measures, against, comparisons = compared(by_arm, 0)
    assert comparisons.count == 3  # router and static against full, router against static
    oracle = measures["oracle"].against_full
    assert oracle is not None
    assert (oracle.wrong_to_right, oracle.mcnemar_p_holm) == (4, None)
    router = measures["router"].against_full
    assert router is not None
    assert (router.wrong_to_right, router.right_to_wrong) == (3, 1)
    # By hand: p of (3, 1) is 10/16, of (0, 2) 1/2, of (4, 0) 1/8: Holm gives 1, 1 and 3/8.
    assert list(against) == ["static"]
    assert against["static"].mcnemar_p_holm == pytest.approx(3 / 8)
    assert router.mcnemar_p_holm == pytest.approx(1)
    assert measures["full"].against_full is None


def test_caveats_follow_what_the_report_holds(made: Path, finished: World) -> None:
    run = read_run(made)
    plain = caveats_of(run, None, timed=False)
    assert "how much is not measured" in plain[0]
    assert plain[0].endswith("with held_out: 2, asks each sample in several variants.")
    assert any("latency was not measured" in one for one in plain)
    other = replace(run, mode="exact", judged_mode="generate", arms=(RunArm("pruned", "pruned"),))
    real = read_report(finished.out / REPORT_FILE).controls
    assert real is not None
    rich = caveats_of(other, real, timed=True)
    assert "the controls say how much" in rich[0]
    assert "judged anew is not measured" in rich[0]
    assert not any("latency was not measured" in one for one in rich)
    assert any("ShortGPT" in one for one in rich)
    assert any("judged in mode generate" in one for one in rich)


def test_the_toys_report_is_as_its_golden(made: Path) -> None:
    # tests/golden/report.json, written by `python -m tests.reports`; some of its figures counted by hand below.
    golden = json.loads(GOLDEN.read_text())
    assert json.loads((made / REPORT_FILE).read_text()) == golden
    arms = {arm["name"]: arm for arm in golden["arms"]}
    assert (arms["full"]["correct"], arms["router"]["correct"], golden["n"]) == (6, 7, 12)
    # Right: full 0..5, router 2..8: three won, two lost, of six that full depth gets wrong.
    against = arms["router"]["against_full"]
    assert (against["wrong_to_right"], against["right_to_wrong"]) == (3, 2)
    assert arms["router"]["rescued_share"] == 0.5
    # Every third sample runs all four layers, the others three.
    assert arms["router"]["mean_depth"] == pytest.approx((4 * 4 + 8 * 3) / 12)
    assert golden["layer_use"]["router"]["skip_rate"] == [0, 0, 8 / 12, 0]
    assert golden["comparisons"]["count"] == 5 + 4  # router, router@2.5, static, mixture, random; the router against 4
    tokens = [20 + i for i in range(12)]
    full = sum(4 * (1000 * t + 2 * t * t) + 500 for t in tokens)
    router = sum((4 if i % 3 == 0 else 3) * (1000 * t + 2 * t * t) + 500 + 40 for i, t in enumerate(tokens))
    assert arms["router"]["flops_ratio"] == pytest.approx(router / full)
