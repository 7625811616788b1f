"""The table of architectures in docs/models.md and the names of the other families, made from the test cases.

python -m tests.families_table      # rewrites them in docs/models.md
"""

from __future__ import annotations

from pathlib import Path

from router.files import write_text
from tests.families import ALL, Family
from tests.tiny import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
START, END = "<!-- families: python -m tests.families_table -->\n", "<!-- /families -->\n"


def table() -> str:
    """Return the table as Markdown, one line an architecture."""
    lines = ["| architecture | attention | choices of a question in one row |", "|---|---|---|"]
    for family in FAMILIES.values():
        packed = "yes" if family.packs else "no, one row each"
        lines.append(f"| {class_name(family)}{family.note} | {', '.join(family.attentions)} | {packed} |")
    return "\n".join(lines) + "\n\n" + others()


def others() -> str:
    """Return what `make test-families` says of each model class: right, or refused in one line."""
    right: dict[str, None] = {}
    refused: dict[str, None] = {}
    for family in ALL.values():
        (right if family.expected == "right" else refused)[class_name(family)] = None
    only_refused = [name for name in refused if name not in right]
    return (
        f"`make test-families` tries {len(ALL)} configurations of {len(right) + len(only_refused)} kinds. "
        f"Right: {', '.join(sorted(right, key=str.lower))}. "
        f"Refused in one line, in some part at least: {', '.join(sorted(refused, key=str.lower))}.\n"
    )


def class_name(family: Family) -> str:
    """Return the name of a family's model without what all names share."""
    return family.config_class.removesuffix("Config").removesuffix("Text")


def with_table(text: str) -> str:
    """Return the page's text with the table as it should be."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return before + START + table() + END + after


if __name__ == "__main__":
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
