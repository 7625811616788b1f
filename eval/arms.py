"""The arms of an evaluation: their names, their labels, and which of them a run has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FULL, ROUTER, STATIC, RANDOM, ORACLE = "full", "router", "static", "random", "oracle"
GUARANTEE, RANDOM_SEARCH = "guarantee", "random_search"
Baseline = Literal["mixture", "early_exit", "pruned"]
"""Baselines that a run may leave out."""
MIXTURE: Baseline = "mixture"
EARLY_EXIT: Baseline = "early_exit"
PRUNED: Baseline = "pruned"

ALWAYS = (FULL, ROUTER, STATIC, RANDOM, ORACLE)
"""Arms of every run."""
SAW_ANSWERS = frozenset({ORACLE, RANDOM_SEARCH})
"""Arms whose chains were found with the test answers in hand: upper bounds, no policies."""
LABELS = {
    FULL: "full depth",
    ROUTER: "router",
    GUARANTEE: "router with guarantee",
    STATIC: "best static chain",
    MIXTURE: "best mixture of static chains",
    RANDOM: "random chain of the router's depth",
    EARLY_EXIT: "early exit",
    PRUNED: "redundant layers pruned",
    RANDOM_SEARCH: "random search: upper bound, has seen the answer",
    ORACLE: "oracle: upper bound, has seen the answer",
}
"""What each arm is, for readers, in the order of a report; further budgets of the router follow the router."""


@dataclass(frozen=True)
class Arm:
    """One arm of a run.

    Attributes:
        name: its name in results files.
        label: its name for readers.
        budget: of a router arm, the mean depth that it is asked for, layers; None: the router's own choice.
    """

    name: str
    label: str
    budget: float | None = None

    @property
    def reads_states(self) -> bool:
        """Whether the router decides, so that what it costs counts."""
        return is_routed(self.name)


def is_routed(name: str) -> bool:
    """Whether an arm's chains are the router's."""
    return name in (ROUTER, GUARANTEE) or name.startswith(f"{ROUTER}@")


def arms_of_run(
    budget: float | None,
    budgets: tuple[float, ...],
    baselines: tuple[Baseline, ...],
    guarantee: str | None,
    random_search: Path | None,
) -> list[Arm]:
    """Return the arms of a run, in the order of its report.

    Args:
        budget: the router's mean depth, layers; None: its own choice.
        budgets: further ones.
        baselines: those of the baselines that may be left out.
        guarantee: what the router was certified for, in words; None: nothing.
        random_search: records of a random search, where there are any.
    """
    wanted = {*ALWAYS, *baselines}
    wanted |= {GUARANTEE} if guarantee is not None else set()
    wanted |= {RANDOM_SEARCH} if random_search is not None else set()
    arms = []
    for name, label in LABELS.items():
        if name not in wanted:
            continue
        if name == GUARANTEE:
            label = f"{label} ({guarantee})"
        arms.append(Arm(name, label))
        if name == ROUTER:
            if budget is not None:
                arms[-1] = Arm(name, f"{label}, budget {budget:g} layers", budget)
            arms += [Arm(f"{ROUTER}@{one:g}", f"{label}, budget {one:g} layers", one) for one in budgets]
    return arms
