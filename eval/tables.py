"""The report as a table in the terminal; whole lines and plain text where it goes into a file or a pipe.

How numbers stand in any table of the evaluation: `number`, `probability`, `table`, `console_for`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from data.headroom import HOW, Chooser, Headroom
from data.statistics import Estimate, PairedShares, Proportion
from eval.arms import FULL, ORACLE, ROUTER, STATIC, STATIC_BY_KIND
from eval.controls import Controls, Generated, Reshuffled
from eval.luck import Luck, RandomSearch
from eval.measures import Group
from eval.report import Report, ReportArm

PIPE_WIDTH = 1000
"""Columns of a pipe, wider than any line of the report, so that nothing is cut or wrapped."""
GROUP_ARMS = (FULL, ROUTER, ORACLE)
"""Arms whose accuracy the table of groups shows; report.json has all."""
KIND_ARMS = (FULL, ROUTER, STATIC, STATIC_BY_KIND, ORACLE)
"""Arms whose accuracy and depth the table of kinds (tasks) shows, where a run has them."""
GROUP_ROWS = 60
"""Groups shown at most."""
CHOOSERS: dict[Chooser, str] = {
    "full": "full depth",
    "oracle": "the oracle that has seen the answers",
    "anew": "judged anew",
    "static": "the best fixed chain",
    "mixture": "fixed chains of its depth",
}
"""Who chose the chains that headroom compares."""


def console_for(stream: TextIO) -> Console:
    """Return a console for a terminal, or for a file or pipe."""
    terminal = stream.isatty()
    return Console(
        file=stream,
        width=None if terminal else PIPE_WIDTH,
        force_terminal=terminal,
        no_color=not terminal,
        highlight=False,
        markup=False,
    )


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose first column stands to the left and the others to the right.

    Args:
        title: what stands above it; None: nothing.
        columns: their names.
        rows: their cells.
    """
    made = Table(
        title=None if title is None else printable(title),
        title_justify="left",
        box=box.SIMPLE if sys.stdout.isatty() else box.ASCII2,
    )
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*map(printable, row))
    return made


def printable(text: str) -> str:
    """Return text without what would steer a terminal; a data set, or a file that somebody sent, may hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def number(value: float | None, interval: Sequence[float] | None = None, form: str = ".3f") -> str:
    """Return a number for readers with its interval, `0.596 (0.568..0.623)`; None: `-`."""
    if value is None:
        return "-"
    return f"{value:{form}}" + ("" if interval is None else f" ({interval[0]:{form}}..{interval[1]:{form}})")


def probability(p: float | None) -> str:
    """Return a p-value for readers; None: `-`."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def print_report(report: Report, stream: TextIO) -> None:
    """Print a report's arms and what a reader must know with them."""
    console = console_for(stream)
    model, mode = report.model, report.judged_mode
    searched = "" if report.mode == mode else f", searched by {report.mode}"
    heading = f"{report.task} ({mode}{searched}), split {report.split}, n = {report.n}, "
    heading += f"{model.name} with {model.num_layers} layers in {model.dtype}; guessing: {report.chance_accuracy:.3f}"
    console.print(printable(heading))
    headroom = None if report.controls is None else report.controls.headroom
    console.print(_arms(report.arms, headroom))
    others = [group for group in report.groups if group.kind != "task"]
    for groups, shown in ((report.kinds, _kinds), (others, _groups)):
        if groups:
            console.print(shown(groups[:GROUP_ROWS]))
        if len(groups) > GROUP_ROWS:
            console.print(f"{len(groups) - GROUP_ROWS} more groups stand in report.json")
    for line in _lines(report):
        console.print(printable(line))


def _arms(arms: Sequence[ReportArm], headroom: Headroom | None) -> Table:
    failures = any(arm.no_answer for arm in arms)
    columns = ["arm", "accuracy", "95 % (Wilson)", "mean depth", "of full", "FLOPs", "wrong->right", "right->wrong"]
    columns += ["p (Holm)", "against full depth, 95 %", *(["no answer"] if failures else [])]
    rows = []
    for arm in arms:
        (low, high), pair = arm.accuracy_interval, arm.against_full
        ratios = [number(arm.depth_ratio), number(arm.flops_ratio)]
        against = ["-"] * 4
        if pair is not None:
            against = [str(pair.wrong_to_right), str(pair.right_to_wrong), probability(pair.mcnemar_p_holm)]
            against.append(number(pair.difference, pair.difference_interval, "+.3f"))
        unread = [str(arm.no_answer)] if failures else []
        accuracy = [number(arm.accuracy), f"{low:.3f}..{high:.3f}"]
        rows.append([arm.label, *accuracy, number(arm.mean_depth, form=".2f"), *ratios, *against, *unread])
    if headroom is not None:
        rows.append(_anew(headroom, len(columns)))
    return table(None, columns, rows)


