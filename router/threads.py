"""CPU threads on a machine that has other work to do.

torch's threads wait for each other while spinning, so on a busy machine the slowest of them sets the pace and the
others burn what is left of it. With a short spin before a thread sleeps, set before torch is imported, a search keeps
0.46 of its speed beside another busy process in place of a tenth, 0.41 beside two, and alone loses 4 %
(`benchmarks/busy.py`). The number of threads is left alone: results hang on it in the last digits, and a run that goes
on must not change.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = "6000"
"""Turns that a waiting thread of GNU OpenMP spins (its default: 300,000). At 1,000 a search alone loses a fifth of its
speed, at 10,000 one beside a busy process keeps 0.41 of it in place of 0.47."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user has chosen how threads wait."""


def sleep_when_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting OpenMP threads sleep early, unless the user has said how they wait; of no use once torch runs."""
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPINS
