"""PoLar's samples as ours, and the chains that its predictor can write; no model, no files."""

from __future__ import annotations

from itertools import product

import pytest

from data.sample import Sample
from data.tasks import TaskSet, load_task
from router.chain import Chain, Segment
from router.command import InputError
from search.polar_file import PolarSample, predictor_writes
from search.polar_match import TheirChains, match_samples
from tests.test_search_interchange import EDITS_PREFIX, FULL, MOVED, REPEAT, SKIP


def polar(question: str, answer: str) -> PolarSample:
    return PolarSample("f, sample 0", question, answer, (tuple(SKIP),), ())


@pytest.mark.parametrize(
    ("question", "answer", "found"),
    [
        ("What is 1/2 + 1/4?", r"\frac{3}{4}", "half"),
        ("what is  1/2 + 1/4", r"$\boxed{\frac{3}{4}}$", "half"),  # another print of the question, an answer in a box
        ("What is 1/2 + 1/4?", "0.75", "half"),  # equal in value
        ("What is 1/2 + 1/4?", "0.5", "answer"),
        ("What is 1/2 - 1/4?", "0.75", "question"),
        ("Which falls?", "RAIN ", "rain"),
        ("Which falls?", "iron", "answer"),
    ],
)
def test_samples_match_by_folded_question_and_meaning_of_the_answer(question: str, answer: str, found: str) -> None:
    ours = {
        "half": Sample("dart_math", "train", "What is 1/2 + 1/4?", (), r"\frac{3}{4}"),
        "rain": Sample("arc_easy", "train", "Which falls?", ("iron", "rain"), 1),
    }
    tasks = TaskSet.of([load_task("dart_math"), load_task("arc_easy")])
    matches = match_samples([polar(question, answer)], list(ours.values()), tasks)
    assert list(matches.theirs) == ([ours[found].id] if found in ours else [])
    assert matches.counts == {
        "matched": found in ours, "other_question": found == "question", "other_answer": found == "answer"
    }  # fmt: skip
    named = " ".join(matches.lines("train"))
    assert (repr(question) + " (sample 0)" in named) == (found not in ours)


def test_a_sample_that_could_be_two_of_ours_is_refused() -> None:
    ours = [Sample("arc_easy", "train", "Which falls?", ("rain", other), 0) for other in ("iron", "wood")]
    with pytest.raises(InputError, match=f"f, sample 0: expected .* one sample, got {ours[0].id}, {ours[1].id}"):
        match_samples([polar("Which falls?", "rain")], ours, TaskSet.of(load_task("arc_easy")))


def test_chains_are_collected_once_and_contradictions_count_as_no_verdict() -> None:
    # Oracle: counting by hand. Their file has the question twice.
    first = PolarSample("f, sample 0", "q", "a", (tuple(FULL), tuple(SKIP), tuple(SKIP)), (tuple(MOVED),))
    again = PolarSample("f, sample 1", "q", "a", (tuple(MOVED), tuple(SKIP)), (tuple(REPEAT), EDITS_PREFIX[0]))
    alone = PolarSample("f, sample 2", "r", "a", (), ())
    sample = Sample("arc_easy", "train", "q", ("a", "b"), 0)
    other = Sample("arc_easy", "train", "r", ("a", "b"), 0)
    matches = match_samples([first, again, alone], [other, sample], TaskSet.of(load_task("arc_easy")))
    found = TheirChains.of(matches, 5, 1)
    chains = {Chain(tuple(layers), 5): right for layers, right in ((FULL, True), (SKIP, True), (MOVED, None))}
    assert found.verdicts == {sample.id: chains | {Chain(tuple(REPEAT), 5): False}}
    assert found.counts == {"given": 8, "different": 5, "contradictory": 1, "edit_prefix": 1, "without_chains": 1}
    assert found.to_run(5)[sample.id] == (Chain.full(5), *(Chain(tuple(x), 5) for x in (SKIP, MOVED, REPEAT)))


def test_which_chains_their_predictor_can_write() -> None:
    # Oracle: every program of 6 layers written out: segments of at most 4 layers, skipped, run or run twice.
    def programs(longest: int, times: int, start: int = 0) -> set[tuple[Segment, ...]]:
        if start == 6:
            return {()}
        kinds = ("skip", "run", *["repeat"] * (times - 1))
        return {
            (Segment(start, start + size, kind, count), *rest)  # type: ignore[arg-type]
            for size in range(1, min(longest, 6 - start) + 1)
            for count, kind in enumerate(kinds)
            for rest in programs(longest, times, start + size)
        }

    def chains(of: set[tuple[Segment, ...]]) -> set[Chain]:
        return {Chain.from_segments(one) for one in of if any(segment.times for segment in one)}

    writable, more = chains(programs(4, 2)), chains(programs(6, 3))
    moved = {Chain(layers, 6) for layers in product(range(2), repeat=4)}
    assert writable < more
    for chain in writable | more | moved:
        assert predictor_writes(chain) == (chain in writable), str(chain)
