"""Evaluate a router against full depth, a static chain, random chains and the oracle; compare and time evaluations.

python -m eval --config configs/demo/eval.yaml
python -m eval compare A/report.json B/report.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from router.command import run_command

VERBS = {
    "run": "eval.run",
    "compare": "eval.compare",
    "latency": "eval.latency",
    "curves": "eval.curves",
    "analysis": "eval.analysis",
}
"""Module of each verb; without a verb it is `run`. A module is imported when its verb is called."""


def main(argv: Sequence[str] | None) -> None:
    """Run the verb that the command line names.

    Raises:
        InputError: at bad input.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    verb, rest = (given[0], given[1:]) if given and given[0] in VERBS else ("run", given)
    run: Callable[[Sequence[str]], None] = import_module(VERBS[verb]).main
    run(rest)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
