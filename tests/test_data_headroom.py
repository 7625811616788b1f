"""The oracle judged anew: on made-up answers where which chain is right is luck, or skill, and on records by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from data.headroom import FOLDS, Headroom, best_chain, best_mixture, cross_fitted, judged_anew
from data.records import ChainResult, SearchRecord, VariantResult
from data.statistics import Estimate
from router.chain import Chain
from tests.menus import record_of

DEPTHS = np.array([28, 27, 26, 25, 24, 24, 23, 22, 25, 29])
SAMPLES = 600
IDS = [f"{i:04d}" for i in range(SAMPLES)]
ODD = np.arange(SAMPLES) % 2 == 1


def answered(chance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Margins of answers that are right by chance: `chance`, broadcast to `[variants, samples, chains]`."""
    rng = np.random.default_rng(seed)
    shape = (4, SAMPLES, len(DEPTHS))
    return np.where(rng.random(shape) < chance, 1.0, -1.0) * rng.uniform(0.1, 1.0, shape)


def two_kinds(own: float, other: float) -> np.ndarray:
    """Chances where odd samples go better at full depth and even ones after 24 layers; other chains guess."""
    chance = np.full((SAMPLES, len(DEPTHS)), 0.2)
    chance[:, 0], chance[:, 4] = np.where(ODD, own, other), np.where(ODD, other, own)
    return chance


def measured(margins: np.ndarray, tasks: Sequence[str] = ("a",) * SAMPLES) -> Headroom:
    return Headroom.crossed(IDS, tasks, margins, DEPTHS, 0)


def of(found: Estimate | None) -> Estimate:
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(3))
def test_where_the_right_chain_is_luck_nothing_is_gained_anew(seed: int) -> None:
    # Oracle: chances. Whether a sample is hard differs, but no chain is better than another on any sample. The oracle
    # that sees the answers gains E[1 - (1 - p)^10] - E[p] = 10/11 - 1/2 for p uniform in 0..1.
    found = measured(answered(np.random.default_rng(seed).random((SAMPLES, 1)), seed))
    assert of(found.over_full["oracle"]).value == pytest.approx(10 / 11 - 1 / 2, abs=0.04)
    low, high = of(found.over_full["anew"]).interval
    assert low < 0 < high
    assert of(found.over_fixed).interval[0] < 0
    assert of(found.over_fixed).value < 0.01
    assert not found.advice.startswith("there is something")
    assert found.tasks == {}


def test_where_a_chain_is_better_for_a_sample_the_gain_is_found() -> None:
    # Oracle: chances. Who knows the sample's kind is right on 0.75, each fixed chain on 0.6, full depth on 0.6: of the
    # gain of 0.15 half and more is found, though seven chains that only guess are often right in all three others.
    found = measured(answered(two_kinds(0.75, 0.45)))
    gain = of(found.over_full["anew"])
    assert 0.03 < gain.interval[0] < 0.07 < gain.interval[1] < 0.15
    assert of(found.over_fixed).interval[0] > 0.05
    assert found.advice.startswith("there is something to route: an oracle judged anew gains +0.0")
    # The rule without other samples takes noise for skill.
    margins = answered(two_kinds(0.75, 0.45))
    alone = cross_fitted(margins, DEPTHS, np.zeros((SAMPLES, len(DEPTHS))), 0.0)
    right = np.take_along_axis(margins > 0, alone[..., None], 2)[..., 0]
    assert right.mean() < (margins > 0)[:, :, 0].mean() - 0.03


def test_each_tasks_own_chain_is_found() -> None:
    # Oracle: chances. On task a 23 layers are better than full depth (0.65, 0.6), on b no shorter chain is: who
    # knows the task gains 0.025 at 25.5 layers, where fixed chains lose.
    tasks = np.where(ODD, "a", "b")
    chance = np.full((SAMPLES, len(DEPTHS)), 0.2)
    chance[:, 0], chance[ODD, 6] = 0.6, 0.65
    found = measured(answered(chance), tasks.tolist())
    assert of(found.over_full["anew"]).value == pytest.approx(0.025, abs=0.02)
    assert 25.5 < found.depth["anew"] < 26.5
    assert of(found.over_fixed).interval[0] > 0.05
    assert found.advice.startswith("there is something to route")
    assert found.tasks["a"].n == found.tasks["b"].n == SAMPLES // 2
    assert found.tasks["a"].depth["anew"] + 2 < found.tasks["b"].depth["anew"]
    assert found.depth["static"] == 28


