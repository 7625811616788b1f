"""Imports run one way: router <- data <- {search | train | eval}, and the last three never meet but through files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "router": {"router"},
    "data": {"router", "data"},
    "search": {"router", "data", "search"},
    "train": {"router", "data", "train"},
    "eval": {"router", "data", "eval"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    """Oracle: the import statements of every file, read as syntax and not run."""
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.split(".")[0] for name in names} & MAY_IMPORT.keys()
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {top}" for top in tops - MAY_IMPORT[package]]
    assert not wrong


def test_the_chain_knows_no_torch() -> None:
    text = (ROOT / "router" / "chain.py").read_text(encoding="utf-8")
    assert "torch" not in {name.split(".")[0] for name in _imported(text)}


def _imported(text: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(text)))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
