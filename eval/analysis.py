"""What searches found, as the tables of the papers have it (CoLa, arXiv 2507.07996).

    python -m eval analysis --records runs/analysis/smollm2 --out runs/analysis/smollm2

Takes every search below a folder (`<split>.jsonl` with its meta file; menu tables are left out). Beside each search
stands the same search for a wrong answer, where there is one in the same folder of folders: what it finds is luck. No
model runs. Writes analysis.json and figures of layer use, and prints tables.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass as settings_dataclass

from data.figures import save_figure
from data.records import SearchRecord, read_records, runs_file
from data.statistics import mean_of, share_of
from data.store import read_meta
from eval.figures import LayerRows, draw_layer_use
from eval.luck import OF_ANSWER, gives, unlike
from eval.measures import layer_use
from eval.tables import console_for, number, table, with_interval
from router.command import parse_settings, plain_values, provenance
from router.files import read_json, require_directory, sha256_file, writable_directory, write_json
from router.validation import SETTINGS, Count, InputError

SCHEMA = 3
"""Version of analysis.json."""
ANALYSIS_FILE = "analysis.json"
PUBLISHED = {"shortened": 0.75, "set_right": 0.60}
"""Shares that CoLa (arXiv 2507.07996) states as exceeded."""


@settings_dataclass(frozen=True, kw_only=True, config=SETTINGS)
class AnalysisSettings:
    """Settings of `python -m eval analysis`.

    Attributes:
        records: folder; all searches below it are read.
        out: folder for analysis.json and the figures.
        seed: seed of the bootstrap.
    """

    records: Path
    out: Path
    seed: Count = 0


@dataclass(frozen=True)
class Searched:
    """The records of one search of one split.

    Attributes:
        path: its record file.
        settings: the settings of its last run.
        identity: what decides it; null: it does not say so (schema 2).
        records: by sample id.
    """

    path: Path
    settings: dict[str, Any]
    identity: dict[str, Any] | None
    records: dict[str, SearchRecord]

    @property
    def first(self) -> SearchRecord:
        """A record, for what all share."""
        return next(iter(self.records.values()))

    def is_control_of(self, other: Searched) -> bool:
        """Whether this is the other's search for a wrong answer."""
        beside = self.path.parent.parent == other.path.parent.parent and self.path.name == other.path.name
        if not beside or self.first.reward_target != "wrong" or self.identity is None or other.identity is None:
            return False
        return not unlike(other.identity, self.identity, OF_ANSWER)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        InputError: at bad input.
    """
    about = "What searches found, as the tables of the papers have it."
    settings, plain = parse_settings(AnalysisSettings, argv, "eval analysis", about)
    content = analysis_of(require_directory(settings.records, "records"), settings.seed)
    writable_directory(settings.out, "out")
    write_json(settings.out / ANALYSIS_FILE, plain_values(content) | {"provenance": provenance(plain)})
    figures = write_figures(content, settings.out)
    print_analysis(content)
    print("written to " + ", ".join(str(path) for path in (settings.out / ANALYSIS_FILE, *figures)))


def analysis_of(folder: Path, seed: int) -> dict[str, Any]:
    """Return the content of analysis.json.

    Args:
        folder: every search below it is read.
        seed: seed of the bootstrap.

    Raises:
        InputError: where there is no search, or a search for a wrong answer has other samples than its search.
    """
    found = [one for path in sorted(folder.rglob("*.jsonl")) if (one := _read_search(path)) is not None]
    searches = []
    for one in found:
        if one.first.reward_target == "gold":
            control = next((other for other in found if other.is_control_of(one)), None)
            searches.append({"search": str(one.path.parent.relative_to(folder)), **_measured(one, control, seed)})
    if not searches:
        raise InputError(f"records: expected finished searches below {str(folder)!r}, got none")
    return {"schema": SCHEMA, "published": PUBLISHED, "searches": searches}


def _read_search(path: Path) -> Searched | None:
    """Read a search; None: the file is none, or a menu table."""
    beside = runs_file(path)
    runs = read_json(beside).get("runs") if beside.is_file() else None
    settings = runs[-1].get("settings", {}) if runs else {}
    if "search" not in settings or settings.get("menu") is not None:
        return None
    records = {record.sample_id: record for record in read_records(path)}
    meta = read_meta(path)
    return Searched(path, settings, None if meta is None else meta["identity"], records)


def _measured(found: Searched, control: Searched | None, seed: int) -> dict[str, Any]:
    if control is not None and control.records.keys() != found.records.keys():
        raise InputError(f"records: expected the samples of {found.path} in {control.path}, got others")
    groups: dict[str, list[SearchRecord]] = {"all": list(found.records.values())}
    tasks = {record.task for record in found.records.values()}
    for record in found.records.values():
        level = record.metadata.get("difficulty")
        names = [record.task] if len(tasks) > 1 else []
        for name in names if level is None else [*names, f"{record.task}, difficulty {level}"]:
            groups.setdefault(name, []).append(record)
    wrong = None if control is None else control.records
    return {
        "model": found.settings.get("model"),
        "split": found.first.split,
        "action_set": found.settings["search"].get("action_set"),
        "simulations": found.settings["search"].get("simulations"),
        "num_layers": found.first.num_layers,
        "inputs": {"records": sha256_file(found.path), "wrong": None if control is None else sha256_file(control.path)},
        "groups": {name: measures_of(records, wrong, seed) for name, records in groups.items()},
    }


def measures_of(records: Sequence[SearchRecord], wrong: dict[str, SearchRecord] | None, seed: int) -> dict[str, Any]:
    """Return what a search found on some samples.

    Full depth counts as right where it stands, as wrong where it gives another answer; a sample of which two runs of
    full depth disagree, or whose answers tie, is neither.

    Args:
        records: the search's, at least one.
        wrong: records of the search for a wrong answer by sample id; None: not searched.
        seed: seed of the bootstrap.

    Returns:
        `original` (full depth stands), `oracle` (some chain stands), `shortened` (of the samples that full depth
        answers rightly, those with a shorter chain that stands) and `set_right` (of those that it answers wrongly,
        those with a chain that stands) with their luck; `depth` and `use` of the shortest chains that stand.
    """
    chains = [record.shortest.chain for record in records if record.shortest is not None]
    stands = [record for record in records if record.full.stands]
    other = [record for record in records if gives(record.full) is False]
    return {
        "n": len(records),
        "original": share_of([record.full.stands for record in records]),
        "oracle": share_of([record.shortest is not None for record in records]),
        "shortened": _gain(_is_shortened, stands, wrong, seed),
        "set_right": _gain(lambda record: record.shortest is not None, other, wrong, seed),
        "depth": mean_of([chain.depth for chain in chains], seed) if len(chains) > 1 else None,
        "use": layer_use(chains) if chains else None,
    }


def _is_shortened(record: SearchRecord) -> bool:
    return record.shortest is not None and record.shortest.chain.depth < record.num_layers


def _gain(
    asked: Callable[[SearchRecord], bool],
    records: Sequence[SearchRecord],
    wrong: dict[str, SearchRecord] | None,
    seed: int,
) -> dict[str, Any]:
    """Return the share that was found and its luck, both on samples whose full depth does not give the wrong answer."""
    gain: dict[str, Any] = {"found": share_of([asked(record) for record in records]), "luck": None}
    if wrong is not None:
        pairs = [(one, wrong[one.sample_id]) for one in records if gives(wrong[one.sample_id].full) is False]
        found, lucky = [asked(one) for one, _ in pairs], [asked(other) for _, other in pairs]
        rest = mean_of(np.subtract(found, lucky, dtype=float), seed) if len(pairs) > 1 else None
        gain["luck"] = {"found": share_of(found), "wrong": share_of(lucky), "rest": rest}
    return gain


def write_figures(content: dict[str, Any], out: Path) -> list[Path]:
    """Draw layer use of each model and split, a row a search; returns the files."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in content["searches"]:
        if one["groups"]["all"]["use"] is not None:
            groups[one["model"], one["split"]].append(one)
    files: list[Path] = []
    for place, ((model, split), searches) in enumerate(groups.items()):
        uses = [(one["search"], one["groups"]["all"]["use"]) for one in searches]
        rows = LayerRows(
            f"{Path(model).name}, shortest chains that stand, {split} split",
            searches[0]["num_layers"],
            (),
            [(name, f"{name}, n = {use.chains}", use) for name, use in uses],
        )
        paths = [out / f"layer_use_{place}.{suffix}" for suffix in ("png", "svg")]
        files += save_figure(partial(draw_layer_use, rows), paths, "analysis")
    return files


