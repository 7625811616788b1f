"""Judging of generated text: which answer it gives, if any, and whether that is the right one."""

from __future__ import annotations

from data.answers import final_answer, folded, parse_letter
from data.generation import Answer
from data.grading import Grader
from data.prompts import Query
from data.sample import Sample
from data.tasks import Task


def is_whole_answer(task: Task, text: str) -> bool:
    """Whether a text generated after the prompt is a whole answer, so that decoding can stop."""
    return task.before_end(text) is not None


def judge(
    task: Task, sample: Sample, query: Query, target: int | str, answer: Answer, grader: Grader
) -> tuple[int | str | None, bool]:
    """Return what was answered (a choice's index, text, or None: no answer could be read), and whether it is right.

    Args:
        task: the task, which says where the answer stands and how it is compared.
        sample: the sample.
        query: how it was asked; its order says which letter means which choice.
        target: the answer that counts as right.
        answer: what was generated after the prompt.
        grader: judges mathematical equivalence.
    """
    text = _answer_text(task, answer)
    if text is None or not text.strip():
        return None, False
    if task.has_choices:
        letter = parse_letter(text, len(sample.choices))
        return (None, False) if letter is None else (query.order[letter], query.order[letter] == target)
    text = text.strip()
    gold = str(target)
    right = grader.equal(gold, text) if task.grading == "math" else folded(gold) == folded(text)
    return text, right


def _answer_text(task: Task, answer: Answer) -> str | None:
    before_end = task.before_end(answer.text)
    text = answer.text if before_end is None else before_end
    if task.free_form:
        return final_answer(text)
    if task.has_choices and not task.prompt.opening:
        return text  # a letter is read strictly, whatever follows it
    if before_end is None and (not answer.complete or task.prompt.opening.endswith("{")):
        return None  # cut off, or a box that was never closed
    return text
