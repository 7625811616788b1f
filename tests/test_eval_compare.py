"""`python -m eval compare` on evaluations made by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.statistics import wilson_interval
from eval.compare import main
from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE, RUN_FILE
from tests.conftest import Refusal
from tests.reports import FULL, IDS, RIGHT, hash_of, results_of, run_of, write_evaluation, write_results

OTHER = RIGHT | {"router": IDS[4:12], "static": IDS[2:12]}
"""What the arms of the second evaluation answer rightly. On the samples 2..11 the router loses 2 and 3 and gains 9, 10
and 11; the static chain gains 6..11."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations, which tests copy: `a` on samples 0..11, `b` on 2..11 and one of its own."""
    folder = tmp_path_factory.mktemp("made")
    write_evaluation(folder / "a")
    write_evaluation(folder / "b", [*IDS[2:], "f" * 16], OTHER)
    return folder


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The two evaluations."""
    first, second = (Path(shutil.copytree(made / name, tmp_path / name)) for name in "ab")
    return first, second


@pytest.fixture
def twins(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The first evaluation twice."""
    first, second = (Path(shutil.copytree(made / "a", tmp_path / name)) for name in "ab")
    return first, second


def compared(pair: tuple[Path, Path], *options: str) -> dict[str, Any]:
    target = pair[0].parent / "compared.json"
    main([*map(str, pair), f"--json={target}", *options])
    content: dict[str, Any] = json.loads(target.read_text())
    return content


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        run = json.loads((folder / RUN_FILE).read_text())
        change(run)
        (folder / RUN_FILE).write_text(json.dumps(run))

    return edit


def test_arms_are_compared_on_the_samples_that_both_answered(pair: tuple[Path, Path]) -> None:
    # Oracle: counted by hand from RIGHT and OTHER on the samples 2..11; p-values from the binomial by hand.
    content = compared(pair)
    assert content["n"] == 10
    assert [(content[side]["n"], content[side]["n_only_here"]) for side in "ab"] == [(12, 2), (11, 1)]
    arms = {arm["a"]["name"]: arm for arm in content["arms"]}
    assert list(arms) == list(RIGHT)
    assert all(arm["b"]["name"] == name for name, arm in arms.items())
    router, static, full = arms["router"], arms["static"], arms["full"]
    assert (router["wrong_to_right"], router["right_to_wrong"]) == (3, 2)
    assert (static["wrong_to_right"], static["right_to_wrong"]) == (6, 0)
    assert (full["wrong_to_right"], full["right_to_wrong"]) == (0, 0)
    assert (router["a"]["correct"], router["b"]["correct"]) == (7, 8)
    assert router["b"]["accuracy"] == 0.8
    assert router["b"]["accuracy_interval"] == list(wilson_interval(8, 10))
    # Every third sample of each evaluation runs the full chain: 3, 6, 9 in A; 2, 5, 8, 11 in B.
    assert (router["a"]["mean_depth"], router["b"]["mean_depth"]) == pytest.approx((3.3, 3.4))
    assert full["a"]["mean_depth"] == FULL.depth
    assert router["difference"] == pytest.approx(0.1)
    assert static["difference"] == pytest.approx(0.6)
    low, high = router["difference_interval"]
    assert low < 0.1 < high
    assert (router["mcnemar_p"], static["mcnemar_p"], full["mcnemar_p"]) == pytest.approx((1.0, 2 / 2**6, 1.0))


def test_p_values_are_corrected_for_the_arms_shown(pair: tuple[Path, Path]) -> None:
    # Oracle: Holm by hand: the least p by the number of comparisons, the next by one less, never falling.
    every = compared(pair)
    assert every["comparisons"]["count"] == len(every["arms"]) == 7
    ordered = sorted(every["arms"], key=lambda arm: arm["mcnemar_p"])
    corrected = [min(1.0, arm["mcnemar_p"] * (7 - i)) for i, arm in enumerate(ordered)]
    expected = [max(corrected[: i + 1]) for i in range(7)]
    assert [arm["mcnemar_p_holm"] for arm in ordered] == pytest.approx(expected)
    one = compared(pair, "--arm_a=static")
    assert one["comparisons"] == {"method": "Holm", "count": 1, "text": "1 McNemar test, nothing to correct for"}
    (static,) = one["arms"]
    assert static["mcnemar_p_holm"] == static["mcnemar_p"] == pytest.approx(2 / 2**6)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--arm_a=router", "--arm_b=router@2.5"], ("router", "router@2.5")),
        (["--arm_b=static"], ("static", "static")),
        (["--arm_a=random"], ("random", "random")),
    ],
)
def test_two_arms_can_be_named(pair: tuple[Path, Path], options: list[str], names: tuple[str, str]) -> None:
    # Oracle: their right answers on the samples 2..11, counted from RIGHT and OTHER.
    (arm,) = compared(pair, *options)["arms"]
    assert (arm["a"]["name"], arm["b"]["name"]) == names
    common = set(IDS[2:])
    assert arm["a"]["correct"] == len(common & set(RIGHT[names[0]]))
    assert arm["b"]["correct"] == len(common & set(OTHER[names[1]]))


