"""Answers in generated text: a letter, a box, what stands before a stop, a number.

Pure functions of text, each linear in its length. None always means that the text does not keep the form; it is the
caller's to count that apart from a wrong answer. Only `final_answer` and `clean_number` strip what they return.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

from data.sample import Sample

_LETTER = re.compile(
    r"""
    \s*+(?:(?i:answer\s*+:|the\s++(?:correct\s++)?+answer\s++is\b\s*+:?+)\s*+)?+
    (?:
        \((?P<parentheses>[A-Z])\)
      | (?:\*\*(?P<bold>[A-Z])\*\*|\\boxed\{(?P<box>[A-Z])\}|(?P<bare>[A-Z]))
        (?:[.):,]|(?=[^\S\n]*+(?:\n|\Z)))
    )
    """,
    re.VERBOSE,
)
_ANOTHER = re.compile(
    r"""
    [\s.):,;/&]*+(?:(?:and|or)\b\s*+)?+
    (?:\((?P<parentheses>[A-Z])\)|\*\*(?P<bold>[A-Z])\*\*|\\boxed\{(?P<box>[A-Z])\}
      |(?P<bare>[A-Z])(?=[.):,;/&]|\s++(?:and|or)\b|\s*+\Z))
    """,
    re.VERBOSE,
)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*+\{|\\.|[{}]", re.DOTALL)
_MARKER = re.compile(r"\banswer(?:[^\S\n]++is\b[^\S\n]*+:?+|[^\S\n]*+:)", re.IGNORECASE)
_NUMBER = re.compile(r"([+-]?)(?:\\?\$)?([+-]?)([0-9]{1,3}(?:,[0-9]{3})++|[0-9]++|(?=\.[0-9]))(\.[0-9]++)?\.?")


def parse_letter(text: str, count: int) -> int | None:
    r"""Return the index of the letter that a generated answer names, None where it keeps no accepted form.

    Accepted: white space, "Answer:", "The answer is" or "The correct answer is" or nothing, then an upper-case letter
    as `A`, `(A)`, `**A**` or `\boxed{A}`, which ends its line or is followed by one of `.):,` (after `(A)` anything may
    come). Two letters named beside each other ("A, B", "(A) or (B)") are refused; "B. A dog" names one.

    Raises:
        ValueError: where `count`, the number of choices, is not in 1..26.
    """
    if not 1 <= count <= len(string.ascii_uppercase):
        raise ValueError(f"count: expected 1..{len(string.ascii_uppercase)}, got {count}")
    found = _LETTER.match(text)
    if found is None:
        return None
    named = _named(found)
    line = text[found.end() :].split("\n", 1)[0]
    other = _ANOTHER.match(line)
    if named >= count or (other is not None and named != _named(other) < count):
        return None
    return named


def _named(match: re.Match[str]) -> int:
    return string.ascii_uppercase.index(next(letter for letter in match.groups() if letter))


def last_boxed(text: str) -> str | None:
    r"""Return the content of the complete `\boxed{...}` or `\fbox{...}` that opens last; None where there is none.

    Braces balance as in TeX: nested ones count, escaped ones (`\{`) do not. A box that never closes is passed over; of
    two nested boxes the inner one opens last.
    """
    opened: list[tuple[int, bool]] = []
    best = (-1, -1)
    for token in _BRACES.finditer(text):
        if token.group().endswith("{") and token.group() != r"\{":
            opened.append((token.end(), token.group() != "{"))
        elif token.group() == "}" and opened:
            start, boxed = opened.pop()
            if boxed and start > best[0]:
                best = (start, token.start())
    return text[slice(*best)] if best[0] >= 0 else None


def until_closed(text: str) -> str | None:
    r"""Return what stands before the first unbalanced, unescaped `}`; None while it has not come.

    For text generated after a forced opening `\boxed{`.
    """
    depth = 0
    for token in _BRACES.finditer(text):
        if token.group() == "}":
            if depth == 0:
                return text[: token.start()]
            depth -= 1
        elif token.group().endswith("{") and token.group() != r"\{":
            depth += 1
    return None


def until_text(text: str, end: str) -> str | None:
    """Return what stands before the first `end`, which is not empty; None while it has not come."""
    before, found, _ = text.partition(end)
    return before if found else None


def final_answer(text: str) -> str | None:
    r"""Return the answer that free text ends in, None where it states none or an empty one.

    The first of these that the text has: its last complete box (see `last_boxed`); what follows its last "#### " to the
    end of the line; what follows its last "answer is", "answer is:" or "answer:" (any case) to the end of the line,
    without a full stop at its end and without `$...$` or `**` around it.
    """
    answer = last_boxed(text)
    if answer is None and (start := text.rfind("#### ")) >= 0:
        answer = text[start + len("#### ") :].split("\n", 1)[0]
    if answer is None:
        marker = None
        for marker in _MARKER.finditer(text):  # noqa: B007 (the last one is wanted)
            pass
        answer = "" if marker is None else _bare(text[marker.end() :].split("\n", 1)[0])
    return answer.strip() or None


def _bare(text: str) -> str:
    """Drop a sentence's full stop, bold and one pair of `$` or `$$` around all of it."""
    text = text.strip().removesuffix(".").removeprefix("**").removesuffix("**").strip().removesuffix(".")
    inner = text.strip("$")
    if "$" not in inner and text in (f"${inner}$", f"$${inner}$$"):
        text = inner.strip().removesuffix(".")
    return text


