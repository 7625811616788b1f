"""Groups of samples in a report, against tables written by hand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from eval.measures import Group, groups_of
from eval.results import ArmResult, Label
from eval.tables import GROUP_ROWS, print_report
from router.chain import Chain
from tests.reports import write_evaluation

FULL = Chain.full(4)
SHORT = Chain((0, 3), 4)


def arm(name: str, right: str, told: list[tuple[str, Label, Label]]) -> list[ArmResult]:
    """One result a character, right where it is 1, of samples with (task, difficulty, subject)."""
    chain = FULL if name == "full" else SHORT
    return [
        ArmResult(name, f"s{i:03}", *told[i], 2, 9, chain, chain.depth, int(one), one == "1", (), 2.0 * int(one) - 1.0)
        for i, one in enumerate(right)
    ]


def groups(told: list[tuple[str, Label, Label]], full: str, router: str) -> tuple[Group, ...]:
    return groups_of({"full": arm("full", full, told), "router": arm("router", router, told)}, seed=0)


def keys(told: list[tuple[str, Label, Label]]) -> list[tuple[str, str, str | None, int]]:
    right = "1" * len(told)
    return [(group.kind, group.task, group.value, group.n) for group in groups(told, right, right)]


def test_one_task_without_metadata_has_no_groups() -> None:
    # Oracle: there is nothing to tell apart.
    assert keys([("a", None, None)] * 3) == []


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


def test_other_samples_are_refused() -> None:
    # Oracle: a group compares arms on the same samples only.
    told: list[tuple[str, Label, Label]] = [("a", 1, None)] * 2
    other = [dataclasses.replace(one, sample_id="else") for one in arm("router", "11", told)]
    with pytest.raises(ValueError, match="same samples"):
        groups_of({"full": arm("full", "11", told), "router": other}, seed=0)


def test_a_long_list_of_groups_is_cut_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: counted lines; the report keeps all.
    report = write_evaluation(tmp_path / "toy")
    many = tuple(dataclasses.replace(report.groups[0], value=f"x{i}") for i in range(GROUP_ROWS + 7))
    print_report(dataclasses.replace(report, groups=many), sys.stdout)
    printed = capsys.readouterr().out
    assert printed.count("quiz, difficulty x") == GROUP_ROWS
    assert "7 more groups stand in report.json" in printed