def _anew(headroom: Headroom, width: int) -> list[str]:
    """Return the row of the oracle judged anew, so wide; its difference is to full depth on the same variants."""
    accuracy, depth = headroom.accuracy["anew"], headroom.depth["anew"]
    assert accuracy is not None
    low, high = accuracy.interval
    of_full = number(depth / headroom.depth["full"])
    cells = [
        "oracle, judged anew",
        number(accuracy.share),
        f"{low:.3f}..{high:.3f}",
        number(depth, form=".2f"),
        of_full,
    ]
    cells += ["-", "-", "-", "-", with_interval(headroom.over_full["anew"])]
    return [*cells, *["-"] * (width - len(cells))]


def _kinds(groups: Sequence[Group]) -> Table:
    """Return a line for each kind (task): accuracies with intervals and mean depths, the router against full depth."""
    names = [arm.name for arm in groups[0].arms_named(*KIND_ARMS)]
    failures = any(arm.no_answer for group in groups for arm in group.arms_named(*names))
    rows = []
    for group in groups:
        (router,) = group.arms_named(ROUTER)
        arms = group.arms_named(*names)
        cells = [f"{number(arm.accuracy, arm.accuracy_interval)} at {arm.mean_depth:.2f}" for arm in arms]
        unread = ["/".join(str(arm.no_answer) for arm in arms)] if failures else []
        lost = number(router.difference, router.difference_interval, "+.3f")
        rows.append([group.task, str(group.n), *cells, lost, *unread])
    more = ["no answer, " + "/".join(names)] if failures else []
    return table(None, ("kind", "n", *names, "router against full, 95 %", *more), rows)


def _groups(groups: Sequence[Group]) -> Table:
    """Return a line for each group: accuracies and, where there are any, counts of answers that cannot be read."""
    failures = any(arm.no_answer for group in groups for arm in group.arms)
    rows = []
    for group in groups:
        arms = group.arms_named(*GROUP_ARMS)
        cells = [number(arm.accuracy) for arm in arms]
        unread = ["/".join(str(arm.no_answer) for arm in arms)] if failures else []
        rows.append([group_label(group), str(group.n), *cells, *unread])
    return table(None, ("group", "n", *GROUP_ARMS, *(["no answer, " + "/".join(GROUP_ARMS)] if failures else [])), rows)


def group_label(group: Group) -> str:
    """Return a group's name for readers."""
    if group.kind == "task":
        return f"task {group.task}"
    return f"{group.task}, {group.kind} {'none given' if group.value is None else group.value}"


def _lines(report: Report) -> list[str]:
    collapse, static, oracle = report.router_collapse, report.static, report.oracle
    bits = f"{collapse.entropy_bits:.2f} bits, {collapse.entropy_within_bits:.2f} within a kind"
    lines = [
        *worst_lines(report),
        f"router: {collapse.distinct_chains} different chains ({bits}), full depth "
        f"for {collapse.share_full:.1%}, most common {collapse.most_common} ({collapse.share_most_common:.1%})",
        *scope_lines(report),
    ]
    lines += [
        f"router against {report.labels[name]}: {number(pair.difference, pair.difference_interval, '+.3f')}, "
        f"p {probability(pair.mcnemar_p_holm)}"
        for name, pair in report.router_against.items()
    ]
    lines += [
        f"p: {report.comparisons.method}, {report.comparisons.count} comparisons",
        f"static chain: {static.text} (depth {static.depth}), best of {len(static.candidates)} on "
        f"{static.chosen_on} ({static.mode}) at depth <= {static.router_validation_depth:.2f}, "
        f"the router's on validation",
        f"oracle: a right chain stands in the records of {oracle.right_chain_in_records} samples (the others run at "
        f"full depth), {oracle.right_when_run_again} are right when run again",
        *control_lines(report.controls),
    ]
    if any(arm.no_answer for arm in report.arms):
        lines.append("no answer: none could be read in what was generated, a format failure; it counts as wrong")
    return [*lines, *(f"note: {note}" for note in report.notes)]


