"""The report as a table in the terminal; whole lines and plain text where it goes into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from eval.arms import FULL, ORACLE, ROUTER

PIPE_WIDTH = 1000
"""Columns of a pipe, wider than any line of the report, so that nothing is cut or wrapped."""
GROUP_ARMS = (FULL, ROUTER, ORACLE)
"""Arms whose accuracy the table of groups shows; report.json has all."""
GROUP_ROWS = 60
"""Groups shown at most."""


def console_for(stream: TextIO) -> tuple[Console, box.Box]:
    """Return a console and a style of tables for a terminal, or for a file or pipe."""
    terminal = stream.isatty()
    console = Console(
        file=stream,
        width=None if terminal else PIPE_WIDTH,
        force_terminal=terminal,
        no_color=not terminal,
        highlight=False,
        markup=False,
    )
    return console, box.SIMPLE if terminal else box.ASCII2


def print_report(report: dict[str, Any], stream: TextIO) -> None:
    """Print a report's arms and what a reader must know with them."""
    console, style = console_for(stream)
    model, mode = report["model"], report["judged_mode"]
    searched = "" if report["mode"] == mode else f", searched by {report['mode']}"
    console.print(
        f"{report['task']} ({mode}{searched}), split {report['split']}, n = {report['n']}, "
        f"{model['name']} with {model['num_layers']} layers in {model['dtype']}; "
        f"guessing: {report['chance_accuracy']:.3f}"
    )
    console.print(_arms(report, style))
    if report["groups"]:
        console.print(_groups(report["groups"][:GROUP_ROWS], style))
    if len(report["groups"]) > GROUP_ROWS:
        console.print(f"{len(report['groups']) - GROUP_ROWS} more groups stand in report.json")
    for line in _lines(report):
        console.print(line)


def _arms(report: dict[str, Any], style: box.Box) -> Table:
    table = Table(box=style)
    table.add_column("arm", overflow="fold")
    names = ["accuracy", "95 % (Wilson)", "mean depth", "of full", "FLOPs", "wrong->right", "right->wrong", "p (Holm)"]
    failures = any(arm["no_answer"] for arm in report["arms"])
    for name in (*names, "against full depth, 95 %", *(["no answer"] if failures else [])):
        table.add_column(name, justify="right", overflow="fold")
    for arm in report["arms"]:
        table.add_row(arm["label"], *_cells(arm), *([str(arm["no_answer"])] if failures else []))
    return table


def _groups(groups: list[dict[str, Any]], style: box.Box) -> Table:
    """Return a line for each group: accuracies and, where there are any, counts of answers that cannot be read."""
    table = Table(box=style)
    table.add_column("group", overflow="fold")
    failures = any(arm["no_answer"] for group in groups for arm in group["arms"])
    for name in ("n", *GROUP_ARMS, *(["no answer, " + "/".join(GROUP_ARMS)] if failures else [])):
        table.add_column(name, justify="right", overflow="fold")
    for group in groups:
        arms = {arm["name"]: arm for arm in group["arms"]}
        cells = [f"{arms[name]['accuracy']:.3f}" for name in GROUP_ARMS]
        if failures:
            cells.append("/".join(str(arms[name]["no_answer"]) for name in GROUP_ARMS))
        table.add_row(group_label(group), str(group["n"]), *cells)
    return table


def group_label(group: dict[str, Any]) -> str:
    """Return a group's name for readers."""
    if group["kind"] == "task":
        return f"task {group['task']}"
    value = "none given" if group["value"] is None else group["value"]
    return f"{group['task']}, {group['kind']} {value}"


