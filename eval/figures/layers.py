"""Figures of layer use: how often each arm runs each layer, and the shares that skip or repeat it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from data.statistics import wilson_interval
from eval.arms import FULL
from eval.figures.style import BLUE, GREY, VERMILLION, Report, new_figure, row_labels, short_label, tidy, title, wrapped

ROW, LOWEST_ROW = 0.36, 0.62
"""Height of an arm's row in the heat map and in the figure of rates, inches."""
LEVELS = 40
"""Colours of the heat map; from 50 on matplotlib would draw its key in pixels."""


def has_layer_use(report: Report) -> bool:
    """Whether the report says how layers are used."""
    return bool(report.get("layer_use"))


def draw_layer_use(report: Report, narrow: bool = False) -> Figure:
    """Return the heat map: arms x layers, mean runs of each layer."""
    arms = _arms(report)
    use, layers, first = report["layer_use"], report["model"]["num_layers"], _first_shown(report)
    runs = np.array([use[arm["name"]]["mean_runs"] for arm in arms])[:, first:]
    figure = new_figure(narrow, ROW * len(arms) + (1.35 if narrow else 1.25), layout="constrained")
    axes = figure.subplots()
    # Cells and not an image, so that an SVG file holds no pixels.
    cells = axes.pcolormesh(
        np.arange(first, layers + 1) - 0.5,
        np.arange(len(arms) + 1) - 0.5,
        runs,
        cmap=matplotlib.colormaps["cividis"].resampled(LEVELS),
        vmin=0,
        vmax=max(1, math.ceil(runs.max() - 1e-9)),
        edgecolors="face",
        linewidth=0.2,
    )
    axes.set_ylim(len(arms) - 0.5, -0.5)
    row_labels(axes, arms, narrow)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in axes.spines.values():
        side.set_visible(False)
    where = {"location": "bottom", "pad": 0.02, "aspect": 40} if narrow else {"pad": 0.02, "aspect": 12}
    bar = figure.colorbar(cells, ax=axes, **where)
    bar.set_label("mean runs", fontsize=7.5)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(nbins=4)
    bar.update_ticks()
    _mark_prefix(axes, report, "white")
    title(figure, report, narrow, _notes(report, first), "runs of each layer, mean over samples; intervals: see shares")
    return figure


def draw_layer_rates(report: Report, narrow: bool = False) -> Figure:
    """Return the shares of samples that skip (downwards) and repeat (upwards) each layer, a row an arm."""
    arms, first = [arm for arm in _arms(report) if arm["name"] != FULL], _first_shown(report)
    figure = new_figure(narrow, LOWEST_ROW * len(arms) + 1.1, layout="constrained")
    rows = figure.subplots(len(arms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    highest = 0.0
    for axes, arm in zip(rows, arms, strict=True):
        use = report["layer_use"][arm["name"]]
        highest = max(highest, _bars(axes, use["repeat_rate"], first, use["chains"], 1, BLUE))
        _bars(axes, use["skip_rate"], first, use["chains"], -1, VERMILLION)
        axes.axhline(0, color=GREY, linewidth=0.6)
        label = f"{wrapped(short_label(arm['label']), 17 if narrow else 28)}\nn = {use['chains']}"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=6.5 if narrow else 7.5)
        _mark_prefix(axes, report, GREY)
        tidy(axes)
    upper = min(1.0, 0.5 * math.ceil(2 * highest - 1e-9)) if highest > 0.02 else 0.0
    rows[0].set_ylim(-1.08, upper + 0.12)
    rows[0].set_yticks(np.arange(-1, upper + 0.01, 0.5 if upper == 0 else 1 if upper == 1 else 0.5))
    rows[0].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * abs(share):.0f} %"))
    for axes in rows:
        axes.tick_params(axis="y", labelsize=6.5)
    rows[-1].set_xlabel("layer")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    sense = "share of samples that skip the layer (down, plain), that run it more than once (up, hatched)"
    intervals = "; lines: 95 % Wilson intervals, none where all samples have one chain"
    title(figure, report, narrow, sense + intervals, _notes(report, first))
    return figure


def _arms(report: Report) -> list[dict[str, Any]]:
    return [arm for arm in report["arms"] if arm["name"] in report["layer_use"]]


def _bars(axes: Axes, rates: Sequence[float], first: int, n: int, sign: int, colour: str) -> float:
    """Draw a bar with its interval for each layer from `first` on, upwards or downwards (`sign`).

    Returns:
        The highest upper bound.
    """
    values = np.array(rates)[first:]
    layers = np.arange(first, first + len(values))
    if sign > 0:
        axes.bar(layers, values, width=0.8, color="none", edgecolor=colour, hatch="//////", linewidth=0.6)
    else:
        axes.bar(layers, -values, width=0.8, color=colour)
    if set(rates) <= {0.0, 1.0}:
        return float(values.max())  # one chain for all: known, not estimated
    low, high = np.array([wilson_interval(round(rate * n), n) for rate in values]).T
    seen = values > 0  # a line at each layer that nobody skips or repeats would hide those that matter
    errors = np.array([values - low, high - values])[:, seen]
    axes.errorbar(
        layers[seen],
        sign * values[seen],
        yerr=errors[::sign].clip(0),
        fmt="none",
        ecolor="#000000",
        linewidth=0.9,
        capsize=1.5,
    )
    return float(high[seen].max()) if seen.any() else 0.0


def _first_shown(report: Report) -> int:
    """Return the first layer to draw: what all chains of all arms run once is left out where it is much."""
    use = report["layer_use"].values()
    edited = [
        layer
        for layer in range(report["model"]["num_layers"])
        if any(one["skip_rate"][layer] or one["repeat_rate"][layer] for one in use)
    ]
    first = min([report["model"]["read_layer"], *edited]) - 2
    return first if 4 * first > report["model"]["num_layers"] else 0


def _notes(report: Report, first: int) -> str:
    """Return what a reader must know of the layers."""
    prefix = report["model"]["read_layer"]
    notes = [f"layers 0 to {first - 1} are left out, all chains run them once"] if first else []
    return "; ".join([*notes, f"dotted line: the router reads layer {prefix}'s input"] if prefix else notes)


def _mark_prefix(axes: Axes, report: Report, colour: str) -> None:
    prefix = report["model"]["read_layer"]
    if 0 < prefix < report["model"]["num_layers"]:
        axes.axvline(prefix - 0.5, color=colour, linestyle=":", linewidth=1.2)
