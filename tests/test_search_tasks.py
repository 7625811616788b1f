"""Searches of free answers, of mixtures and of the oracle's controls; verification of what is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data.answers import wrong_answers
from data.grading import Grader
from data.records import SearchRecord, read_records
from data.sample import Sample, write_samples
from data.tasks import TaskSet, load_task, read_tasks, write_tasks
from router.command import run_command
from router.validation import InputError
from search.__main__ import main
from search.verification import chains_to_verify
from tests.sums import LETTERS, SUMS, sums, write_sums
from tests.test_data_scoring import greedy
from tests.test_search_run import arguments
from tests.tiny import FULL, scorer_of, tiny_samples


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sums(tmp_path_factory.mktemp("sums"), count=8, letters=4)


@pytest.fixture(scope="module")
def records(project: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SearchRecord]:
    return search(project, tmp_path_factory.mktemp("records"))


def search(project: Path, out: Path, **changes: object) -> list[SearchRecord]:
    """Run the command over the train split; names with __ go into `search.`."""
    words = arguments(project, out, **({"search__simulations": 24, "search__max_depth": "null"} | changes))
    assert run_command(main, words) == 0
    return read_records(out / "train.jsonl")


def test_a_mixture_is_searched_in_each_tasks_mode(project: Path, records: list[SearchRecord]) -> None:
    # Oracle: uncached greedy decoding for the sums; counts of scores by task; metadata of the samples.
    samples = {sample.id: sample for sample in [*sums("train", 8), *tiny_samples("train", 4)]}
    assert {record.sample_id for record in records} == set(samples)
    scorer = scorer_of(project, read_tasks(project / "data"))
    model, tokenizer = scorer.model, scorer.tokenizer
    outcomes = []
    for record in records:
        sample = samples[record.sample_id]
        assert record.metadata == sample.metadata
        assert record.target == sample.answer
        if sample.choices:
            assert (record.task, record.mode) == ("arc_easy", "letter")
            assert {len(result.scores) for result in record.results} == {len(sample.choices)}
            continue
        assert (record.task, record.mode) == ("sums", "exact")
        encoded = scorer.encode(sample)
        (wanted,) = encoded.continuations
        assert tokenizer.decode(wanted) == f"{sample.answer}\n"
        for result in record.results:
            emitted = greedy(model, encoded.prompt, result.chain, len(wanted))
            assert result.correct == (emitted == list(wanted))
            outcomes.append(result.correct)
    assert 0 < sum(outcomes) < len(outcomes)


def kept_of(record: SearchRecord) -> set[int]:
    """Chains that can become labels, where none fails (tests/test_search_verification.py tests the choice)."""
    plain = [dataclasses.replace(one, verified=None, verified_by=None) for one in record.results]
    return {0, *record.pareto, *chains_to_verify(plain, record.first_editable)}


def test_the_kept_chains_are_verified_by_real_generation(project: Path, records: list[SearchRecord]) -> None:
    # Oracle: uncached greedy decoding up to the line's end, compared by hand; in float32 modes must agree on hits.
    records = [record for record in records if record.task == "sums"]
    samples = {sample.id: sample for sample in sums("train", 8)}
    scorer = scorer_of(project, read_tasks(project / "data"))
    model, tokenizer = scorer.model, scorer.tokenizer
    for record in records:
        kept = kept_of(record)
        for i, result in enumerate(record.results):
            assert (result.verified is not None) == (i in kept)
            assert result.verified_by == ("generate" if i in kept else None)
        for i in kept:
            encoded = scorer.encode(samples[record.sample_id])
            text = tokenizer.decode(greedy(model, encoded.prompt, record.results[i].chain, SUMS.max_new_tokens))
            right = "\n" in text and text.split("\n")[0] == samples[record.sample_id].answer
            assert record.results[i].verified == (record.results[i].correct == right)
    assert any(record.pareto for record in records)


def test_the_control_is_told_a_wrong_free_answer(project: Path, tmp_path: Path) -> None:
    # Oracle: the samples' own answers; greedy decoding of the target instead.
    samples = {sample.id: sample for sample in sums("train", 8)}
    records = [
        record
        for record in search(project, tmp_path, reward_target="wrong", search__simulations=8)
        if record.task == "sums"
    ]
    scorer = scorer_of(project, read_tasks(project / "data"))
    for record in records:
        sample = samples[record.sample_id]
        assert record.reward_target == "wrong"
        assert record.target != sample.answer
        assert len(str(record.target)) == len(sample.gold)
        encoded = scorer.encode(sample, record.target)
        (wanted,) = encoded.continuations
        for result in record.results:
            assert result.correct == (greedy(scorer.model, encoded.prompt, result.chain, len(wanted)) == list(wanted))


def reads_alike(sample: Sample, answer: str) -> bool:
    return sample.gold == answer


def test_wrong_answers_are_wrong_and_fixed() -> None:
    # Oracle: the samples; the answers of equal length; the same for any order of the samples.
    samples = [*sums("train", 12), *tiny_samples("train", 12)]
    wrong = wrong_answers(samples, reads_alike)
    assert wrong == wrong_answers(samples[::-1], reads_alike)
    for sample in samples:
        assert wrong[sample.id] != sample.answer
        if sample.choices:
            assert wrong[sample.id] in range(len(sample.choices))
        else:
            assert {"1": "2", "2": "1", "12": "21", "21": "12"}[sample.gold] == wrong[sample.id]
    one = [Sample("sums", "train", f"{i}?", (), "7") for i in range(3)]
    with pytest.raises(ValueError, match="expected another answer than '7' in the task sums, got none"):
        wrong_answers(one, reads_alike)
    with Grader() as grader:
        halves = [Sample("sums", "train", f"{i}?", (), answer) for i, answer in enumerate(("0.5", "1/2", "1.5"))]
        found = wrong_answers(halves, lambda sample, answer: grader.equal(sample.gold, answer))
    assert [found[sample.id] for sample in halves[:2]] == ["1.5", "1.5"]


def test_shuffled_choices_are_searched_as_they_stand_then(project: Path, tmp_path: Path) -> None:
    # Oracle: the scorer for the shuffled task; the prompt's fingerprint, by which training refuses the records.
    (tmp_path / "data").mkdir()
    (tmp_path / "model").symlink_to(project / "model")
    write_tasks(tmp_path / "data", TaskSet.of(LETTERS))
    samples = tiny_samples("train", 4)
    write_samples(tmp_path / "data" / "train.jsonl", samples)
    scorer = scorer_of(project, load_task("arc_easy", "letter", shuffle=7))
    block = scorer.load(scorer.encode_all(samples))
    alone = scorer.score(block, [(i, FULL) for i in range(len(samples))])
    records = search(tmp_path, tmp_path / "out", shuffle=7, search__simulations=2)
    for record, result in zip(records, alone, strict=True):
        assert record.fingerprints == scorer.fingerprints
        assert record.full.scores == pytest.approx(result.scores, abs=1e-4)


def test_free_answers_alone_cannot_be_shuffled_and_stay_as_they_are_beside_letters() -> None:
    # Oracle: the message; the queries of the usual tasks.
    with pytest.raises(InputError, match="shuffle: expected 0 for sums, whose prompt lists no choices, got 1"):
        TaskSet.of(SUMS).shuffled(1)
    shuffled = TaskSet.of([SUMS, LETTERS]).shuffled(1)
    assert shuffled["sums"] == SUMS
    sample = tiny_samples("train", 1)[0]
    assert shuffled["arc_easy"].query(sample).order != LETTERS.query(sample).order
