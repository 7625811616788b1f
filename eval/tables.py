"""Tables in the terminal: whole lines and plain text where they go into a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.table import Table


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