def test_few_samples_leave_it_open() -> None:
    # Oracle: the interval over 40 samples of a small advantage holds 0, and more than is negligible.
    margins = answered(two_kinds(0.7, 0.5))[:, :40]
    found = Headroom.crossed(IDS[:40], ["a"] * 40, margins, DEPTHS, 0)
    low, high = of(found.over_fixed).interval
    assert low < 0 < 0.02 < high
    assert found.advice.startswith("whether there is something to route, 40 samples do not show: an oracle judged anew")


def test_what_is_judged_decides_nothing() -> None:
    # Oracle: with other answers in the judged variant the variant's choices are the same, and others are not; with
    # those of its whole fold changed in that variant too.
    margins, other = (answered(two_kinds(0.75, 0.45), seed) for seed in (0, 1))
    tasks, folds = np.arange(SAMPLES) // FOLDS % 3, np.arange(SAMPLES) % FOLDS
    elsewhere = np.random.default_rng(2).random((SAMPLES, len(DEPTHS)))
    for weight in (0.0, 3.0):
        chosen = cross_fitted(margins, DEPTHS, elsewhere, weight)
        for v in range(len(margins)):
            again = cross_fitted(np.where(np.arange(4)[:, None, None] == v, other, margins), DEPTHS, elsewhere, weight)
            assert (again[v] == chosen[v]).all()
            assert (again != chosen).any(1).sum() == len(margins) - 1
    chosen = judged_anew(margins, DEPTHS, folds, tasks)
    for fold in range(FOLDS):
        changed = margins.copy()
        changed[1, folds == fold] = other[1, folds == fold]
        again = judged_anew(changed, DEPTHS, folds, tasks)
        assert (again[1, folds == fold] == chosen[1, folds == fold]).all()
        assert (again[0, folds == fold] != chosen[0, folds == fold]).any()


def test_the_order_of_the_samples_decides_nothing() -> None:
    # Oracle: the same samples backward.
    margins = answered(two_kinds(0.75, 0.45))
    tasks = [key[-1] for key in IDS]  # ten tasks of 60 samples
    one = Headroom.crossed(IDS, tasks, margins, DEPTHS, 0)
    other = Headroom.crossed(IDS[::-1], tasks[::-1], margins[:, ::-1], DEPTHS, 0)
    assert len(one.tasks) == 10
    for task, gains in one.tasks.items():
        again = other.tasks[task]
        assert again.depth == pytest.approx(gains.depth)
        assert {name: found and found.share for name, found in again.accuracy.items()} == pytest.approx(
            {name: found and found.share for name, found in gains.accuracy.items()}
        )


def test_the_chain_that_is_taken_by_hand() -> None:
    # Oracle: by hand. Columns: full depth (5), 4, 4, 3, 6 layers; each case one rule.
    depths = np.array([5, 4, 4, 3, 6])
    cases = {
        "more often right wins, however deep": ([0.5, 0.2, 0.2, 0.2, 0.6], [0, 0, 0, 0, 0], 4),
        "as often right: the shallowest": ([0.5, 0.5, 0.2, 0.5, 0.5], [0, 0, 0, 0, 0], 3),
        "within the slack: the shallowest": ([0.5, 0.505, 0.2, 0.497, 0.2], [0, 9, 0, 0, 0], 3),
        "as shallow: the greater margin": ([0.2, 0.5, 0.5, 0.2, 0.5], [9, 1, 2, 9, 9], 2),
        "full depth, where none is right": ([0, 0, 0, 0, 0], [0, 9, 9, 9, 9], 0),
        "full depth, where others are as good and deeper": ([0.5, 0.2, 0.2, 0.2, 0.5], [0, 0, 0, 0, 9], 0),
    }
    for name, (worth, margins, wanted) in cases.items():
        assert best_chain(worth, margins, depths) == wanted, name


def test_the_mixture_is_the_best_of_all_pairs() -> None:
    # Oracle: brute force over pairs of chains, each pair mixed to the budget.
    rng = np.random.default_rng(0)
    for _ in range(20):
        accuracy, depths = rng.random(6), rng.integers(10, 20, 6)
        budget = rng.uniform(depths.min(), 20)
        best = max(accuracy[depths <= budget])
        for i, j in itertools.permutations(range(6), 2):
            if depths[i] <= budget < depths[j]:
                share = (depths[j] - budget) / (depths[j] - depths[i])
                best = max(best, share * accuracy[i] + (1 - share) * accuracy[j])
        shares = best_mixture(accuracy, depths, budget)
        assert shares @ accuracy == pytest.approx(best)
        assert shares @ depths <= budget + 1e-6


