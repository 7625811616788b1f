"""Figures of a report: accuracy against depth, what is set right and broken, use of layers, depth by difficulty.

`DRAWINGS` lists them. Each is drawn from the report alone, wide or narrow (for a phone's screen), and
has the same bytes for the same content.
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.optimize import isotonic_regression

from data.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, save_figure, tidy
from eval.arms import (
    EARLY_EXIT,
    FULL,
    GUARANTEE,
    MIXTURE,
    ORACLE,
    PERMUTED,
    PRUNED,
    RANDOM,
    RANDOM_SEARCH,
    ROUTER,
    STATIC,
    STATIC_BY_KIND,
)
from eval.measures import Group, GroupArm, LayerUse
from eval.report import Report, ReportArm
from eval.tables import printable

SALT = "eval"
"""Seeds the names inside SVG files."""
WIDTHS = {False: 7.5, True: 3.6}
"""Inches, of the wide figure and of the narrow one."""
TASKS_NAMED = 3
"""Tasks of a mixture that a title names; more are counted."""
LINE = 0.128
"""Height of a line of a label, inches."""
MARGINS = {False: (0.72, 0.55, 0.45), True: (0.62, 0.5, 0.5)}
"""Room left of the axes, below and above them, inches; of the wide and of the narrow figure."""
AXES_HEIGHT = 3.15
"""Of the wide figure at least, inches; more where the labels need it."""
COLOURS = 40
"""Colours of the heat map; from 50 on matplotlib would draw its key in pixels."""
DIFFICULTY_ARMS = (FULL, ROUTER, GUARANTEE, EARLY_EXIT, ORACLE)
"""Arms that may go deeper where it is harder, and full depth, to say what is harder."""
MOST_LEVELS = 12
"""Levels of a task that is drawn at most: a difficulty that hardly repeats is no level."""
Panel = Callable[[GroupArm], tuple[float, tuple[float, float]]]
"""A measure of an arm on a group, and its interval."""
PANELS: dict[str, Panel] = {
    "accuracy": lambda arm: (arm.accuracy, arm.accuracy_interval),
    "mean depth, layers": lambda arm: (arm.mean_depth, arm.mean_depth_interval),
}


@dataclass(frozen=True)
class Style:
    """How an arm is drawn.

    Attributes:
        colour: of the palette (`data.figures`).
        marker: matplotlib's marker, which says the same once more.
        hollow: whether the marker is empty: arms that saw the answers, and those that no single chain makes.
        size: points.
    """

    colour: str
    marker: str
    hollow: bool = False
    size: float = 7.0

    def look(self, scale: float = 1.0) -> dict[str, Any]:
        """Return matplotlib's words for it, the marker so many times as large."""
        face = "none" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "markersize": self.size * scale}


STYLES = {
    FULL: Style(BLACK, "s"),
    ROUTER: Style(BLUE, "o"),
    GUARANTEE: Style(BLUE, "P"),
    STATIC: Style(VERMILLION, "^"),
    STATIC_BY_KIND: Style(VERMILLION, "d"),
    MIXTURE: Style(VERMILLION, "^", hollow=True),
    PERMUTED: Style(GREEN, "v", hollow=True),
    RANDOM: Style(GREEN, "v"),
    EARLY_EXIT: Style(ORANGE, "X"),
    PRUNED: Style(SKY, "p"),
    RANDOM_SEARCH: Style(PURPLE, "h", hollow=True),
    ORACLE: Style(PURPLE, "D", hollow=True),
}
BUDGET = Style(BLUE, "o", hollow=True, size=5.5)
"""Of the router's further budgets."""


def style_of(name: str) -> Style:
    """Return an arm's style."""
    return STYLES.get(name, BUDGET)


def short_label(label: str) -> str:
    """Return an arm's label without what is said of it after a colon or in brackets."""
    return label.split(": ", 1)[0].split(" (", 1)[0]


def literal(text: str) -> str:
    """Return text that is drawn as it stands: no formula between dollar signs, no character that SVG cannot hold."""
    return printable(text).replace("$", r"\$")


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """Return a label on lines of at most `width` characters, at most `lines` of them."""
    return "\n".join(map(literal, textwrap.wrap(text, width, max_lines=lines, placeholder=" ...")))


