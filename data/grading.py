r"""Whether two mathematical answers mean the same: math-verify in a process of its own, with bounds on time and memory.

math-verify (https://github.com/huggingface/Math-Verify) reads LaTeX and plain expressions into SymPy and compares them;
SymPy can run for ever or fill the memory on a short text, also inside C code that no signal interrupts. So a worker,
this module run by `python -m data.grading`, judges, and is killed where it takes too long. It is no process of
`multiprocessing` (nor of pebble, which builds on that): such a one imports what the parent's main module imports, torch
included, again after each kill (and maps 0.6 GiB instead of 0.1), and cannot have a hash seed of its own, which fixes
the order of SymPy's terms.

Each answer is read as a whole and never searched for a part that fits: `12 or 13` is the list {12, 13} and is not 12.
What the library does of itself: an equation in the answer counts by its last member where the reference is no equation
(`x = 12` is 12); an approximation by its exact member; 50% is both 50 and 0.5; a decimal equals a fraction or a root
that rounds to it at 6 decimals, but no integer. Added here, since the library errs on them:
- unbalanced braces, boxes inside a text, and numbers that only white space parts (it adds them) are not read at all;
- units are cut only from the end: after the first `\text` the library would drop all that follows;
- words compare as words (to it, `east` is the product of the letters of `seat`), numbers in a base by value;
- a numeric equation must hold (`13 = 12` is not 12), and equal numbers must agree to 5 digits (not both be near 0).

Known limits, pinned in tests/answers_table.py. Taken for equal: what stands in `\text` at the end is a unit, whatever
it says (5 cm and 5 m); letters' case, f' and f; the point (1,2) and the open interval or the set {1,2}; a number with
and without its base; equations without solutions. Not shown equal: an inequality where the reference is an interval, a
column vector and a tuple, `i^2` and -1 (i is a plain symbol), degrees under a function, 0.\overline{3} and 1/3,
\emptyset and \varnothing, `18 dollars` (the unit not in `\text`) and 18, lists of words in another order.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from data.answers import until_closed
from router.validation import UnfinishedError

CACHED = 100_000
"""Verdicts that a grader remembers; the least recently used goes first."""
START_SECONDS = 120.0
"""Time in which the worker must have imported its libraries."""

_SPACE = re.compile(r"(?:(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~|\s)+")
_TEXT = re.compile(r"\\(?:text|mbox|math(?:rm|bf|it))")
_UNIT = re.compile(
    _TEXT.pattern + r"[a-z]*\s*\{(?![^{}]*(?:hundred|dozen|thousand|illion))[^{}0-9]*\}\s*(?:\^(?:\d|\{\d\}))?$"
)
_WORDS = re.compile(r"(?:\\(?:text|mbox|mathrm)[a-z]*\s*\{)?\s*([A-Za-z][A-Za-z0-9 ,.'-]*)\}?")
_BASED = re.compile(r"([0-9][0-9A-F]*)_(?:\{(\d{1,2})\}|(\d))")
_REWRITES = (
    (re.compile(r"^([+-]?)([1-9]\d{0,2}(?: \d{3})+)(?=$|\.)"), lambda match: match[1] + match[2].replace(" ", "")),
    (re.compile(r"^([+-]?\d+) +(\d+) ?/ ?(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"^([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)$"), r"\1\\times 10^{\2}"),
    (re.compile(r"(\\[dtc]?frac) *(\d) +(\d)"), r"\1\2\3"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"(?<=\d)i(?![a-zA-Z])"), " i"),  # else "2i" and "\frac{4}{2}i" hold different symbols
)
"""Forms that math-verify or this module would misread: 1 234, 2 1/2, 1e3, \\frac 1 2, x**2, 2pi, 2i."""
_PARTED = re.compile(r"(?<![_^\d])\d+ \d|\.\d+ \d")


class Grader:
    """Judges pairs of answers in a worker process, which starts with the first pair that needs it.

    A context manager; `close` ends the worker, and so does the end of the object. May be shared by threads, not by
    forked processes.

    Attributes:
        unjudged: calls of `equal` whose pair the worker could not judge in its bounds; they counted as not equal.
    """

    def __init__(self, *, seconds: float = 5.0, memory_bytes: int = 2 * 2**30, longest: int = 1000) -> None:
        """Set the bounds.

        Args:
            seconds: wall-clock time for one pair.
            memory_bytes: bound on the worker's address space, its libraries (about 0.1 GiB) included; less than half a
                GiB may not do.
            longest: number of characters; a longer text equals only itself.
        """
        self.seconds, self.memory_bytes, self.longest = seconds, memory_bytes, longest
        self.unjudged = 0
        self._verdicts: OrderedDict[tuple[str, str], bool | None] = OrderedDict()
        self._worker: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def equal(self, gold: str, answer: str) -> bool:
        """Return whether `answer` means the same as the reference `gold`; the two are not interchangeable.

        Texts that agree but for white space at both ends are equal, whatever they are; else a text longer than
        `longest` is not equal; else math-verify decides (`judge`). A pair it cannot judge in its bounds is
        not equal and counts in `unjudged`, each time it is asked.

        Raises:
            UnfinishedError: where the worker cannot start.
        """
        gold, answer = gold.strip(), answer.strip()
        if gold == answer:
            return True
        if max(len(gold), len(answer)) > self.longest:
            return False
        with self._lock:
            key = gold, answer
            verdict = self._verdicts.pop(key) if key in self._verdicts else self._ask(gold, answer)
            self._verdicts[key] = verdict
            if len(self._verdicts) > CACHED:
                self._verdicts.popitem(last=False)
            self.unjudged += verdict is None
        return verdict is True

    def close(self) -> None:
        """End the worker; a later question would start another."""
        self._worker = None
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, gold: str, answer: str) -> bool | None:
        """Ask the worker; None where it dies or takes too long, and then it is ended."""
        reply = None
        try:
            if self._worker is None or self._worker.poll() is not None:
                self.close()
                self._worker = self._start()
            reply = _exchange(self._worker, json.dumps([gold, answer]).encode() + b"\n", self.seconds)
        finally:
            if reply is None:
                self.close()
        return None if reply is None else bool(reply)

    def _start(self) -> subprocess.Popen[bytes]:
        # -P and the path: this very package, wherever the process was started. A fixed hash seed fixes SymPy's orders.
        root = str(Path(__file__).resolve().parent.parent)
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "data.grading", str(self.seconds), str(self.memory_bytes), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self._end = weakref.finalize(self, _end, worker)
        reply = _exchange(worker, b"\n", START_SECONDS)
        if reply != "ready":
            raise UnfinishedError(
                f"grading worker: expected it to start within {START_SECONDS} seconds, got {reply!r};"
                " are math-verify and its ANTLR runtime installed?"
            )
        return worker


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()  # waits, and closes the pipes


def _exchange(worker: subprocess.Popen[bytes], line: bytes, seconds: float) -> Any:
    """Send a line to a worker that waits for one; returns the value of its reply, None where none comes in time."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(line)
    except BrokenPipeError:
        return None
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        if not selector.select(seconds):
            return None
    reply = worker.stdout.readline()  # whole, as the worker flushes a line at once; empty: it died
    return json.loads(reply) if reply else None


