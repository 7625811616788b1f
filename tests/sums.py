"""A tiny project of free answers: a model that emits digits and line ends only, so that some chains are right."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from data.prompts import Prompt
from data.sample import Sample, write_samples
from data.sources import Columns
from data.tasks import Task, TaskSet, load_task, write_tasks
from tests.tiny import tiny_model, tiny_samples, tiny_tokenizer

SUMS = Task(
    "sums",
    Columns("q", "a", metadata={"difficulty": "level"}),
    answer_kind="text",
    mode="exact",
    max_new_tokens=4,
    prompt=Prompt(cue=""),
)
LETTERS = load_task("arc_easy", "letter")


def digit_model(seed: int = 9) -> PreTrainedModel:
    """Return a random llama whose greedy decoding emits 1, 2 and line ends only: all other logits are 0 or less."""
    model = tiny_model("llama", seed=seed)
    kept = tiny_tokenizer()("12\n")["input_ids"]
    for token, row in enumerate(model.get_output_embeddings().weight.data):
        if token not in kept:
            row.zero_()
    return model


def sums(split: str, count: int) -> list[Sample]:
    """Return questions whose answers are one or two of the digits that the model emits."""
    answers = ("1", "2", "12", "21")
    return [
        Sample("sums", split, f"What is {split} number {i}?", (), answers[i % 4], {"difficulty": i % 3})
        for i in range(count)
    ]


def write_sums(folder: Path, count: int = 8, letters: int = 0) -> Path:
    """Write `model/` and `data/` with a train split of sums, and of letter questions beside them."""
    digit_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "data").mkdir()
    tasks = [SUMS, LETTERS] if letters else [SUMS]
    write_tasks(folder / "data", TaskSet.of(tasks))
    write_samples(folder / "data" / "train.jsonl", [*sums("train", count), *tiny_samples("train", letters)])
    return folder
