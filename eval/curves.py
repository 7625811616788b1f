"""Accuracy against mean depth on a dense test table: routers of any head and seed, and every baseline.

    python -m eval curves --data runs/qwen/data --records runs/qwen/table --out runs/qwen/curves \
        --routers '{menu: [runs/qwen/router-0, runs/qwen/router-1, runs/qwen/router-2]}' --budgets '[23, 23.5, 24]'

Needs menu tables of train, validation and test with the states that the routers read (`python -m search menu ...
--read_layers ...`); no model runs. Operating points come from validation, static baselines from train+validation, the
test table is only looked up. Writes `curves.json` and a figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from data.figures import save_figure
from data.records import DenseTable, SearchRecord, read_records
from data.states import StatesOrigin, read_states
from eval.dense import (
    best_static,
    best_static_mixture,
    bootstrap_difference,
    early_exit,
    permutation_p,
    random_of_depth,
    right_of_mixture,
    same_menu,
)
from eval.inputs import require_unseen_by
from router.command import parse_settings, provenance, run_command
from router.files import require_directory, sha256_file, writable_directory, write_json
from router.heads.budget import offset_for, operating_points, priced_choice
from router.storage import WEIGHTS_FILE, Router, load_router
from router.validation import SETTINGS, Count, InputError


def summary_of(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the seeds of each kind and budget: means over seeds, and the range of the accuracy."""
    found = []
    for name, budget in dict.fromkeys((point["name"], point["budget"]) for point in points):
        own = [point for point in points if (point["name"], point["budget"]) == (name, budget)]
        accuracies = [point["accuracy"] for point in own]
        found.append(
            {
                "name": name,
                "budget": budget,
                "seeds": len(own),
                "accuracy": float(np.mean(accuracies)),
                "spread": [min(accuracies), max(accuracies)],
                "depth": float(np.mean([point["depth"] for point in own])),
                "against": {
                    arm: float(np.mean([point["against"][arm]["difference"] for point in own]))
                    for arm in own[0]["against"]
                    if all(arm in point["against"] for point in own)
                },
                "worst_p": max(point["permutation_p"] for point in own),
            }
        )
    return found


def table_of(content: dict[str, Any]) -> str:
    """Return `curves.json` as a table for the terminal."""
    full = content["full"]
    lines = [f"full depth {full['accuracy']:.4f} at {full['depth']:g}, n = {content['n']}"]
    arms = ("full", "static", "mixture", "same_menu", "random", "early_exit")
    lines.append(
        f"{'kind':<14}{'budget':>7}{'depth':>7}{'accuracy':>9}"
        + "".join(f"{arm:>28}" for arm in arms)
        + f"{'perm. p':>9}"
    )
    for point in content["points"]:
        cells = []
        for arm in arms:
            one = point["against"].get(arm)
            cells.append(
                f"{'':>28}"
                if one is None
                else f"{one['difference']:>+11.4f} ({one['interval'][0]:+.3f}..{one['interval'][1]:+.3f})"
            )
        lines.append(
            f"{point['name']:<14}{point['budget']:>7g}{point['depth']:>7.2f}{point['accuracy']:>9.4f}"
            + "".join(cells)
            + f"{point['permutation_p']:>9.4f}"
        )
    for one in content["summary"]:
        against = ", ".join(f"{arm} {value:+.4f}" for arm, value in one["against"].items())
        lines.append(
            f"{one['name']}, budget {one['budget']:g}, {one['seeds']} seeds: {one['accuracy']:.4f} "
            f"({one['spread'][0]:.4f}..{one['spread'][1]:.4f}) at {one['depth']:.2f}; against {against}"
        )
    return "\n".join(lines)


# The figure of `python -m eval curves`: routers' accuracy against mean depth, over the static frontier.


FIGURE_FILES = ("curves.png", "curves.svg")
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that differ for colour-blind readers too (Okabe and Ito 2008), one a kind of router."""
STATIC_COLOUR = "#D55E00"
MARKERS = "osDv^"


def write_curves_figure(content: dict[str, Any], out: Path) -> list[Path]:
    """Draw `curves.json` as PNG and SVG, each complete or absent; returns the files."""
    return save_figure(lambda: draw(content), [out / name for name in FIGURE_FILES], "eval")


def draw(content: dict[str, Any]) -> Figure:
    """Return the figure: each kind's mean over seeds and its range, static chains, full depth."""
    figure = Figure(figsize=(7.5, 4.2))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    full = content["full"]
    axes.axhline(full["accuracy"], color="black", linewidth=0.8, linestyle=":")
    axes.plot(full["depth"], full["accuracy"], "s", color="black", label="full depth", zorder=3)
    static = sorted(content["static"], key=lambda one: one["depth"])
    axes.plot(
        [one["depth"] for one in static],
        [one["accuracy"] for one in static],
        "^--",
        color=STATIC_COLOUR,
        label="static chains, and their mixtures",
    )
    for i, name in enumerate(dict.fromkeys(one["name"] for one in content["summary"])):
        own = sorted((one for one in content["summary"] if one["name"] == name), key=lambda one: one["depth"])
        means = [one["accuracy"] for one in own]
        axes.errorbar(
            [one["depth"] for one in own],
            means,
            yerr=[
                [mean - one["spread"][0] for mean, one in zip(means, own, strict=True)],
                [one["spread"][1] - mean for mean, one in zip(means, own, strict=True)],
            ],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            capsize=3,
            label=f"router {name} (mean and range of {own[0]['seeds']} seeds)",
        )
    axes.set_xlabel("mean depth, layers executed")
    axes.set_ylabel(f"accuracy on {content['n']} test samples")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    return figure