def clean_number(text: str) -> str:
    """Return a plain number without white space around it, `$`, thousands separators and full stop; else only stripped.

    "$1,234." becomes "1234"; "1,23" and "12 dogs" are no such numbers.
    """
    text = text.strip()
    found = _NUMBER.fullmatch(text)
    if found is None or (found[1] and found[2]):
        return text
    return found[1] + found[2] + found[3].replace(",", "") + (found[4] or "")


def folded(text: str) -> str:
    """Return a text without case, white space around and between words, and closing full stop."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return re.sub(r"\.$", "", " ".join(words)).strip()


def wrong_answers(samples: Sequence[Sample], same: Callable[[Sample, str], bool]) -> dict[str, int | str]:
    """Return for each sample, by id, a wrong answer drawn from its id: what a search "finds" for it is luck.

    Of choices, one of the wrong ones. Of free answers, the right answer of another sample of the task: one that
    means something else and is as long as the own one, or as nearly as there is, so that it is as hard to hit.

    `same` says whether an answer would count as right for a sample (`ChainScorer.means_the_same`).

    Raises:
        ValueError: where all samples of a task have the same free answer.
    """
    by_task: dict[str, dict[int, dict[str, str]]] = {}
    for sample in samples:
        if not sample.choices:
            lengths = by_task.setdefault(sample.task, {})
            lengths.setdefault(len(sample.gold), {}).setdefault(folded(sample.gold), sample.gold)
    return {sample.id: _wrong(sample, by_task.get(sample.task, {}), same) for sample in samples}


def _wrong(sample: Sample, answers: dict[int, dict[str, str]], same: Callable[[Sample, str], bool]) -> int | str:
    """Return a wrong answer for a sample; `answers`: those of its task, by length and folded text."""
    if sample.choices:
        wrong = [i for i in range(len(sample.choices)) if i != sample.answer]
        return wrong[int(_draw(sample, ""), 16) % len(wrong)]
    for length in sorted(answers, key=lambda length: (abs(length - len(sample.gold)), length)):
        for text in sorted(answers[length].values(), key=lambda text: _draw(sample, f"/{text}")):
            if not same(sample, text):
                return text
    raise ValueError(f"reward_target: expected another answer than {sample.gold!r} in the task {sample.task}, got none")


def _draw(sample: Sample, of: str) -> str:
    return hashlib.sha256(f"wrong/{sample.id}{of}".encode()).hexdigest()
