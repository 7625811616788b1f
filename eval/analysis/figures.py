"""Figures of an analysis: layer use, skip and repeat rates, depth by difficulty, shares with and without luck."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.figures import save_figure
from eval.figures import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILLION, new_figure, tidy

STYLES = {
    "skip": (BLUE, "o", "-"),
    "repeat": (VERMILLION, "s", "--"),
    "both": (GREEN, "^", "-."),
    "both+move": (PURPLE, "D", ":"),
}
"""Colour, marker and line of each action set."""
PUBLISHED = {"shortened": 0.75, "set_right": 0.60}
"""Shares that CoLa (arXiv 2507.07996) states as exceeded."""

Cells = Sequence[dict[str, Any]]


def write_figures(content: dict[str, Any], out: Path) -> list[Path]:
    """Draw analysis.json as PNG and SVG, each file complete or absent; returns the files."""
    drawn: dict[str, Callable[[Cells], Figure]] = {
        "shares": draw_shares,
        "layer_use": draw_use,
        "layer_rates": draw_rates,
        "depth_by_difficulty": draw_depths,
    }
    paths = []
    for name, draw in drawn.items():
        files = [out / f"{name}.png", out / f"{name}.svg"]
        paths += save_figure(functools.partial(draw, content["cells"]), files, "analysis")
    return paths


def _figure(height: float) -> Figure:
    return new_figure(False, height, layout="constrained")


def _by_model(cells: Cells) -> dict[str, list[dict[str, Any]]]:
    """Return the cells of each model, variant and split by a name for readers."""
    splits = {cell["split"] for cell in cells}
    named: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        name = f"{cell['model']} {cell['variant']}" + (f", {cell['split']}" if len(splits) > 1 else "")
        named.setdefault(name, []).append(cell)
    return named


def draw_shares(cells: Cells) -> Figure:
    """Return the figure of what was found: right samples shortened, wrong ones set right, and what is luck of it."""
    figure = _figure(1.6 + 0.42 * len(cells))
    panels = figure.subplots(1, 2, sharey=True)
    titles = {
        "shortened": "full depth right: a shorter right chain",
        "set_right": "full depth wrong: some right chain",
    }
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        axes.axvline(PUBLISHED[kind], color=GREY, linewidth=0.8, linestyle="--", label="published: more than this")
        for place, cell in enumerate(cells):
            gain = cell["groups"][0][kind]
            colour, marker, _ = STYLES[cell["action_set"]]
            _share_bar(axes, gain["found"], place - 0.12, colour, marker, "")
            if gain["luck"] is not None:
                told = "found when told a wrong answer: luck"
                _share_bar(axes, gain["luck"]["told_wrong"], place + 0.2, BLACK, "x", told, sized=True)
            if gain["by_lot"] is not None:
                lot = "expected if every chain guessed"
                axes.plot(gain["by_lot"], place + 0.04, "|", color=GREY, markersize=13, label=lot)
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("share of samples (95 % Wilson)")
        axes.grid(axis="x", alpha=0.3)
        tidy(axes)
    groups = [cell["groups"][0] for cell in cells]
    sizes = [f"n {group['shortened']['found']['n']} / {group['set_right']['found']['n']}" for group in groups]
    panels[0].set_yticks(
        range(len(cells)), [f"{cell['label']}\n{size}" for cell, size in zip(cells, sizes, strict=True)], fontsize=7.5
    )
    panels[0].set_ylim(len(cells) - 0.4, -0.6)
    shown = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=7.5)
    return figure


def _share_bar(
    axes: Axes, share: dict[str, Any], place: float, colour: str, marker: str, label: str, sized: bool = False
) -> None:
    """Draw a share with its interval, and the number of samples beside it if asked for; nothing without samples."""
    if share["share"] is None:
        return
    low, high = share["interval"]
    ends = [[max(0.0, share["share"] - low)], [max(0.0, high - share["share"])]]
    axes.errorbar(
        share["share"], place, xerr=ends, fmt=marker, color=colour, markersize=5, capsize=2, linewidth=1, label=label
    )
    if sized:
        outside, side = (low, "right") if high > 0.85 else (high, "left")
        shift = (-4 if side == "right" else 4, 0)
        text = f"n {share['n']}"
        axes.annotate(
            text, (outside, place), shift, textcoords="offset points", ha=side, va="center", fontsize=6.5, color=colour
        )


def draw_use(cells: Cells) -> Figure:
    """Return the heat map of layer use: a row for each search, its tasks where there are several, and its control."""
    models = {name: rows for name, of_model in _by_model(cells).items() if (rows := _use_rows(of_model))}
    heights = [len(rows) for rows in models.values()]
    figure = _figure(1.0 + sum(0.24 * height + 0.75 for height in heights))
    if not models:
        figure.text(0.5, 0.5, "no search found a right chain", ha="center", va="center")
        return figure
    runs = [times for rows in models.values() for _, use in rows for times in use["mean_runs"]]
    panels = figure.subplots(len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, rows) in zip(panels, models.items(), strict=True):
        # Colours span what there is: differences are small beside one run a layer.
        image = axes.imshow(
            [use["mean_runs"] for _, use in rows],
            aspect="auto",
            cmap="viridis",
            vmin=min(0.9, *runs),
            vmax=max(1.1, *runs),
        )
        for place, ((before, _), (after, _)) in enumerate(pairwise(rows)):
            if before.split(",")[0] != after.split(",")[0]:
                axes.axhline(place + 0.5, color="white", linewidth=2)
        axes.set_yticks(range(len(rows)), [f"{label} (n {use['chains']})" for label, use in rows], fontsize=7.5)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("layer")
    figure.colorbar(image, ax=list(panels), label="runs of the layer a chain, mean\n(full depth: 1)", shrink=0.9)
    return figure


def _use_rows(cells: Cells) -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any] | None]] = []
    for cell in cells:
        rows.append((cell["action_set"], cell["groups"][0]["use"]))
        rows.append((f"{cell['action_set']}, told wrong", cell["groups"][0]["use_told_wrong"]))
        tasks = [group for group in cell["groups"] if group["kind"] == "task"]
        rows += [(f"{cell['action_set']}, {group['label']}", group["use"]) for group in tasks]
    return [(label, use) for label, use in rows if use is not None]


def draw_rates(cells: Cells) -> Figure:
    """Return the figure of each layer's skip and repeat rates, by action set, with Wilson intervals."""
    models = _by_model(cells)
    figure = _figure(0.7 + 2.2 * len(models))
    panels = figure.subplots(len(models), 2, squeeze=False, sharey="row")
    for row, (name, of_model) in zip(panels, models.items(), strict=True):
        for axes, kind in zip(row, ("skip", "repeat"), strict=True):
            for cell in of_model:
                if (use := cell["groups"][0]["use"]) is None:
                    continue
                colour, marker, line = STYLES[cell["action_set"]]
                layers, rates = range(cell["num_layers"]), use[f"{kind}_rate"]
                ends = list(zip(*use[f"{kind}_interval"], strict=True))
                label = f"{cell['action_set']} (n {use['chains']})"
                axes.plot(layers, rates, line, color=colour, marker=marker, markersize=3, linewidth=1.1, label=label)
                axes.fill_between(layers, *ends, color=colour, alpha=0.13, linewidth=0)
            axes.set_title(f"{name}: {kind} rate", fontsize=9)
            axes.set_xlabel("layer")
            axes.set_ylim(bottom=-0.02)
            axes.grid(alpha=0.3)
            tidy(axes)
        row[0].set_ylabel("share of shortest right chains\n(95 % Wilson)")
        if row[1].get_legend_handles_labels()[0]:
            row[1].legend(frameon=False, fontsize=7.5)
    return figure


