"""Splits: no shared question, whatever the candidates."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sample import Sample
from data.splits import build_splits
from router.command import InputError


def sample(question: str, answer: int = 0, split: str = "train") -> Sample:
    return Sample("made_up", split, question, ("yes", "no"), answer)


def numbered(start: int, stop: int) -> list[Sample]:
    return [sample(f"Is {i} even?", i % 2) for i in range(start, stop)]


QUESTIONS = st.lists(
    st.builds(
        sample,
        st.sampled_from(["Why?", "why", "WHY ?", "Who?", "who!", "a", "b", "c", "D"]),
        st.integers(0, 1),
    ),
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
            build_splits(candidates, sizes, seed)
        return
    splits, counts = build_splits(candidates, sizes, seed)
    for name, samples in splits.items():
        assert sorted(one.split_key for one in samples) == sorted(free[name])
        assert {one.split for one in samples} == {name}
        count = counts[name]
        assert count.taken == len(samples)
        assert count.candidates == count.taken + count.used_elsewhere + count.repeated + count.not_needed


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_choice_does_not_hang_on_the_order(rng: random.Random, seed: int) -> None:
    # Oracle: the same candidates shuffled.
    reprints = [sample(f"IS {i} EVEN", i % 2) for i in range(40)]
    candidates = {"train": numbered(0, 40) + reprints, "test": numbered(20, 50)}
    sizes = {"train": 10, "test": 10}
    shuffled = {name: rng.sample(samples, len(samples)) for name, samples in candidates.items()}
    assert build_splits(candidates, sizes, seed) == build_splits(shuffled, sizes, seed)


def test_several_splits_draw_on_one_source() -> None:
    # Oracle: 100 questions, 30 + 20 + the 50 that are left.
    source = numbered(0, 100)
    sizes = {"train": None, "validation": 20, "test": 30}
    splits, counts = build_splits(dict.fromkeys(sizes, source), sizes, seed=0)
    assert {name: len(samples) for name, samples in splits.items()} == {
        "train": 50,
        "validation": 20,
        "test": 30,
    }
    assert len({one.id for samples in splits.values() for one in samples}) == 100
    assert counts["train"].used_elsewhere == 50


def test_another_seed_takes_other_questions_and_a_smaller_size_the_first_of_them() -> None:
    # Oracle: the lists themselves.
    def ids(seed: int, size: int) -> list[str]:
        return [one.id for one in build_splits({"test": numbered(0, 100)}, {"test": size}, seed)[0]["test"]]

    assert ids(0, 20) != ids(1, 20)
    assert ids(0, 20)[:5] == ids(0, 5)


def test_too_few_say_what_was_expected_and_got() -> None:
    # Oracle: 5 validation questions and a reprint; 3 of them in test, so 2 are left.
    test = numbered(0, 3)
    validation = [*numbered(0, 5), sample("is 4 EVEN")]
    message = r"validation\.size: expected at most 2 of 6 candidates \(3 stand .* split, 1 are repeated\), got 4"
    with pytest.raises(InputError, match=message):
        build_splits({"validation": validation, "test": test}, {"validation": 4, "test": 3}, seed=0)
    with pytest.raises(InputError, match="got all"):
        build_splits({"validation": test, "test": test}, {"validation": None, "test": None}, seed=0)
