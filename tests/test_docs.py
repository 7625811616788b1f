"""README and docs are true: links, field tables, options of every command, and every Python snippet."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from router.validation import adapter
from tests.docs_fields import BLOCK, renewed, type_named
from tests.docs_fields import PAGES as FIELD_PAGES
from tests.smol import write_smol_router

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
OTHERS_OPTIONS = {("router", "lm-eval"), ("router", "info"), ("eval", "compare")}
"""Verbs whose command line is another library's, or positions alone; only the word itself is looked up."""


def blocks(page: Path, *kinds: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def commands() -> list[str]:
    """Every `python -m ...` of a code block, once, without its comment."""
    found: dict[str, None] = {}
    for page in PAGES:
        for body in blocks(page, "", "bash", "sh"):
            for line in body.replace("\\\n", " ").splitlines():
                if line.strip().startswith("python -m "):
                    found[line.split("   #")[0].split("  #")[0].strip()] = None
    return list(found)


@pytest.mark.parametrize("page", FIELD_PAGES, ids=lambda page: page.name)
def test_field_tables_are_fresh(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert renewed(text) == text, "stale: python -m tests.docs_fields"


DOCUMENTED = [name for page in FIELD_PAGES for _, name, _ in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_type_has_a_schema(name: str) -> None:
    schema = adapter(type_named(name)).json_schema(mode="serialization")
    assert schema["type"] == "object"
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            text = path.read_text(encoding="utf-8")
            heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}
            assert anchor in anchors | set(re.findall(r'<a id="([\w-]+)">', text)), anchor


VERSION = re.compile(r"^\| .* \| `([\w.]+SCHEMA)` \| (\d+) \|", re.MULTILINE)


def test_the_table_of_versions_is_the_code_s() -> None:
    # Oracle: the constants of all modules that have one; a new one without a row fails too.
    rows = dict(VERSION.findall((ROOT / "docs" / "formats.md").read_text(encoding="utf-8")))
    defined = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
        for package in ("router", "data", "search", "train", "eval")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r"^(\w*SCHEMA)\b[^=\n]*= *\d", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {name: int(number) for name, number in rows.items()} == {name: type_named(name) for name in defined}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs, and in `mine` what stands for one's own, as `python -m router new` names them."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "configs" / "demo", tmp_path / "mine")
    (tmp_path / "mine" / "menu.yaml").write_text("{kind: subsets, first_editable: 22, blocks: 6, out: mine/menu.json}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_every_command_and_all_its_options_exist(desk: Path, command: str) -> None:
    # Oracle: the command's own parser, which refuses what it does not know; it prints the settings and runs nothing.
    _, _, package, *words = shlex.split(command)
    verb = words[0] if words and not words[0].startswith("-") else ""
    if (package, verb) in OTHERS_OPTIONS:
        module = importlib.import_module(f"{package}.__main__")
        assert verb in module.VERBS
        return
    module = importlib.import_module(package if "." in package else f"{package}.__main__")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        module.main([*words, "--print_config"])
    assert ended.value.code in (0, None)
    assert printed.getvalue().strip()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    # Oracle: mkdocs, strict: a dead link, a missing page or a name that mkdocstrings does not find ends it.
    # Not with --quiet, which hides the warnings from strict mode too.
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"index"}
    assert pages <= {page.stem for page in tmp_path.glob("*.html")}
    for page in tmp_path.glob("*.html"):
        assert not re.findall(r'(?:src|rel="stylesheet" href)="https?:', page.read_text(encoding="utf-8")), page.name


SNIPPETS = [body for page in PAGES for body in blocks(page, "python") if "import openai" not in body]
"""The client's snippet needs a server: tests/test_examples_serve.py asks one in the same way."""


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_every_snippet_runs(desk: Path, snippet: str) -> None:
    (desk / "runs" / "demo").mkdir(parents=True)
    write_smol_router(desk / "runs" / "demo" / "router")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "snippet", "exec"), {})
    assert printed.getvalue().strip()
