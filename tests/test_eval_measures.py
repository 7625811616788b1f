"""Measures of arms and groups of samples, against formulas and tables worked out by hand."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from data.statistics import wilson_interval
from eval.measures import Group, arm_of, collapse_of, groups_of, paired, worst_kind
from eval.results import ArmResult, Label
from eval.tables import GROUP_ROWS, print_report
from router.chain import Chain
from tests.reports import result_of, write_evaluation

FULL = Chain.full(4)
SHORT = Chain((0, 1, 3), 4)
ENDS = Chain((0, 3), 4)
DEEP = Chain((0, 1, 2, 2, 3), 4)


def results(correct: str, chains: list[Chain] | None = None, arm: str = "router") -> list[ArmResult]:
    """One result a character, right where it is 1."""
    chains = chains or [FULL] * len(correct)
    return [
        result_of(arm=arm, sample_id=f"s{i:03}", chain=chain, correct=one == "1")
        for i, (one, chain) in enumerate(zip(correct, chains, strict=True))
    ]


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (7, 10), (10, 10), (208, 400)])
def test_wilson_interval_is_the_score_interval(correct: int, n: int) -> None:
    # Oracle: the closed form of Wilson (1927), with the normal quantile to ten digits.
    z = 1.9599639845
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = wilson_interval(correct, n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-8)
    assert low <= share <= high


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (2, 1), (-1, 4)])
def test_wilson_interval_needs_samples(correct: int, n: int) -> None:
    # Oracle: no share of nothing, and none outside 0..1.
    with pytest.raises(ValueError, match=f"got {correct} of {n}"):
        wilson_interval(correct, n)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 6), (9, 2), (1, 12), (5, 5)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    # Oracle: the two-sided binomial tail with p = 1/2, summed term by term.
    baseline = results("0" * gained + "1" * lost + "1100")
    arm = results("1" * gained + "0" * lost + "1100")
    n, least = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    assert paired(arm, baseline, seed=0).mcnemar_p == pytest.approx(min(1.0, 2 * tail))


def test_bootstrap_interval_is_that_of_resampled_samples() -> None:
    # Oracle: a plain bootstrap that draws samples with replacement, another generator, same quantiles.
    arm, baseline = results("1" * 60 + "0" * 20 + "1" * 12 + "0" * 8), results("1" * 80 + "0" * 20)
    differences = np.array([int(a.correct) - int(b.correct) for a, b in zip(arm, baseline, strict=True)])
    drawn = np.random.default_rng(7).choice(differences, size=(20_000, len(differences))).mean(axis=1)
    pair = paired(arm, baseline, seed=1)
    assert pair.difference == pytest.approx(-0.08)
    assert pair.difference_interval == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.0101)
    assert pair == paired(arm, baseline, seed=1)


def test_collapse_of_a_hand_made_table() -> None:
    # Oracle: shares 4/8, 2/8, 1/8, 1/8 have 1.75 bits.
    chains = [FULL] * 4 + [SHORT] * 2 + [DEEP, Chain((0,), 4)]
    collapse = collapse_of(results("1" * 8, chains))
    assert (collapse.share_full, collapse.share_most_common, collapse.distinct_chains) == (0.5, 0.5, 4)
    assert collapse.entropy_bits == pytest.approx(1.75)
    assert collapse.most_common == "0-3"
    assert collapse_of(results("10")).entropy_bits == 0
    assert collapse.entropy_within_bits == collapse.entropy_bits  # one task


def test_the_worst_kind_is_the_task_of_the_greatest_loss() -> None:
    # Oracle: by hand: of a one of four is lost, of b one of two, of c none; one task alone is not told apart.
    told: list[tuple[str, Label, Label]] = [("a", None, "x")] * 4 + [("b", None, None)] * 2 + [("c", None, None)]
    assert worst_kind(groups(told, "1111110", "1110100")) == "b"
    assert worst_kind(groups(told[:4], "1111", "1110")) is None


def test_rescued_is_a_share_of_what_full_depth_gets_wrong() -> None:
    # Oracle: counted by hand: full depth is wrong on five, the arm right on two of them and wrong on one that is right.
    full, arm = results("11100000", arm="full"), results("01111000")
    measured = arm_of(arm, full, 0)
    assert measured.rescued_share == 2 / 5
    assert measured.rescued_interval == wilson_interval(2, 5)
    assert arm_of(full, full, 0).rescued_share is None
    never_wrong = results("11111111", arm="full")
    assert arm_of(arm, never_wrong, 0).rescued_share is None


def arm(name: str, right: str, told: list[tuple[str, Label, Label]]) -> list[ArmResult]:
    """One result a character, right where it is 1, of samples with (task, difficulty, subject)."""
    chain = FULL if name == "full" else ENDS
    return [
        result_of(
            arm=name,
            sample_id=f"s{i:03}",
            task=told[i][0],
            difficulty=told[i][1],
            subject=told[i][2],
            choices=2,
            chain=chain,
            correct=one == "1",
        )
        for i, one in enumerate(right)
    ]


def groups(told: list[tuple[str, Label, Label]], full: str, router: str) -> tuple[Group, ...]:
    return groups_of({"full": arm("full", full, told), "router": arm("router", router, told)}, seed=0)


def keys(told: list[tuple[str, Label, Label]]) -> list[tuple[str, str, str | None, int]]:
    right = "1" * len(told)
    return [(group.kind, group.task, group.value, group.n) for group in groups(told, right, right)]


def test_groups_stand_within_their_task_in_natural_order() -> None:
    # Oracle: by hand; level 3 of a is not level 3 of b, numbers sort by value, what has none comes last.
    told: list[tuple[str, Label, Label]] = [("b", 10, None), ("b", 9, None), ("b", "3", None), ("b", None, None)]
    told += [("a", 3, "x"), ("a", 3, "x"), ("c", None, None)]
    assert keys(told) == [
        ("task", "a", "a", 2),
        ("task", "b", "b", 4),
        ("task", "c", "c", 1),
        ("difficulty", "a", "3", 2),
        ("difficulty", "b", "3", 1),
        ("difficulty", "b", "9", 1),
        ("difficulty", "b", "10", 1),
        ("difficulty", "b", None, 1),
        ("subject", "a", "x", 2),
    ]
    assert keys([("a", None, None)] * 3) == []  # nothing to tell apart
    digits = "1" * 5000  # longer than Python reads as one integer
    assert [key[2] for key in keys([("a", digits, None), ("a", "Level 2", None), ("a", 7, None)])] == [
        "7",
        digits,
        "Level 2",
    ]


def test_measures_of_a_group_are_those_of_its_samples() -> None:
    # Oracle: by hand. Subject x: full 3 of 4, router 2 of 4; subject y: one sample, lost.
    told: list[tuple[str, Label, Label]] = [("a", None, "x")] * 4 + [("a", None, "y")]
    x, y = groups(told, "11101", "01100")
    assert [(one.name, one.n, one.correct, one.mean_depth, one.difference) for one in x.arms] == [
        ("full", 4, 3, 4, None),
        ("router", 4, 2, 2, -0.25),
    ]
    assert x.chance_accuracy == 0.5
    (full, router) = y.arms
    assert (full.accuracy, router.accuracy, router.difference, router.difference_interval) == (1, 0, -1, (-1, -1))
    # Wilson's interval of 0 of 1 in closed form: 0 .. z^2 / (1 + z^2), z = 1.9599639845.
    assert router.accuracy_interval == (0, pytest.approx(3.8414588206 / 4.8414588206))


def test_a_long_list_of_groups_is_cut_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: counted lines; the report keeps all.
    report = write_evaluation(tmp_path / "toy")
    many = tuple(dataclasses.replace(report.groups[0], value=f"x{i}") for i in range(GROUP_ROWS + 7))
    print_report(dataclasses.replace(report, groups=many), sys.stdout)
    printed = capsys.readouterr().out
    assert printed.count("quiz, difficulty x") == GROUP_ROWS
    assert "7 more groups stand in report.json" in printed
