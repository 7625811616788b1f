"""Splits: no shared question, whatever the candidates, within a task and across the tasks of a mixture."""

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sample import Sample
from data.splits import SplitCount, Splits, build_splits, shares
from router.validation import InputError


def sample(question: str, answer: int = 0, split: str = "train", task: str = "made_up") -> Sample:
    return Sample(task, split, question, ("yes", "no"), answer)


def numbered(start: int, stop: int, task: str = "made_up") -> list[Sample]:
    return [sample(f"Is {i} even?", i % 2, task=task) for i in range(start, stop)]


def of_one(
    candidates: Mapping[str, Sequence[Sample]], sizes: Mapping[str, int | None], seed: int = 0
) -> tuple[dict[str, list[Sample]], dict[str, SplitCount]]:
    """Splits of one task."""
    made = build_splits(
        {split: {"made_up": samples} for split, samples in candidates.items()},
        {split: {"made_up": size} for split, size in sizes.items()},
        seed,
    )
    return made.samples, {split: by_task["made_up"] for split, by_task in made.counts.items()}


QUESTIONS = st.lists(
    st.builds(sample, st.sampled_from(["Why?", "why", "WHY ?", "Who?", "who!", "a", "b", "c", "D"]), st.integers(0, 1)),
    max_size=12,
)


@given(QUESTIONS, QUESTIONS, QUESTIONS, st.integers(0, 3))
def test_no_question_stands_twice(train: list, validation: list, test: list, seed: int) -> None:
    # Oracle: the split keys, counted; and the counts add up.
    candidates = {"train": train, "validation": validation, "test": test}
    keys = {name: {one.split_key for one in samples} for name, samples in candidates.items()}
    free = {
        "test": keys["test"],
        "validation": keys["validation"] - keys["test"],
        "train": keys["train"] - keys["validation"] - keys["test"],
    }
    sizes = dict.fromkeys(candidates)
    if not all(free.values()):
        with pytest.raises(InputError):
            of_one(candidates, sizes, seed)
        return
    splits, counts = of_one(candidates, sizes, seed)
    for name, samples in splits.items():
        assert sorted(one.split_key for one in samples) == sorted(free[name])
        assert {one.split for one in samples} == {name}
        count = counts[name]
        assert count.taken == len(samples)
        assert count.candidates == count.taken + count.used_elsewhere + count.repeated + count.not_needed


@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_choice_does_not_hang_on_the_order(rng: random.Random, seed: int) -> None:
    # Oracle: the same candidates shuffled.
    reprints = [sample(f"IS {i} EVEN", i % 2) for i in range(40)]
    candidates = {"train": numbered(0, 40) + reprints, "test": numbered(20, 50)}
    sizes = {"train": 10, "test": 10}
    shuffled = {name: rng.sample(samples, len(samples)) for name, samples in candidates.items()}
    assert of_one(candidates, sizes, seed) == of_one(shuffled, sizes, seed)


def test_a_calibration_split_comes_after_test_and_before_the_others() -> None:
    # Oracle: sets. Several splits draw on one source; test is as without calibration; no question stands twice; what
    # it takes, train lacks, if there is no more.
    source = numbered(0, 60)
    sizes: dict[str, int | None] = {"train": None, "validation": 10, "calibration": 15, "test": 20}
    splits, counts = of_one(dict.fromkeys(sizes, source), sizes)
    without, _ = of_one(dict.fromkeys(("train", "validation", "test"), source), sizes)
    keys = {name: {one.split_key for one in samples} for name, samples in splits.items()}
    assert {name: len(found) for name, found in keys.items()} == sizes | {"train": 15}
    assert len(set.union(*keys.values())) == 60
    assert splits["test"] == without["test"]
    assert {one.split for one in splits["calibration"]} == {"calibration"}
    assert (counts["calibration"].used_elsewhere, counts["validation"].used_elsewhere) == (20, 35)


def test_another_seed_takes_other_questions_and_a_smaller_size_the_first_of_them() -> None:
    # Oracle: the lists themselves.
    def ids(seed: int, size: int) -> list[str]:
        return [one.id for one in of_one({"test": numbered(0, 100)}, {"test": size}, seed)[0]["test"]]

    assert ids(0, 20) != ids(1, 20)
    assert ids(0, 20)[:5] == ids(0, 5)


def test_too_few_say_what_was_expected_and_got() -> None:
    # Oracle: 5 validation questions and a reprint; 3 of them in test, so 2 are left.
    test = numbered(0, 3)
    validation = [*numbered(0, 5), sample("is 4 EVEN")]
    message = r"validation\.size: expected at most 2 of 6 candidates \(3 stand .* split, 1 are repeated\), got 4"
    with pytest.raises(InputError, match=message):
        of_one({"validation": validation, "test": test}, {"validation": 4, "test": 3})
    with pytest.raises(InputError, match="got all"):
        of_one({"validation": test, "test": test}, {"validation": None, "test": None})


