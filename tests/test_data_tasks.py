"""Tasks: files, columns of several data sets, how a sample is asked, and what is refused."""

import dataclasses
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.prompts import Query
from data.sample import Sample
from data.sources import Columns, PartOfColumn
from data.tasks import Task, TaskSet, known_tasks, load_task, read_tasks, write_tasks
from router.validation import InputError
from tests.made_up import ROWS, own_task

ROW = ROWS["arc_easy"][0]
FREE = Columns("q", "a")


def test_every_shipped_task_loads_in_the_modes_of_its_kind() -> None:
    # Oracle: the mode that was asked for; choices are compared or listed, free answers are matched or graded.
    assert {"arc_easy", "boolq", "dart_math", "gsm8k", "math", "piqa", "chain_sum"} <= set(known_tasks())
    for name in known_tasks():
        assert load_task(name).name == name
        modes = ("continuation", "letter", "generate") if load_task(name).has_choices else ("exact", "generate")
        assert [load_task(name, mode).mode for mode in modes] == list(modes)
        with pytest.raises(InputError, match="mode: expected"):
            load_task(name, "exact" if load_task(name).has_choices else "letter")


SAMPLES = {
    "arc_easy": ("What boils at 100 degrees Celsius?", ("iron", "water", "salt"), 1, {"source_id": "What boils a"}),
    "piqa": ("Keep soup warm.", ("Put a lid on it.", "Put a hat on it."), 0, {}),
    "boolq": ("is the made up lake deep", ("no", "yes"), 1, {}),
    "gsm8k": (
        "Ann has 2 bags of 600 nuts. How many nuts?",
        (),
        "1200",
        {"solution": "2 * 600 = <<2*600=1200>>1200\n#### 1,200"},
    ),
    "math": (
        "What is $\\frac{1}{2}$ of $\\frac{3}{2}$?",
        (),
        "\\frac{3}{4}",
        {"difficulty": 1, "subject": "Prealgebra", "solution": "It is $\\frac12\\cdot\\frac32=\\boxed{\\frac{3}{4}}$."},
    ),
    "dart_math": ("What is $2^3$?", (), "8", {"difficulty": 1}),
    "chain_sum": ("Add: 2 + 3 =", (), "5", {"difficulty": 1}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_row_of_the_hub_becomes_a_sample(name: str) -> None:
    # Oracle: the samples written by hand.
    question, choices, answer, metadata = SAMPLES[name]
    context = "The made-up lake is 90 m deep." if name == "boolq" else ""
    expected = Sample(name, "train", question, choices, answer, metadata, context)
    assert load_task(name).sample(ROWS[name][0], "train") == expected


def test_every_shipped_task_takes_its_made_up_rows() -> None:
    # Oracle: every task has rows, whose samples keep no other metadata than the YAML names.
    assert set(ROWS) == set(known_tasks())
    for name, rows in ROWS.items():
        task = load_task(name)
        named = {*task.columns.metadata, *(["source_id"] if task.columns.id else [])}
        assert all(set(task.sample(row, "test").metadata) == named for row in rows)


def test_an_unknown_difficulty_is_none_and_keep_leaves_it_out() -> None:
    # Oracle: the rows' levels 1, 2 and "Level ?".
    task = load_task("math", keep={"difficulty": [2, 3]})
    samples = [task.sample(row, "test") for row in ROWS["math"]]
    assert [sample.metadata["difficulty"] for sample in samples] == [1, 2, None]
    assert [task.keeps(sample) for sample in samples] == [False, True, False]
    part = PartOfColumn("level", r"Level( \d)?")  # the group may match nothing
    assert Columns("q", "a", metadata={"difficulty": part}).kept_metadata({"level": "Level ?"}) == {"difficulty": None}


def test_an_answer_key_of_digits_means_the_same_as_letters() -> None:
    # Oracle: the sample of the row with letters.
    digits = ROW | {"answerKey": "2", "choices": {"text": ["iron", "water", "salt"], "label": ["1", "2", "3"]}}
    assert load_task("arc_easy").sample(digits, "test") == load_task("arc_easy").sample(ROW, "test")


def test_a_continuation_prompt_can_list_the_choices(tmp_path: Path) -> None:
    # Oracle: the prompt written by hand.
    task = load_task(str(own_task(tmp_path, list_choices=True)))
    query = task.query(task.sample({"q": "Two?", "options": ["1 + 1", "1 + 2"], "gold": 0}, "test"))
    assert query.asked == "Question: Two?\n A. 1 + 1\n B. 1 + 2"
    assert query.continuations == (" 1 + 1", " 1 + 2")


def test_a_generated_letter_is_asked_for_as_a_scored_one() -> None:
    # Oracle: the query of mode letter; nothing is scored.
    scored, generated = (load_task("openbookqa", mode) for mode in ("letter", "generate"))
    sample = scored.sample(ROWS["openbookqa"][0], "test")
    expected = dataclasses.replace(scored.query(sample), continuations=(), normaliser=())
    assert generated.query(sample) == expected


def test_the_right_letter_is_evenly_spread() -> None:
    # Oracle: 2000 draws of 1/4, five standard deviations (19.4) on either side.
    task = load_task("arc_easy", "letter")
    samples = [Sample("arc_easy", "train", f"Question {i}?", ("w", "x", "y", "z"), 0) for i in range(2000)]
    spread = Counter(task.query(sample).order.index(sample.answer) for sample in samples)
    assert all(abs(spread[letter] - 500) < 97 for letter in range(4))


@pytest.mark.parametrize("mode", ["continuation", "letter", "generate"])
def test_a_shuffle_lists_the_same_choices_in_another_order(mode: str) -> None:
    # Oracle: for every sample another permutation than the usual one; two shuffles differ in some sample.
    task = load_task("arc_easy", mode, list_choices=True)
    samples = [Sample("arc_easy", "test", f"Question {i}?", ("w", "x", "y", "z"), 0) for i in range(50)]
    orders = {
        shuffle: [dataclasses.replace(task, shuffle=shuffle).query(sample).order for sample in samples]
        for shuffle in (0, 1, 2)
    }
    assert all(usual != other for usual, other in zip(orders[0], orders[1], strict=True))
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders[1])
    assert orders[1] != orders[2]


@pytest.mark.parametrize("shuffle", [0, 3])
@pytest.mark.parametrize("choices", [("w", "x", "y", "z"), ("w", "x", "y"), ("w", "x")])
def test_variants_put_the_right_choice_at_every_letter_and_never_ask_the_same_again(
    shuffle: int, choices: tuple[str, ...]
) -> None:
    # Oracle: permutations; n choices have n rotations, and as many of the opposite order, which of two are the same.
    task, n = load_task("arc_easy", "letter", shuffle=shuffle), len(choices)
    several = 2 * n if n > 2 else n
    for i in range(8):
        sample = Sample("arc_easy", "test", f"Question {i}?", choices, 0)
        orders = [replace(task, variant=variant).query(sample).order for variant in range(several)]
        assert orders[0] == task.query(sample).order
        assert {order.index(0) for order in orders[:n]} == set(range(n))
        assert all(tuple(orders[v][(j - v) % n] for j in range(n)) == orders[0] for v in range(n))
        assert len({*orders}) == several
        assert all(sorted(order) == list(range(n)) for order in orders)
        with pytest.raises(ValueError, match=rf"variant: expected below {several} for arc_easy, with {n} listed"):
            replace(task, variant=several).query(sample)


def test_wordings_take_turns_and_no_pair_of_order_and_wording_comes_twice() -> None:
    # Oracle: by hand for free answers; for two choices and four wordings all eight pairs.
    task = load_task("chain_sum")
    sample = task.sample(ROWS["chain_sum"][0], "test")
    asked = [replace(task, variant=variant).query(sample).asked for variant in range(3)]
    assert asked == ["Question: Add: 2 + 3 =", "Problem: Add: 2 + 3 =", "Solve this: Add: 2 + 3 ="]
    reading = load_task("boolq", "letter")
    sample = reading.sample(ROWS["boolq"][0], "test")
    queries = [replace(reading, variant=variant).query(sample) for variant in range(8)]
    assert len({query.asked for query in queries}) == 8
    assert [query.order[0] for query in queries[:4]] in ([0, 1, 0, 1], [1, 0, 1, 0])
    with pytest.raises(InputError, match="variant: expected below 8 for boolq, with 2 listed choices and 4 wordings"):
        TaskSet.of(reading).varied(8)


def test_examples_take_turns_in_variants() -> None:
    # Oracle: the usual prompt's examples, rotated by hand; what varies nothing else has as many variants as examples.
    task = load_task("arc_easy", list_choices=False)
    first, *others = [task.sample(row, "train") for row in ROWS["arc_easy"]]
    with pytest.raises(InputError, match="variant: expected below 1 for arc_easy, with no listed choices"):
        TaskSet.of(task).varied(1)
    shown = replace(task, examples=tuple(others))
    usual, turned = shown.query(first).examples, TaskSet.of(shown).varied(1)["arc_easy"].query(first).examples
    assert turned == usual[::-1]


def test_the_prompts_hash_is_as_before_there_were_variants_and_each_variant_has_its_own() -> None:
    # Oracle: hashes noted before tasks had variants and wordings.
    plain, letters = load_task("chain_sum", max_new_tokens=32), load_task("arc_easy", "letter")  # as it was then
    assert plain.prompt_hash().startswith("3db5e0a63a14")
    assert letters.prompt_hash().startswith("14d8e0a60f7e")
    for task in (plain, letters):
        hashes = {replace(task, variant=variant).prompt_hash() for variant in range(3)}
        assert len(hashes) == 3
    other = replace(plain, prompt=replace(plain.prompt, wordings=("Sum: {question}",)))
    assert other.prompt_hash() == plain.prompt_hash()
    assert replace(other, variant=1).prompt_hash() != replace(plain, variant=1).prompt_hash()


def test_scores_come_back_in_the_order_of_the_choices() -> None:
    # Oracle: divisions done by hand.
    query = Query("p", "Answer:", (" A", " B", " C"), (2, 0, 1), (1.0, 2.0, 4.0))
    assert query.choice_scores([-1.0, -2.0, -8.0], [1, 1, 1]) == (-1.0, -2.0, -1.0)
    assert dataclasses.replace(query, normaliser=None).choice_scores([-1.0, -2.0, -8.0], [1, 1, 2]) == (-2, -4, -1)


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
        ("label", {"choices": "o.t", "labels": "o.l"}, {"o": {"t": ["no", "yes"], "l": ["n", "y"]}, "gold": "y"}),
        ("text", {"choices": "options"}, {"options": ["no", "yes"], "gold": "yes"}),
        ("boolean", {}, {"gold": True}),
    ],
)
def test_own_data_by_yaml_alone(tmp_path: Path, kind: str, columns: dict, row: dict) -> None:
    # Oracle: every row means the same sample.
    fixed = {} if columns else {"fixed_choices": ["no", "yes"]}
    path = own_task(tmp_path, answer_kind=kind, columns={"question": "q", "answer": "gold", **columns}, **fixed)
    assert load_task(str(path)).sample({"q": "Is it?", **row}, "train") == Sample(
        "own", "train", "Is it?", ("no", "yes"), 1
    )


