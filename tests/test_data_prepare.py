"""`python -m data prepare` end to end: mixtures, examples, one's own data by a YAML alone; loading, and bad rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.__main__ import main
from data.prepare import Loaded, load_samples
from data.sample import SPLITS, Sample, read_samples
from data.tasks import load_task, read_tasks
from router.validation import InputError
from tests.made_up import ROWS, write_rows


def science(path: Path, start: int, stop: int) -> Path:
    """Made-up rows in ARC's columns; questions are numbered."""
    rows = []
    for i in range(start, stop):
        choices = {"text": [f"{i} m", f"{i + 1} m", f"{i + 2} m"], "label": ["A", "B", "C"]}
        rows.append(
            {"id": f"s{i}", "question": f"How long is river {i}?", "choices": choices, "answerKey": "ABC"[i % 3]}
        )
    return write_rows(path, rows)


def sums(path: Path, count: int) -> Path:
    """Made-up rows in MATH's columns."""
    rows = []
    for i in range(count):
        solution = f"Twice {i} is $\\boxed{{{2 * i}}}$."
        level = f"Level {i % 5 + 1}"
        rows.append({"problem": f"What is {i} + {i}?", "level": level, "type": "Algebra", "solution": solution})
    return write_rows(path, rows)


def passages(path: Path, count: int) -> Path:
    """Made-up rows in BoolQ's columns."""
    texts = [f"Bridge {i} was built in {1800 + i}." for i in range(count)]
    rows = [{"question": f"is bridge {i} old", "passage": text, "answer": i % 3 > 0} for i, text in enumerate(texts)]
    return write_rows(path, rows)


def prepare(tmp_path: Path, **settings: Any) -> Path:
    """Write the settings as a YAML file and run the command; returns the folder."""
    sizes = {"train": {"size": 12}, "validation": {"size": 6}, "test": {"size": 8}}
    tmp_path.mkdir(exist_ok=True)
    config = tmp_path / "prepare.yaml"
    config.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), **sizes, **settings}))
    main(["prepare", "--config", str(config)])
    return tmp_path / "out"


def splits_of(out: Path) -> dict[str, list[Sample]]:
    found = {split: read_samples(out / f"{split}.jsonl") for split in SPLITS if (out / f"{split}.jsonl").exists()}
    assert all(sample.split == split for split, samples in found.items() for sample in samples)
    return found


def mixture(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {"task": "arc_easy", "weight": 2, "path": str(science(tmp_path / "s.jsonl", 0, 60)), "mode": "letter"},
        {"task": "boolq", "path": str(passages(tmp_path / "b.jsonl", 60)), "style": "chat"},
        {
            "task": "math",
            "path": str(sums(tmp_path / "m.jsonl", 90)),
            "opening": "\\boxed{",
            "shots": 2,
            "keep": {"difficulty": [1, 2]},
        },
    ]


def test_a_mixture_has_every_tasks_share_and_way_of_asking(tmp_path: Path) -> None:
    # Oracle: weights 2, 1, 1 of 12, 6 and 8 by the largest remainder; the settings, read back from tasks.json.
    out = prepare(tmp_path, mixture=mixture(tmp_path))
    splits = splits_of(out)
    shares = {split: dict(Counter(sample.task for sample in samples)) for split, samples in splits.items()}
    assert shares["train"] == {"arc_easy": 6, "boolq": 3, "math": 3}
    assert shares["validation"] == {"arc_easy": 3, "boolq": 2, "math": 1}
    assert shares["test"] == {"arc_easy": 4, "boolq": 2, "math": 2}
    tasks = read_tasks(out)
    assert tasks.name == "arc_easy+boolq+math"
    assert (tasks["arc_easy"].mode, tasks["boolq"].prompt.style, tasks["math"].prompt.opening) == (
        "letter",
        "chat",
        "\\boxed{",
    )
    examples = tasks["math"].examples
    drawn = [one for samples in splits.values() for one in samples if one.task == "math"]
    assert {one.metadata["difficulty"] for one in (*drawn, *examples)} <= {1, 2}
    assert len(examples) == 2
    assert not {one.split_key for one in examples} & {one.split_key for one in drawn}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["task"] == tasks.name
    assert manifest["prompt_hash"] == tasks.prompt_hash()
    assert manifest["rows"]["math, train"] == {
        "rows": 90,
        "other_metadata": 54,
        "same_question": 0,
        "samples": 36,
        "bad": {},
    }
    counts = manifest["counts"]
    assert {split: {task: one["taken"] for task, one in counts[split].items()} for split in counts} == shares
    for by_task in counts.values():
        for one in by_task.values():
            assert one["candidates"] == sum(value for key, value in one.items() if key != "candidates")