def row_label(label: str, narrow: bool) -> str:
    """Return what names an arm's row in a figure."""
    return wrapped(short_label(label), 17 if narrow else 28)


def row_labels(axes: Axes, labels: Sequence[str], narrow: bool) -> None:
    """Name the rows 0, 1, ... of an axes by arms' labels."""
    axes.set_yticks(range(len(labels)), [row_label(one, narrow) for one in labels], fontsize=6.5 if narrow else 7.5)
    axes.tick_params(axis="y", length=0)


def whiskers(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return lengths of error bars, [below, above], of values and their (low, high)."""
    return [
        [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
    ]


def new_figure(narrow: bool, height: float, **options: Any) -> Figure:
    """Return an empty figure of the wide or the narrow width, `height` inches high."""
    return Figure(figsize=(WIDTHS[narrow], height), **options)


def subject_of(report: Report) -> str:
    """Return model, task, split and number of samples, for a title."""
    tasks = report.task.split("+")
    task = report.task if len(tasks) <= TASKS_NAMED else f"{len(tasks)} tasks"
    return f"{report.model.short}, {task}, {report.split} split, n = {report.n}"


def title(figure: Figure, subject: str, narrow: bool, *more: str) -> None:
    """Write what a figure is about, and what else a reader must know, above it."""
    lines = [wrapped(line, 58 if narrow else 110) for line in (subject, *more) if line]
    figure.suptitle("\n".join(lines), fontsize=7 if narrow else 9)


def draw_accuracy(report: Report, narrow: bool = False) -> Figure:
    """Return the figure: points with Wilson intervals, full depth as a line across, the router's budgets joined.

    Args:
        report: the report.
        narrow: whether for a phone's screen: labels below the axes, not beside them.
    """
    arms = report.arms
    labels = [_accuracy_label(arm, 46 if narrow else 34) for arm in arms]
    left, below, above = MARGINS[narrow]
    heights = [(1 + label.count("\n")) * LINE + 0.07 for label in labels]
    key = 0.15 + sum(heights) if narrow else 0.0
    height = 2.6 if narrow else max(AXES_HEIGHT, max(heights) * len(arms))
    figure = new_figure(narrow, height + below + above + key)
    width, total = figure.get_size_inches()
    share = (width - left - 0.15) / width if narrow else 0.54
    axes = figure.add_axes((left / width, (below + key) / total, share, height / total))
    low, high = _accuracy_points(axes, report)
    if narrow:
        place = -(below + 0.1) / height
        for arm, label, size in zip(arms, labels, heights, strict=True):
            _accuracy_key(axes, arm, label, 0.0, place - size / height / 2)
            place -= size / height
    else:
        wanted = [(arm.accuracy - low) / (high - low) for arm in arms]
        places = spread(wanted, max(heights) / height, bounds=(0.0, 1.0))
        for arm, label, place in zip(arms, labels, places, strict=True):
            line = {"arrowstyle": "-", "color": style_of(arm.name).colour, "linewidth": 0.5, "alpha": 0.7}
            point = (arm.mean_depth, arm.accuracy)
            axes.annotate("", point, (1.02, place), "data", "axes fraction", line, annotation_clip=False)
            _accuracy_key(axes, arm, label, 1.035, place)
    what = "mean depth" if narrow else "mean depth, layers executed a sample"
    axes.set_xlabel(f"{what} (full depth: {report.model.num_layers} layers)")
    axes.set_ylabel("accuracy, with 95 % Wilson interval")
    title(figure, subject_of(report), narrow)
    tidy(axes)
    return figure


def _accuracy_label(arm: ReportArm, width: int) -> str:
    """Return an arm's whole label on several lines; what it has seen stands on a line of its own."""
    label = "\n".join(wrapped(part, width) for part in arm.label.split(": ", 1))
    return f"{label}\n{arm.accuracy:.3f} at depth {arm.mean_depth:.1f}"


def _accuracy_points(axes: Axes, report: Report) -> tuple[float, float]:
    """Draw the arms and return the limits of the accuracy."""
    arms = report.arms
    for arm in arms:
        bars = whiskers([arm.accuracy], [arm.accuracy_interval])
        look = style_of(arm.name).look()
        axes.errorbar(arm.mean_depth, arm.accuracy, yerr=bars, capsize=3, linewidth=1, linestyle="none", **look)
        if arm.name == FULL:
            axes.axhline(arm.accuracy, color=GREY, linestyle="--", linewidth=0.8, zorder=0)
    # The router and its further budgets: one head, asked for other depths.
    budgets = sorted((arm.mean_depth, arm.accuracy) for arm in arms if arm.name.split("@")[0] == ROUTER)
    if len(budgets) > 1:
        axes.plot(*zip(*budgets, strict=True), color=BLUE, linewidth=0.8, zorder=1)
    low = min(arm.accuracy_interval[0] for arm in arms)
    high = max(arm.accuracy_interval[1] for arm in arms)
    pad = 0.06 * max(high - low, 0.1)
    limits = (low - pad, high + pad)
    axes.set_ylim(limits)
    axes.margins(x=0.12)
    chance = report.chance_accuracy
    if limits[0] < chance < limits[1]:
        axes.axhline(chance, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
        axes.annotate("guessing", (0.01, chance), xycoords=("axes fraction", "data"), fontsize=7)
    return limits


def _accuracy_key(axes: Axes, arm: ReportArm, label: str, x: float, y: float) -> None:
    """Write an arm's marker and label at a place outside the axes, shares of their width and height."""
    look = style_of(arm.name).look(0.8)
    axes.plot([x], [y], linestyle="none", transform=axes.transAxes, clip_on=False, **look)
    axes.annotate(label, (x, y), (8, 0), "axes fraction", "offset points", va="center", fontsize=7.5)


def spread(heights: Sequence[float], gap: float, bounds: tuple[float, float]) -> list[float]:
    """Return heights in the same order, moved apart to at least `gap`, as a stack around where they were.

    Args:
        heights: where each would stand alone.
        gap: least distance of two.
        bounds: what they should stay within, half a gap from either end, where there is room for all.
    """
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    # Least squares with each at least a gap above the one before: isotonic once the gaps are taken off.
    placed = isotonic_regression(np.array(heights)[order] - steps).x
    low, high = bounds[0] + gap / 2, bounds[1] - (len(heights) - 0.5) * gap
    moved = np.empty(len(heights))
    moved[order] = np.minimum(np.maximum(placed, low), high) + steps
    return [float(one) for one in moved]


def draw_flows(report: Report, narrow: bool = False) -> Figure:
    """Return bars to the right (wrong to right) and to the left (right to wrong), and the net difference on them."""
    arms = [(arm, arm.against_full) for arm in report.arms if arm.against_full is not None]
    figure = new_figure(narrow, 0.42 * len(arms) + (1.3 if narrow else 1.15), layout="constrained")
    axes = figure.subplots()
    widest = 0.0
    for row, (arm, pair) in enumerate(arms):
        gained, lost = pair.wrong_to_right / arm.n, pair.right_to_wrong / arm.n
        axes.barh(row, gained, height=0.62, color="none", edgecolor=BLUE, hatch="//////", linewidth=0.8)
        axes.barh(row, -lost, height=0.62, color=VERMILLION)
        low, high = pair.difference_interval
        lengths = whiskers([pair.difference], [(low, high)])
        look: dict[str, Any] = {"fmt": "D", "color": BLACK, "markersize": 4.5, "capsize": 3, "linewidth": 1.4}
        axes.errorbar(pair.difference, row, xerr=lengths, **look)
        counts = {
            (max(gained, high), 4, "left"): pair.wrong_to_right,
            (min(-lost, low), -4, "right"): -pair.right_to_wrong,
        }
        for (end, shift, side), count in counts.items():
            place: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "center"}
            axes.annotate(signed(count), (end, row), (shift, 0), fontsize=7.5, **place)
        widest = max(widest, gained, lost, abs(low), abs(high))
    limit = (1.4 if narrow else 1.22) * max(widest, 0.01)  # room for the counts
    axes.set_xlim(-limit, limit)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    row_labels(axes, [arm.label for arm, _ in arms], narrow)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if narrow else 9, symmetric=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: signed(round(100 * share, 6))))
    axes.set_xlabel("percentage points of all samples")
    tidy(axes)
    axes.spines["left"].set_visible(False)
    sense = "against full depth: set right (hatched), broken (plain); diamond: net difference, 95 % bootstrap interval"
    title(figure, subject_of(report), narrow, sense)
    return figure


