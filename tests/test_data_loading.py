"""Loading: bad rows stop or are counted, by what is wrong with them; filters and repeated questions are counted too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.prepare import Loaded, load_samples
from data.tasks import load_task
from router.validation import InputError
from tests.made_up import ROWS, write_rows

GOOD = ROWS["arc_easy"][:2]


def load(name: str, file: Path, on_bad_row: str = "stop", **changes: Any) -> Loaded:
    return load_samples(load_task(name, **changes), "local", "train", "train", file, on_bad_row)


def changed(**values: Any) -> dict[str, Any]:
    """A row of its own id, but for the changes."""
    return {**GOOD[0], "id": "other", **values}


TWO = {"text": ["iron", "iron"], "label": ["A", "B"]}
BAD: dict[str, tuple[dict[str, Any] | bytes, str, str]] = {
    "missing column": (
        {key: value for key, value in GOOD[0].items() if key != "answerKey"},
        "column 'answerKey': expected it in the row",
        "column 'answerKey': expected it in the row, got the columns id, question, choices",
    ),
    "answer not among the choices": (
        changed(answerKey="E"),
        "column 'answerKey': expected one of the choices",
        "column 'answerKey': expected one of A, B, C, got 'E'",
    ),
    "equal choices": (
        changed(choices=TWO, answerKey="A"),
        "choices: expected at least two different texts",
        "choices: expected at least two different texts, got ['iron', 'iron']",
    ),
    "empty choice": (
        changed(choices={"text": ["iron", " "], "label": ["A", "B"]}),
        "choices: expected text",
        "choices[1]: expected text, got ''",
    ),
    "an id at other content": (
        GOOD[1] | {"id": GOOD[0]["id"]},
        "column 'id': expected each id once",
        "column 'id': expected each id once, got 'What boils a' again with other content than in {file}, line 1",
    ),
    "latin-1": (
        json.dumps(changed(question="Caf\u00e9?"), ensure_ascii=False).encode("latin-1"),
        "expected UTF-8 text",
        "expected UTF-8 text, got the byte 0xe9 at place 32",
    ),
    "invalid JSON": (
        b'{"id": 1',
        "expected a JSON object",
        "expected a JSON object, got a corrupt line (Expecting ',' delimiter: line 1 column 9 (char 8))",
    ),
    "half a surrogate pair": (
        changed(question="Why \ud83d?"),
        "question: expected text",
        "question: expected text, got 'Why \\ud83d?'",
    ),
    "metadata that cannot be written": (
        changed(id="\ud83d"),
        "columns.metadata: expected JSON values",
        "columns.metadata: expected JSON values, got others ('utf-8' codec can't encode character '\\ud83d' in position"
        " 15: surrogates not allowed)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_stops_with_file_and_row_or_is_counted_by_its_reason(tmp_path: Path, kind: str) -> None:
    # Oracle: the second and fourth lines are the spoilt ones; message and counts by hand.
    row, reason, message = BAD[kind]
    file = write_rows(tmp_path / "rows.jsonl", [GOOD[0], row, GOOD[1], row])
    first = f"{file}, line 2: {message.replace('{file}', str(file))}"
    with pytest.raises(InputError) as caught:
        load("arc_easy", file)
    assert str(caught.value) == f"{first} (on_bad_row: skip leaves such rows out)"
    loaded = load("arc_easy", file, "skip")
    assert [sample.question for sample in loaded.samples] == [one["question"] for one in GOOD]
    counts = {"rows": 4, "other_metadata": 0, "same_question": 0, "samples": 2}
    assert loaded.counts() == {**counts, "bad": {reason: {"rows": 2, "first": first}}}


def test_reasons_do_not_hang_on_the_rows_values(tmp_path: Path) -> None:
    # Oracle: rows of two kinds; the choices' texts, their numbers and the answers differ from row to row.
    rows: list[dict[str, Any] | bytes] = [GOOD[0]]
    for i in range(2, 6):
        texts = [f"text {i} {j}" for j in range(i)]
        rows.append({"q": f"Which, {i}?", "options": texts, "gold": "none, got nothing"})
        rows.append({"q": f"What, {i}?", "options": [*texts, ""], "gold": texts[0]})
    rows[0] = {"q": "Well?", "options": ["a", "b"], "gold": "a"}
    columns = {"question": "q", "choices": "options", "answer": "gold"}
    loaded = load("arc_easy", write_rows(tmp_path / "rows.jsonl", rows), "skip", columns=columns, answer_kind="text")
    reasons = {"column 'gold': expected one of the choices": 4, "choices: expected text": 4}
    assert {reason: bad.rows for reason, bad in loaded.bad.items()} == reasons


def test_more_choices_than_letters_are_a_bad_row_where_they_are_listed(tmp_path: Path) -> None:
    # Oracle: 27 choices; listing them needs 27 letters.
    row = {"q": "Which?", "options": [str(i) for i in range(27)], "gold": 3}
    columns = {"question": "q", "choices": "options", "answer": "gold"}
    own: dict[str, Any] = {"columns": columns, "answer_kind": "index"}
    file = write_rows(tmp_path / "rows.jsonl", [row])
    assert len(load("arc_easy", file, **own).samples) == 1
    with pytest.raises(InputError, match="line 1: choices: expected at most 26 to list, got 27"):
        load("arc_easy", file, **own, list_choices=True)


def test_rows_that_are_all_bad_stop_even_where_bad_rows_are_skipped(tmp_path: Path) -> None:
    # Oracle: a column that every row lacks; the first row is named.
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "no question"}] * 3)
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: column 'question': .* \(like this all of 3 rows\)"):
        load("arc_easy", file, "skip")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    # Oracle: the file's name in the message.
    (tmp_path / "rows.jsonl").write_bytes(content)
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(InputError, match=r"local split 'train' of .*rows\.jsonl: expected at least one row, got"):
            load("arc_easy", tmp_path / "rows.jsonl", on_bad_row)


def test_repeated_rows_and_rows_without_an_id_are_no_bad_rows(tmp_path: Path) -> None:
    # Oracle: a row that stands twice is loaded twice (splits count the second as repeated); two rows whose id is null.
    repeated = load("arc_easy", write_rows(tmp_path / "rows.jsonl", [GOOD[0], GOOD[1], GOOD[0]]))
    assert [sample.id for sample in repeated.samples[::2]] == [repeated.samples[0].id] * 2
    assert len(load("arc_easy", write_rows(tmp_path / "rows.jsonl", [row | {"id": None} for row in GOOD])).samples) == 2


def test_questions_read_before_are_left_out_and_counted(tmp_path: Path) -> None:
    # Oracle: three questions with 3, 2 and 1 solutions, as in DART-Math's pools; the rows of one question that is bad
    # are all bad.
    rows: list[dict[str, Any] | bytes] = []
    for row, solutions in zip(ROWS["dart_math"], (3, 2, 1), strict=True):
        rows += [row | {"resp": f"Solution {i}."} for i in range(solutions)]
    bad = {"query": "What is it?", "gt_ans": None, "query_metadata": {"level": 3}}
    loaded = load("dart_math", write_rows(tmp_path / "rows.jsonl", [*rows, bad, bad]), "skip")
    assert [sample.question for sample in loaded.samples] == [row["query"] for row in ROWS["dart_math"]]
    assert (loaded.rows, loaded.same_question) == (8, 3)
    assert [one.rows for one in loaded.bad.values()] == [2]


def test_rows_with_other_metadata_are_left_out_and_counted(tmp_path: Path) -> None:
    # Oracle: levels 1, 2 and "Level ?" of the made-up rows.
    file = write_rows(tmp_path / "rows.jsonl", list(ROWS["math"]))
    loaded = load("math", file, keep={"difficulty": [2]})
    assert [sample.answer for sample in loaded.samples] == ["2"]
    assert loaded.counts() == {"rows": 3, "other_metadata": 2, "same_question": 0, "samples": 1, "bad": {}}
    with pytest.raises(InputError, match=r"keep: expected rows with .*'difficulty': \[5\].*, got none of 3 in local"):
        load("math", file, keep={"difficulty": [5]})
