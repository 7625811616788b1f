"""The figure of difficulty: accuracy and mean depth at each level of a task that has levels."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.arms import EARLY_EXIT, FULL, GUARANTEE, ORACLE, ROUTER
from eval.figures.style import GREY, Report, new_figure, short_label, style_of, tidy, title, wrapped

ARMS = (FULL, ROUTER, GUARANTEE, EARLY_EXIT, ORACLE)
"""Arms that may go deeper where it is harder, and full depth, to say what is harder."""
MOST_LEVELS = 12
"""Levels of a task that is drawn at most: a difficulty that hardly repeats is no level."""
PANELS = (("accuracy", "accuracy"), ("mean_depth", "mean depth, layers"))


def has_difficulty(report: Report) -> bool:
    """Whether a task of the report has levels of difficulty that can be drawn."""
    return bool(_levels(report))


def draw_difficulty(report: Report, narrow: bool = False) -> Figure:
    """Return two panels a task: accuracy with its interval and mean depth, over the levels of difficulty."""
    levels = _levels(report)
    across = 1 if narrow else min(2, len(levels))
    down = math.ceil(len(levels) / across)
    figure = new_figure(narrow, 4.3 * down + 0.9, layout="constrained")
    panels = figure.subplots(2 * down, across, squeeze=False)
    for number, (task, groups) in enumerate(levels.items()):
        row, column = divmod(number, across)
        for (measure, name), axes in zip(PANELS, panels[2 * row : 2 * row + 2, column], strict=True):
            _panel(axes, groups, measure, report)
            axes.set_ylabel(name)
            axes.set_title(task if measure == PANELS[0][0] else "", fontsize=8)
        panels[2 * row + 1, column].set_xlabel("difficulty, and its number of samples")
    for unused in range(len(levels), across * down):
        for axes in panels[2 * (unused // across) : 2 * (unused // across) + 2, unused % across]:
            axes.set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        [wrapped(label, 30) for label in labels],
        loc="outside lower center",
        ncols=2 if narrow else 3,
        frameon=False,
        fontsize=7.5,
    )
    title(figure, report, narrow, "intervals: 95 %" + ("" if _depth_known(levels) else "; of accuracies (Wilson) only"))
    return figure


def _levels(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Return each task's groups of difficulty, of tasks with two levels or more and not too many."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group in report["groups"]:
        if group["kind"] == "difficulty" and group["value"] is not None:
            found[group["task"]].append(group)
    return {task: groups for task, groups in found.items() if 2 <= len(groups) <= MOST_LEVELS}


def _depth_known(levels: dict[str, list[dict[str, Any]]]) -> bool:
    return all("mean_depth_interval" in arm for groups in levels.values() for one in groups for arm in one["arms"])


def _panel(axes: Axes, groups: list[dict[str, Any]], measure: str, report: Report) -> None:
    """Draw one measure of each arm over a task's levels; arms stand side by side so that intervals do not hide."""
    named = {arm["name"]: arm["label"] for arm in report["arms"] if arm["name"] in ARMS}
    for position, (name, label) in enumerate(named.items()):
        style = style_of(name)
        found = [next(arm for arm in group["arms"] if arm["name"] == name) for group in groups]
        values = [arm[measure] for arm in found]
        intervals = [arm.get(f"{measure}_interval") or (value, value) for arm, value in zip(found, values, strict=True)]
        shift = 0.09 * (position - (len(named) - 1) / 2)
        axes.errorbar(
            [level + shift for level in range(len(groups))],
            values,
            yerr=[
                [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
                [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
            ],
            color=style.colour,
            marker=style.marker,
            markerfacecolor="none" if style.hollow else style.colour,
            markersize=style.size * 0.75,
            linewidth=0.9,
            capsize=2,
            label=short_label(label),
        )
    if measure == "mean_depth":
        axes.set_xticks(range(len(groups)), [f"{group['value']}\nn = {group['n']}" for group in groups], fontsize=7)
    else:
        axes.set_xticks(range(len(groups)), [""] * len(groups))
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    tidy(axes)