@pytest.mark.parametrize(
    ("changes", "row", "answer"),
    [
        ({}, {"gold": " 1,200 "}, "1200"),
        ({}, {"gold": 12}, "12"),
        ({}, {"gold": 0.5}, "0.5"),
        ({"answer_pattern": "= (.+)"}, {"gold": "a = 1, so\nb = 2"}, "2"),
        ({"answer_kind": "boxed"}, {"gold": "$\\boxed{1}$ then $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
    ],
)
def test_own_free_answers_by_yaml_alone(tmp_path: Path, changes: dict, row: dict, answer: str) -> None:
    # Oracle: the answer written by hand.
    path = own_task(
        tmp_path, **{"columns": {"question": "q", "answer": "gold"}, "answer_kind": "text", "mode": "exact"} | changes
    )
    assert load_task(str(path)).sample({"q": "How many?", **row}, "test").answer == answer


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("arc_easy", {"question": None}, "column 'question': expected text, got None"),
        ("arc_easy", {"choices": {"text": "iron", "label": ["A"]}}, r"column 'choices\.text': expected a list"),
        ("arc_easy", {"choices": {"text": ["a", "b"], "label": ["A"]}}, r"column 'choices\.label': expected 2 labels"),
        ("boolq", {"answer": "yes"}, "column 'answer': expected true or false, got 'yes'"),
        ("piqa", {"label": -1}, "column 'label': expected one of 0, 1, got -1"),
        ("gsm8k", {"answer": "It is 5."}, r"column 'answer': expected a match of ####.*, got 'It is 5\.'"),
        ("math", {"solution": "So $\\boxed{2$."}, r"column 'solution': expected a .boxed\{\.\.\.\}, got"),
    ],
)
def test_a_bad_row_is_refused_by_its_column(name: str, change: dict, message: str) -> None:
    # Oracle: the column that was spoilt, in the message; tests/test_data_prepare.py has more.
    with pytest.raises(ValueError, match=message):
        load_task(name).sample(ROWS[name][0] | change, "train")


