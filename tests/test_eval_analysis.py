"""The analysis's measures of records written by hand, against values computed by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import entropy

from data.records import ChainResult, SearchRecord, pareto_front
from data.statistics import wilson_interval
from eval.analysis.groups import groups_of, measured_groups, table_of
from eval.analysis.measures import Measures, measures_of
from eval.analysis.outcomes import Outcome
from eval.analysis.statistics import Share, bootstrap, depths_of
from router.chain import Chain
from router.fingerprint import Fingerprints

LAYERS = 4
FULL = "0-3"
Tried = dict[str, str]
"""Verdicts by chain: 1 right, 0 wrong, and whether a second run agreed: + or -; full depth first."""


def result(chain: str, verdict: str) -> ChainResult:
    right = verdict[0] == "1"
    verified = {"": None, "+": True, "-": False}[verdict[1:]]
    return ChainResult(Chain.parse(chain, LAYERS), (0.0,) * 4, int(right), right, 1.0 if right else -1.0, verified)


def record(sample_id: str, tried: Tried, **changes: object) -> SearchRecord:
    """A record of the verdicts; the right answer is choice 1 of four."""
    results = tuple(result(chain, verdict) for chain, verdict in tried.items())
    made = SearchRecord(
        sample_id=sample_id,
        task="arc_easy",
        split="test",
        metadata={},
        mode="continuation",
        num_layers=LAYERS,
        first_editable=0,
        dtype="float32",
        reward_target="gold",
        target=1,
        seed=0,
        simulations=len(results),
        nominal_layers=sum(one.chain.depth for one in results),
        executed_layers=1,
        results=results,
        pareto=pareto_front(results),
        fingerprints=Fingerprints("m" * 64, "t" * 64, "p" * 64),
        search="s" * 64,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


FOUND: dict[str, Tried] = {
    "a": {FULL: "1", "0-2": "1", "0-1": "1"},  # shortened to 2 layers
    "b": {FULL: "1", "0-2": "0", "0-3,3": "1"},  # right, nothing shorter
    "c": {FULL: "0", "0-2": "1"},  # set right by 3 layers
    "d": {FULL: "0", "0-2,3*2": "1"},  # set right by 5 layers
    "e": {FULL: "0", "0-2": "0"},  # no right chain
    "f": {FULL: "1-", "0-2": "1+", "0": "1-", "0-1": "0"},  # the second run says: wrong; set right by 3 layers
    "g": {FULL: "0", "0-1,3": "1"},  # set right by 3 layers
}
TOLD_WRONG: dict[str, Tried] = {
    "a": {FULL: "0", "0": "1"},  # a shorter chain gives the wrong answer too
    "b": {FULL: "0", "0-3,3": "1"},  # one gives it, but is not shorter
    "c": {FULL: "0", "0-1": "1"},  # luck
    "d": {FULL: "1", "0": "1"},  # full depth gives the told answer: no case for luck
    "e": {FULL: "0", "0-1": "0"},
    "f": {FULL: "0", "0": "1"},  # what full depth gives is unclear: no case either
    "g": {FULL: "0", "0": "0"},
}


def outcomes(told: dict[str, Tried]) -> list[Outcome]:
    return [Outcome.of(record(key, tried)) for key, tried in told.items()]


@pytest.fixture(scope="module")
def measured() -> Measures:
    return measures_of(outcomes(FOUND), outcomes(TOLD_WRONG), 0)


def test_accuracies_count_what_stood_the_second_run(measured: Measures) -> None:
    # a and b are right at full depth (f is not, judged again); all but e have a right chain.
    assert measured.n == 7
    assert measured.chance_accuracy == 0.25
    assert measured.original == Share(7, 2, 2 / 7, wilson_interval(2, 7))
    assert measured.oracle == Share(7, 6, 6 / 7, wilson_interval(6, 7))


def test_right_samples_shortened_with_and_without_luck(measured: Measures) -> None:
    gain = measured.shortened
    assert gain.found == Share(2, 1, 0.5, wilson_interval(1, 2))  # a of a, b
    assert (gain.chains, gain.right) == (3, 2)  # shorter ones: two of a, both right; one of b, wrong
    assert gain.rate == pytest.approx(2 / 3)
    assert gain.by_lot == pytest.approx(((1 - 0.75**2) + (1 - 0.75)) / 2)
    assert gain.luck is not None
    assert (gain.luck.found.count, gain.luck.told_wrong.count, gain.luck.told_wrong.n) == (1, 1, 2)
    assert gain.luck.net == 0.0


def test_wrong_samples_set_right_with_and_without_luck(measured: Measures) -> None:
    gain = measured.set_right
    assert gain.found == Share(5, 4, 0.8, wilson_interval(4, 5))  # c, d, f, g of c, d, e, f, g
    # Chains beside full depth: c 1 of 1 right, d 1 of 1, e 0 of 1, f 1 of 3 (what its second run refuted is wrong), g 1
    # of 1. Oracle of the interval: all 5**5 resamples.
    assert (gain.chains, gain.right) == (7, 4)
    pairs = [(1, 1), (1, 1), (0, 1), (1, 3), (1, 1)]
    rates = [sum(a for a, _ in drawn) / sum(b for _, b in drawn) for drawn in itertools.product(pairs, repeat=5)]
    assert gain.rate_interval == pytest.approx(tuple(np.percentile(rates, [2.5, 97.5])), abs=0.03)
    assert gain.by_lot == pytest.approx((4 * 0.25 + (1 - 0.75**3)) / 5)
    assert gain.luck is not None
    assert gain.luck.found == Share(
        3, 2, 2 / 3, wilson_interval(2, 3)
    )  # c, g of c, e, g: d's full depth was told, f's is unclear
    assert gain.luck.told_wrong == Share(3, 1, 1 / 3, wilson_interval(1, 3))  # c
    assert gain.luck.net == pytest.approx(1 / 3)
    # Differences 0, 0, 1: a resample has none in (2/3)**3 = 0.30 of cases and three in 0.037, both above 0.025.
    assert gain.luck.net_interval == (0.0, 1.0)


def test_depth_and_layer_use_are_those_of_the_shortest_right_chains(measured: Measures) -> None:
    # a 0-1, b 0-3, c 0-2, d 0-2,3*2, f 0-2, g 0-1,3.
    assert [at.percent for at in measured.depth] == [5, 10, 20, 100]
    assert [at.n for at in measured.depth] == [1, 1, 2, 6]
    assert [at.mean for at in measured.depth] == [2.0, 2.0, 2.5, pytest.approx(20 / 6)]
    use = measured.use
    assert use is not None
    assert use.chains == 6
    assert use.mean_runs == (1.0, 1.0, 4 / 6, 4 / 6)
    assert use.skip_rate == (0.0, 0.0, 2 / 6, 3 / 6)
    assert use.repeat_rate == (0.0, 0.0, 0.0, 1 / 6)
    assert use.skip_interval[3] == wilson_interval(3, 6)
    assert use.entropy_bits == pytest.approx(entropy([6, 6, 4, 4], base=2))
    lucky = measured.use_told_wrong  # of a, b and c: those of d and f are no luck
    assert lucky is not None
    assert lucky.chains == 3
    assert lucky.mean_runs == (1.0, 2 / 3, 1 / 3, 2 / 3)


def test_depth_at_the_shortest_rounds_the_number_of_samples_up() -> None:
    # Depths 1..21: 5 % is 1.05, so two samples; 10 % three; 20 % five.
    told = depths_of(list(range(21, 0, -1)), 0)
    assert [(at.n, at.mean) for at in told] == [(2, 1.5), (3, 2.0), (5, 3.0), (21, 11.0)]
    # Of two depths the shorter one is drawn in three of four resamples, the other one twice in one of four.
    at = depths_of([2, 10], 0)[0]
    assert (at.n, at.mean, at.interval) == (1, 2.0, (2.0, 10.0))


def test_intervals_need_two_samples() -> None:
    one = measures_of(outcomes({"c": FOUND["c"]}), outcomes({"c": TOLD_WRONG["c"]}), 0)
    assert one.set_right.luck is not None
    assert one.set_right.luck.net == 0.0
    assert one.set_right.luck.net_interval is None
    assert one.set_right.rate_interval is None
    assert [at.interval for at in one.depth] == [None] * 4


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    # Oracle: the normal approximation, close for 400 samples of a mean.
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    told = bootstrap((values,), lambda a, axis: a.mean(axis), 0)
    half = 1.96 * values.std() / 20
    assert told == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_without_wrong_samples_there_is_nothing_to_set_right() -> None:
    told = measures_of(outcomes({"a": FOUND["a"]}), outcomes({"a": TOLD_WRONG["a"]}), 0).set_right
    assert told.found == Share(0, 0, None, None)
    assert (told.rate, told.by_lot, told.rate_interval) == (None, None, None)
    assert told.luck is not None
    assert (told.luck.net, told.luck.net_interval, told.luck.found.n) == (None, None, 0)


def test_without_a_control_there_is_no_luck_and_without_a_right_chain_no_depth() -> None:
    told = measures_of(outcomes({"e": FOUND["e"]}), None, 0)
    assert (told.oracle.count, told.depth, told.use, told.use_told_wrong) == (0, (), None, None)
    assert told.set_right.luck is None
    assert told.set_right.found == Share(1, 0, 0.0, wilson_interval(0, 1))


def test_free_answers_cannot_be_guessed_and_generated_choices_are_not_counted() -> None:
    exact = Outcome.of(record("a", FOUND["a"], mode="exact"))
    generated = Outcome.of(record("a", FOUND["a"], mode="generate"))
    assert (exact.guess, generated.guess) == (0.0, None)
    assert measures_of([exact], None, 0).shortened.by_lot == 0.0
    both = measures_of([exact, dataclasses.replace(generated, sample_id="g")], None, 0)
    assert (both.chance_accuracy, both.shortened.by_lot) == (None, None)


def test_full_depth_that_only_the_second_run_finds_right_is_the_right_chain() -> None:
    # In mode exact another writing of the answer is wrong, and right when it is generated and graded.
    one = Outcome.of(record("x", {FULL: "0-", "0-2": "0"}))
    assert one.right
    assert one.shortest == Chain.full(LAYERS)


def test_a_tie_is_no_case_for_luck() -> None:
    # Two answers share full depth's highest score: it may give the told one as well.
    tie = record("x", {FULL: "0", "0": "1"})
    tied = dataclasses.replace(tie.full, margin=0.0)
    wrong = Outcome.of(dataclasses.replace(tie, results=(tied, *tie.results[1:])))
    found = Outcome.of(record("x", {FULL: "0", "0": "1"}))
    counted = [measures_of([found], [one], 0).set_right.luck for one in (Outcome.of(tie), wrong)]
    assert [one.found.n for one in counted if one is not None] == [1, 0]


def test_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="the same samples"):
        measures_of(outcomes(FOUND), outcomes(TOLD_WRONG)[::-1], 0)


def test_groups_are_tasks_where_there_are_several_and_difficulties_within_them() -> None:
    def sample(number: int, task: str, **metadata: object) -> Outcome:
        return Outcome.of(record(str(number), FOUND["a"], task=task, metadata=metadata))

    plain = [sample(0, "one"), sample(1, "one")]
    assert [(key.label, places) for key, places in groups_of(plain).items()] == [("all", [0, 1])]
    told = [
        sample(0, "sums", difficulty=10),
        sample(1, "quiz"),
        sample(2, "sums", difficulty=9),
        sample(3, "sums"),
        sample(4, "sums", difficulty="Level 2"),
        sample(5, "sums", difficulty=9),
    ]
    assert [(key.label, places) for key, places in groups_of(told).items()] == [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("quiz", [1]),
        ("sums", [0, 2, 3, 4, 5]),
        ("sums, difficulty 9", [2, 5]),
        ("sums, difficulty 10", [0]),
        ("sums, difficulty Level 2", [4]),
        ("sums, difficulty none given", [3]),
    ]


def test_the_table_has_a_column_for_each_search() -> None:
    def cell(variant: str, action_set: str, told: dict[str, Tried]) -> dict[str, object]:
        groups = measured_groups(outcomes(told), None, 0)
        return {"model": "m", "variant": variant, "split": "test", "action_set": action_set, "groups": groups}

    skips = {key: {chain: verdict for chain, verdict in FOUND[key].items() if "*" not in chain} for key in FOUND}
    rows = table_of([cell("base", "both", FOUND), cell("instruct", "skip", skips), cell("base", "skip", skips)])
    assert [(row["variant"], row["label"], row["n"]) for row in rows] == [("base", "all", 7), ("instruct", "all", 7)]
    assert rows[0]["original"]["count"] == 2
    assert {name: share["count"] for name, share in rows[0]["oracle"].items()} == {"skip": 5, "both": 6}
    assert {name: share["count"] for name, share in rows[1]["oracle"].items()} == {"skip": 5}
