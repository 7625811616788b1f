"""What the figures of a report share: a colour and a marker for each arm, sizes, titles."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.arms import (
    EARLY_EXIT,
    FULL,
    GUARANTEE,
    MIXTURE,
    ORACLE,
    PRUNED,
    RANDOM,
    RANDOM_SEARCH,
    ROUTER,
    STATIC,
    is_routed,
)

Report = dict[str, Any]
"""The content of `report.json`, schema 3."""
BLACK, GREY = "#000000", "#777777"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
WIDTHS = {False: 7.5, True: 3.6}
"""Inches, of the wide figure and of the narrow one (a phone's screen)."""
TASKS_NAMED = 3
"""Tasks of a mixture that a title names; more are counted."""


@dataclass(frozen=True)
class Style:
    """How an arm is drawn.

    Attributes:
        colour: of the palette that differs for colour-blind readers too (Okabe and Ito 2008).
        marker: matplotlib's marker, which says the same once more.
        hollow: whether the marker is empty: arms that saw the answers, and those that no single chain makes.
        size: points.
    """

    colour: str
    marker: str
    hollow: bool = False
    size: float = 7.0


STYLES = {
    FULL: Style(BLACK, "s"),
    ROUTER: Style(BLUE, "o"),
    GUARANTEE: Style(BLUE, "P"),
    STATIC: Style(VERMILLION, "^"),
    MIXTURE: Style(VERMILLION, "^", hollow=True),
    RANDOM: Style(GREEN, "v"),
    EARLY_EXIT: Style(ORANGE, "X"),
    PRUNED: Style(SKY, "p"),
    RANDOM_SEARCH: Style(PURPLE, "h", hollow=True),
    ORACLE: Style(PURPLE, "D", hollow=True),
}
BUDGET = Style(BLUE, "o", hollow=True, size=5.5)
"""Of the router's further budgets."""


def style_of(name: str) -> Style:
    """Return an arm's style; a name that no run gives is grey."""
    return STYLES.get(name, BUDGET if is_routed(name) else Style(GREY, "*"))


def short_label(label: str) -> str:
    """Return an arm's label without what is said of it after a colon or in brackets."""
    return label.split(": ", 1)[0].split(" (", 1)[0]


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """Return a label on lines of at most `width` characters, at most `lines` of them."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ..."))


def arm_label(arm: dict[str, Any], width: int) -> str:
    """Return an arm's whole label on several lines; what it has seen stands on a line of its own."""
    return "\n".join(wrapped(part, width) for part in arm["label"].replace(": ", ":\n", 1).split("\n"))


def row_labels(axes: Axes, arms: Sequence[dict[str, Any]], narrow: bool) -> None:
    """Name the rows 0, 1, ... of an axes after arms."""
    labels = [wrapped(short_label(arm["label"]), 17 if narrow else 28) for arm in arms]
    axes.set_yticks(range(len(arms)), labels, fontsize=6.5 if narrow else 7.5)
    axes.tick_params(axis="y", length=0)


def new_figure(narrow: bool, height: float, **options: Any) -> Figure:
    """Return an empty figure of the wide or the narrow width, `height` inches high."""
    figure = Figure(figsize=(WIDTHS[narrow], height), **options)
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """Take away the frame's upper and right side."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def subject_of(report: Report) -> str:
    """Return what was evaluated, for a title: model, task, split and number of samples."""
    tasks = report["task"].split("+")
    task = report["task"] if len(tasks) <= TASKS_NAMED else f"{len(tasks)} tasks"
    return f"{Path(report['model']['name']).name}, {task}, {report['split']} split, n = {report['n']}"


def title(figure: Figure, report: Report, narrow: bool, *more: str) -> None:
    """Write what was evaluated, and what else a reader must know, above a figure."""
    lines = [line for line in (subject_of(report), *more) if line]
    figure.suptitle("\n".join(wrapped(line, 58 if narrow else 110) for line in lines), fontsize=7 if narrow else 9)