def signed(value: float) -> str:
    """Return a number with its sign, a real minus; 0 has none."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"


@dataclass(frozen=True)
class LayerRows:
    """How chains of one model use its layers, a row an arm or a search.

    Attributes:
        subject: what the figure is about.
        num_layers: layers of the model.
        read_layers: layers that run unedited before the router reads, and before it reads once more, if it does; none:
            there is no router.
        rows: name, label and use of each.
    """

    subject: str
    num_layers: int
    read_layers: Sequence[int]
    rows: Sequence[tuple[str, str, LayerUse]]

    @classmethod
    def of(cls, report: Report) -> LayerRows:
        """Take the arms of a report."""
        rows = [
            (arm.name, arm.label, report.layer_use[arm.name]) for arm in report.arms if arm.name in report.layer_use
        ]
        read = [one for one in (report.model.read_layer, report.model.late_read_layer) if one]
        return cls(subject_of(report), report.model.num_layers, read, rows)

    @property
    def first(self) -> int:
        """The first layer to draw: what all chains run once is left out where it is much."""
        edited = [
            layer
            for layer in range(self.num_layers)
            if any(use.skip_rate[layer] or use.repeat_rate[layer] for _, _, use in self.rows)
        ]
        first = min([*(self.read_layers[:1] or (0,)), *edited]) - 2
        return first if 4 * first > self.num_layers else 0

    @property
    def notes(self) -> str:
        """What a reader must know of the layers."""
        notes = [f"layers 0 to {self.first - 1} are left out, all chains run them once"] if self.first else []
        if self.read_layers:
            layers = " and layer ".join(f"{layer}'s input" for layer in self.read_layers)
            notes.append(f"dotted line: the router reads layer {layers}")
        return "; ".join(notes)


def draw_layer_use(use: LayerRows, narrow: bool = False) -> Figure:
    """Return the heat map: arms x layers, mean runs of each layer."""
    first, count = use.first, len(use.rows)
    runs = np.array([one.mean_runs for _, _, one in use.rows])[:, first:]
    figure = new_figure(narrow, 0.36 * count + (1.35 if narrow else 1.25), layout="constrained")
    axes = figure.subplots()
    # Cells and not an image, so that an SVG file holds no pixels.
    cells = axes.pcolormesh(
        np.arange(first, use.num_layers + 1) - 0.5,
        np.arange(count + 1) - 0.5,
        runs,
        cmap=matplotlib.colormaps["cividis"].resampled(COLOURS),
        vmin=0,
        vmax=max(1, math.ceil(runs.max() - 1e-9)),
        edgecolors="face",
        linewidth=0.2,
    )
    axes.set_ylim(count - 0.5, -0.5)
    row_labels(axes, [label for _, label, _ in use.rows], narrow)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[:].set_visible(False)
    where = {"location": "bottom", "pad": 0.02, "aspect": 40} if narrow else {"pad": 0.02, "aspect": 12}
    bar = figure.colorbar(cells, ax=axes, **where)
    bar.set_label("mean runs", fontsize=7.5)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(nbins=4)
    bar.update_ticks()
    for layer in use.read_layers:
        axes.axvline(layer - 0.5, color="white", linestyle=":", linewidth=1.2)
    title(figure, use.subject, narrow, use.notes, "runs of each layer, mean over samples; intervals: see shares")
    return figure


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
        pair = panels[2 * row : 2 * row + 2, column]
        for (name, panel), axes in zip(PANELS.items(), pair, strict=True):
            _difficulty_panel(axes, groups, panel, report)
            axes.set_ylabel(name)
        pair[0].set_title(literal(task), fontsize=8)
        pair[0].set_xticks(range(len(groups)), [""] * len(groups))
        pair[0].set_ylim(-0.02, 1.02)
        ticks = [f"{literal(str(one.value))}\nn = {one.n}" for one in groups]
        pair[1].set_xticks(range(len(groups)), ticks, fontsize=7)
        pair[1].set_xlabel("difficulty, and its number of samples")
    for unused in range(len(levels), across * down):
        for axes in panels[2 * (unused // across) : 2 * (unused // across) + 2, unused % across]:
            axes.set_visible(False)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    labels = [wrapped(label, 30) for label in labels]
    look: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 7.5}
    figure.legend(handles, labels, ncols=2 if narrow else 3, **look)
    title(figure, subject_of(report), narrow, "intervals: 95 %")
    return figure


def _levels(report: Report) -> dict[str, list[Group]]:
    """Return each task's groups of difficulty, of tasks with two levels or more and not too many."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group in report.groups:
        if group.kind == "difficulty" and group.value is not None:
            found[group.task].append(group)
    return {task: groups for task, groups in found.items() if 2 <= len(groups) <= MOST_LEVELS}


