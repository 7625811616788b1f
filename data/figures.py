"""Figures on the disk, the same bytes for the same content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from router.files import replacing

BLACK, GREY = "#000000", "#777777"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
"""Colours that differ for colour-blind readers too (Okabe and Ito 2008)."""


def tidy(axes: Axes) -> None:
    """Take away the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(draw: Callable[[], Figure], paths: Sequence[Path], salt: str) -> list[Path]:
    """Draw a figure and write it to each path, complete or not at all.

    Args:
        draw: makes the figure.
        paths: the files; the suffix says the format (.png, .svg).
        salt: seeds the names inside an SVG file, which are random otherwise.

    Returns:
        The files.
    """
    # The salt and the missing date make the same content the same file.
    with matplotlib.rc_context({"svg.hashsalt": salt, "font.size": 9.0}):
        figure = draw()
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            with replacing(path) as aside:
                figure.savefig(aside, dpi=200, metadata=metadata)
    return list(paths)
