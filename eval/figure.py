"""The figure: accuracy against depth, one point an arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.figures import save_figure
from eval.policies import FULL, ORACLE, RANDOM, ROUTER, STATIC

FIGURE_FILES = ("accuracy_by_depth.png", "accuracy_by_depth.svg")
# Colours that differ for colour-blind readers too (Okabe and Ito 2008); the marker says the same once more.
STYLES = {
    FULL: ("#000000", "s"),
    ROUTER: ("#0072B2", "o"),
    STATIC: ("#D55E00", "^"),
    RANDOM: ("#009E73", "v"),
    ORACLE: ("#CC79A7", "D"),
}
LABEL_GAP = 0.11
"""Least distance of two labels, share of the axes' height."""
TASKS_NAMED = 3
"""Tasks of a mixture that the title names; more are counted."""


def write_figure(report: dict[str, Any], out: Path) -> list[Path]:
    """Draw the report's arms as PNG and SVG, each complete or absent.

    Returns:
        The files.
    """
    return save_figure(lambda: draw(report), [out / name for name in FIGURE_FILES], "eval")


def draw(report: dict[str, Any]) -> Figure:
    """Return the figure: points with Wilson intervals, labelled beside the axes, full depth as a reference line."""
    arms = report["arms"]
    figure = Figure(figsize=(7.5, 4.2))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.13, 0.54, 0.75))
    for arm in arms:
        colour, marker = STYLES[arm["name"]]
        accuracy = arm["accuracy"]
        low, high = arm["accuracy_interval"]
        hollow = arm["name"] == ORACLE
        axes.errorbar(
            arm["mean_depth"],
            accuracy,
            yerr=[[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]],
            fmt=marker,
            color=colour,
            markerfacecolor="none" if hollow else colour,
            markersize=7,
            capsize=3,
            linewidth=1,
        )
        if arm["name"] == FULL:
            axes.axhline(accuracy, color="#999999", linestyle="--", linewidth=0.8, zorder=0)
    low = min(arm["accuracy_interval"][0] for arm in arms)
    high = max(arm["accuracy_interval"][1] for arm in arms)
    pad = 0.06 * max(high - low, 0.1)
    axes.set_ylim(low - pad, high + pad)
    axes.margins(x=0.12)
    heights = spread([(arm["accuracy"] - low + pad) / (high - low + 2 * pad) for arm in arms], LABEL_GAP)
    for arm, height in zip(arms, heights, strict=True):
        label = arm["label"].replace(": ", ":\n", 1)
        axes.annotate(
            f"{label}\n{arm['accuracy']:.3f} at depth {arm['mean_depth']:.1f}",
            xy=(arm["mean_depth"], arm["accuracy"]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=STYLES[arm["name"]][0],
            arrowprops={"arrowstyle": "-", "color": STYLES[arm["name"]][0], "linewidth": 0.5, "alpha": 0.6},
            annotation_clip=False,
        )
    axes.set_xlabel(f"mean depth, layers executed a sample (full depth: {report['model']['num_layers']})")
    axes.set_ylabel("accuracy, with 95 % Wilson interval")
    tasks = report["task"].split("+")
    name = report["task"] if len(tasks) <= TASKS_NAMED else f"{len(tasks)} tasks"
    axes.set_title(
        f"{Path(report['model']['name']).name}, {name}, {report['split']} split, n = {report['n']}", fontsize=9
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights in the same order, moved apart to at least `gap`, as a stack around where they were."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [heights[i] for i in order]
    for _ in range(200):
        moved = False
        for lower in range(len(placed) - 1):
            missing = gap - (placed[lower + 1] - placed[lower])
            if missing > 1e-9:
                placed[lower] -= missing / 2
                placed[lower + 1] += missing / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result
