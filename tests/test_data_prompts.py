"""Prompts: some written by hand, and goldens of every shipped task, style, number of examples and mode.

The goldens are what this test renders of tests/made_up.py; after a wanted change write them anew, and read the diff:
COLA_UPDATE_GOLDENS=1 .venv/bin/python -m pytest tests/test_data_prompts.py
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.prompts import Prompt
from data.tasks import Task, known_tasks, load_task
from router.validation import InputError, from_plain
from tests.made_up import ROWS
from tests.tiny import tiny_tokenizer

GOLDENS = Path(__file__).parent / "golden" / "prompts.json"
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FREE_FORM = {"free_form": True, "prompt": {"example": "solution"}}


def variants(name: str) -> dict[str, dict[str, Any]]:
    """The ways in which a task is asked: changes of its file, by a name."""
    if load_task(name).has_choices:
        return {"continuation": {"mode": "continuation"}, "letter": {"mode": "letter"}}
    boxed = {"mode": "exact", "prompt": {"opening": "\\boxed{"}}
    if name not in ("gsm8k", "math"):
        return {"exact": {"mode": "exact"}}
    return {"exact": {"mode": "exact"}, "exact, boxed": boxed, "generate, free form": {"mode": "generate", **FREE_FORM}}


def asked(task: Task, shots: int, template: str | None = TEMPLATE) -> dict[str, Any]:
    """A task's made-up question with examples, as a model reads it, and the continuations that are scored."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    first, *others = [task.sample(row, "train") for row in ROWS[task.name]]
    query = dataclasses.replace(task, examples=tuple(others[:shots])).query(first)
    return {"prompt": task.prompt.text(query, tokenizer), "continuations": list(query.continuations)}


def rendered() -> dict[str, dict[str, Any]]:
    """Every golden, by task, style, number of examples and mode; all styles with and without examples of two tasks."""
    found = {}
    for name in known_tasks():
        for style in ("base", "chat"):
            for mode, changes in variants(name).items():
                prompt = {**changes.get("prompt", {}), "style": style}
                task = load_task(name, **{**changes, "prompt": prompt})
                few = (0, 2) if name in ("arc_easy", "gsm8k") else (2,) if style == "base" else (0,)
                for shots in few if task.columns.image is None else (0,):
                    found[f"{name}, {style}, {shots} shots, {mode}"] = asked(task, shots)
    return found


def test_every_shipped_prompt_is_as_its_golden() -> None:
    # Oracle: golden, tests/golden/prompts.json, made by this module (see its docstring) and read by eye.
    found = rendered()
    if os.environ.get("COLA_UPDATE_GOLDENS"):
        GOLDENS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    goldens = json.loads(GOLDENS.read_text(encoding="utf-8"))
    assert list(found) == list(goldens)
    for key, value in found.items():
        assert value == goldens[key], key


BY_HAND = [
    (
        "arc_easy",
        {},
        1,
        "Question: Which animal lays eggs?\nAnswer: hen\n\nQuestion: What boils at 100 degrees Celsius?\nAnswer:",
        [" iron", " water", " salt"],
    ),
    (
        "gsm8k",
        {"prompt": {"opening": "\\boxed{"}},
        1,
        "Question: Bo had 9 pens and lost 4. How many are left?\nAnswer: \\boxed{5}\n\n"
        "Question: Ann has 2 bags of 600 nuts. How many nuts?\nAnswer: \\boxed{",
        ["1200}"],
    ),
    (
        "gsm8k",
        {"prompt": {"style": "chat", "opening": "\\boxed{", "system": "Be brief."}},
        0,
        "<|system|>\nBe brief.</s>\n<|user|>\nQuestion: Ann has 2 bags of 600 nuts. How many nuts?\n"
        "Give the final answer only, in \\boxed{}.</s>\n<|assistant|>\n\\boxed{",
        ["1200}"],
    ),
    (
        "gsm8k",
        {"mode": "generate", "free_form": True, "prompt": {"example": "solution"}},
        1,
        "Question: Bo had 9 pens and lost 4. How many are left?\nAnswer: 9 - 4 = <<9-4=5>>5 pens\n#### 5\n\n"
        "Question: Ann has 2 bags of 600 nuts. How many nuts?\nAnswer:",
        [],
    ),
]


@pytest.mark.parametrize(("name", "changes", "shots", "prompt", "continuations"), BY_HAND)
def test_prompts_written_by_hand(
    name: str, changes: dict[str, Any], shots: int, prompt: str, continuations: list[str]
) -> None:
    # Oracle: the texts above.
    assert asked(load_task(name, **changes), shots) == {"prompt": prompt, "continuations": continuations}


def test_a_listed_choice_stands_under_the_letter_that_is_scored() -> None:
    # Oracle: the lines of the prompt, read back; and the examples' letters, each that of its right choice.
    task = load_task("commonsense_qa", "letter")
    first, *others = [task.sample(row, "train") for row in ROWS["commonsense_qa"]]
    query = dataclasses.replace(task, examples=tuple(others)).query(first)
    lines = query.asked.splitlines()
    assert lines[0] == "Question: Where is a boat kept?"
    assert lines[1:] == [f" {'ABCDE'[j]}. {first.choices[i]}" for j, i in enumerate(query.order)]
    assert query.continuations == (" A", " B", " C", " D", " E")
    for example, (shown, answered) in zip(others, query.examples, strict=True):
        letter = answered.removeprefix("Answer: ")
        assert f" {letter}. {example.gold}" in shown.splitlines()


def test_braces_in_a_question_stay_as_they_are() -> None:
    # Oracle: the question's own text, with what looks like a field of the template.
    task = load_task("boolq")
    row = ROWS["boolq"][0] | {"question": "is {context} a {set} or {0}", "passage": "{question} \\frac{1}{2}"}
    expected = "{question} \\frac{1}{2}\nQuestion: is {context} a {set} or {0}?"
    assert task.query(task.sample(row, "test")).asked == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "poem"}, "style: expected one of base, chat"),
        ({"ask": "Well?"}, r"prompt\.ask: expected the field \{question\}, got 'Well\?'"),
        ({"choice": "{letter}"}, r"prompt\.choice: expected the field \{text\}"),
        ({"cue": 3}, "cue: expected text, got 3"),
        ({"end": ""}, "end: expected text that is not empty, got ''"),
        ({"system": "Be brief."}, r"prompt\.system: expected it in style chat only"),
    ],
)
def test_a_bad_wording_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    # Oracle: the key that was spoilt, in the message.
    with pytest.raises(InputError, match=message):
        from_plain(Prompt, changes)
