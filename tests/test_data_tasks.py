"""Tasks: prompts written by hand, columns of several data sets, and what is refused."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.sample import Sample
from data.tasks import Columns, Query, Task, known_tasks, load_task
from router.command import InputError

ROW = {
    "id": "made-up-1",
    "question": "What boils at 100 degrees Celsius?",
    "choices": {"text": ["iron", "water", "salt"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}


def own_task(tmp_path: Path, **changes: object) -> Path:
    value: dict[str, object] = {
        "name": "own",
        "columns": {"question": "q", "choices": "options", "answer": "gold"},
        "answer_kind": "index",
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(value | changes))
    return path


def test_every_shipped_task_loads_in_both_modes() -> None:
    # Oracle: the mode that was asked for.
    assert "arc_easy" in known_tasks()
    for name in known_tasks():
        assert load_task(name).name == name
        assert [load_task(name, mode).mode for mode in ("continuation", "letter")] == [
            "continuation",
            "letter",
        ]


def test_a_row_of_the_hub_becomes_a_sample() -> None:
    # Oracle: the sample written by hand.
    sample = load_task("arc_easy").sample(ROW, "train")
    expected = Sample("arc_easy", "train", str(ROW["question"]), ("iron", "water", "salt"), 1)
    assert sample == dataclasses.replace(expected, metadata={"source_id": "made-up-1"})


def test_an_answer_key_of_digits_means_the_same_as_letters() -> None:
    # Oracle: the sample of the row with letters.
    digits = ROW | {
        "answerKey": "2",
        "choices": {"text": ["iron", "water", "salt"], "label": ["1", "2", "3"]},
    }
    assert load_task("arc_easy").sample(digits, "test") == load_task("arc_easy").sample(ROW, "test")


def test_the_cloze_prompt() -> None:
    # Oracle: the prompt written by hand.
    task = load_task("arc_easy")
    assert task.query(task.sample(ROW, "test")) == Query(
        "Question: What boils at 100 degrees Celsius?\nAnswer:",
        (" iron", " water", " salt"),
        (0, 1, 2),
        (1.0, 1.0, 1.0),
    )


def test_the_letter_prompt() -> None:
    # Oracle: the prompt written by hand around the query's own order.
    task = load_task("arc_easy", "letter")
    query = task.query(task.sample(ROW, "test"))
    a, b, c = (["iron", "water", "salt"][i] for i in query.order)
    assert query.prompt == f"Question: What boils at 100 degrees Celsius?\n A. {a}\n B. {b}\n C. {c}\nAnswer:"
    assert query.continuations == (" A", " B", " C")
    assert sorted(query.order) == [0, 1, 2]


def test_a_continuation_prompt_can_list_the_choices(tmp_path: Path) -> None:
    # Oracle: the prompt written by hand.
    task = load_task(str(own_task(tmp_path, list_choices=True)))
    query = task.query(task.sample({"q": "Two?", "options": ["1 + 1", "1 + 2"], "gold": 0}, "test"))
    assert query.prompt == "Question: Two?\n A. 1 + 1\n B. 1 + 2\nAnswer:"
    assert query.continuations == (" 1 + 1", " 1 + 2")


def test_the_right_letter_is_evenly_spread() -> None:
    # Oracle: 2000 draws of 1/4, five standard deviations (19.4) on either side.
    task = load_task("arc_easy", "letter")
    samples = [Sample("arc_easy", "train", f"Question {i}?", ("w", "x", "y", "z"), 0) for i in range(2000)]
    spread = Counter(task.query(sample).order.index(sample.answer) for sample in samples)
    assert all(abs(spread[letter] - 500) < 97 for letter in range(4))


def test_scores_come_back_in_the_order_of_the_choices() -> None:
    # Oracle: divisions done by hand.
    query = Query("p", (" A", " B", " C"), (2, 0, 1), (1.0, 2.0, 4.0))
    assert query.choice_scores([-1.0, -2.0, -8.0], [1, 1, 1]) == (-1.0, -2.0, -1.0)
    assert dataclasses.replace(query, normaliser=None).choice_scores([-1.0, -2.0, -8.0], [1, 1, 2]) == (
        -2,
        -4,
        -1,
    )


@pytest.mark.parametrize(("normalise", "expected"), [("none", (1.0, 1.0)), ("tokens", None), ("bytes", (2.0, 5.0))])
def test_normalisers(tmp_path: Path, normalise: str, expected: object) -> None:
    # Oracle: the choices' UTF-8 bytes counted by hand.
    task = load_task(str(own_task(tmp_path, normalise=normalise)))
    query = task.query(task.sample({"q": "Which?", "options": ["ab", "caf\u00e9"], "gold": 1}, "test"))
    assert query.normaliser == expected


@pytest.mark.parametrize(
    ("kind", "columns", "row"),
    [
        ("index", {"choices": "options"}, {"options": ["no", "yes"], "gold": 1}),
        ("index", {"choices": "options"}, {"options": ["no", "yes"], "gold": "1"}),
        ("index", {"choices": ["first", "second"]}, {"first": "no", "second": "yes", "gold": 1}),
        ("label", {"choices": "options"}, {"options": ["no", "yes"], "gold": "B"}),
        ("label", {"choices": "options"}, {"options": ["no", "yes"], "gold": "2"}),
        (
            "label",
            {"choices": "o.t", "labels": "o.l"},
            {"o": {"t": ["no", "yes"], "l": ["n", "y"]}, "gold": "y"},
        ),
        ("text", {"choices": "options"}, {"options": ["no", "yes"], "gold": "yes"}),
    ],
)
def test_own_data_by_yaml_alone(tmp_path: Path, kind: str, columns: dict, row: dict) -> None:
    # Oracle: every row means the same sample.
    path = own_task(tmp_path, answer_kind=kind, columns={"question": "q", "answer": "gold", **columns})
    assert load_task(str(path)).sample({"q": "Is it?", **row}, "train") == Sample(
        "own", "train", "Is it?", ("no", "yes"), 1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "column 'question': expected text, got None"),
        ({"question": " "}, "column 'question'"),
        ({"choices": {"text": "iron", "label": ["A"]}}, r"column 'choices\.text': expected a list"),
        ({"choices": {"label": ["A"]}}, r"column 'choices\.text': expected it in the row"),
        (
            {"choices": {"text": ["iron", "salt"], "label": ["A"]}},
            r"column 'choices\.label': expected 2 labels",
        ),
        ({"answerKey": "D"}, "column 'answerKey': expected one of A, B, C, got 'D'"),
        ({"answerKey": True}, "column 'answerKey'"),
        (
            {"choices": {"text": ["iron", "iron"], "label": ["A", "B"]}},
            "choices: expected at least two different",
        ),
    ],
)
def test_a_bad_row_is_refused_by_its_column(change: dict, message: str) -> None:
    # Oracle: the column that was spoilt, in the message.
    with pytest.raises(ValueError, match=message):
        load_task("arc_easy").sample(ROW | change, "train")


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    # Oracle: the column that was taken away.
    row = {key: value for key, value in ROW.items() if key != "answerKey"}
    with pytest.raises(ValueError, match=r"'answerKey': expected it in the row, got the columns id, question, choices"):
        load_task("arc_easy").sample(row, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "expected keys among name, columns, .*, got 'colour'"),
        (
            {"columns": {"question": "q", "choices": "o", "answer": "a", "x": "y"}},
            "columns: expected keys among",
        ),
        ({"columns": {"question": "q", "choices": "o"}}, "columns: expected the key 'answer'"),
        (
            {"columns": {"question": 3, "choices": "o", "answer": "a"}},
            r"columns\.question: expected a column's name",
        ),
        ({"columns": "q"}, "columns: expected keys and values"),
        ({"mode": "guess"}, "mode: expected one of continuation, letter, got 'guess'"),
        ({"normalise": "words"}, "normalise: expected one of"),
        ({"list_choices": "no"}, "list_choices: expected one of False, True"),
        ({"prompt_version": 99}, "prompt_version: expected one of 1, got 99"),
        ({"mode": "letter", "list_choices": False}, "mode: expected list_choices true"),
        ({"hub": {"path": 7}}, r"hub\.path: expected text"),
        ({"wheel": {"name": "w", "files": ["a"]}}, r"wheel\.files: expected a path for each split"),
    ],
)
def test_a_bad_task_file_is_refused_by_its_key(tmp_path: Path, changes: dict, message: str) -> None:
    # Oracle: the key that was spoilt, and the file, in the message.
    with pytest.raises(InputError, match=rf"own\.yaml: .*{message}"):
        load_task(str(own_task(tmp_path, **changes)))


def test_unknown_and_unreadable_tasks_are_refused(tmp_path: Path) -> None:
    # Oracle: the known names, the missing path, the file that is no YAML.
    with pytest.raises(InputError, match=r"expected one of .*arc_easy.*, got 'arc_hard'"):
        load_task("arc_hard")
    with pytest.raises(InputError, match=r"task: expected an existing file, got .*none\.yaml"):
        load_task(str(tmp_path / "none.yaml"))
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(InputError, match=r"broken\.yaml"):
        load_task(str(tmp_path / "broken.yaml"))


def test_the_prompt_hash_hangs_on_prompt_and_scoring_only() -> None:
    # Oracle: the fields that do, and those that do not, change a prompt or a score.
    task = Task("a", Columns("q", "c", "g"))
    assert dataclasses.replace(task, name="b", answer_kind="text").prompt_hash() == task.prompt_hash()
    other = [{"mode": "letter"}, {"list_choices": False}, {"normalise": "bytes"}, {"normalise": "tokens"}]
    hashes = {dataclasses.replace(task, **change).prompt_hash() for change in other}  # type: ignore[arg-type]
    assert len(hashes | {task.prompt_hash()}) == 5


def test_more_choices_than_letters_cannot_be_listed() -> None:
    # Oracle: 27 choices, 26 letters.
    sample = Sample("t", "test", "Which?", tuple(map(str, range(27))), 0)
    with pytest.raises(ValueError, match="choices: expected at most 26 to list, got 27"):
        Task("t", Columns("q", "c", "g")).query(sample)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=26, unique=True), st.data())
def test_order_is_a_permutation_and_scores_go_to_their_choices(choices: list[str], data: st.DataObject) -> None:
    # Oracle: score j is j, so choice order[j] must have it.
    answer = data.draw(st.integers(0, len(choices) - 1))
    query = Task("t", Columns("q", "c", "g"), mode="letter").query(Sample("t", "test", "Q?", tuple(choices), answer))
    scores = query.choice_scores([float(j) for j in range(len(choices))], [1] * len(choices))
    assert [scores[i] for i in query.order] == list(range(len(choices)))
    assert sorted(query.order) == list(range(len(choices)))
