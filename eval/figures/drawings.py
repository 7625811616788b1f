"""All figures of a report: which there are, what each shows, and their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from data.figures import save_figure
from eval.figures import accuracy
from eval.figures.difficulty import draw_difficulty, has_difficulty
from eval.figures.flows import draw_flows, has_flows
from eval.figures.layers import draw_layer_rates, draw_layer_use, has_layer_use
from eval.figures.style import Report

SALT = "eval"
"""Seeds the names inside SVG files."""


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
    applies: Callable[[Report], bool]


DRAWINGS = (
    Drawing(
        "accuracy_by_depth",
        "Accuracy against depth",
        "One point an arm: up is more right answers, left is fewer layers executed. The dashed line is full depth. "
        "Whiskers are 95 % Wilson intervals; a thin line joins the budgets of one router. Hollow purple marks have "
        "seen the answers.",
        accuracy.draw,
        lambda _: True,
    ),
    Drawing(
        "flows",
        "What is set right and what is broken",
        "Of all samples, the share that full depth answers wrongly and the arm rightly (hatched, to the right) and "
        "the other way round (plain, to the left), with their counts. The diamond is the difference of the two, the "
        "gain in accuracy, with its 95 % bootstrap interval.",
        draw_flows,
        has_flows,
    ),
    Drawing(
        "layer_use",
        "Which layers run",
        "One row an arm, one column a layer; the colour says how often the layer runs, mean over samples: dark is "
        "rarely, bright is often.",
        draw_layer_use,
        has_layer_use,
    ),
    Drawing(
        "layer_rates",
        "Which layers are skipped and repeated",
        "One row an arm. Plain bars downwards: share of samples whose chain skips the layer. Hatched bars upwards: "
        "share whose chain runs it more than once. Lines are 95 % Wilson intervals.",
        draw_layer_rates,
        has_layer_use,
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
        report: the content of `report.json`, schema 3.
        out: the folder, which exists.

    Returns:
        The files.
    """
    files: list[Path] = []
    for one in drawings_of(report):
        paths = [out / f"{one.name}.{suffix}" for suffix in ("png", "svg")]
        files += save_figure(partial(one.draw, report, False), paths, SALT)
    return files
