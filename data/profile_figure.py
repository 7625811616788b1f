"""The read-layer profile as a figure: what can be read at each layer, with its intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.figures import save_figure
from data.layer_profile import CHANCE, LayerProfile, Measure, Profile

# Colours that differ for colour-blind readers too (Okabe and Ito 2008); line style and marker say the same once more.
PROBE, REFERENCE, CHOSEN, GUESS = "#0072B2", "#D55E00", "#009E73", "#777777"
PANELS = (
    ("confidence", "r with full depth's\nconfidence"),
    ("correct", "AUC, full depth\nis right"),
    ("kept", "AUC, skip keeps\nthe answer"),
)


def draw_profile(profile: Profile, title: str, path: Path) -> list[Path]:
    """Draw a profile as PNG and SVG, each complete or absent.

    Args:
        profile: the profile.
        title: what was profiled: model, task, mode.
        path: the files' path; its suffix gives way to .png and .svg.

    Returns:
        The files.
    """
    paths = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    return save_figure(lambda: draw(profile, title), paths, "profile")


def draw(profile: Profile, title: str) -> Figure:
    """Return the figure: a panel a measure over the read layers, chance as a dashed line, the suggestion marked."""
    figure = Figure(figsize=(7.5, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    for axes, (name, label) in zip(panels, PANELS, strict=True):
        _band(axes, profile, lambda one, name=name: getattr(one, name), "probe", PROBE, "o")  # type: ignore[misc]
        if name == "kept":
            _band(axes, profile, lambda one: one.by_confidence, "full depth's confidence", REFERENCE, "^")
        axes.axhline(CHANCE[name], color=GUESS, linestyle="--", linewidth=1, zorder=0, label="chance")
        chosen = profile.suggestion
        if chosen.prefix_layers is not None:
            mark = f"suggested e = {chosen.prefix_layers}" + (", by this panel" if chosen.measure == name else "")
            axes.axvline(chosen.prefix_layers, color=CHOSEN, linestyle=":", linewidth=1.8, zorder=0, label=mark)
        axes.set_ylabel(label)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel(f"read layer e: layers that have run when the states are read (of {profile.num_layers})")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{title}\nn = {profile.samples}, full depth right on {profile.accuracy:.3f}; bands: 95 % bootstrap intervals",
        fontsize=9,
    )
    return figure


def _band(
    axes: Axes, profile: Profile, measure: Callable[[LayerProfile], Measure], label: str, colour: str, marker: str
) -> None:
    """Draw one measure over the read layers, its interval as a band; a layer without a value leaves a gap."""
    found = [measure(one) for one in profile.layers]
    layers = [one.prefix_layers for one in profile.layers]
    values = [np.nan if one.value is None else one.value for one in found]
    low, high = np.array([one.interval or (np.nan, np.nan) for one in found]).reshape(-1, 2).T
    axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(layers, values, color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=label)