def test_a_question_of_one_tasks_test_is_in_no_other_tasks_training() -> None:
    # Oracle: tasks a and b hold the same questions in other splits; by hand, what is left of 10 each.
    candidates = {
        "train": {"a": numbered(0, 10, "a"), "b": numbered(10, 20, "b")},
        "test": {"a": numbered(10, 20, "a"), "b": numbered(0, 10, "b")},
    }
    sizes = {"train": {"a": 6, "b": 3}, "test": {"a": 7, "b": 4}}
    made = build_splits(candidates, sizes, seed=3)
    keys = [one.split_key for samples in made.samples.values() for one in samples]
    assert len(keys) == len(set(keys)) == 20
    assert made.counts["train"] == {"a": SplitCount(10, 6, 4, 0, 0), "b": SplitCount(10, 3, 7, 0, 0)}
    with pytest.raises(InputError, match=r"train\.size: expected at most 3 of 10 candidates of b .*, got 4"):
        build_splits(candidates, {**sizes, "train": {"a": 6, "b": 4}}, seed=3)


def test_two_tasks_of_a_split_share_no_question() -> None:
    # Oracle: 60 questions that both tasks have, each once.
    candidates = {"train": {"a": numbered(0, 60, "a"), "b": numbered(0, 60, "b")}}
    samples = build_splits(candidates, {"train": {"a": 30, "b": 30}}, seed=0).samples["train"]
    assert len({one.split_key for one in samples}) == 60


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 60))
def test_any_first_part_of_a_mixture_has_every_tasks_share(first: int, second: int, part: int) -> None:
    # Oracle: the shares, off by at most one; task b's are drawn from ten times as many.
    candidates = {"train": {"a": numbered(0, 40, "a"), "b": numbered(100, 500, "b")}}
    samples = build_splits(candidates, {"train": {"a": first, "b": second}}, seed=0).samples["train"]
    part = min(part, len(samples))
    found = sum(one.task == "a" for one in samples[:part])
    assert abs(found - part * first / (first + second)) <= 1


@given(QUESTIONS, QUESTIONS, st.integers(0, 3), st.integers(0, 3))
def test_examples_stand_in_no_split(train: list, test: list, count: int, seed: int) -> None:
    # Oracle: the split keys, counted: test takes its questions first, then the examples, train has the rest.
    held_out = {one.split_key for one in test}
    left = {one.split_key for one in train} - held_out
    candidates = {"train": {"made_up": train}, "test": {"made_up": test}}
    sizes = {split: {"made_up": None} for split in candidates}

    def build() -> Splits:
        return build_splits(candidates, sizes, seed, {"made_up": (train, count)})

    if not test or len(left) <= count:
        with pytest.raises(InputError, match="shots" if test and len(left) < count else "size"):
            build()
        return
    made = build()
    shown = {one.split_key for one in made.examples["made_up"]}
    assert len(shown) == len(made.examples["made_up"]) == count
    assert {one.split for one in made.examples["made_up"]} <= {"train"}
    assert {one.split_key for one in made.samples["train"]} == left - shown


def test_a_split_with_a_size_is_the_same_with_and_without_examples() -> None:
    # Oracle: the split without examples; other examples with another seed.
    candidates = {split: {"made_up": numbered(0, 100)} for split in ("train", "test")}
    sizes = {split: {"made_up": 40} for split in candidates}
    shots = {"made_up": (numbered(0, 100), 5)}
    plain, shown = build_splits(candidates, sizes, 0), build_splits(candidates, sizes, 0, shots)
    assert plain.samples == shown.samples
    assert shown.examples != build_splits(candidates, sizes, 1, shots).examples


@pytest.mark.parametrize(
    ("size", "weights", "expected"),
    [
        (10, {"a": 1, "b": 1}, {"a": 5, "b": 5}),
        (10, {"a": 2, "b": 1}, {"a": 7, "b": 3}),
        (10, {"a": 1, "b": 1, "c": 1}, {"a": 4, "b": 3, "c": 3}),
        (100, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 50, "b": 30, "c": 20}),
        (7, {"a": 3, "b": 3, "c": 1}, {"a": 3, "b": 3, "c": 1}),
        (0, {"a": 1, "b": 1}, {"a": 0, "b": 0}),
    ],
)
def test_sizes_are_divided_by_weight(size: int, weights: dict, expected: dict) -> None:
    # Oracle: the largest remainders, by hand.
    assert shares(size, weights) == expected


@given(st.integers(100, 5000), st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 1), min_size=1))
def test_shares_make_up_the_size_and_are_within_one_of_their_weight(size: int, weights: dict) -> None:
    # Oracle: the sum, and the quota rule of the largest-remainder method.
    parts = shares(size, weights)
    assert sum(parts.values()) == size
    assert all(abs(parts[name] - size * weights[name] / sum(weights.values())) < 1 + 1e-9 for name in weights)
