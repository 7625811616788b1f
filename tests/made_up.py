"""Made-up rows in the columns of every shipped task's data set; no row of a real data set stands here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def _lettered(question: str, texts: list[str], key: str, column: str = "question") -> dict[str, Any]:
    labels = ["1", "2", "3", "4", "5"] if key.isdigit() else ["A", "B", "C", "D", "E"]
    return {
        "id": question[:12],
        column: question,
        "choices": {"text": texts, "label": labels[: len(texts)]},
        "answerKey": key,
    }


_SCIENCE = [
    _lettered("What boils at 100 degrees Celsius?", ["iron", "water", "salt"], "B"),
    _lettered("Which animal lays eggs?", ["hen", "cow", "dog", "cat"], "A"),
    _lettered("Which of these is a metal?", ["oak", "wool", "tin", "wax"], "3"),
]
_SUMS = [
    {"question": "Add: 2 + 3 =", "answer": "5", "difficulty": 1, "metadata": {"terms": 2}},
    {"question": "Add: 40 - 50 =", "answer": "-10", "difficulty": 2, "metadata": {"terms": 2}},
    {"question": "Add: 1 + 2 + 3 =", "answer": "6", "difficulty": 3, "metadata": {"terms": 3}},
]
_WORDS = [
    {"question": f"Spell backward: {word}", "answer": word[::-1], "difficulty": i, "metadata": {}}
    for i, word in enumerate(["moon", "river", "glasses"], start=1)
]
_DRAWN = {"kind": "colour", "difficulty": 1}
_SCHOOL = {"subject": "natural science", "topic": "matter", "grade": "grade 4"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": _SCIENCE,
    "arc_challenge": _SCIENCE,
    "commonsense_qa": [
        _lettered("Where is a boat kept?", ["garage", "harbour", "attic", "oven", "purse"], "B"),
        _lettered("What does a baker need?", ["flour", "sand", "rope", "coal", "glue"], "A"),
        _lettered("Why do people sleep?", ["to fly", "to win", "to rest", "to read", "to pay"], "C"),
    ],
    "openbookqa": [
        _lettered("A candle burns because of", ["wax", "stone", "snow", "glass"], "A", "question_stem"),
        _lettered("Snow melts in", ["winter nights", "caves", "spring", "freezers"], "C", "question_stem"),
        _lettered("Fish breathe with", ["gills", "leaves", "wings", "roots"], "A", "question_stem"),
    ],
    "piqa": [
        {"goal": "Keep soup warm.", "sol1": "Put a lid on it.", "sol2": "Put a hat on it.", "label": 0},
        {"goal": "Cut bread", "sol1": "Use a spoon.", "sol2": "Use a knife.", "label": 1},
        {"goal": "How do you dry a plate?", "sol1": "With water.", "sol2": "With a towel.", "label": 1},
    ],
    "boolq": [
        {"question": "is the made up lake deep", "passage": "The made-up lake is 90 m deep.", "answer": True},
        {"question": "can the bridge be crossed", "passage": "The bridge fell in May.", "answer": False},
        {"question": "is the tower old", "passage": "It was built long ago.\nIt stands.", "answer": True},
    ],
    "gsm8k": [
        {
            "question": "Ann has 2 bags of 600 nuts. How many nuts?",
            "answer": "2 * 600 = <<2*600=1200>>1200\n#### 1,200",
        },
        {"question": "Bo had 9 pens and lost 4. How many are left?", "answer": "9 - 4 = <<9-4=5>>5 pens\n#### 5"},
        {"question": "A tram costs $3. What do 4 rides cost?", "answer": "4 * 3 = $<<4*3=12>>12\n#### $12"},
    ],
    "math": [
        {
            "problem": "What is $\\frac{1}{2}$ of $\\frac{3}{2}$?",
            "level": "Level 1",
            "type": "Prealgebra",
            "solution": "It is $\\frac12\\cdot\\frac32=\\boxed{\\frac{3}{4}}$.",
        },
        {"problem": "Solve $x+1=3$.", "level": "Level 2", "type": "Algebra", "solution": "So $x=\\boxed{2}$."},
        {"problem": "Count the set.", "level": "Level ?", "type": "Geometry", "solution": "It has $\\boxed{ 7 }$."},
    ],
    "dart_math": [
        {"query": "What is $2^3$?", "gt_ans": "8", "resp": "It is 8.", "query_metadata": {"level": 1}},
        {"query": "Solve $2x=5$.", "gt_ans": "\\frac{5}{2}", "resp": "$x=2.5$", "query_metadata": {"level": 4}},
        {"query": "Name a prime above 5.", "gt_ans": "7", "resp": "7", "query_metadata": {"level": None}},
    ],
    "dart_gsm8k": [
        {"query": "Two dozen eggs, how many?", "gt_ans": "24", "resp": "24", "query_metadata": {"n_step": 1}},
        {"query": "Half of 30?", "gt_ans": "15", "resp": "15", "query_metadata": {"n_step": 1}},
        {"query": "3 weeks in days?", "gt_ans": "21", "resp": "21", "query_metadata": {"n_step": 2}},
    ],
    "chain_sum": _SUMS,
    "basic_arithmetic": _SUMS,
    "products": _SUMS,
    "spell_backward": _WORDS,
    "reverse_words": _WORDS,
    "shapes": [
        {"question": f"Which colour is the {shape}?", "choices": ["blue", "red"], "answer": "red", **_DRAWN}
        for shape in ("bar", "cross", "square")
    ],
    "science_qa": [
        {"question": question, "choices": ["ice", "oak", "tin"], "answer": answer, **_SCHOOL}
        for answer, question in enumerate(["Which is frozen?", "Which grows?", "Which rings?"])
    ],
    "sst2": [{"sentence": "a dull film", "label": 0, "idx": 7}],
    "mrpc": [{"sentence1": "He left early.", "sentence2": "Early he left.", "label": 1, "idx": 7}],
    "rte": [{"sentence1": "All left.", "sentence2": "Nobody stayed.", "label": 0, "idx": 7}],
    "social_iqa": [
        {"context": "Jo fell.", "question": "How is Jo?", "label": "1"}
        | {"answerA": "hurt", "answerB": "glad", "answerC": "proud"}
    ],
    "sciq": [
        {"question": "What melts?", "correct_answer": "ice"} | {f"distractor{i}": f"stone {i}" for i in (1, 2, 3)}
    ],
    "trivia_qa": [
        {"question_id": "tc_1", "question": "Who wrote Emma?", "search_results": {"rank": []}}
        | {"answer": {"value": "Jane Austen", "aliases": ["Austen", "Jane Austen", " "]}}
    ],
}
"""Three rows a task: a question, and two that serve as examples."""


def own_task(tmp_path: Path, **changes: object) -> Path:
    """Write a task's YAML: multiple-choice with the answer's index, but for the changes."""
    value: dict[str, object] = {
        "name": "own",
        "columns": {"question": "q", "choices": "options", "answer": "gold"},
        "answer_kind": "index",
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(value | changes))
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any] | bytes]) -> Path:
    """Write rows as JSON Lines, those that are bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path