def test_a_task_of_a_mixture_can_draw_on_other_source_splits(tmp_path: Path) -> None:
    # Oracle: boolq has no test rows, as on the hub; its test samples come from its validation rows.
    for split in SPLITS:
        science(tmp_path / "s" / f"{split}.jsonl", 100 * SPLITS.index(split), 100 * SPLITS.index(split) + 50)
    passages(tmp_path / "b" / "train.jsonl", 20)
    write_rows(
        tmp_path / "b" / "validation.jsonl", [{"question": f"q {i}", "passage": "p", "answer": True} for i in range(9)]
    )
    tasks = [
        {"task": "arc_easy", "path": str(tmp_path / "s")},
        {"task": "boolq", "path": str(tmp_path / "b"), "source_split": {"test": "validation"}},
    ]
    splits = splits_of(prepare(tmp_path, mixture=tasks))
    for split, count in (("test", 4), ("validation", 3)):
        assert sum(sample.question.startswith("q ") for sample in splits[split]) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {}}, r"train\.size: expected a number of samples with a mixture, got none"),
        ({"test": {"size": 2}}, r"test\.size: expected a size that gives \w+ a sample, got 2"),
        ({"style": "chat"}, "style: expected it in the mixture's tasks only, got it beside mixture"),
        ({"mixture": [{"task": "boolq"}] * 2}, "task: expected tasks of different names, got boolq, boolq"),
        ({"mixture": [{"task": "boolq", "weight": 0}]}, "weight: expected above 0, got 0"),
        ({"mixture": [{"task": "boolq", "source_split": {"dev": "a"}}]}, "source_split"),
    ],
)
def test_bad_mixtures_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    # Oracle: the setting in the message; nothing is written.
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, **{"mixture": mixture(tmp_path), **changes})
    assert not (tmp_path / "out").exists()


OWN_FREE = """
name: doubles
columns: {question: ask, answer: solution, metadata: {difficulty: {column: grade, pattern: 'G(\\d)'}}}
answer_kind: text
answer_pattern: 'gives (.*)\\.'
mode: exact
prompt: {ask: "Reckon: {question}", opening: "<", end: ">"}
"""


def test_ones_own_free_answers_need_a_yaml_only(tmp_path: Path) -> None:
    # Oracle: the rows, read back from the splits; the prompt by hand.
    (tmp_path / "doubles.yaml").write_text(OWN_FREE)
    rows = [{"ask": f"{i} twice", "solution": f"It gives {2 * i}.", "grade": f"G{i % 4}"} for i in range(30)]
    write_rows(tmp_path / "mine" / "all.jsonl", rows)
    sizes = {split: {"size": 5, "source_split": "all"} for split in SPLITS}
    out = prepare(tmp_path, task=str(tmp_path / "doubles.yaml"), path=str(tmp_path / "mine"), shots=1, **sizes)
    samples = [sample for found in splits_of(out).values() for sample in found]
    assert len(samples) == 20
    for sample in samples:
        i = int(sample.question.split()[0])
        assert (sample.answer, sample.metadata) == (str(2 * i), {"difficulty": i % 4})
    task = read_tasks(out)["doubles"]
    query = task.query(samples[0])
    asked, answered = query.examples[0]
    assert asked.startswith("Reckon: ")
    assert answered == f"Answer: <{task.examples[0].answer}>"
    assert (query.lead, query.continuations) == ("Answer: <", (f"{samples[0].answer}>",))


