"""Search records: judged scores, the front, JSON round trip, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import ChainResult, Fingerprints, SearchRecord, pareto_front, read_records
from router.chain import Chain
from router.validation import InputError

N = 4
SCORES = st.floats(-50, 0).map(lambda value: round(value, 6))


def record(results: list[ChainResult], sample_id: str = "0" * 16) -> SearchRecord:
    return SearchRecord(
        sample_id=sample_id,
        task="made_up",
        split="train",
        metadata={},
        mode="continuation",
        num_layers=N,
        first_editable=1,
        dtype="float32",
        reward_target="gold",
        target=1,
        seed=0,
        simulations=len(results),
        nominal_layers=sum(result.chain.depth for result in results),
        executed_layers=N,
        results=tuple(results),
        pareto=pareto_front(results),
        fingerprints=Fingerprints("m", "t", "p"),
        search="s",
    )


@st.composite
def result_lists(draw: st.DrawFn) -> list[ChainResult]:
    answer = draw(st.integers(0, 2))
    layers = st.lists(st.integers(0, N - 1), min_size=1, max_size=6).map(lambda path: Chain(tuple(path), N))
    chains = [Chain.full(N), *draw(st.lists(layers, max_size=6))]
    return [ChainResult.from_scores(chain, draw(st.tuples(SCORES, SCORES, SCORES)), answer) for chain in chains]


def test_scores_are_judged_by_hand() -> None:
    # Oracle: margins worked out by hand; of equals the first is predicted.
    full = Chain.full(N)
    right = ChainResult.from_scores(full, [-3.0, -1.0, -2.0], 1)
    assert (right.prediction, right.correct, right.margin) == (1, True, 1.0)
    wrong = ChainResult.from_scores(full, [-3.0, -1.0, -2.0], 0)
    assert (wrong.prediction, wrong.correct, wrong.margin) == (1, False, -2.0)
    tie = ChainResult.from_scores(full, [-1.0, -1.0], 1)
    assert (tie.prediction, tie.correct, tie.margin) == (0, False, 0.0)


@given(result_lists())
def test_the_front_is_the_brute_force_front(results: list[ChainResult]) -> None:
    # Oracle: (depth, margin) of every right result that no other right result dominates, by all pairs.
    right = [(r.chain.depth, r.margin) for r in results if r.correct]
    undominated = {one for one in right if not any(a[0] <= one[0] and a[1] >= one[1] and a != one for a in right)}
    front = pareto_front(results)
    assert [(results[i].chain.depth, results[i].margin) for i in front] == sorted(undominated)
    assert all(results[i].correct for i in front)


@given(result_lists())
def test_json_gives_back_the_record(results: list[ChainResult]) -> None:
    # Oracle: the record itself; margins are rounded to six places.
    written = record(results)
    read = SearchRecord.from_json(json.loads(json.dumps(written.to_json())))
    assert [r.chain for r in read.results] == [r.chain for r in results]
    assert all(math.isclose(a.margin, b.margin, abs_tol=1e-6) for a, b in zip(read.results, results, strict=True))
    exact = dataclasses.replace(read, results=written.results)
    assert exact == written
    assert [r.correct for r in read.results] == [r.correct for r in results]


def test_full_and_shortest() -> None:
    # Oracle: chosen by hand.
    full = ChainResult.from_scores(Chain.full(N), [-1.0, -2.0], 0)
    short = ChainResult.from_scores(Chain((0, 3), N), [-1.0, -1.5], 0)
    wrong = ChainResult.from_scores(Chain((0,), N), [-2.0, -1.0], 0)
    assert record([full, short, wrong]).full == full
    assert record([full, short, wrong]).shortest == short
    assert record([dataclasses.replace(wrong, chain=Chain.full(N))]).shortest is None


FULL = ChainResult.from_scores(Chain.full(N), [-1.0, -2.0], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "schema: expected 2, got 9"),
        ({"num_layers": 9}, r"results\[0\]: expected the full chain"),
        ({"num_layers": 2}, r"layers\[2\]"),
        ({"results": []}, r"results\[0\]: expected the full chain"),
        ({"results": [{}]}, "expected the field 'chain', got none"),
        ({"pareto": [5]}, r"pareto: expected \[0\], got \[5\]"),
        ({"colour": "blue"}, "colour"),
        ({"fingerprints": {"model": "m"}}, "tokenizer"),
    ],
)
def test_bad_records_are_refused_by_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    # Oracle: the second line is the spoilt one, and the message names the field.
    path = tmp_path / "records.jsonl"
    good = json.dumps(record([FULL]).to_json())
    bad = json.dumps(record([FULL], "1" * 16).to_json() | change)
    path.write_text(f"{good}\n{bad}\n")
    with pytest.raises(InputError, match=rf"records\.jsonl, line 2: .*{message}"):
        read_records(path)


def test_a_file_gives_its_records_each_once(tmp_path: Path) -> None:
    # Oracle: what was written; then a sample that stands twice, an empty and a missing file.
    path = tmp_path / "records.jsonl"
    records = [record([FULL], str(i) * 16) for i in range(3)]
    lines = "".join(json.dumps(one.to_json()) + "\n" for one in records)
    path.write_text(lines)
    assert read_records(path) == records
    path.write_text(lines + lines)
    with pytest.raises(InputError, match="line 4: expected each sample once"):
        read_records(path)
    path.write_text("")
    with pytest.raises(InputError, match="records: expected at least one record"):
        read_records(path)
    with pytest.raises(InputError, match="records: expected an existing file"):
        read_records(tmp_path / "none.jsonl")


WHOLE = Chain.full(N)


def test_exact_and_generated_answers_by_hand() -> None:
    # Oracle: worked out by hand.
    right = ChainResult.from_tokens(WHOLE, [-0.1, -0.2], [3.0, 0.5], True, "42}")
    assert (right.correct, right.margin, right.scores, right.prediction) == (True, 0.5, (-0.1, -0.2), "42}")
    tie = ChainResult.from_tokens(WHOLE, [-0.1, -0.7], [3.0, 0.0], True, "42}")
    assert (tie.correct, tie.margin) == (True, 1e-6)
    lost = ChainResult.from_tokens(WHOLE, [-0.1, -0.7], [3.0, 0.0], False, "4")
    assert (lost.correct, lost.margin) == (False, 0.0)
    assert ChainResult.from_tokens(WHOLE, [-9.0], [-2.0], False, "x").margin == -2.0
    assert (ChainResult.from_answer(WHOLE, None, False).margin, ChainResult.from_answer(WHOLE, 2, True).margin) == (
        -1,
        1,
    )
    with pytest.raises(ValueError, match="expected finite numbers"):
        ChainResult.from_tokens(WHOLE, [math.nan], [1.0], True, "x")


@pytest.mark.parametrize(
    "result",
    [
        ChainResult.from_tokens(WHOLE, [-0.1, -0.2], [3.0, 0.0], True, "42}"),
        ChainResult.from_tokens(WHOLE, [-0.1, -0.2], [3.0, -0.5], False, "4"),
        ChainResult.from_answer(WHOLE, None, False),
        ChainResult.from_answer(WHOLE, "1/2", True),
        ChainResult.from_answer(WHOLE, 1, False),
    ],
    ids=str,
)
def test_results_of_every_mode_come_back_from_json(result: ChainResult) -> None:
    # Oracle: the result itself.
    assert ChainResult.from_json(json.loads(json.dumps(result.to_json())), N) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": 0.5}, "margin: expected 1 or -1 of a generated answer"),
        ({"prediction": None}, "prediction: expected null only where no answer could be read"),
        ({"prediction": -1}, "prediction: expected an index"),
        ({"prediction": 1.5}, "prediction: expected an index"),
        ({"scores": [-0.5], "prediction": None, "correct": False, "margin": -1.0}, "prediction: expected null only"),
        ({"scores": [-0.5], "prediction": 1}, "prediction: expected an index below 1"),
        ({"correct": False}, "correct: expected True for the margin"),
    ],
)
def test_generated_results_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    value = ChainResult.from_answer(WHOLE, "1/2", True).to_json() | change
    with pytest.raises(ValueError, match=message):
        ChainResult.from_json(value, N)