SCHEMA = 1
CURVES_FILE = "curves.json"
ROUTED_AT_ONCE = 256
"""Samples whose states are held in memory at once."""


@settings_dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CurvesSettings:
    """Settings of `python -m eval curves`.

    Attributes:
        data: folder of `python -m data prepare`.
        records: folder of the menu tables: train.jsonl, validation.jsonl, test.jsonl and their `.states` folders.
        routers: folders of trained routers by the name of their kind; those of one name are seeds of the same.
        out: folder for curves.json.
        budgets: mean depths to ask for, layers.
        tasks: test samples of these tasks only; none: all.
        seed: seed of bootstrap and permutations.
    """

    data: Path
    records: Path
    routers: Annotated[dict[str, Annotated[list[Path], Field(min_length=1)]], Field(min_length=1)]
    out: Path
    budgets: Annotated[list[float], Field(min_length=1)]
    tasks: list[str] = field(default_factory=list)
    seed: Count = 0


@dataclass(frozen=True)
class Tables:
    """The tables of one menu.

    Attributes:
        known: train and validation: what baselines are chosen on.
        validation: what routers' operating points are set on.
        test: what is measured.
    """

    known: DenseTable
    validation: DenseTable
    test: DenseTable


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(CurvesSettings, argv, "eval curves", "Accuracy against depth on dense tables.")
    require_directory(settings.records, "records")
    writable_directory(settings.out, "out")
    records = {split: _records(settings, split) for split in ("train", "validation", "test")}
    known = DenseTable.of([*records["train"], *records["validation"]])
    validation, test = (DenseTable.of(records[split], known.chains) for split in ("validation", "test"))
    tables = Tables(known, validation, test)
    points: list[dict[str, Any]] = []
    for name, folders in settings.routers.items():
        for folder in folders:
            router = load_router(require_directory(folder, "routers"))
            points += _curve(name, folder, router, tables, settings)
    if not points:
        raise InputError(f"budgets: expected one that a router can meet on validation, got {settings.budgets}")
    content = {
        "schema": SCHEMA,
        **provenance(plain),
        "n": len(records["test"]),
        "inputs": {f"{split}.jsonl": sha256_file(settings.records / f"{split}.jsonl") for split in records},
        "full": _full(records["test"]),
        "static": _static(tables),
        "points": points,
        "summary": summary_of(points),
    }
    write_json(settings.out / CURVES_FILE, content)
    figures = write_curves_figure(content, settings.out)
    print(table_of(content))
    print("written to " + ", ".join(str(path) for path in (settings.out / CURVES_FILE, *figures)))


def _records(settings: CurvesSettings, split: str) -> list[SearchRecord]:
    records = read_records(settings.records / f"{split}.jsonl", f"records: {split}")
    if settings.tasks:
        unknown = set(settings.tasks) - {record.task for record in records}
        if unknown:
            raise InputError(f"tasks: expected tasks of the records, got {', '.join(sorted(unknown))}")
        records = [record for record in records if record.task in settings.tasks]
    if any(record.split != split or record.reward_target != "gold" for record in records):
        raise InputError(f"records: expected a menu table of {split} told the right answers, got another")
    return records


def _full(records: Sequence[SearchRecord]) -> dict[str, float]:
    return {
        "accuracy": sum(record.full.stands for record in records) / len(records),
        "depth": float(records[0].num_layers),
    }


def _static(tables: Tables) -> list[dict[str, Any]]:
    """Return the best static chain of each depth, chosen on train and validation, with its accuracy on test."""
    test = tables.test
    return [
        {
            "chain": str(test.chains[column]),
            "depth": test.chains[column].depth,
            "accuracy": float(test.accuracy[column]),
        }
        for column in tables.known.best_of_each_depth()
    ]