def _difficulty_panel(axes: Axes, groups: Sequence[Group], panel: Panel, report: Report) -> None:
    """Draw one measure of each arm over a task's levels; arms stand side by side so that intervals do not hide."""
    named = {arm.name: arm.label for arm in report.arms if arm.name in DIFFICULTY_ARMS}
    for position, (name, label) in enumerate(named.items()):
        found = [panel(next(arm for arm in group.arms if arm.name == name)) for group in groups]
        values, intervals = [value for value, _ in found], [interval for _, interval in found]
        shift = 0.09 * (position - (len(named) - 1) / 2)
        axes.errorbar(
            [level + shift for level in range(len(groups))],
            values,
            yerr=whiskers(values, intervals),
            linewidth=0.9,
            capsize=2,
            label=short_label(label),
            **style_of(name).look(0.75),
        )
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    tidy(axes)


@dataclass(frozen=True)
class Drawing:
    """One figure of a report.

    Attributes:
        name: of its files, without suffix.
        title: what it shows.
        caption: how it is read.
        draw: makes it from the report's content; the second argument asks for the narrow form.
        applies: whether the report has what it shows.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Report, bool], Figure]
    applies: Callable[[Report], bool] = lambda _: True


DRAWINGS = (
    Drawing(
        "accuracy_by_depth",
        "Accuracy against depth",
        "One point an arm: up is more right answers, left is fewer layers executed. The dashed line is full depth. "
        "Whiskers are 95 % Wilson intervals; a thin line joins the budgets of one router. Hollow purple marks have "
        "seen the answers.",
        draw_accuracy,
    ),
    Drawing(
        "flows",
        "What is set right and what is broken",
        "Of all samples, the share that full depth answers wrongly and the arm rightly (hatched, to the right) and "
        "the other way round (plain, to the left), with their counts. The diamond is the difference of the two, the "
        "gain in accuracy, with its 95 % bootstrap interval.",
        draw_flows,
    ),
    Drawing(
        "layer_use",
        "Which layers run",
        "One row an arm, one column a layer; the colour says how often the layer runs, mean over samples: dark is "
        "rarely, bright is often.",
        lambda report, narrow: draw_layer_use(LayerRows.of(report), narrow),
        lambda report: bool(report.layer_use),
    ),
    Drawing(
        "depth_by_difficulty",
        "Depth by difficulty",
        "Accuracy (above) and mean depth (below) at each level of difficulty that the data set gives. Whiskers are "
        "95 % intervals.",
        draw_difficulty,
        has_difficulty,
    ),
)
"""In the order in which they are shown."""


def drawings_of(report: Report) -> list[Drawing]:
    """Return the figures for which the report has content."""
    return [drawing for drawing in DRAWINGS if drawing.applies(report)]


def write_figures(report: Report, out: Path) -> list[Path]:
    """Draw a report's figures as PNG and SVG, each file complete or absent and the same for the same content.

    Args:
        report: the report.
        out: the folder, which exists.

    Returns:
        The files.
    """
    files: list[Path] = []
    for one in drawings_of(report):
        paths = [out / f"{one.name}.{suffix}" for suffix in ("png", "svg")]
        files += save_figure(partial(one.draw, report, False), paths, SALT)
    return files