def print_analysis(content: dict[str, Any]) -> None:
    """Print the tables of analysis.json."""
    console = console_for(sys.stdout)
    groups = [(one, name, group) for one in content["searches"] for name, group in one["groups"].items()]
    rows = [
        [
            f"{one['search']} {one['split']}",
            name,
            str(group["n"]),
            *map(with_interval, (group["original"], group["oracle"])),
            number(group["depth"].value, group["depth"].interval, ".2f") if group["depth"] else "-",
        ]
        for one, name, group in groups
    ]
    columns = ("search", "samples", "n", "full depth", "some chain stands", "depth of the shortest")
    console.print(table("Right answers and depth, 95 % intervals; searches have seen the answers", columns, rows))
    for kind, words in (("shortened", "right: a shorter chain stands"), ("set_right", "wrong: a chain stands")):
        rows = []
        for one, name, group in groups:
            found, luck = group[kind]["found"], group[kind]["luck"] or {"wrong": None, "rest": None}
            told = map(with_interval, (found, luck["wrong"], luck["rest"]))
            rows.append([f"{one['search']} {one['split']}", name, str(found.n if found else 0), *told])
        columns = ("search", "samples", "n", "found", "search for a wrong answer", "minus what it finds")
        console.print(table(f"Full depth {words} (published: over {PUBLISHED[kind]:.2f})", columns, rows))
