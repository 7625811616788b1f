"""What the site needs besides the pages: the README as its first one, and names in place of links that leave docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the README as index.md; its links and pictures begin with docs/, the pages' own do not."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=re.sub(r"(\]\(|src=\")docs/", r"\1", text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links that leave docs/ into the name of what they lead to."""

    def inside(found: re.Match[str]) -> str:
        text, target = found[1], found[2].partition("#")[0]
        if (ROOT / "docs" / target).exists() and not target.startswith(".."):
            return found[0]
        path = (ROOT / "docs" / target).resolve() if target.startswith("..") else ROOT / target
        return f"{text} (`{path.relative_to(ROOT)}`)" if path.exists() else found[0]

    return LINK.sub(inside, markdown)
