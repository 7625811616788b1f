"""An analysis as tables in the terminal; whole lines and plain text where it goes into a file or a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.table import Table

from eval.analysis.settings import ACTION_SETS
from eval.analysis.statistics import PERCENTS
from eval.tables import console_for

NOTHING = "-"


def print_analysis(content: dict[str, Any], stream: TextIO) -> None:
    """Print the tables of analysis.json, and what a reader must know with them."""
    console, style = console_for(stream)
    console.print("Accuracy of full depth, and share of samples with a right chain (has seen the answer), 95 % Wilson:")
    console.print(_accuracies(content["table"], style))
    console.print("Of samples that full depth answers rightly: a shorter right chain (published: over 0.75)")
    console.print(_gains(content["cells"], "shortened", style))
    console.print("Of samples that full depth answers wrongly: a right chain (published: over 0.60)")
    console.print(_gains(content["cells"], "set_right", style))
    console.print("Mean depth of the shortest right chains, over the samples where they are shortest, and their use:")
    console.print(_depths(content["cells"], style))
    for kind in ("caveats", "notes"):
        for line in content[kind]:
            console.print(f"{kind[:-1]}: {line}")


def _table(style: box.Box, names: Sequence[str], left: int) -> Table:
    table = Table(box=style)
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    return table


def _accuracies(rows: Sequence[dict[str, Any]], style: box.Box) -> Table:
    sets = [name for name in ACTION_SETS if any(name in row["oracle"] for row in rows)]
    table = _table(style, ["model", "split", "samples", "n", "full depth", *sets], 3)
    for row in rows:
        cells = [share_text(row["original"]), *(share_text(row["oracle"].get(name)) for name in sets)]
        table.add_row(f"{row['model']} {row['variant']}", row["split"], row["label"], str(row["n"]), *cells)
    return table


def _gains(cells: Sequence[dict[str, Any]], kind: str, style: box.Box) -> Table:
    names = ["search", "n", "found", "of chains tried, right", "found if all guessed"]
    table = _table(style, [*names, "n, control", "found", "told wrong: luck", "net of luck"], 1)
    for cell in cells:
        gain = cell["groups"][0][kind]
        rate = number_text(gain["rate"], gain["rate_interval"])
        told = [cell["label"], str(gain["found"]["n"]), share_text(gain["found"]), f"{rate} of {gain['chains']}"]
        luck = gain["luck"]
        control = [NOTHING] * 4
        if luck is not None:
            net = number_text(luck["net"], luck["net_interval"], "+.3f")
            control = [str(luck["found"]["n"]), share_text(luck["found"]), share_text(luck["told_wrong"]), net]
        table.add_row(*told, number_text(gain["by_lot"]), *control)
    return table


def _depths(cells: Sequence[dict[str, Any]], style: box.Box) -> Table:
    names = [f"shortest {percent} %" if percent < 100 else "all" for percent in PERCENTS]
    table = _table(style, ["search", "n", *names, "full depth", "entropy of use, bits"], 1)
    for cell in cells:
        group = cell["groups"][0]
        depths = [f"{number_text(at['mean'], at['interval'], '.2f')} n {at['n']}" for at in group["depth"]]
        entropy = None if group["use"] is None else group["use"]["entropy_bits"]
        table.add_row(
            cell["label"],
            str(group["oracle"]["count"]),
            *(depths or [NOTHING] * len(PERCENTS)),
            str(cell["num_layers"]),
            number_text(entropy, form=".2f"),
        )
    return table


def share_text(share: dict[str, Any] | None) -> str:
    """Return a share and its interval for readers."""
    return NOTHING if share is None else number_text(share["share"], share["interval"])


def number_text(value: float | None, interval: Sequence[float] | None = None, form: str = ".3f") -> str:
    """Return a number, and its interval where there is one, for readers."""
    if value is None:
        return NOTHING
    return f"{value:{form}}" + ("" if interval is None else f" ({interval[0]:{form}}..{interval[1]:{form}})")
