"""Whether two mathematical answers mean the same: math-verify in a process of its own, with bounds on time and memory.

math-verify (https://github.com/huggingface/Math-Verify) reads LaTeX and plain expressions into SymPy and compares them;
SymPy can run for ever or fill the memory on a short text, also inside C code that no signal interrupts. So a worker
(`data.equivalence`) judges, and is killed where it takes too long.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

CACHED = 100_000
"""Verdicts that a grader remembers; the least recently used goes first."""
START_SECONDS = 120.0
"""Time in which the worker must have imported its libraries."""
SMALLEST_MEMORY = 2**29
"""Bytes of address space below which the worker may not be able to work at all."""


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
            memory_bytes: bound on the worker's address space, its libraries (about 0.1 GiB) included.
            longest: number of characters; a longer text equals only itself.

        Raises:
            ValueError: where a bound is too small to judge anything.
        """
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds: expected a positive number, got {seconds}")
        if memory_bytes < SMALLEST_MEMORY:
            raise ValueError(f"memory_bytes: expected at least {SMALLEST_MEMORY}, got {memory_bytes}")
        if longest < 1:
            raise ValueError(f"longest: expected at least 1, got {longest}")
        self.seconds, self.memory_bytes, self.longest = seconds, memory_bytes, longest
        self.unjudged = 0
        self._verdicts: OrderedDict[tuple[str, str], bool | None] = OrderedDict()
        self._worker: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def equal(self, gold: str, answer: str) -> bool:
        """Return whether `answer` means the same as the reference `gold`; the two are not interchangeable.

        Texts that agree but for white space at both ends are equal, whatever they are; else a text longer than
        `longest` is not equal; else math-verify decides (`data.equivalence`). A pair it cannot judge in its bounds is
        not equal and counts in `unjudged`, each time it is asked.

        Raises:
            RuntimeError: where the worker cannot start.
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
            [
                sys.executable,
                "-P",
                "-m",
                "data.equivalence",
                str(self.seconds),
                str(self.memory_bytes),
                str(os.getpid()),
            ],
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
            raise RuntimeError(
                f"grading worker: expected it to start within {START_SECONDS} seconds, got {reply!r};"
                " are math-verify and its ANTLR runtime installed?"
            )
        return worker


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()  # waits, and closes the pipes


def _exchange(worker: subprocess.Popen[bytes], line: bytes, seconds: float) -> Any:
    """Send a line and return the value of the line that comes back; None where none comes in time."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    deadline = time.monotonic() + seconds
    received = b""
    os.set_blocking(worker.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdin, selectors.EVENT_WRITE)
        while not received.endswith(b"\n"):
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events:
                return None
            if line:
                try:
                    line = line[os.write(worker.stdin.fileno(), line) :]
                except BrokenPipeError:
                    return None
                if not line:
                    selector.unregister(worker.stdin)
                    selector.register(worker.stdout, selectors.EVENT_READ)
            else:
                part = os.read(worker.stdout.fileno(), 2**16)
                if not part:
                    return None
                received += part
    return json.loads(received)
