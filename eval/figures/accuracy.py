"""The figure: accuracy against depth, one point an arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.arms import FULL, ROUTER
from eval.figures.style import BLUE, GREY, Report, arm_label, new_figure, style_of, tidy, title

LINE = 0.128
"""Height of a line of a label, inches."""
MARGINS = {False: (0.72, 0.55, 0.45), True: (0.62, 0.5, 0.5)}
"""Room left of the axes, below and above them, inches; of the wide and of the narrow figure."""
AXES_HEIGHT = 3.15
"""Of the wide figure at least, inches; more where the labels need it."""


def draw(report: Report, narrow: bool = False) -> Figure:
    """Return the figure: points with Wilson intervals, full depth as a line across, the router's budgets joined.

    Args:
        report: the content of `report.json`.
        narrow: whether for a phone's screen: labels below the axes, not beside them.
    """
    arms = report["arms"]
    labels = [_label(arm, 46 if narrow else 34) for arm in arms]
    left, below, above = MARGINS[narrow]
    step = (1 + max(label.count("\n") for label in labels)) * LINE + 0.07
    key = 0.0 if not narrow else 0.15 + sum((1 + label.count("\n")) * LINE + 0.07 for label in labels)
    height = 2.6 if narrow else max(AXES_HEIGHT, step * len(arms))
    figure = new_figure(narrow, height + below + above + key)
    width, total = figure.get_size_inches()
    share = (width - left - 0.15) / width if narrow else 0.54
    axes = figure.add_axes((left / width, (below + key) / total, share, height / total))
    limits = _points(axes, report)
    if narrow:
        _key_below(axes, arms, labels, below / height, height)
    else:
        wanted = [(arm["accuracy"] - limits[0]) / (limits[1] - limits[0]) for arm in arms]
        _labels_beside(axes, arms, labels, spread(wanted, step / height, bounds=(0.0, 1.0)))
    what = "mean depth" if narrow else "mean depth, layers executed a sample"
    axes.set_xlabel(f"{what} (full depth: {report['model']['num_layers']} layers)")
    axes.set_ylabel("accuracy, with 95 % Wilson interval")
    title(figure, report, narrow)
    tidy(axes)
    return figure


def _label(arm: dict[str, Any], width: int) -> str:
    return f"{arm_label(arm, width)}\n{arm['accuracy']:.3f} at depth {arm['mean_depth']:.1f}"


def _points(axes: Axes, report: Report) -> tuple[float, float]:
    """Draw the arms and return the limits of the accuracy."""
    arms = report["arms"]
    for arm in arms:
        style, accuracy = style_of(arm["name"]), arm["accuracy"]
        low, high = arm["accuracy_interval"]
        axes.errorbar(
            arm["mean_depth"],
            accuracy,
            yerr=[[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]],
            fmt=style.marker,
            color=style.colour,
            markerfacecolor="none" if style.hollow else style.colour,
            markersize=style.size,
            capsize=3,
            linewidth=1,
        )
        if arm["name"] == FULL:
            axes.axhline(accuracy, color=GREY, linestyle="--", linewidth=0.8, zorder=0)
    budgets = sorted(
        (arm["mean_depth"], arm["accuracy"]) for arm in arms if arm["name"].split("@")[0] == ROUTER
    )  # the router and its further budgets: one head, asked for other depths
    if len(budgets) > 1:
        axes.plot(*zip(*budgets, strict=True), color=BLUE, linewidth=0.8, zorder=1)
    low = min(arm["accuracy_interval"][0] for arm in arms)
    high = max(arm["accuracy_interval"][1] for arm in arms)
    pad = 0.06 * max(high - low, 0.1)
    limits = (low - pad, high + pad)
    axes.set_ylim(limits)
    axes.margins(x=0.12)
    if limits[0] < report["chance_accuracy"] < limits[1]:
        axes.axhline(report["chance_accuracy"], color=GREY, linestyle=":", linewidth=0.8, zorder=0)
        axes.annotate("guessing", (0.01, report["chance_accuracy"]), xycoords=("axes fraction", "data"), fontsize=7)
    return limits


def _labels_beside(axes: Axes, arms: Sequence[dict[str, Any]], labels: Sequence[str], heights: Sequence[float]) -> None:
    """Write the labels beside the axes at these heights (shares of the axes'), each led to its point by a line."""
    for arm, label, height in zip(arms, labels, heights, strict=True):
        axes.annotate(
            "",
            xy=(arm["mean_depth"], arm["accuracy"]),
            xytext=(1.02, height),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": style_of(arm["name"]).colour, "linewidth": 0.5, "alpha": 0.7},
            annotation_clip=False,
        )
        _key(axes, arm, label, 1.035, height)


def _key_below(
    axes: Axes, arms: Sequence[dict[str, Any]], labels: Sequence[str], skipped: float, inches: float
) -> None:
    """Write the labels below the axes, under what is `skipped` (share of the axes' height) for ticks and name."""
    place = -skipped - 0.1 / inches
    for arm, label in zip(arms, labels, strict=True):
        size = ((1 + label.count("\n")) * LINE + 0.07) / inches
        _key(axes, arm, label, 0.0, place - size / 2)
        place -= size


def _key(axes: Axes, arm: dict[str, Any], label: str, x: float, y: float) -> None:
    style = style_of(arm["name"])
    axes.plot(
        [x],
        [y],
        style.marker,
        transform=axes.transAxes,
        color=style.colour,
        markerfacecolor="none" if style.hollow else style.colour,
        markersize=style.size * 0.8,
        clip_on=False,
    )
    axes.annotate(
        label, (x, y), xytext=(8, 0), xycoords="axes fraction", textcoords="offset points", va="center", fontsize=7.5
    )


def spread(heights: Sequence[float], gap: float, bounds: tuple[float, float] | None = None) -> list[float]:
    """Return heights in the same order, moved apart to at least `gap`, as a stack around where they were.

    Args:
        heights: where each would stand alone.
        gap: least distance of two.
        bounds: what they should stay within, half a gap from either end, where there is room for all.
    """
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
    if bounds is not None:
        for i in range(len(placed)):
            placed[i] = max(placed[i], bounds[0] + (i + 0.5) * gap)
        for i in range(len(placed)):
            placed[-1 - i] = min(placed[-1 - i], bounds[1] - (i + 0.5) * gap)
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result