def judge(gold: str, answer: str) -> bool:
    """Compare two answers by math-verify and the rules of this module, without bounds; for the worker.

    Raises:
        MemoryError: where SymPy fills the memory.
        RecursionError: where it recurses too deeply.
    """
    if _squeeze(gold) == _squeeze(answer):
        return True
    texts = [text for text in (_prepare(gold), _prepare(answer)) if text is not None]
    if len(texts) < 2:
        return False
    words = [_WORDS.fullmatch(text) for text in texts]
    if words[0] and words[1] and any(re.search(r"[A-Za-z]{4}|\\", text) for text in texts):
        return _squeeze(words[0][1]).casefold() == _squeeze(words[1][1]).casefold()
    based = [_BASED.fullmatch(text) for text in texts]
    if based[0] and based[1]:
        try:
            one, other = (int(match[1], int(match[2] or match[3])) for match in based if match)
        except ValueError:
            return False
        return one == other
    return _same_value(_parse(texts[0]), _parse(texts[1]))


def _squeeze(text: str) -> str:
    """Drop white space, but keep one between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(text.split()))


def _prepare(text: str) -> str | None:
    """Return an answer as math-verify reads all of it; None where it would read a part."""
    text = text.strip().removesuffix(".")
    if text[:2] + text[-2:] in (r"\[\]", r"\(\)"):
        text = text[2:-2]
    box = re.match(r"\\(?:boxed|fbox)\s*\{", text)
    if box and text.endswith("}") and until_closed(text[box.end() :]) == text[box.end() : -1]:
        text = text[box.end() : -1]
    depth = 0
    for brace in re.findall("[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return None
    if depth or "\\boxed" in text or "\\fbox" in text:
        return None
    text = _SPACE.sub(" ", text).strip()
    for pattern, written in _REWRITES:
        text = pattern.sub(written, text)
    return None if not text or _PARTED.search(text) else text


def _parse(text: str) -> Any:
    """Return an answer as SymPy has it, as normalised text where it is no expression, or None."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify.parser import LatexExtractionConfig, parse

    count = len(_TEXT.findall(text))
    at_end = count == 1 and _UNIT.search(text) is not None
    normalisation = NormalizationConfig(units=count == 0 or at_end, malformed_operators=True, nits=True)
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=normalisation)
    parsed = parse(f"\\boxed{{{text}}}", [config], extraction_mode="first_match", parsing_timeout=None)
    return parsed[0] if parsed else None


