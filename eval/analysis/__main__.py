"""Analysis of the published kind (CoLa, arXiv 2507.07996): what searches find with other edits, models and questions.

    python -m eval.analysis --config my-analysis.yaml
    python -m examples.published_tables --config configs/analysis/smollm2.yaml

The first compares searches that are there: for each model and variant skips, repeats, both, and moves, at equal budget,
on the same samples. The second makes them too. Writes analysis.json (docs/analysis.md) and figures, and prints tables.
No model runs. The searches have seen the answers: all of it is an upper bound, with the control for luck beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from eval.analysis.figures import write_figures
from eval.analysis.groups import measured_groups, table_of
from eval.analysis.inputs import Cell, different_samples, read_cells
from eval.analysis.settings import AnalysisSettings
from eval.analysis.statistics import RESAMPLES
from eval.analysis.table import print_analysis
from router.command import parse_settings, plain_values, provenance, run_command
from router.files import writable_directory, write_json

SCHEMA = 1
"""Version of analysis.json."""
ANALYSIS_FILE = "analysis.json"
CAVEATS = (
    "The searches were told the answers: every share of samples with a right chain is an upper bound of what a router "
    "could do, and part of it is luck.",
    "Luck is measured by the same search told a wrong answer, where it was run. by_lot is what would be found if every "
    "chain tried guessed on its own; chains that agree with each other find less.",
    "Depths at the shortest 5, 10 and 20 % are of the luckiest samples: they are chosen by what is measured.",
    "Layer use is that of the shortest right chains, which the search prefers: before reading anything of the layers, "
    "compare it with the use of the chains of the search told a wrong answer.",
    "Intervals are 95 %: Wilson's for shares, percentile bootstrap over samples for the others; no correction for the "
    "number of cells and groups.",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(
        AnalysisSettings, argv, "eval.analysis", "What searches find with other edits, models and questions."
    )
    writable_directory(settings.out, "out")
    content = analysis_of(read_cells(settings), settings.seed, plain)
    write_json(settings.out / ANALYSIS_FILE, content)
    figures = write_figures(content, settings.out)
    print_analysis(content, sys.stdout)
    for path in (settings.out / ANALYSIS_FILE, *figures):
        print(f"written: {path}")


def analysis_of(cells: Sequence[Cell], seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of analysis.json (docs/analysis.md).

    Args:
        cells: the cells, at least one.
        seed: seed of the bootstrap.
        settings: the command's settings as plain data, for the provenance.
    """
    told = [_cell(cell, seed) for cell in cells]
    return {
        "schema": SCHEMA,
        "provenance": provenance(settings),
        "resamples": RESAMPLES,
        "cells": told,
        "table": table_of(told),
        "caveats": list(CAVEATS),
        "notes": [*different_samples(cells), *_notes(cells)],
    }


def _cell(cell: Cell, seed: int) -> dict[str, Any]:
    found, wrong = cell.found, cell.wrong
    return {
        **{name: getattr(cell.settings, name) for name in ("model", "variant", "action_set", "split")},
        "label": cell.settings.label,
        "mode": found.mode,
        "num_layers": found.num_layers,
        "search": found.plan,
        "fingerprints": plain_values(found.fingerprints),
        "inputs": {"records": found.sha256, "wrong": None if wrong is None else wrong.sha256},
        "ended_early": found.ended_early,
        "groups": measured_groups(found.outcomes, None if wrong is None else wrong.outcomes, seed),
    }


def _notes(cells: Sequence[Cell]) -> list[str]:
    """Return what a reader must know of these cells."""
    notes = []
    first: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        own, found = cell.settings, cell.found
        one = first.setdefault((own.model, own.variant, own.split), cell)
        right = {outcome.sample_id: outcome.right for outcome in one.found.outcomes}
        if changed := sum(right[outcome.sample_id] != outcome.right for outcome in found.outcomes):
            notes.append(
                f"{own.label}: full depth is judged otherwise than in {one.settings.label} on {changed} of "
                f"{len(right)} samples (rounding in another batch); the table has the first column's full depth"
            )
        if found.ended_early:
            notes.append(
                f"{own.label}: {found.ended_early} of {len(found.outcomes)} searches ended before "
                f"{found.plan['simulations']} simulations, since there were no more chains"
            )
    if unknown := [cell.settings.label for cell in cells if cell.wrong is None]:
        notes.append(f"luck is not measured (no search was told wrong answers) of {'; '.join(unknown)}")
    return notes


if __name__ == "__main__":
    raise SystemExit(run_command(main))
