"""A comparison of two evaluations as a table in the terminal."""

from __future__ import annotations

from typing import Any, TextIO

from rich.table import Table

from eval.table import console_for, probability

COLUMNS = (
    "accuracy A (95 %)",
    "accuracy B (95 %)",
    "depth A",
    "depth B",
    "B against A, 95 %",
    "wrong->right",
    "right->wrong",
    "McNemar p",
    "p (Holm)",
)


def print_comparison(content: dict[str, Any], stream: TextIO) -> None:
    """Print what `eval.compare.compare` returned."""
    console, style = console_for(stream)
    for side in ("a", "b"):
        told = content[side]
        only = f", {told['n_only_here']} of them only here: left out" if told["n_only_here"] else ""
        console.print(printable(f"{side.upper()}: {told['report']}, n = {told['n']}{only}"))
    console.print(
        printable(
            f"{content['task']} ({content['judged_mode']}), split {content['split']}, "
            f"{content['a']['model']['name']}: n = {content['n']} common samples; B against A"
        )
    )
    table = Table(box=style)
    table.add_column("arm", overflow="fold")
    failures = any(arm[side]["no_answer"] for arm in content["arms"] for side in ("a", "b"))
    for name in (*COLUMNS, *(["no answer A/B"] if failures else [])):
        table.add_column(name, justify="right", overflow="fold")
    for arm in content["arms"]:
        counts = [f"{arm['a']['no_answer']}/{arm['b']['no_answer']}"] if failures else []
        table.add_row(printable(_label(arm)), *_cells(arm), *counts)
    console.print(table)
    console.print(f"{content['comparisons']['method']}: {content['comparisons']['text']}")
    for note in content["notes"]:
        console.print(printable(f"note: {note}"))


def printable(text: str) -> str:
    """Return text of a file without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _label(arm: dict[str, Any]) -> str:
    first, second = arm["a"], arm["b"]
    alike = all(first[field] == second[field] for field in ("name", "label"))
    return str(first["label"]) if alike else f"{first['label']} -> {second['label']}"


def _cells(arm: dict[str, Any]) -> list[str]:
    low, high = arm["difference_interval"]
    sides = [arm["a"], arm["b"]]
    intervals = [side["accuracy_interval"] for side in sides]
    return [
        *(f"{one['accuracy']:.3f} ({lo:.3f}..{hi:.3f})" for one, (lo, hi) in zip(sides, intervals, strict=True)),
        *(f"{side['mean_depth']:.2f}" for side in sides),
        f"{arm['difference']:+.3f} ({low:+.3f}..{high:+.3f})",
        str(arm["wrong_to_right"]),
        str(arm["right_to_wrong"]),
        probability(arm["mcnemar_p"]),
        probability(arm["mcnemar_p_holm"]),
    ]
