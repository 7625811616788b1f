"""The figure of flows: what each arm sets right and breaks against full depth, and what is left of it."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from eval.figures.style import BLACK, BLUE, VERMILLION, Report, new_figure, row_labels, tidy, title

ROW = 0.42
"""Height of an arm's row, inches."""


def has_flows(report: Report) -> bool:
    """Whether an arm is compared with full depth."""
    return any(arm["against_full"] is not None for arm in report["arms"])


def draw_flows(report: Report, narrow: bool = False) -> Figure:
    """Return bars to the right (wrong to right) and to the left (right to wrong), and the net difference on them."""
    arms = [arm for arm in report["arms"] if arm["against_full"] is not None]
    figure = new_figure(narrow, ROW * len(arms) + (1.3 if narrow else 1.15), layout="constrained")
    axes = figure.subplots()
    widest = 0.0
    for row, arm in enumerate(arms):
        pair, n = arm["against_full"], arm["n"]
        gained, lost = pair["wrong_to_right"] / n, pair["right_to_wrong"] / n
        axes.barh(row, gained, height=0.62, color="none", edgecolor=BLUE, hatch="//////", linewidth=0.8)
        axes.barh(row, -lost, height=0.62, color=VERMILLION)
        low, high = pair["difference_interval"]
        axes.errorbar(
            pair["difference"],
            row,
            xerr=[[max(0.0, pair["difference"] - low)], [max(0.0, high - pair["difference"])]],
            fmt="D",
            color=BLACK,
            markersize=4.5,
            capsize=3,
            linewidth=1.4,
        )
        for end, count, side in ((gained, pair["wrong_to_right"], 1), (-lost, -pair["right_to_wrong"], -1)):
            axes.annotate(
                signed(count),
                (max(end, high) if side > 0 else min(end, low), row),
                xytext=(4 * side, 0),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=7.5,
            )
        widest = max(widest, gained, lost, abs(low), abs(high))
    limit = (1.4 if narrow else 1.22) * max(widest, 0.01)  # room for the counts
    axes.set_xlim(-limit, limit)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    row_labels(axes, arms, narrow)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if narrow else 9, symmetric=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: signed(round(100 * share, 6))))
    axes.set_xlabel("percentage points of all samples")
    tidy(axes)
    axes.spines["left"].set_visible(False)
    title(
        figure,
        report,
        narrow,
        "against full depth: set right (hatched), broken (plain); diamond: net difference, 95 % bootstrap interval",
    )
    return figure


def signed(value: float) -> str:
    """Return a number with its sign, a real minus; 0 has none."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if value else "0"
