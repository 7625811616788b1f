"""The README's table of architectures, made from the test parametrisation.

python -m tests.families_table      # rewrites the table in README.md
"""

from __future__ import annotations

from pathlib import Path

from router.files import write_text
from tests.tiny import FAMILIES

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- families: python -m tests.families_table -->\n", "<!-- /families -->\n"


def table() -> str:
    """Return the table as Markdown, one line an architecture."""
    lines = ["| architecture | attention | choices of a question in one row |", "|---|---|---|"]
    for family in FAMILIES.values():
        name = type(family.config()).__name__.removesuffix("Config").removesuffix("Text")
        packed = "yes" if family.packs else "no, one row each"
        lines.append(f"| {name}{family.note} | {', '.join(family.attentions)} | {packed} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return the README's text with the table as it should be."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return before + START + table() + END + after


if __name__ == "__main__":
    write_text(README, with_table(README.read_text(encoding="utf-8")))
