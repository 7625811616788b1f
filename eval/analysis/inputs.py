"""What an analysis reads, and the checks that its cells can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import SearchRecord, read_records
from eval.analysis.outcomes import Outcome
from eval.analysis.settings import AnalysisSettings, CellSettings
from router.files import read_json, require_directory, sha256_file
from router.fingerprint import Fingerprints
from router.validation import InputError

PLAN = ("first_editable", "dtype", "verify", "shuffle", "menu")
"""Settings of a search, besides those of each sample's, that decide what it finds."""


@dataclass(frozen=True)
class Searched:
    """The outcomes of one search of one split.

    Attributes:
        path: its record file.
        sha256: SHA-256 of the file.
        outcomes: one a sample, in the file's order.
        targets: the answer that counted as right, by sample.
        plan: settings that decide what the search finds, by their names; `action_set` and `simulations` among them.
        mode: scoring modes, joined by a plus sign.
        num_layers: layers of the model.
        fingerprints: what the records are valid for.
        ended_early: samples whose search made fewer simulations than it had: there were no more chains.
    """

    path: Path
    sha256: str
    outcomes: list[Outcome]
    targets: dict[str, int | str]
    plan: dict[str, Any]
    mode: str
    num_layers: int
    fingerprints: Fingerprints
    ended_early: int


@dataclass(frozen=True)
class Cell:
    """One search of one model, and its control.

    Attributes:
        settings: the cell's settings.
        found: the search told the right answers.
        wrong: the same search told wrong ones, its outcomes in the order of `found`; None: not searched.
    """

    settings: CellSettings
    found: Searched
    wrong: Searched | None


def read_cells(settings: AnalysisSettings) -> list[Cell]:
    """Read every cell's records, and refuse cells that cannot be compared.

    Raises:
        InputError: where records are missing or not what the cell says, a control is of another search, or cells of one
            model and variant differ in budget, other settings, samples, model or prompt.
    """
    cells = [_read_cell(cell) for cell in settings.cells]
    first: dict[tuple[str, str], Cell] = {}
    of_split: dict[tuple[str, str, str], Cell] = {}
    for cell in cells:
        own = cell.settings
        one = first.setdefault((own.model, own.variant), cell)
        _require_same_plan(one.found, cell.found, "action_set")
        cell.found.fingerprints.require(one.found.fingerprints, f"cells: {cell.found.path} (beside {one.found.path})")
        _require_same_samples(of_split.setdefault((own.model, own.variant, own.split), cell).found, cell.found)
    return cells


def _read_cell(cell: CellSettings) -> Cell:
    found = _read_search(cell, cell.records, "gold")
    if cell.wrong is None:
        return Cell(cell, found, None)
    wrong = _read_search(cell, cell.wrong, "wrong")
    _require_same_plan(found, wrong)
    wrong.fingerprints.require(found.fingerprints, f"cells.wrong: {wrong.path} (beside {found.path})")
    _require_same_samples(found, wrong)
    if same := [key for key, target in wrong.targets.items() if target == found.targets[key]]:
        raise InputError(
            f"cells.wrong: expected other answers in {wrong.path} than in {found.path}, got the same (sample {same[0]})"
        )
    by_id = {one.sample_id: one for one in wrong.outcomes}
    wrong.outcomes[:] = [by_id[one.sample_id] for one in found.outcomes]
    return Cell(cell, found, wrong)


def _read_search(cell: CellSettings, folder: Path, target: str) -> Searched:
    setting = "cells.records" if target == "gold" else "cells.wrong"
    path = require_directory(folder, setting) / f"{cell.split}.jsonl"
    records = read_records(path, setting)
    plan = _plan(path, records[0])
    if plan["action_set"] != cell.action_set:
        raise InputError(
            f"{setting}: expected a search with the action set {cell.action_set} in {path}, got {plan['action_set']}"
        )
    first = records[0]
    common = {name: getattr(first, name) for name in ("num_layers", "first_editable", "fingerprints", "search")}
    for record in records:
        for name, value in {"split": cell.split, "reward_target": target, **common}.items():
            if getattr(record, name) != value:
                raise InputError(
                    f"{setting}: expected {name} {value} in {path}, got {getattr(record, name)} "
                    f"(sample {record.sample_id})"
                )
    return Searched(
        path=path,
        sha256=sha256_file(path),
        outcomes=[Outcome.of(record) for record in records],
        targets={record.sample_id: record.target for record in records},
        plan=plan,
        mode="+".join(sorted({record.mode for record in records})),
        num_layers=first.num_layers,
        fingerprints=first.fingerprints,
        ended_early=sum(record.simulations < plan["simulations"] for record in records),
    )


def _plan(path: Path, record: SearchRecord) -> dict[str, Any]:
    """Return the settings that made a record file, from the file beside it.

    Raises:
        InputError: where that is missing, or is that of another search.
    """
    beside = path.with_suffix(".settings.json")
    told = read_json(beside)
    try:
        settings = told["runs"][-1]["settings"]
        plan = {**settings["search"], **{name: settings[name] for name in PLAN}}
        plan["simulations"] = int(plan["simulations"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{beside}: expected the settings of python -m search, got none ({error!r})") from error
    if told.get("search") != record.search:
        raise InputError(f"{beside}: expected the settings of the search in {path}, got those of another")
    if plan["menu"] is not None:
        raise InputError(f"cells.records: expected a search in {path}, got a menu table")
    return plan


def _require_same_plan(one: Searched, other: Searched, *apart: str) -> None:
    """Refuse two searches of different settings, but for those named; the budget is told first."""
    names = sorted({*one.plan, *other.plan} - set(apart), key=lambda name: (name != "simulations", name))
    for name in names:
        if one.plan.get(name) != other.plan.get(name):
            raise InputError(
                f"cells: expected the same {name} in {one.path} and {other.path}, "
                f"got {one.plan.get(name)} and {other.plan.get(name)}"
            )


def _require_same_samples(one: Searched, other: Searched) -> None:
    mine, theirs = one.targets.keys(), other.targets.keys()
    if mine != theirs:
        raise InputError(
            f"cells: expected the same samples in {one.path} and {other.path}, "
            f"got {len(mine - theirs)} and {len(theirs - mine)} of their own (such as {min(mine ^ theirs)})"
        )


def different_samples(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each two variants whose cells are not of the same samples, which makes them hard to compare."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        first.setdefault((f"{cell.settings.model} {cell.settings.variant}", cell.settings.split), cell)
    (reference, _), base = next(iter(first.items()))
    return [
        f"{name} ({split}) has other samples than {reference} ({base.settings.split}): "
        "their rows are not of the same questions"
        for (name, split), cell in first.items()
        if cell.found.targets.keys() != base.found.targets.keys()
    ]
