"""The figure of `python -m eval.curves`: routers' accuracy against mean depth, over the static frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.figures import save_figure

FIGURE_FILES = ("curves.png", "curves.svg")
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that differ for colour-blind readers too (Okabe and Ito 2008), one a kind of router."""
STATIC_COLOUR = "#D55E00"
MARKERS = "osDv^"


def write_curves_figure(content: dict[str, Any], out: Path) -> list[Path]:
    """Draw `curves.json` as PNG and SVG, each complete or absent; returns the files."""
    return save_figure(lambda: draw(content), [out / name for name in FIGURE_FILES], "eval")


def draw(content: dict[str, Any]) -> Figure:
    """Return the figure: each kind's mean over seeds and its range, static chains, full depth."""
    figure = Figure(figsize=(7.5, 4.2))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    full = content["full"]
    axes.axhline(full["accuracy"], color="black", linewidth=0.8, linestyle=":")
    axes.plot(full["depth"], full["accuracy"], "s", color="black", label="full depth", zorder=3)
    static = sorted(content["static"], key=lambda one: one["depth"])
    axes.plot(
        [one["depth"] for one in static],
        [one["accuracy"] for one in static],
        "^--",
        color=STATIC_COLOUR,
        label="static chains, and their mixtures",
    )
    for i, name in enumerate(dict.fromkeys(one["name"] for one in content["summary"])):
        own = sorted((one for one in content["summary"] if one["name"] == name), key=lambda one: one["depth"])
        means = [one["accuracy"] for one in own]
        axes.errorbar(
            [one["depth"] for one in own],
            means,
            yerr=[
                [mean - one["spread"][0] for mean, one in zip(means, own, strict=True)],
                [one["spread"][1] - mean for mean, one in zip(means, own, strict=True)],
            ],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            capsize=3,
            label=f"router {name} (mean and range of {own[0]['seeds']} seeds)",
        )
    axes.set_xlabel("mean depth, layers executed")
    axes.set_ylabel(f"accuracy on {content['n']} test samples")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    return figure
