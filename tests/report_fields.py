"""The table of fields in docs/report.md, made from the descriptions in the report's schema.

python -m tests.report_fields      # rewrites the tables in docs/report.md
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.schema import report_schema
from router.files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "report.md"
START, END = "<!-- fields: python -m tests.report_fields -->\n", "<!-- /fields -->\n"
HEADING = "| field | type | meaning |\n|---|---|---|\n"


def tables() -> str:
    """Return the tables as Markdown: the report's fields, then one table for each part that stands in many places."""
    schema = report_schema()
    parts = [HEADING + "".join(_rows(schema, ""))]
    simple = {name: part for name, part in schema["$defs"].items() if "properties" not in part}
    told = "".join(f"| {_words(name)} | {part['description']} |\n" for name, part in simple.items())
    parts.append(f"| type | meaning |\n|---|---|\n{told}")
    for name, part in schema["$defs"].items():
        if name not in simple:
            rows = "".join(_rows(part, ""))
            parts.append(f'<a id="{name}"></a>\n**{name}**: {part["description"]}\n\n{HEADING}{rows}')
    return "\n".join(parts)


def with_tables(text: str) -> str:
    """Return the page's text with the tables as they should be."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{tables()}\n{END}{after}"


def _rows(part: dict[str, Any], prefix: str) -> Iterator[str]:
    """Give a line for each field of an object, and of the objects in it."""
    for name, field in part["properties"].items():
        yield f"| `{prefix}{name}` | {_kind(field)} | {field['description']} |\n"
        for inner in (field, *field.get("anyOf", ())):
            if "properties" in inner:
                yield from _rows(inner, f"{prefix}{name}.")


def _kind(field: dict[str, Any]) -> str:
    """Return a field's type in words; parts with a table of their own are linked."""
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"])
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name})" if "properties" in report_schema()["$defs"][name] else _words(name)
    if "const" in field or "enum" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    if kinds == ["array"]:
        return f"list of {_kind(field['items'])}"
    if kinds == ["object"] and isinstance(field.get("additionalProperties"), dict):
        return f"object of {_kind(field['additionalProperties'])} by name"
    words = {"string": "text", "boolean": "true or false"}
    return " or ".join(words.get(kind, kind) for kind in kinds)


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
