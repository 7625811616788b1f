"""CPU threads on a machine that has other work to do.

torch's threads wait for each other while spinning, so on a busy machine the slowest of them sets the pace and the
others burn what is left of it. Two remedies: a short spin before a thread sleeps, set before torch is imported
(`sleep_when_waiting`, called where each of our packages begins), and as many threads as are fastest now, measured by
matrix products at the start of long work and every half minute (`Threads`). `benchmarks/busy.py` shows what they do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, MutableMapping

SPINS = "1000"
"""Turns that a waiting thread of GNU OpenMP spins; its default is some hundred thousand where cores are free."""
CHOSEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
"""Variables by which a user has chosen the number of threads."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user has chosen how threads wait."""
EVERY = 30.0
"""Seconds after which the number of threads is measured again."""
TRIAL = 0.06
"""Seconds for which each number of threads is measured; two numbers cost 0.4 % of the time."""
WORTH = 1.1
"""A number of threads must be so many times as fast as the present one to take its place."""
SIZE = (512, 576, 576)
"""Rows, inner and outer width of the products."""


def sleep_when_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting OpenMP threads sleep early, unless the user has said how they wait; of no use once torch runs."""
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPINS


def counts(cores: int) -> list[int]:
    """Return the numbers of threads that are tried: all cores, and each half of the one before."""
    found = [cores]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


class Threads:
    """Keeps the number of torch's threads at what is fastest now, on a CPU whose user has not chosen one."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, measure: Callable[[int], float] | None = None
    ) -> None:
        """Look whether there is anything to choose; nothing is measured yet.

        Args:
            environment: the process's variables.
            measure: gives the speed with a number of threads; None: `rate`.
        """
        import torch

        self._measure = measure or rate
        self._counts = counts(torch.get_num_threads())
        if any(name in environment for name in CHOSEN) or torch.cuda.is_available():
            self._counts = self._counts[:1]
        self._measured = -EVERY

    def settle(self) -> int:
        """Measure, where the last time is long enough ago, and take the fastest number; return the present number."""
        import torch

        present = torch.get_num_threads()
        if len(self._counts) == 1 or time.monotonic() - self._measured < EVERY:
            return present
        rates = {count: self._measure(count) for count in self._counts}
        best = max(rates, key=rates.__getitem__)
        present = best if rates[best] > WORTH * rates.get(present, 0) else present
        torch.set_num_threads(present)
        self._measured = time.monotonic()
        return present


def rate(count: int, seconds: float = TRIAL) -> float:
    """Return products a second with so many threads, which torch has afterwards."""
    import torch

    torch.set_num_threads(count)
    rows, inner, outer = SIZE
    left = torch.ones(rows, inner, dtype=torch.bfloat16)
    right = torch.ones(inner, outer, dtype=torch.bfloat16)
    torch.mm(left, right)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        torch.mm(left, right)
        done += 1
    return done / (time.monotonic() - began)