def _cells(arm: dict[str, Any]) -> list[str]:
    low, high = arm["accuracy_interval"]
    cells = [
        f"{arm['accuracy']:.3f}",
        f"{low:.3f}..{high:.3f}",
        f"{arm['mean_depth']:.2f}",
        f"{arm['depth_ratio']:.3f}",
        f"{arm['flops_ratio']:.3f}",
    ]
    against = arm["against_full"]
    if against is None:
        return [*cells, "-", "-", "-", "-"]
    low, high = against["difference_interval"]
    return [
        *cells,
        str(against["wrong_to_right"]),
        str(against["right_to_wrong"]),
        "-" if against["mcnemar_p_holm"] is None else probability(against["mcnemar_p_holm"]),
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
    labels = {arm["name"]: arm["label"] for arm in report["arms"]}
    for name, pair in report["router_against"].items():
        low, high = pair["difference_interval"]
        lines.append(
            f"router against {labels[name]}: {pair['difference']:+.3f} ({low:+.3f}..{high:+.3f}), "
            f"p {probability(pair['mcnemar_p_holm'])}"
        )
    lines.append(f"p: {report['comparisons']['method']}, {report['comparisons']['count']} comparisons")
    lines.append(
        f"static chain: {static['text']} (depth {static['depth']}), best of {len(static['candidates'])} on "
        f"{static['chosen_on']} ({static['mode']}) at depth <= {static['router_validation_depth']:.2f}, "
        f"the router's on validation"
    )
    lines.append(
        f"oracle: a right chain stands in the records of {oracle['right_chain_in_records']} samples (the others run at "
        f"full depth), {oracle['right_when_run_again']} are right when run again"
    )
    lines += control_lines(report["controls"])
    if any(arm["no_answer"] for arm in report["arms"]):
        lines.append("no answer: none could be read in what was generated, a format failure; it counts as wrong")
    return [*lines, *(f"note: {note}" for note in report["notes"])]


# What the controls of the oracle say, a line each.


def control_lines(controls: dict[str, Any] | None) -> list[str]:
    """Return lines for a report's block `controls`, as `eval.controls.controls_block` makes it."""
    if controls is None:
        return []
    makers = {"luck": _luck, "random_search": _random, "reshuffled": _reshuffled, "generated": _generated}
    return [line for name, make in makers.items() if controls[name] is not None for line in make(controls[name])]


def _luck(luck: dict[str, Any]) -> list[str]:
    if not luck["eligible"]:
        return ["control, luck: no sample on which full depth gives neither the right answer nor the told one"]
    return [
        f"control, luck: of {luck['eligible']} samples that full depth answers otherwise the search sets "
        f"{_share(luck['gold'])} right and, looking for a wrong answer, {_share(luck['luck'])} to that one; "
        f"the oracle's gain is {_value(luck['gain'])}, "
        f"minus what the wrong-answer search finds {_value(luck['net_gain'])}"
    ]


def _random(found: dict[str, Any]) -> list[str]:
    pair = found["paired"]
    return [
        f"control, random search of equal {found['equal'].replace('_', ' ')}: a right chain for "
        f"{_share(found['random'])} of {found['n']} samples, the oracle {_share(found['oracle'])}"
        + ("" if pair is None else f", {_difference(pair)}")
    ]


def _reshuffled(found: dict[str, Any]) -> list[str]:
    rescued = found["rescued"]
    if rescued["oracle"] is None:
        return ["control, choices reshuffled: no rescued sample among those that were run"]
    line = (
        f"control, choices reshuffled: of {rescued['n']} rescued samples {_share(rescued['oracle'])} stay right under "
        f"the same chain, full depth gets {_share(rescued['full'])} of them"
    )
    right = found["full_right"]
    return [line + ("" if right is None else f"; of what full depth gets right {_share(right)} stays so")]


def _generated(found: dict[str, Any]) -> list[str]:
    parts = [
        f"of {found[arm]['right']} right answers of {label} {_share(found[arm]['confirmed'])} are confirmed"
        f" ({found[arm]['right_no_answer']} texts could not be read)"
        for arm, label in (("full", "full depth"), ("oracle", "the oracle"))
        if found[arm]["confirmed"] is not None
    ]
    return [f"control, real generation on {found['n']} samples: {'; '.join(parts) or 'nothing was right'}"]


def _share(share: dict[str, Any]) -> str:
    return _with(f"{share['share']:.3f}", share["interval"], "")


def _value(value: dict[str, Any]) -> str:
    return _with(f"{value['value']:+.3f}", value["interval"], "+")


def _difference(pair: dict[str, Any]) -> str:
    return _with(f"{pair['difference']:+.3f}", pair["difference_interval"], "+")


def _with(text: str, interval: list[float], sign: str) -> str:
    low, high = interval
    return f"{text} ({low:{sign}.3f}..{high:{sign}.3f})"


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column stands to the left and the others to the right.

    Args:
        title: what stands above it; None: nothing.
        columns: their names.
        rows: their cells.
    """
    made = Table(title=title, title_justify="left", box=box.SIMPLE if sys.stdout.isatty() else box.ASCII2)
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