def draw_depths(cells: Cells) -> Figure:
    """Return the figure of mean depth of the shortest right chains by task and difficulty, with bootstrap intervals."""
    models = _by_model(cells)
    figure = _figure(0.7 + 2.4 * len(models))
    panels = figure.subplots(len(models), 1, squeeze=False)[:, 0]
    for axes, (name, of_model) in zip(panels, models.items(), strict=True):
        leaves = _leaves(of_model[0])
        places = {_key(group): place for place, group in enumerate(leaves)}
        axes.axhline(of_model[0]["num_layers"], color=GREY, linewidth=0.8, linestyle="--", label="full depth")
        for number, cell in enumerate(of_model):
            shift = 0.12 * (number - (len(of_model) - 1) / 2)
            _depth_lines(axes, cell, places, shift)
        labels = [f"{group['label'].replace(', difficulty ', chr(10))}\nn {group['n']}" for group in leaves]
        axes.set_xticks(range(len(leaves)), labels, fontsize=7.5)
        axes.set_xlim(-0.5, len(leaves) - 0.5)
        axes.set_title(name, fontsize=9)
        axes.set_ylabel("mean depth, layers\n(95 % bootstrap)")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        tidy(axes)
    return figure


def _key(group: dict[str, Any]) -> tuple[str, str | None, str | None]:
    return group["kind"], group["task"], group["value"]


def _leaves(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the finest groups: each task's difficulties, a task that has none as it is."""
    groups = cell["groups"]
    with_levels = {group["task"] for group in groups if group["kind"] == "difficulty"}
    leaves = [
        group
        for group in groups
        if group["kind"] == "difficulty" or (group["kind"] == "task" and group["task"] not in with_levels)
    ]
    return leaves or groups[:1]


def _depth_lines(axes: Axes, cell: dict[str, Any], places: dict[Any, int], shift: float) -> None:
    """Draw a cell's mean depths; a line joins the difficulties of one task."""
    colour, marker, line = STYLES[cell["action_set"]]
    label = cell["action_set"]
    tasks: dict[str | None, list[tuple[float, dict[str, Any]]]] = {}
    for group in cell["groups"]:
        if _key(group) in places and group["depth"]:
            tasks.setdefault(group["task"], []).append((places[_key(group)] + shift, group["depth"][-1]))
    for points in tasks.values():
        means = [at["mean"] for _, at in points]
        lows, highs = zip(*(at["interval"] or (at["mean"], at["mean"]) for _, at in points), strict=True)
        ends = [[max(0.0, mean - low) for mean, low in zip(means, lows, strict=True)]]
        ends.append([max(0.0, high - mean) for mean, high in zip(means, highs, strict=True)])
        axes.errorbar(
            [place for place, _ in points],
            means,
            yerr=ends,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=5,
            capsize=2,
            linewidth=1,
            label=label,
        )
        label = ""