def _curve(name: str, folder: Path, router: Router, tables: Tables, settings: CurvesSettings) -> list[dict[str, Any]]:
    """Measure one router at every budget."""
    e = router.config.read_layer
    require_unseen_by(folder, set(tables.test.sample_ids), settings.data)
    kept = [chain for chain in tables.known.chains if chain.unedited_prefix >= e]
    columns = np.array([tables.known.place(chain) for chain in kept])
    values = {
        split: torch.cat(
            [
                router.scores(part, kept).double()
                for part in _states(router, table.sample_ids, settings.records / f"{split}.states", split)
            ]
        )
        for split, table in (("validation", tables.validation), ("test", tables.test))
    }
    depths = torch.tensor(tables.known.depths[columns]).double()
    points = operating_points(values["validation"], depths.expand_as(values["validation"]))
    low, high = points[-1].mean_depth, points[0].mean_depth
    found = []
    for budget in settings.budgets:
        if not low <= budget <= high:
            continue
        price = offset_for(points, budget)
        chosen = {
            split: columns[priced_choice(of_split, depths.expand_as(of_split), price).numpy()]
            for split, of_split in values.items()
        }
        measured = measure(tables, chosen["validation"], chosen["test"], budget, settings.seed)
        found.append({"name": name, "router": str(folder), "weights": sha256_file(folder / WEIGHTS_FILE), **measured})
    return found


def _states(router: Router, ids: Sequence[str], folder: Path, split: str) -> Iterator[list[torch.Tensor]]:
    """Give the states that the router reads, in parts, so that they need not fit in memory."""
    origin = StatesOrigin(router.config.fingerprints, router.config.dtype)
    for start in range(0, len(ids), ROUTED_AT_ONCE):
        part = ids[start : start + ROUTED_AT_ONCE]
        found = read_states([folder], origin, part, router.config.read_layer)
        if len(found) < len(part):
            raise InputError(
                f"records: expected the states that the router reads (hidden_states[{router.config.read_layer}]) "
                f"of {split} in {folder}, got none for some; run python -m search with "
                f"--read_layers '[{router.config.read_layer}]'"
            )
        yield [found[key] for key in part]


def measure(
    tables: Tables,
    validation: Int[np.ndarray, " samples"],
    test: Int[np.ndarray, " samples"],
    budget: float,
    seed: int,
) -> dict[str, Any]:
    """Measure an arm and its baselines.

    Args:
        tables: the tables.
        validation: the arm's column for each validation sample.
        test: its column for each test sample.
        budget: the mean depth that was asked for, layers.
        seed: seed of bootstrap and permutations.

    Returns:
        Accuracy and mean depth of the arm, each baseline's accuracy and mean depth, the paired differences with
        their 95 % intervals, and the permutation test's p.
    """
    right = tables.test.right(test)
    depth = float(tables.test.depths[test].mean())
    full = tables.test.right(np.zeros(len(test), dtype=int))
    arms: dict[str, tuple[np.ndarray, float] | None] = {"full": (full, float(tables.test.depths[0]))}
    bound = float(tables.validation.depths[validation].mean())
    static = best_static(tables.known, bound)
    if static is not None:
        arms["static"] = (tables.test.correct[:, static].astype(float), float(tables.test.depths[static]))
    # At the router's own depth on test, so that the mixture never runs fewer layers than it is compared with.
    mixture = best_static_mixture(tables.known, depth)
    if mixture is not None:
        arms["mixture"] = (
            right_of_mixture(tables.test, mixture),
            mixture.mean(tables.test.depths.astype(float).tolist()),
        )
    arms["same_menu"] = (same_menu(tables.test, test), depth)
    arms["random"] = (random_of_depth(tables.test, test), depth)
    leaving = early_exit(tables.known, budget)
    if leaving is not None:
        columns = leaving.choices(tables.test)
        arms["early_exit"] = (tables.test.right(columns), float(tables.test.depths[columns].mean()))
    p, permuted = permutation_p(tables.test, test, seed)
    against = {}
    for name, arm in arms.items():
        if arm is not None:
            difference, low, high = bootstrap_difference(right, arm[0], seed)
            against[name] = {
                "accuracy": float(arm[0].mean()),
                "depth": arm[1],
                "difference": difference,
                "interval": [low, high],
            }
    return {
        "budget": budget,
        "accuracy": float(right.mean()),
        "depth": depth,
        "validation_accuracy": float(tables.validation.right(validation).mean()),
        "validation_depth": bound,
        "against": against,
        "permutation_p": p,
        "permuted_accuracy": permuted,
        "distinct_chains": len(set(test.tolist())),
        "full_share": float((test == 0).mean()),
        "static_chain": None if static is None else str(tables.test.chains[static]),
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
