"""Mathematical equivalence: hand-written pairs, hostile text, and a worker that is never left behind."""

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data import grading
from data.grading import Grader
from router.validation import UnfinishedError
from tests.answers_table import VERDICTS

SLACK = 30.0
"""Seconds for a worker to start on a busy machine; the bounds here are against hanging, not timings."""

ENDLESS = [r"9^{9^{9^{9}}}", "((99999!)!)!", r"\prod_{k=1}^{10^{9}} k"]
NESTED = [before * 10_000 + "1" + after * 10_000 for before, after in (("{", "}"), (r"\frac{1}{", "}"))]
BROKEN = ["7" * 100_000, "{" * 10_000, r"\boxed{" * 100, r"\frac{1}{2", "}", "$" * 999, r"\left(" * 100, "\\"]
BROKEN += [r"\boxed{}", "\0", "1\0 2", "\ud800", "1+\udfff", "", "\n", "\n1\n\n2\n", "answer is $" * 80, '"]\n["']
BROKEN += ["\u2028", "1," * 400, r"2^{2^{50}}"]  # the last has more digits than memory


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    # Verdicts are tested here, not the limit on their time, which a busy machine can reach.
    with Grader(seconds=60) as grader:
        yield grader


@pytest.fixture(scope="module")
def hasty() -> Iterator[Grader]:
    with Grader(seconds=1.0, longest=10**6) as grader:
        yield grader


def pid_of(grader: Grader) -> int:
    assert grader._worker is not None
    return grader._worker.pid


def ends(pid: int, seconds: float = SLACK) -> bool:
    """Whether a process is gone, or a zombie that its new parent has not read, within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except ProcessLookupError:
            return True
        except FileNotFoundError:  # no /proc here, or it has just gone
            pass
        time.sleep(0.05)
    return False


def test_answers_are_judged_as_by_hand(grader: Grader) -> None:
    # Oracle: written by hand; of known limits the verdict that was seen, wrong or a convention: a change of it is news.
    assert {pair: grader.equal(*pair) for pair in VERDICTS} == VERDICTS
    assert grader.unjudged == 0


def test_verdicts_do_not_hang_on_what_was_asked_before() -> None:
    # Oracle: the tables above, some of them in another order and by a new worker.
    questions = random.Random(0).sample(list(VERDICTS), len(VERDICTS) // 4)
    with Grader() as grader:
        assert [grader.equal(*question) for question in questions] == [VERDICTS[question] for question in questions]
        assert grader.unjudged == 0


@pytest.mark.parametrize("hostile", ENDLESS + NESTED + BROKEN, ids=lambda text: repr(text[:20]))
def test_hostile_text_is_bounded_and_harms_no_later_pair(hasty: Grader, hostile: str) -> None:
    # Oracle: the time allowed, and a pair whose verdict is known, asked anew each time.
    before, started = hasty.unjudged, time.monotonic()
    assert not hasty.equal(r"\sqrt{8}", hostile)
    assert time.monotonic() - started < hasty.seconds + SLACK
    assert hasty.unjudged - before in ((1,) if hostile in ENDLESS else (0, 1))
    number = len(hasty._verdicts)
    assert hasty.equal(rf"\frac{{{number}}}{{3}}", rf"\frac{{{2 * number}}}{{6}}")


def test_a_hostile_reference_is_bounded_too(hasty: Grader) -> None:
    # Oracle: as above.
    before = hasty.unjudged
    assert not hasty.equal(ENDLESS[0], "12")
    assert not hasty.equal(ENDLESS[0], "12")
    assert hasty.unjudged == before + 2  # both calls count, though the second did not wait
    assert hasty.equal(ENDLESS[0], " " + ENDLESS[0])


def test_no_worker_for_equal_or_long_or_known_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: whether there is a process.
    with Grader(longest=5) as grader:
        assert grader.equal("\\frac{", " \\frac{\n")
        assert not grader.equal("100000", "1e5")
        assert not grader.equal("1e5", "100000")
        assert grader._worker is None
        assert grader.equal("1/2", "0.5")
        assert not ends(pid_of(grader), 0.1)
        grader.close()
        monkeypatch.setattr(grading, "CACHED", 2)
        assert grader.equal("1/2", "0.5")
        assert grader._worker is None
        assert grader.equal("1/2", "2/4")
        assert grader.equal("1/2", "0.5")
        assert grader.equal("1/2", "3/6")
        assert list(grader._verdicts) == [("1/2", "0.5"), ("1/2", "3/6")]  # the least recently used has gone
        assert grader.unjudged == 0


def test_a_dead_worker_costs_no_answer() -> None:
    # Oracle: another worker, and the known verdict; the kernel's own record of the memory bound.
    with Grader(memory_bytes=2**30) as grader:
        assert grader.equal("1/2", "0.5")
        first = pid_of(grader)
        if hasattr(resource, "prlimit"):
            assert resource.prlimit(first, resource.RLIMIT_AS) == (2**30, 2**30)
        os.kill(first, signal.SIGKILL)
        assert ends(first)
        assert grader.equal("1/2", "2/4")
        assert pid_of(grader) != first
        assert grader.unjudged == 0


def test_the_worker_ends_with_its_grader() -> None:
    # Oracle: the process table.
    with Grader() as grader:
        assert grader.equal("1/2", "0.5")
        pids = [pid_of(grader)]
        grader.close()
        grader.close()
        assert grader.equal("1/2", "3/6")
        pids.append(pid_of(grader))
    forgotten = Grader()
    assert forgotten.equal("1/2", "0.5")
    pids.append(pid_of(forgotten))
    del forgotten
    gc.collect()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_with_a_killed_parent() -> None:
    # Oracle: the process table; a busy worker ends a second after its time at the latest, an idle one at once.
    script = "from data.grading import Grader; import time; idle, busy = Grader(), Grader(seconds=1.0);"
    script += "idle.equal('1/2', '0.5'); busy.equal('1/2', '0.5');"
    script += "print(idle._worker.pid, busy._worker.pid, flush=True);"
    script += "busy.equal('1', '9^{9^{9^9}}'); time.sleep(600)"
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.5)
        assert not any(ends(worker, 0.1) for worker in workers)
        parent.kill()
    assert all(ends(worker, 2.0 + SLACK) for worker in workers)


def test_threads_may_share_a_grader(grader: Grader) -> None:
    # Oracle: arithmetic.
    questions = [(f"{n}/7", f"{m}/14") for n in range(8) for m in range(16)]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda question: grader.equal(*question), questions))
    assert got == [2 * n == m for n in range(8) for m in range(16)]


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: a program that ends at once.
    monkeypatch.setattr(sys, "executable", "/bin/false" if Path("/bin/false").exists() else "/usr/bin/false")
    with Grader() as grader:
        for _ in range(2):
            with pytest.raises(UnfinishedError, match=r"grading worker: expected it to start .* math-verify"):
                grader.equal("1/2", "0.5")
        assert grader.unjudged == 0