def test_the_prompt_hash_hangs_on_prompt_and_scoring_only() -> None:
    # Oracle: the fields that do, and those that do not, change a prompt or a score.
    task = Task("a", Columns("q", "g", "c"))
    assert dataclasses.replace(task, name="b", answer_kind="text").prompt_hash() == task.prompt_hash()
    other = [
        {"mode": "letter"},
        {"list_choices": False},
        {"normalise": "bytes"},
        {"normalise": "tokens"},
        {"shuffle": 1},
        {"max_prompt_tokens": 9},
        {"prompt": dataclasses.replace(task.prompt, style="chat")},
        {"prompt": dataclasses.replace(task.prompt, ask="Q: {question}")},
        {"examples": (Sample("a", "train", "Who?", ("she", "he"), 0),)},
    ]
    hashes = {dataclasses.replace(task, **change).prompt_hash() for change in other}  # type: ignore[arg-type]
    assert len(hashes | {task.prompt_hash()}) == len(other) + 1


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=26, unique=True), st.data())
def test_order_is_a_permutation_and_scores_go_to_their_choices(choices: list[str], data: st.DataObject) -> None:
    # Oracle: score j is j, so choice order[j] must have it.
    answer = data.draw(st.integers(0, len(choices) - 1))
    query = Task("t", Columns("q", "g", "c"), mode="letter").query(Sample("t", "test", "Q?", tuple(choices), answer))
    scores = query.choice_scores([float(j) for j in range(len(choices))], [1] * len(choices))
    assert [scores[i] for i in query.order] == list(range(len(choices)))
    assert sorted(query.order) == list(range(len(choices)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "expected no field colour, got one"),
        ({"max-new-tokens": 3, "path": "x"}, "expected no field max-new-tokens, got one"),
        ({"hub": {"subset": "x"}}, r"expected the field hub\.path, got none"),
        ({"columns": {"question": "q", "choices": "o"}}, r"expected the field columns\.answer, got none"),
        ({"mode": "guess"}, "mode: expected one of continuation, letter, exact, generate, got 'guess'"),
        ({"real_mode": "generate"}, "real_mode: expected listed choices and mode letter where a letter is generated"),
        ({"mode": "letter", "real_mode": "continuation"}, "real_mode: expected generate or the mode letter itself"),
        ({"prompt": "Question: {question}"}, "prompt: expected an object, got 'Question"),
        ({"prompt": {"ask": "{context} {question}"}}, r"prompt\.ask: expected the field \{context\} exactly where"),
        ({"prompt": {"wordings": ["What?"]}}, r"prompt\.wordings: expected the field \{question\}, got 'What\?'"),
        ({"prompt": {"wordings": ["Question: {question}"]}}, "prompt.wordings: expected wordings unlike each other"),
        ({"fixed_choices": [False, True]}, r"fixed_choices\[0\]: expected text, got False"),
        ({"answer_kind": "boolean"}, "fixed_choices: expected two with answer_kind boolean, got 0"),
        ({"keep": {"level": [1]}}, r"keep: expected fields of columns\.metadata, got 'level'"),
        ({"answer_pattern": "("}, "answer_pattern: expected a regular expression"),
        ({"shuffle": 1, "list_choices": False}, "shuffle: expected 0 for own, whose prompt lists no choices"),
        ({"free_form": True}, "free_form: expected mode generate"),
        ({"wheel": {"name": "w", "files": {}, "frame": "x"}}, r"wheel\.frame: expected text with the field"),
        ({"mode": "letter", "list_choices": False}, "mode: expected list_choices true"),
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


def test_the_tasks_of_a_folder_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    # Oracle: the tasks themselves, examples, integer difficulties and all; and names that are joined in their order.
    made = [load_task(name) for name in known_tasks()]
    shown = tuple(made[0].sample(row, "train") for row in ROWS[made[0].name])
    made[0] = dataclasses.replace(made[0], examples=shown)
    tasks = TaskSet.of(made)
    write_tasks(tmp_path, tasks)
    assert read_tasks(tmp_path) == tasks
    assert read_tasks(tmp_path).prompt_hash() == tasks.prompt_hash()
    assert tasks.name == "+".join(known_tasks())


def test_a_folder_without_sound_tasks_is_refused(tmp_path: Path) -> None:
    # Oracle: no file, another schema, a spoilt task; and two tasks of one name.
    with pytest.raises(InputError, match=r"data: expected an existing file, got .*tasks\.json"):
        read_tasks(tmp_path)
    write_tasks(tmp_path, TaskSet.of(load_task("boolq")))
    whole = (tmp_path / "tasks.json").read_text()
    for change, message in (('"schema": 9', "schema 1"), ('"schema": 1', r"tasks\.json: mode: expected one of")):
        spoilt = whole.replace('"schema": 1', change).replace('"continuation"', '"guess"')
        (tmp_path / "tasks.json").write_text(spoilt)
        with pytest.raises(InputError, match=message):
            read_tasks(tmp_path)
    with pytest.raises(InputError, match="task: expected tasks of different names, got boolq, boolq"):
        TaskSet.of([load_task("boolq"), load_task("boolq", "letter")])
