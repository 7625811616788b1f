"""The report as a table in the terminal; whole lines and plain text where it goes into a file or a pipe."""

from __future__ import annotations

from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 1000
"""Columns of a pipe, wider than any line of the report, so that nothing is cut or wrapped."""


def print_report(report: dict[str, Any], stream: TextIO) -> None:
    """Print a report's arms and what a reader must know with them."""
    terminal = stream.isatty()
    console = Console(
        file=stream,
        width=None if terminal else PIPE_WIDTH,
        force_terminal=terminal,
        no_color=not terminal,
        highlight=False,
        markup=False,
    )
    table = Table(box=box.SIMPLE if terminal else box.ASCII2)
    table.add_column("arm", overflow="fold")
    for name in ("accuracy", "95 % (Wilson)", "mean depth", "of full", "wrong->right", "right->wrong", "McNemar p"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("against full depth, 95 %", justify="right", overflow="fold")
    for arm in report["arms"]:
        table.add_row(arm["label"], *_cells(arm))
    model = report["model"]
    console.print(
        f"{report['task']} ({report['mode']}), split {report['split']}, n = {report['n']}, "
        f"{model['name']} with {model['num_layers']} layers in {model['dtype']}; "
        f"guessing: {report['chance_accuracy']:.3f}"
    )
    console.print(table)
    for line in _lines(report):
        console.print(line)


def _cells(arm: dict[str, Any]) -> list[str]:
    low, high = arm["accuracy_interval"]
    cells = [
        f"{arm['accuracy']:.3f}",
        f"{low:.3f}..{high:.3f}",
        f"{arm['mean_depth']:.2f}",
        f"{arm['depth_ratio']:.3f}",
    ]
    against = arm["against_full"]
    if against is None:
        return [*cells, "-", "-", "-", "-"]
    low, high = against["difference_interval"]
    return [
        *cells,
        str(against["wrong_to_right"]),
        str(against["right_to_wrong"]),
        probability(against["mcnemar_p"]),
        f"{against['difference']:+.3f} ({low:+.3f}..{high:+.3f})",
    ]


def probability(p: float) -> str:
    """Return a p-value for readers."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _lines(report: dict[str, Any]) -> list[str]:
    collapse, static, oracle = report["router_collapse"], report["static"], report["oracle"]
    lines = [
        f"router: {collapse['distinct_chains']} different chains ({collapse['entropy_bits']:.2f} bits), full depth for "
        f"{collapse['share_full']:.1%}, most common {collapse['most_common']} ({collapse['share_most_common']:.1%})"
    ]
    for name, label in (("static", "the best static chain"), ("random", "random chains")):
        pair = report["router_against"][name]
        low, high = pair["difference_interval"]
        lines.append(
            f"router against {label}: {pair['difference']:+.3f} ({low:+.3f}..{high:+.3f}), "
            f"McNemar p {probability(pair['mcnemar_p'])}"
        )
    lines.append(
        f"static chain: {static['text']} (depth {static['depth']}), best of {len(static['candidates'])} on "
        f"{static['chosen_on']} at depth <= {static['router_validation_depth']:.2f}, the router's on validation"
    )
    lines.append(
        f"oracle: a right chain stands in the records of {oracle['right_chain_in_records']} samples, "
        f"{oracle['right_when_run_again']} are right when run again"
    )
    return [*lines, *(f"note: {note}" for note in report["notes"])]
