"""Task files: what is refused, and tasks that are read back as they were written."""

import dataclasses
from pathlib import Path

import pytest

from data.tasks import TaskSet, known_tasks, load_task, read_tasks, write_tasks
from router.validation import InputError
from tests.made_up import ROWS, own_task


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "expected no field colour, got one"),
        ({"columns": {"question": "q", "choices": "o"}}, r"expected the field columns\.answer, got none"),
        ({"mode": "guess"}, "mode: expected one of continuation, letter, exact, generate, got 'guess'"),
        ({"real_mode": "generate"}, "real_mode: expected listed choices and mode letter where a letter is generated"),
        ({"mode": "letter", "real_mode": "continuation"}, "real_mode: expected generate or the mode letter itself"),
        ({"prompt": "Question: {question}"}, "prompt: expected an object, got 'Question"),
        ({"prompt": {"ask": "{context} {question}"}}, r"prompt\.ask: expected the field \{context\} exactly where"),
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