def test_the_table_says_what_was_compared(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main([str(pair[0] / REPORT_FILE), str(pair[1])])
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "n = 12, 2 of them only here" in text
    assert "n = 11, 1 of them only here" in text
    assert "n = 10 common samples; B against A" in text
    assert "Holm: 7 McNemar tests" in text
    (row,) = [line for line in lines if line.startswith("| best static chain")]
    for cell in ("0.400 (0.168..0.687)", "1.000 (0.722..1.000)", "+0.600 (+0.300..+0.900)", " 6 |", " 0 |", "0.031"):
        assert cell in row


def test_notes_tell_what_differs_besides(tmp_path: Path) -> None:
    # Oracle: the changes made here.
    write_evaluation(tmp_path / "a")
    run = run_of(12, list(RIGHT))
    inputs = run["inputs"] | {"router/router.safetensors": hash_of("d")}
    few = {name: ids for name, ids in RIGHT.items() if name != "mixture"} | {"full": IDS[:5]}
    changed = {"model": run["model"] | {"dtype": "bfloat16"}, "inputs": inputs}
    write_evaluation(tmp_path / "b", IDS, few, {key: value for key, value in changed.items() if key != "arms"})
    notes = "\n".join(compared((tmp_path / "a", tmp_path / "b"))["notes"])
    assert "dtype: float32 in A, bfloat16 in B" in notes
    assert "A and B read different router/router.safetensors" in notes
    assert "full depth answers 1 of 12 common samples otherwise" in notes
    assert "arms that only A has: mixture" in notes
    assert "only B" not in notes
    assert compared((tmp_path / "a", tmp_path / "a"))["notes"] == ["both evaluations have the same results"]


def prints(name: str, value: str) -> dict[str, Any]:
    return {"fingerprints": run_of(1, [])["fingerprints"] | {name: value}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (prints("model", hash_of("e")), "expected model fingerprint 'aaaa"),
        (prints("tokenizer", hash_of("e")), "expected tokenizer fingerprint 'bbbb"),
        (prints("prompt", hash_of("e")), "expected prompt fingerprint 'cccc"),
        ({"task": "riddles"}, "expected task 'quiz', as in"),
        ({"split": "validation"}, "expected split 'test'"),
        ({"judged_mode": "generate"}, "expected judged_mode 'letter'"),
    ],
)
def test_evaluations_of_something_else_are_refused(
    twins: tuple[Path, Path], refusal: Refusal, changed: dict[str, Any], message: str
) -> None:
    rewritten(lambda run: run.update(changed))(twins[1])
    line = refusal(main, twins)
    assert message in line
    assert line.rstrip().endswith(("'" + hash_of("e") + "'", *map(repr, changed.values())))


def test_evaluations_without_common_samples_are_refused(tmp_path: Path, refusal: Refusal) -> None:
    write_evaluation(tmp_path / "a", IDS[:6])
    write_evaluation(tmp_path / "b", IDS[6:])
    assert "expected samples that" in refusal(main, [tmp_path / "a", tmp_path / "b"])


def test_a_sample_that_is_another_under_the_same_id_is_refused(twins: tuple[Path, Path], refusal: Refusal) -> None:
    write_results(twins[1], [dataclasses.replace(one, choices=5) for one in results_of(IDS, RIGHT)])
    assert f"expected sample {IDS[0]} as in the other" in refusal(main, twins)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arm_a=guarantee"], "arm_a: expected an arm of"),
        (["--arm_a=router", "--arm_b=luck"], "arm_b: expected an arm of"),
        (["--seed=-1"], "seed: expected an integer of at least 0, got -1"),
        (["--nonsense=1"], "nonsense"),
        (["--json={a}/report.json"], "json: expected a file outside the two evaluations' folders"),
        (["--json={a}/../a/new.json"], "json: expected a file outside"),
        (["--json={a}/nowhere/c.json"], "json: expected an existing directory"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_overwritten(
    pair: tuple[Path, Path], refusal: Refusal, options: list[str], message: str
) -> None:
    files = [folder / name for folder in pair for name in (REPORT_FILE, RUN_FILE, RESULTS_FILE)]
    before = [file.read_bytes() for file in files]
    filled = [option.format(a=pair[0], b=pair[1]) for option in options]
    assert message in refusal(main, [*pair, *filled])
    assert [file.read_bytes() for file in files] == before


def without_an_arm(folder: Path) -> None:
    """Results that lack an arm."""
    write_results(folder, [one for one in results_of(IDS, RIGHT) if one.arm != "random"])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: folder.rename(folder.parent / "gone"), "expected an existing directory"),
    "no run": (lambda folder: (folder / RUN_FILE).unlink(), "expected an existing file"),
    "no JSON": (lambda folder: (folder / RUN_FILE).write_text("{oops"), "got something corrupt"),
    "an arm of another name": (
        rewritten(lambda run: run["arms"][0].update(name="best")),
        "arms[0].name: expected text like",
    ),
    "no results": (lambda folder: (folder / RESULTS_FILE).unlink(), "results.jsonl"),
    "other results": (
        lambda folder: os.truncate(folder / RESULTS_FILE, (folder / RESULTS_FILE).stat().st_size - 1),
        "expected 84 lines with SHA-256",
    ),
    "an arm without results": (without_an_arm, "expected 12 samples for each arm, got 0 for random"),
}


@pytest.mark.parametrize(("name", "side"), [*((name, 1) for name in BROKEN), ("no run", 0)])
def test_broken_evaluations_are_refused(twins: tuple[Path, Path], refusal: Refusal, name: str, side: int) -> None:
    spoil, message = BROKEN[name]
    spoil(twins[side])
    line = refusal(main, twins)
    assert message in line
    assert str(twins[side]) in line


def test_text_of_a_run_cannot_steer_the_terminal(twins: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for folder in twins:
        rewritten(lambda run: run.update(task="quiz\x1b[2J [red]x[/red]"))(folder)
    main([str(folder) for folder in twins])
    out = capsys.readouterr().out
    assert "quiz?[2J [red]x[/red]" in out
    assert "\x1b" not in out