TEXTS = ("0-4", "0-3", "0-2,4", "0-1,3-4*2,3")
"""Chains of the records: full depth, 4 layers twice, and one that is deeper."""


def record(number: int, right: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]] = ()) -> SearchRecord:
    """A record of choices: what each chain gets right, in the first variant and in others, and in held-out ones."""

    def answers(marks: Sequence[int]) -> tuple[VariantResult, ...]:
        return tuple(VariantResult((), 0 if mark else 1, bool(mark), 1.0 if mark else -1.0) for mark in marks)

    results = []
    for place, (text, marks) in enumerate(zip(TEXTS, right, strict=False)):
        first = ChainResult.from_answer(Chain.parse(text, 5), 0 if marks[0] else 1, bool(marks[0]))
        unseen = answers(held_out[place]) if held_out else ()
        robust = all(marks) if len(marks) > 1 else None
        results.append(replace(first, variants=answers(marks[1:]), robust=robust, held_out=unseen))
    return record_of(f"{number:02d}", results, task="a", split="test", mode="generate", variants=len(right[0]))


def test_a_table_with_variants_is_cross_fitted() -> None:
    # Oracle: the same margins given as an array; chains may stand in another order.
    rng = np.random.default_rng(0)
    marks = rng.integers(0, 2, (20, 3, 3))  # samples, chains, variants
    records = [record(i, of_sample.tolist()) for i, of_sample in enumerate(marks)]
    ids = [f"{i:02d}" for i in range(20)]
    margins = np.where(marks > 0, 1.0, -1.0).transpose(2, 0, 1)
    wanted = Headroom.crossed(ids, ["a"] * 20, margins, np.array([5, 4, 4]), 0)
    assert Headroom.of(records, 0) == wanted
    first, second = records[3].results[1:]
    records[3] = replace(records[3], results=(records[3].full, second, first))
    assert Headroom.of(records, 0) == wanted
    # What a second run refuted counts as wrong.
    assert marks[0, 0, 0]
    records[0] = replace(records[0], results=(replace(records[0].full, verified=False), *records[0].results[1:]))
    margins[0, 0, 0] = -1
    assert Headroom.of(records, 0) == Headroom.crossed(ids, ["a"] * 20, margins, np.array([5, 4, 4]), 0)


def test_records_without_what_is_needed_have_no_headroom() -> None:
    # Oracle: no variants; a chain that stopped at a wrong answer; another chain; too few samples.
    whole = [record(i, [[1, 0], [1, 1]]) for i in range(6)]
    assert Headroom.of(whole, 0) is not None
    assert Headroom.of(whole[:4], 0) is None
    assert Headroom.of([record(i, [[1], [0]]) for i in range(6)], 0) is None
    assert Headroom.of([*whole[:5], record(5, [[1, 0], [0]])], 0) is None
    assert Headroom.of([*whole[:5], record(5, [[1, 0], [1, 1], [1, 1]])], 0) is None


def test_a_searchs_chain_is_judged_on_variants_that_it_never_saw() -> None:
    # Oracle: by hand. In 0..2 the chain of 4 layers stands, right in 1, 1/2, 0 of the unseen variants; in 3 and 4 none
    # does, so full depth runs; the third chain stopped at a wrong answer. Full depth there: 1/2, 1/2, 0, 1, 0.
    unseen = [((1, 0), (1, 1)), ((1, 0), (1, 0)), ((0, 0), (0, 0)), ((1, 1), ()), ((0, 0), ())]
    stands = [(1, 1)] * 3 + [(1, 0)] * 2
    rows = zip(stands, unseen, strict=True)
    records = [record(i, [[0, 0], marks, [0]], (*held_out, ())) for i, (marks, held_out) in enumerate(rows)]
    found = Headroom.of(records, 0)
    assert found is not None
    assert (found.held_out, found.variants) == (True, 2)
    shares = {name: one.share for name, one in found.accuracy.items() if one is not None}
    assert shares == pytest.approx({"full": 2 / 5, "oracle": 3 / 5, "anew": 2.5 / 5})
    assert found.depth == pytest.approx({"full": 5, "oracle": 22 / 5, "anew": 22 / 5})
    assert of(found.over_full["anew"]).value == pytest.approx(0.1)
    assert found.over_fixed is None
    assert found.advice.startswith("whether there is something to route, 5 samples do not show: an oracle judged anew")
    assert found.advice.endswith("over full depth at 4.40 layers")