def test_a_calibration_split_is_made_on_demand_from_training_rows(tmp_path: Path) -> None:
    # Oracle: the source ids: its rows come from train's source split, test is as without it, and no question is shared.
    for split, (start, stop) in {"train": (0, 40), "validation": (40, 55), "test": (55, 70)}.items():
        science(tmp_path / "rows" / f"{split}.jsonl", start, stop)
    rows = str(tmp_path / "rows")
    without = splits_of(prepare(tmp_path / "without", path=rows))
    found = splits_of(prepare(tmp_path / "with", path=rows, calibration={"size": 9}))
    assert sorted(without) == ["test", "train", "validation"]
    ids = {split: {int(one.metadata["source_id"][1:]) for one in samples} for split, samples in found.items()}
    assert (len(ids["calibration"]), max(ids["calibration"]) < 40) == (9, True)
    assert len(set.union(*ids.values())) == 12 + 6 + 9 + 8
    assert (found["test"], found["validation"]) == (without["test"], without["validation"])


def test_settings_take_the_place_of_the_tasks_own(tmp_path: Path) -> None:
    # Oracle: the task read with the same changes.
    settings = {
        "mode": "generate",
        "style": "chat",
        "max_prompt_tokens": 99,
        "over_long": "truncate",
        "override": {"free_form": True, "max_new_tokens": 200, "prompt": {"example": "solution"}},
    }
    out = prepare(tmp_path, task="math", path=str(sums(tmp_path / "m.jsonl", 40)), **settings)
    expected = load_task(
        "math",
        "generate",
        free_form=True,
        max_new_tokens=200,
        max_prompt_tokens=99,
        over_long="truncate",
        prompt={"style": "chat", "example": "solution"},
    )
    assert read_tasks(out)["math"] == expected


def test_an_example_that_cannot_be_shown_is_one_line(tmp_path: Path) -> None:
    # Oracle: examples that are to show a metadata field which the task does not keep; nothing is written.
    settings = {"shots": 1, "override": {"prompt": {"example": "proof"}}}
    with pytest.raises(InputError, match=r"math: prompt\.example: expected the metadata field 'proof'"):
        prepare(tmp_path, task="math", path=str(sums(tmp_path / "m.jsonl", 40)), **settings)
    assert not list((tmp_path / "out").iterdir())


def test_bad_rows_stop_or_are_left_out_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: 30 good rows, two without an answer and one cut off; file and row of the first of each kind, as printed.
    file = science(tmp_path / "rows.jsonl", 0, 30)
    lines = file.read_text().splitlines()
    none = json.dumps(json.loads(lines[0]) | {"id": "x", "answerKey": None})
    file.write_text("\n".join([*lines[:5], none, *lines[5:], '{"id": ', none]) + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 6: column 'answerKey': expected one of A, B, C, got None"):
        prepare(tmp_path, path=str(file))
    assert not list((tmp_path / "out").iterdir())
    capsys.readouterr()
    out = prepare(tmp_path, path=str(file), on_bad_row="skip")
    printed = capsys.readouterr().out
    assert f"2 of 33 rows left out, the first: {file}, line 6: column 'answerKey': expected one of A, B, C" in printed
    assert f"1 of 33 rows left out, the first: {file}, line 32: expected a JSON object, got a corrupt line" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    bad = {reason: one["rows"] for reason, one in manifest["rows"]["arc_easy, train"]["bad"].items()}
    assert bad == {"column 'answerKey': expected one of the choices": 2, "expected a JSON object": 1}
    assert manifest["counts"]["test"]["arc_easy"]["candidates"] == 30


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
