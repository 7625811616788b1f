"""Search records: judged scores, the front, agreement, JSON round trip, old files, and what is refused."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import (
    ChainResult,
    SearchRecord,
    VariantResult,
    agrees,
    joined,
    model_of,
    pareto_front,
    read_records,
)
from data.store import meta_path
from router.chain import Chain
from router.files import sha256_file
from router.validation import InputError, from_plain, to_plain
from tests.menus import record_of, write_records

OLD = Path(__file__).parent / "golden" / "records_v2"

N = 4
SCORES = st.floats(-50, 0).map(lambda value: round(value, 6))


def record(results: list[ChainResult], sample_id: str = "0" * 16) -> SearchRecord:
    return record_of(sample_id, results, target=1)


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
    # Oracle: the record itself.
    written = record(results)
    assert from_plain(SearchRecord, json.loads(json.dumps(to_plain(written))), num_layers=N) == written


def test_full_and_shortest() -> None:
    # Oracle: chosen by hand.
    full = ChainResult.from_scores(Chain.full(N), [-1.0, -2.0], 0)
    short = ChainResult.from_scores(Chain((0, 3), N), [-1.0, -1.5], 0)
    wrong = ChainResult.from_scores(Chain((0,), N), [-2.0, -1.0], 0)
    assert record([full, short, wrong]).full == full
    assert record([full, short, wrong]).shortest == short
    assert record([dataclasses.replace(wrong, chain=Chain.full(N))]).shortest is None
    surer = ChainResult.from_scores(Chain((0, 2), N), [-1.0, -3.0], 0)  # as deep, of greater margin
    assert record([full, short, surer]).shortest == surer
    refused = dataclasses.replace(short, verified=False, verified_by="continuation")
    assert record([full, refused]).shortest == full


def test_results_agree_where_they_give_the_same_answer() -> None:
    # Oracle: by hand. Two choices that tie are one prediction, though such a result never counts as right.
    def answer(text: str | None, correct: bool) -> ChainResult:
        return ChainResult.from_answer(Chain.full(N), text, correct)

    assert agrees(answer("1/2", True), answer("0.5", True))
    assert agrees(answer("7", False), answer(" 7.", False))
    assert agrees(answer("0.5", False), answer("1/2", False))
    assert agrees(answer(None, False), answer(None, False))
    assert not agrees(answer("7", False), answer("8", False))
    assert not agrees(answer("12", True), answer("12", False))
    tied, clear = (ChainResult.from_scores(Chain.full(N), scores, 0) for scores in ((-1.0, -1.0), (-1.0, -2.0)))
    assert (tied.correct, clear.correct) == (False, True)
    assert agrees(tied, clear)


def test_of_a_chain_in_both_records_the_first_result_stays() -> None:
    # Oracle: by hand.
    full = ChainResult.from_scores(Chain.full(N), [-1.0, -2.0], 0)
    other = dataclasses.replace(full, verified=True, verified_by="continuation")
    short = ChainResult.from_scores(Chain((0, 3), N), [-1.0, -1.5], 0)
    both = joined(record([full]), record([other, short]))
    assert both.results == (full, short)
    assert both.pareto == (1, 0)


FULL = ChainResult.from_scores(Chain.full(N), [-1.0, -2.0], 0)


def test_answers_in_variants_come_back_and_say_what_stands() -> None:
    # Oracle: by hand. Three variants, of which a chain must be right in all; without any a file has no such fields.
    wrong = ChainResult.from_scores(Chain((0, 3), N), [-2.0, -1.0], 0)
    again, missed = VariantResult.of(FULL), VariantResult.of(wrong)
    full = dataclasses.replace(FULL, variants=(again, again), robust=True, held_out=(missed,))
    short = dataclasses.replace(FULL, chain=Chain((0, 1, 3), N), variants=(again, missed), robust=False)
    wrong = dataclasses.replace(wrong, robust=False)
    several = dataclasses.replace(record([full, short, wrong]), variants=3)
    assert several.pareto == (0,)
    assert [one.stands for one in several.results] == [True, False, False]
    assert [one.mean_correct(3) for one in several.results] == pytest.approx([1, 2 / 3, 0])
    assert dataclasses.replace(full, verified=False).mean_correct(3) == pytest.approx(2 / 3)
    assert from_plain(SearchRecord, json.loads(json.dumps(to_plain(several))), num_layers=N) == several
    one = to_plain(record([FULL]))
    assert not {"variants", "robust", "held_out"} & {*one, *one["results"][0]}
    for bad, message in (
        (dataclasses.replace(several, variants=2), "results: expected answers in at most 1 further variants"),
        (dataclasses.replace(several, variants=1), "results: expected robust true or false exactly where"),
        (
            record([dataclasses.replace(wrong, chain=WHOLE, robust=True)]),
            r"results\[0\].robust: expected false or null",
        ),
    ):
        with pytest.raises(InputError, match=message):
            from_plain(SearchRecord, json.loads(json.dumps(to_plain(bad))), num_layers=N)
    with pytest.raises(InputError, match="records: expected records of 3 variants, got some of 1"):
        joined(several, record([FULL]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "expected schema 3 or 2, got 9"),
        ({"num_layers": 9}, r"results\[0\]: expected the full chain"),
        ({"results": []}, "results: expected at least 1 entries"),
        ({"pareto": [5]}, r"pareto: expected \[0\], got \[5\]"),
    ],
)
def test_bad_records_are_refused_by_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    # Oracle: the second line is the spoilt one, and the message names the field.
    path = write_records(tmp_path / "records.jsonl", [record([FULL]), record([FULL], "1" * 16)])
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps(json.loads(second) | change)}\n")
    meta = json.loads(meta_path(path).read_text())
    meta_path(path).write_text(json.dumps(meta | {"sha256": sha256_file(path)}))
    with pytest.raises(InputError, match=rf"records\.jsonl, line 2: .*{message}"):
        read_records(path)


def test_a_file_gives_its_records_each_once(tmp_path: Path) -> None:
    # Oracle: what was written; then a missing file.
    path = tmp_path / "records.jsonl"
    records = [record([FULL], str(i) * 16) for i in range(3)]
    assert read_records(write_records(path, records)) == records
    with pytest.raises(InputError, match="records: expected an existing file"):
        read_records(tmp_path / "none.jsonl")


def test_records_of_schema_2_are_read() -> None:
    # Oracle: the lines of a search of SmolLM2-135M-Instruct on ARC-Easy from before schema 3 (four samples, the first
    # six chains of each): the one field that was renamed, and what the search said of itself.
    lines = [json.loads(line) for line in (OLD / "train.jsonl").read_text().splitlines()]
    records = read_records(OLD / "train.jsonl")
    assert len(records) == 4
    for line, found in zip(lines, records, strict=True):
        wanted = {key: value for key, value in line.items() if key != "prefix_layers"}
        assert to_plain(found) == wanted | {"first_editable": line["prefix_layers"], "schema": 3}
    assert [found.full.stands for found in records] == [True, False, False, False]
    assert [found.shortest and found.shortest.chain.depth for found in records] == [22, None, 18, None]
    assert model_of(OLD / "train.jsonl") == "smollm2-135m-instruct"


def test_a_cut_file_of_schema_2_is_refused(tmp_path: Path) -> None:
    # Oracle: the same file without its last line.
    shutil.copytree(OLD, tmp_path / "old")
    path = tmp_path / "old" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match=r"train\.jsonl: expected the SHA-256 in train\.settings\.json, got another"):
        read_records(path)


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
    assert from_plain(ChainResult, json.loads(json.dumps(to_plain(result))), num_layers=N) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": 0.5}, "margin: expected 1 or -1 of a generated answer"),
        ({"prediction": None}, "prediction: expected null only where no answer could be read"),
        ({"prediction": -1}, "prediction: expected an index"),
        ({"prediction": 1.5}, "prediction: expected an integer"),
        ({"scores": [-0.5], "prediction": None, "correct": False, "margin": -1.0}, "prediction: expected null only"),
        ({"scores": [-0.5], "prediction": 1}, "prediction: expected an index below 1"),
        ({"correct": False}, "correct: expected True for the margin"),
    ],
)
def test_generated_results_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    value = to_plain(ChainResult.from_answer(WHOLE, "1/2", True)) | change
    with pytest.raises(InputError, match=message):
        from_plain(ChainResult, value, num_layers=N)