def _same_value(gold: Any, answer: Any) -> bool:
    from math_verify.grader import is_equation, verify
    from sympy import Basic, Eq, Expr, UnevaluatedExpr

    if gold is None or answer is None:
        return False
    if isinstance(answer, Basic) and is_equation(answer) and not is_equation(gold):
        for equation in [answer] if isinstance(answer, Eq) else answer._unsorted_args:
            if not equation.free_symbols and not verify(equation.lhs, equation.rhs, timeout_seconds=None):
                return False
    try:
        if not verify(gold, answer, timeout_seconds=None, raise_on_error=True):
            return False
    except (MemoryError, RecursionError):
        raise
    except Exception:  # the library's own way: what SymPy cannot compare is not equal
        return False
    pair = gold, answer
    if all(isinstance(value, Expr) and value.is_number and not value.has(UnevaluatedExpr) for value in pair):
        one, other = gold.evalf(), answer.evalf()
        if one.is_finite and other.is_finite:
            return bool(abs(one - other) <= 1e-5 * max(abs(one), abs(other)))
    return True


def _serve(seconds: float, memory_bytes: int, parent: int) -> None:
    """Answer questions, a JSON line each, until the parent closes the pipe or is gone."""
    import logging

    import sympy.core.random

    logging.disable(logging.CRITICAL)
    replies, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    judge(r"\frac{1}{2}", r"2\sqrt{8}")  # imports, and the parser's tables
    with contextlib.suppress(ValueError, OSError):  # macOS has no such bound, elsewhere a lower one may be set
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # SIGALRM's default action ends the process also inside C code: a worker whose parent is gone does not compute on.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        while os.getppid() == parent:
            # A process that the parent forked may hold the pipe open after it, hence the look at the parent.
            if not selector.select(1.0):
                continue
            line = sys.stdin.readline()
            if not line:
                return
            signal.setitimer(signal.ITIMER_REAL, seconds + 1.0)
            sympy.core.random.seed(0)
            reply = judge(*json.loads(line)) if line.strip() else "ready"
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    _serve(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
