"""A report's numbers as readers read them, and its headline in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.arms import FULL, ORACLE, ROUTER, STATIC
from eval.figures.style import Report

NBSP = "\N{NO-BREAK SPACE}"


def share(value: float | None) -> str:
    """Return a share as per cent, `59.6 %`."""
    return "-" if value is None else f"{100 * value:.1f}{NBSP}%"


def share_interval(interval: Sequence[float] | None) -> str:
    """Return an interval of a share, `56.8 to 62.3 %`."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}{NBSP}%"


def points(value: float | None) -> str:
    """Return a difference of two shares in percentage points, `+1.8`."""
    if value is None:
        return "-"
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def points_interval(interval: Sequence[float] | None) -> str:
    """Return an interval of a difference in percentage points, `−0.3 to +4.1`."""
    return "-" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def probability(p: float | None) -> str:
    """Return a p-value."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def whole(value: int) -> str:
    """Return a count, `1,200`."""
    return f"{value:,}"


def spread(value: Mapping[str, float] | None, digits: int) -> str:
    """Return a median and its quartiles, `17.5 (17.1 to 18.0)`."""
    if value is None:
        return "-"
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def arm_named(report: Report, name: str) -> dict[str, Any]:
    """Return an arm that every report has."""
    found: dict[str, Any] = next(arm for arm in report["arms"] if arm["name"] == name)
    return found


def model_name(report: Report) -> str:
    """Return the model's name without the folders before it."""
    return Path(report["model"]["name"]).name


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    full, router = arm_named(report, FULL), arm_named(report, ROUTER)
    return (
        f"With {router['mean_depth']:.1f} of {report['model']['num_layers']} layers the router answers "
        f"{share(router['accuracy'])} of the questions right, full depth {share(full['accuracy'])}"
    )


def sentences(report: Report) -> list[str]:
    """Return what the result means: against full depth, against one chain for all, and what the oracle is."""
    router, static, oracle = (arm_named(report, name) for name in (ROUTER, STATIC, ORACLE))
    against_full, against_static = router["against_full"], report["router_against"][STATIC]
    found = [
        f"Against full depth the router {_gain(against_full)}: it sets {whole(against_full['wrong_to_right'])} answers "
        f"right and breaks {whole(against_full['right_to_wrong'])}, of {whole(report['n'])}. "
        f"It needs {share(router['flops_ratio'])} of full depth's operations.",
        f"Against the best static chain, one for all questions ({static['mean_depth']:.1f} layers, "
        f"{share(static['accuracy'])}), it {_gain(against_static)}.",
    ]
    luck = (report["controls"] or {}).get("luck") or {}
    if luck.get("gain") and luck.get("net_gain"):
        found.append(
            f"The oracle, which has seen the answers, reaches {share(oracle['accuracy'])}: an upper bound, no method. "
            f"Of its search's gain of {points(luck['gain']['value'])} points, "
            f"{points(luck['net_gain']['value'])} ({points_interval(luck['net_gain']['interval'])}) are left when luck "
            f"is taken away."
        )
    else:
        found.append(
            f"The oracle, which has seen the answers, reaches {share(oracle['accuracy'])}: an upper bound, no method, "
            f"and part of it is luck."
        )
    return found


def _gain(pair: Mapping[str, Any]) -> str:
    """Return what a paired comparison says, honest where its interval holds 0."""
    low, high = pair["difference_interval"]
    size = f"{points(abs(pair['difference'])).lstrip('+')} points"
    interval = f"95{NBSP}% interval {points_interval((low, high))}"
    if low > 0:
        return f"is better by {size} ({interval})"
    if high < 0:
        return f"is worse by {size} ({interval})"
    if pair["difference"] == 0:
        return f"is neither better nor worse ({interval})"
    sense = "ahead" if pair["difference"] > 0 else "behind"
    return f"is {size} {sense}, which chance alone can explain ({interval})"


def task_words(report: Report) -> str:
    """Return the tasks' names, joined as in a sentence."""
    tasks: list[str] = report["task"].split("+")
    return tasks[0] if len(tasks) == 1 else ", ".join(tasks[:-1]) + " and " + tasks[-1]


def facts(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return a nested value as (name, text) lines, for settings and whatever else is shown as it is."""
    if isinstance(value, Mapping) and value:
        prefix = f"{name}." if name else ""
        return [line for key, inner in value.items() for line in facts(inner, f"{prefix}{key}")]
    if value is None:
        return [(name, "none")]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
