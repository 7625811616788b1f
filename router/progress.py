"""Progress of long work: a bar on a terminal, a plain line every half minute in a log file."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from tqdm import tqdm

LINE_SECONDS = 30.0
"""Seconds between two lines of progress in a log file."""
ItemT = TypeVar("ItemT")


class _Lines:
    """Standard error for a progress bar that is no terminal's: whole lines, without returns."""

    def write(self, text: str) -> int:
        """Write what is more than white space."""
        line = text.replace("\r", "").strip()
        return sys.stderr.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        """Flush standard error."""
        sys.stderr.flush()


def progress(total: int, label: str, unit: str, *, initial: int = 0, disable: bool = False) -> tqdm[Any]:
    """Return a progress bar to be told of work; where standard error is no terminal it writes lines.

    Args:
        total: units of the whole work.
        label: what the bar says.
        unit: name of a unit.
        initial: units that were done before.
        disable: whether it says nothing.
    """
    return tqdm(total=total, initial=initial, disable=disable, **_style(label, unit, counted=True))


def followed(items: Iterable[ItemT], label: str, unit: str, delay: float = 0.0) -> tqdm[ItemT]:
    """Return items, followed by a progress bar as `progress` makes it.

    Args:
        items: what is worked on, one after the other.
        label: what the bar says.
        unit: name of an item.
        delay: seconds of work before the bar is shown.
    """
    return tqdm(items, delay=delay, **_style(label, unit, counted=isinstance(items, Collection)))


def _style(label: str, unit: str, *, counted: bool) -> dict[str, Any]:
    """Return how a bar looks here; `counted`: the number of units is known before."""
    if sys.stderr.isatty():
        return {"desc": label, "unit": unit}
    done = "{n_fmt} of {total_fmt} ({percentage:.0f} %)" if counted else "{n_fmt}"
    left = ", {remaining} left" if counted else ""
    return {
        "desc": label,
        "unit": f" {unit}",
        "file": _Lines(),
        "mininterval": LINE_SECONDS,
        "maxinterval": 2 * LINE_SECONDS,
        "bar_format": f"{{desc}}: {done}, {{elapsed}} so far{left}, {{rate_fmt}}",
    }
