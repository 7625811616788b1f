"""Field tables of docs/formats.md and docs/report.md, made from the validated types.

    python -m tests.docs_fields        # writes the tables anew; a test says when they are stale

In a page a table stands between `<!-- fields: module.Type -->` and `<!-- /fields -->`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser import parse

from router.validation import describe

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [DOCS / "formats.md", DOCS / "report.md"]
BLOCK = re.compile(r"(<!-- fields: ([\w.]+) -->\n).*?(<!-- /fields -->)", re.DOTALL)


def type_named(name: str) -> Any:
    """Return the type of a dotted name."""
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(module), kind)


def table_of(kind: Any) -> str:
    """Return a Markdown table of a dataclass's fields: name, what its type takes, meaning."""
    documented = [one for base in kind.__mro__ for one in parse(base.__doc__ or "").params]
    meanings = {one.arg_name: " ".join((one.description or "").split()) for one in documented}
    hints = get_type_hints(kind, include_extras=True)
    rows = [
        f"| `{field.name}` | {describe(hints[field.name])} | {meanings[field.name]} |"
        for field in dataclasses.fields(kind)
        if not field.name.startswith("_")
    ]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *(row.replace("||", "|") for row in rows)]) + "\n"


def renewed(text: str) -> str:
    """Return the page with all its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + table_of(type_named(match[2])) + match[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
