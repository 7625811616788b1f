"""Figures on the disk, the same bytes for the same content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from router.files import replacing


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
