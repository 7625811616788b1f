"""The oracle's controls that need records only: luck, and a random search of the same cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from data.records import ChainResult, SearchRecord, read_records
from data.statistics import estimate_of, mean_of, share_of
from data.tasks import TaskSet, load_task, write_tasks
from eval.controls import PLAN_FILE, controls_finished, controls_of, plan_controls
from eval.luck import Luck, RandomSearch, require_random_search, require_same_search
from router.chain import Chain
from router.files import write_json
from router.fingerprint import Fingerprints
from router.validation import InputError, to_plain
from search.__main__ import main as search
from tests.menus import record_of, write_records
from tests.tiny import NUM_LAYERS, write_project

GOLD, WRONG = 0, 1
CHAINS = ("0-4", "0-3", "0-2,4", "0-2", "0-1,4", "0-1")


def luck(gold: Sequence[SearchRecord], wrong: Sequence[SearchRecord], seed: int = 0) -> dict[str, Any]:
    """What two searches say of luck, as JSON data."""
    measured: dict[str, Any] = to_plain(Luck.of(gold, wrong, seed))
    return measured


def random_search(oracle: Sequence[SearchRecord], drawn: Sequence[SearchRecord], seed: int = 0) -> dict[str, Any]:
    """What a random search says, as JSON data."""
    measured: dict[str, Any] = to_plain(RandomSearch.of(oracle, drawn, seed))
    return measured


def searched(sample_id: str, answers: Sequence[int | None], target: int = GOLD) -> SearchRecord:
    """A record of four choices: which one each of `CHAINS` answers; None: the first and the third tie."""
    scores = [[0.5 * (i in (0, 2)) if one is None else float(i == one) for i in range(4)] for one in answers]
    results = tuple(
        ChainResult.from_scores(Chain.parse(text, NUM_LAYERS), of_chain, target)
        for text, of_chain in zip(CHAINS, scores, strict=False)
    )
    return record_of(
        sample_id,
        results,
        split="test",
        mode="letter",
        reward_target="gold" if target == GOLD else "wrong",
        target=target,
        nominal_layers=sum(result.chain.depth for result in results),
        executed_layers=7,
    )


# By sample: what the three chains of the search for the right answer (0) give, and those of the one for answer 1. The
# first is full depth: right twice, the wrong answer once, a tie once, something else four times.
HAND = {
    "a": ((0, 2, 2), (0, 2, 1)),
    "b": ((0, 2, 2), (0, 2, 2)),
    "c": ((1, 0, 2), (1, 2, 3)),
    "d": ((2, 3, 0), (2, 3, 1)),
    "e": ((2, 3, 0), (2, 3, 3)),
    "f": ((3, 3, 2), (3, 1, 2)),
    "g": ((3, 0, 2), (3, 0, 2)),
    "h": ((None, 0, 2), (None, 2, 2)),
}


def by_hand() -> tuple[list[SearchRecord], list[SearchRecord]]:
    gold = [searched(key, first) for key, (first, _) in HAND.items()]
    return gold, [searched(key, second, WRONG) for key, (_, second) in HAND.items()]


def test_luck_is_counted_where_full_depth_gives_neither_answer() -> None:
    # Oracle: counted by hand in `HAND`. Of d, e, f, g three have a right chain and two one that gives the wrong answer;
    # full depth is wrong on 6 of 8, so the net gain is 6/8 * (3/4 - 2/4); of a and b the search sets one wrong.
    gold, wrong = by_hand()
    assert Luck.of(gold, wrong[::-1], 0) == Luck.of(gold, wrong, 0)
    found = luck(gold, wrong)
    assert found["full"] == {"right": 2, "told": 1, "other": 4, "unclear": 1}
    assert (found["n"], found["eligible"], found["left_out"], found["verified"]) == (8, 4, 0, False)
    assert (found["gold"]["share"], found["luck"]["share"], found["gold"]["n"]) == (3 / 4, 2 / 4, 4)
    assert found["gold"]["interval"] == pytest.approx(stats.binomtest(3, 4).proportion_ci(method="wilson"))
    pair = found["paired"]
    assert (pair["first_only"], pair["second_only"], pair["difference"]) == (2, 1, 1 / 4)
    assert pair["mcnemar_p"] == pytest.approx(stats.binomtest(1, 3).pvalue)
    assert found["full_wrong"]["share"] == 6 / 8
    assert found["gain"]["value"] == 5 / 8  # c, d, e, g, h
    assert found["net_gain"]["value"] == pytest.approx(6 / 8 * 1 / 4)
    assert (found["flipped"]["share"], found["flipped"]["n"]) == (1 / 2, 2)


def test_chains_that_failed_a_second_judgement_count_on_neither_side() -> None:
    # Oracle: by hand. Refuted are the right chain of e and the lucky one of f, and full depth's answer to g.
    gold, wrong = by_hand()
    verified = {"gold": gold, "wrong": wrong}
    for side, records in verified.items():
        for i, record in enumerate(records):
            marks = [record.sample_id != "g", *[record.sample_id != {"gold": "e", "wrong": "f"}[side]] * 2]
            results = [dataclasses.replace(one, verified=m) for one, m in zip(record.results, marks, strict=True)]
            records[i] = dataclasses.replace(record, results=tuple(results))
    found = luck(gold, wrong)
    assert found["verified"]
    assert found["full"] == {"right": 2, "told": 1, "other": 3, "unclear": 2}
    assert (found["gold"]["share"], found["luck"]["share"]) == (1 / 3, 1 / 3)  # d; d
    assert found["net_gain"]["value"] == 0
    assert found["gain"]["value"] == 4 / 8  # c, d, g, h


def test_two_choices_leave_no_sample_to_measure_luck_on() -> None:
    # Oracle: full depth gives the right answer or the wrong one that is searched for, there is no third.
    gold = [searched(str(i), (i % 2, GOLD)) for i in range(6)]
    found = luck(gold, [searched(str(i), (i % 2, WRONG), WRONG) for i in range(6)])
    assert (found["eligible"], found["gold"], found["paired"], found["net_gain"]) == (0, None, None, None)
    assert (found["gain"]["value"], found["flipped"]["share"]) == (0.5, 1.0)


VARIANTS = {"count": 4, "held_out": 0, "stand_share": 1.0}
REFUSED = {
    "wrong_records: expected .* of a search with first_editable 1, like the oracle's, got 2": {"first_editable": 2},
    "fingerprints.prompt p, like the oracle's, got other": {"fingerprints": Fingerprints("m", "t", "other")},
    "variants.count 4, like the oracle's, got 2": {"variants": VARIANTS | {"count": 2}},
    "variants {'count': 4, .*}, like the oracle's, got None": {"variants": None},
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("setting", ["wrong_records", "random_search"])
def test_records_of_another_search_are_no_control(tmp_path: Path, setting: str, message: str) -> None:
    # Oracle: the message names what decides the search, and both values; alike, they pass.
    gold, wrong = by_hand()
    oracle = write_records(tmp_path / "oracle.jsonl", gold, variants=VARIANTS)
    check, records, algorithm = {
        "wrong_records": (require_same_search, wrong, "uct"),
        "random_search": (require_random_search, gold, "random"),
    }[setting]
    check(oracle, write_records(tmp_path / "like.jsonl", records, algorithm, variants=VARIANTS))
    changed = {name: to_plain(value) for name, value in REFUSED[message].items()}
    other = write_records(tmp_path / "other.jsonl", records, algorithm, **{"variants": VARIANTS} | changed)
    with pytest.raises(InputError, match=message.replace("wrong_records", setting)):
        check(oracle, other)


def test_records_that_do_not_say_what_they_come_of_are_no_control(tmp_path: Path) -> None:
    # Oracle: the message; records of schema 2 have no identity.
    oracle = write_records(tmp_path / "oracle.jsonl", by_hand()[0])
    old = Path(__file__).parent / "golden" / "records_v2" / "train.jsonl"
    with pytest.raises(InputError, match=r"wrong_records: expected .*train.meta.json beside train.jsonl, got none"):
        require_same_search(oracle, old)


def test_a_random_search_is_compared_at_equal_cost() -> None:
    # Oracle: by hand. The tree finds right chains for a, b, c (depths 5, 4, 3), the random one for a and d (5 and 3);
    # where none stands, full depth (5) runs.
    tree = [searched("a", (0, 2, 2)), searched("b", (1, 0, 2)), searched("c", (1, 2, 2, 0)), searched("d", (1, 1, 1))]
    drawn = [searched("a", (0, 1, 1)), searched("b", (1, 1, 1)), searched("c", (1, 1, 1)), searched("d", (1, 2, 2, 0))]
    found = random_search(tree, drawn)
    assert (found["n"], found["equal"], found["simulations"]) == (4, "simulations", {"oracle": 3.25, "random": 3.25})
    assert found["nominal_layers"] == {"oracle": 13.75, "random": 13.75}
    assert found["executed_layers"] == {"oracle": 7, "random": 7}
    assert (found["oracle"]["share"], found["random"]["share"]) == (3 / 4, 2 / 4)
    pair = found["paired"]
    assert (pair["first_only"], pair["second_only"], pair["difference"]) == (2, 1, 1 / 4)
    assert (found["mean_depth"]["oracle"]["value"], found["mean_depth"]["random"]["value"]) == (17 / 4, 18 / 4)
    assert found["depth_difference"]["value"] == -1 / 4
    low, high = found["depth_difference"]["interval"]
    assert low < -1 / 4 < high
    # Other simulations, but layers within 5 %: 15 chains of 61 layers against 14 of 58 (4.9 %); 13 of 55 are too few.
    longer = [dataclasses.replace(one, simulations=4, nominal_layers=61) for one in tree]
    nearly = [dataclasses.replace(one, simulations=3, nominal_layers=58) for one in drawn]
    assert random_search(longer, nearly)["equal"] == "nominal_layers"
    fewer = [dataclasses.replace(one, simulations=3, nominal_layers=55) for one in drawn]
    with pytest.raises(InputError, match=r"expected the oracle's 4 simulations or 61 nominal layers a sample"):
        random_search(longer, fewer)


def test_the_block_is_rebuilt_from_the_plan(tmp_path: Path) -> None:
    # Oracle: the measures of the records themselves, and as JSON.
    gold, wrong = by_hand()
    drawn = [searched(key, second) for key, (_, second) in HAND.items()]
    tasks = TaskSet.of(load_task("arc_easy", "letter"))
    plan = plan_controls(0, 3, 5, tasks, [], gold, wrong[:5], drawn)
    write_json(tmp_path / PLAN_FILE, to_plain(plan))
    assert controls_finished(tmp_path, plan, {}, NUM_LAYERS)
    assert not controls_finished(tmp_path, plan_controls(0, 3, 5, tasks, [], gold, wrong, drawn), {}, NUM_LAYERS)
    found = to_plain(controls_of(tmp_path, [], NUM_LAYERS))
    measured = {"luck": luck(gold, wrong[:5], 5), "random_search": random_search(gold, drawn, 5)}
    assert found == measured | {"reshuffled": None, "generated": None, "headroom": None}
    assert found["luck"]["left_out"] == 3


def test_intervals_are_those_of_the_library() -> None:
    # Oracle: scipy's percentile bootstrap of a mean and of a ratio of sums; its Wilson interval; by hand for one value.
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, -1 / 3, 0.0, 1 / 3, 1.0], size=60)
    mean = mean_of(values.tolist(), seed=1)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=rng).confidence_interval
    assert mean is not None
    assert (mean.n, mean.value) == (60, pytest.approx(values.mean()))
    assert mean.interval == pytest.approx((expected.low, expected.high), abs=0.02)
    weights = rng.integers(0, 2, size=60).astype(float)
    ratio = estimate_of([*zip(weights, weights * values, strict=True)], lambda sums: sums[:, 1] / sums[:, 0], seed=1)
    expected = stats.bootstrap(
        (weights, weights * values), lambda a, b, axis: b.sum(axis) / a.sum(axis), paired=True, method="percentile",
        vectorized=True, rng=rng,
    ).confidence_interval  # fmt: skip
    assert ratio is not None
    assert ratio.interval == pytest.approx((expected.low, expected.high), abs=0.03)
    # Means of three draws: between the intervals of 2 and 3 of 7.
    part = share_of([1, 2 / 3, 2 / 3, 0, 0, 0, 0])
    assert part is not None
    assert 2 / 7 < part.share < 3 / 7
    lows = [stats.binomtest(count, 7).proportion_ci(method="wilson").low for count in (2, 3)]
    assert lows[0] < part.interval[0] < lows[1]
    assert (share_of([]), mean_of([], 0), estimate_of([(0.0,)], lambda sums: sums[:, 0] / sums[:, 0], 0)) == (None,) * 3


def test_real_searches_are_compared_by_their_settings(tmp_path: Path) -> None:
    # Oracle: the same command for a wrong answer passes, each other difference is named; no hand in the files.
    write_project(tmp_path, test=3)
    write_tasks(tmp_path / "data", TaskSet.of(load_task("arc_easy", "letter")))
    common = {"data": tmp_path / "data", "model": tmp_path / "model", "first_editable": 1, "splits": "[test]"}
    common |= {"dtype": "float32", "device": "cpu", "search.simulations": 4}

    def made(name: str, **changed: object) -> Path:
        settings = common | {"out": tmp_path / name} | {key.replace("__", "."): one for key, one in changed.items()}
        search([f"--{key}={value}" for key, value in settings.items()])
        return tmp_path / name / "test.jsonl"

    gold, wrong = made("gold"), made("wrong", reward_target="wrong")
    require_same_search(gold, wrong)
    found = luck(read_records(gold), read_records(wrong))
    assert (found["n"], found["verified"], found["simulations"]) == (3, True, {"gold": 4.0, "wrong": 4.0})
    skips = made("skips", reward_target="wrong", search__action_set="skip")
    with pytest.raises(InputError, match=r"search.action_set both, like the oracle's, got skip"):
        require_same_search(gold, skips)
    drawn = made("random", search__algorithm="random")
    require_random_search(gold, drawn)
    assert random_search(read_records(gold), read_records(drawn))["equal"] == "simulations"
    with pytest.raises(InputError, match="with the algorithm random, got uct"):
        require_random_search(gold, gold)