def worst_lines(report: Report) -> list[str]:
    """Return a line that names the kind on which the router loses the most; none of a single task."""
    return [
        f"worst kind: {group.task}, router {number(router.accuracy)} against full depth {number(full.accuracy)}, "
        f"{number(router.difference, router.difference_interval, '+.3f')}, at depth {router.mean_depth:.2f}"
        for group in report.kinds
        if group.task == report.worst_kind
        for full, router in [group.arms_named(FULL, ROUTER)]
    ]


def scope_lines(report: Report) -> list[str]:
    """Return a line that says how many samples lie out of the router's scope; none where none does, or it has none."""
    router = report.arm(ROUTER)
    if not router.out_of_scope:
        return []
    by_kind = [f"{group.task} {arm.out_of_scope}" for group in report.kinds for arm in group.arms_named(ROUTER)]
    kinds = f" ({', '.join(by_kind)})" if by_kind else ""
    return [
        f"out of the router's scope, so at full depth: {router.out_of_scope} of {router.n} samples, "
        f"{router.out_of_scope / router.n:.1%}{kinds}"
    ]


def control_lines(controls: Controls | None) -> list[str]:
    """Return a line for each control that was run, and how to get the oracle judged anew where it was not."""
    if controls is None or controls.headroom is None:
        headroom = [f"control, oracle judged anew: not measured; {HOW}"]
    else:
        headroom = [f"control, oracle judged anew: {one}" for one in headroom_lines(controls.headroom)]
    if controls is None:
        return headroom
    return [
        *headroom,
        *([] if controls.luck is None else [f"control, luck: {_luck(controls.luck)}"]),
        *([] if controls.random_search is None else [f"control, random search {_random(controls.random_search)}"]),
        *([] if controls.reshuffled is None else [f"control, choices reshuffled: {_reshuffled(controls.reshuffled)}"]),
        *([] if controls.generated is None else [f"control, real generation {_generated(controls.generated)}"]),
    ]


def headroom_lines(headroom: Headroom) -> list[str]:
    """Return what a router could reach: accuracies and depths, whether there is something to route, and by task."""
    how = "by the search, on variants that it never saw" if headroom.held_out else "by each variant's others"
    reached = [
        f"{CHOOSERS[name]} {with_interval(one)} at {headroom.depth[name]:.2f}"
        for name, one in headroom.accuracy.items()
    ]
    by_task = [f"{task} {with_interval(one.over_full['anew'])}" for task, one in headroom.tasks.items()]
    return [
        f"{headroom.n} samples, {headroom.variants} variants, chosen {how}: {', '.join(reached)}",
        headroom.advice,
        *([f"over full depth by task: {', '.join(by_task)}"] if by_task else []),
    ]


def _luck(luck: Luck) -> str:
    if not luck.eligible:
        return "no sample on which full depth gives neither the right answer nor the wrong one that is searched for"
    return (
        f"of {luck.eligible} samples that full depth answers otherwise the search sets "
        f"{with_interval(luck.gold)} right and, looking for a wrong answer, {with_interval(luck.luck)} to that one; "
        f"the oracle's gain is {with_interval(luck.gain)}, "
        f"minus what the wrong-answer search finds {with_interval(luck.net_gain)}"
    )


def _random(found: RandomSearch) -> str:
    return (
        f"of equal {found.equal.replace('_', ' ')}: a right chain for {with_interval(found.random)} of {found.n} "
        f"samples, the oracle {with_interval(found.oracle)}, {with_interval(found.paired)}"
    )


def _reshuffled(found: Reshuffled) -> str:
    rescued, right = found.rescued, found.full_right
    if rescued.oracle is None:
        return "no rescued sample among those that were run"
    stable = "" if right is None else f"; of what full depth gets right {with_interval(right)} stays so"
    return (
        f"of {rescued.n} rescued samples {with_interval(rescued.oracle)} stay right under the same chain, "
        f"full depth gets {with_interval(rescued.full)} of them{stable}"
    )


def _generated(found: Generated) -> str:
    parts = [
        f"of {arm.right} right answers of {label} {with_interval(arm.confirmed)} are confirmed"
        f" ({arm.right_no_answer} texts could not be read)"
        for arm, label in ((found.full, "full depth"), (found.oracle, "the oracle"))
        if arm.confirmed is not None
    ]
    return f"on {found.n} samples: {'; '.join(parts) or 'nothing was right'}"


def with_interval(found: Proportion | Estimate | PairedShares | None) -> str:
    """Return a share or a difference for readers with its interval; None: `-`."""
    return "-" if found is None else str(found)
