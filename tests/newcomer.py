"""What a newcomer has: a tiny chat model, a quiz of their own as a YAML file, and its rows as JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny import save_tiny, tiny_samples, tiny_tokenizer

CHAT = "{% for one in messages %}<s>{{ one['content'] }}</s>{% endfor %}<s>"
QUIZ = "name: {name}\ncolumns: {{question: q, choices: c, answer: a}}\nanswer_kind: index\n"
ROWS = {"train": 90, "validation": 12, "test": 40}


def write_desk(folder: Path, *, chat: bool = True) -> Path:
    """Write `model/`, `quiz.yaml` and `rows/` into a folder."""
    save_tiny(folder / "model")
    if chat:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder / "model")
    (folder / "quiz.yaml").write_text(QUIZ.format(name="quiz"))
    (folder / "rows").mkdir()
    for split, count in ROWS.items():
        rows = [{"q": one.question, "c": one.choices, "a": one.answer} for one in tiny_samples(split, count)]
        (folder / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
