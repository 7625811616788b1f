"""Accuracy against mean depth on a dense test table: routers of any head and seed, and every baseline.

    python -m eval curves --data runs/qwen/data --records runs/qwen/table --out runs/qwen/curves \
        --routers '{menu: [runs/qwen/router-0, runs/qwen/router-1, runs/qwen/router-2]}' --budgets '[23, 23.5, 24]'

Needs menu tables of train, validation and test with the states that the routers read (`python -m search menu ...
--read_layers ...`); no model runs. Operating points come from validation, static baselines from train+validation, the
test table is only looked up. Its chains ran in the search's cheap mode; `python -m eval` runs a router's own chains, in
the real mode. Writes `curves.json` and a figure. Where the tables hold several tasks (kinds), each has its own lines.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass
from rich.table import Table
from torch import Tensor

from data.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, save_figure, tidy
from data.records import DenseTable, SearchRecord, read_records
from data.sample import read_samples
from data.splits import require_unseen
from data.states import StatesOrigin, kept_at_each
from data.statistics import mean_of, permutation_p
from eval.baselines import Candidate, choose_by_kind, choose_mixture, choose_static
from eval.figures import literal, new_figure, whiskers
from eval.measures import entropies
from eval.tables import console_for, table
from router.command import parse_settings, provenance
from router.decision import Router
from router.files import require_directory, sha256_file, writable_directory, write_json
from router.heads.budget import offset_for, operating_points, priced_choice
from router.heads.head import known_late
from router.storage import WEIGHTS_FILE, load_router
from router.validation import SETTINGS, Count, InputError

SCHEMA = 1
CURVES_FILE = "curves.json"
FIGURE_FILES = ("curves.png", "curves.svg")
SHOWN = {"same_menu": "permuted within kinds"}
"""Baselines that the printed table calls otherwise than the file."""


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

    @model_validator(mode="after")
    def _different(self) -> Self:
        """Refuse a budget, or a router of a name, that stands twice and would pass for a further seed."""
        named: dict[str, Sequence[object]] = {"budgets": self.budgets}
        named |= {f"routers.{name}": folders for name, folders in self.routers.items()}
        for name, given in named.items():
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: expected each once, got {[str(one) for one in given]}")
        return self


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


def main(argv: Sequence[str] | None) -> None:
    """Run the command.

    Raises:
        InputError: at bad input.
    """
    settings, plain = parse_settings(CurvesSettings, argv, "eval curves", "Accuracy against depth on dense tables.")
    require_directory(settings.records, "records")
    writable_directory(settings.out, "out")
    records = {split: _records(settings, split) for split in ("train", "validation", "test")}
    known = DenseTable.of([*records["train"], *records["validation"]])
    validation, test = (DenseTable.of(records[split], known.chains) for split in ("validation", "test"))
    tables = Tables(known, validation, test)
    for name, split in (("train and validation", known), ("validation", validation)):
        if absent := set(test.tasks) - set(split.tasks):
            raise InputError(f"records: expected samples of every task of test in {name}, got none of {min(absent)}")
    samples = {one.id: one for one in read_samples(settings.data / "test.jsonl", "data: test")}
    if unknown := set(test.sample_ids) - samples.keys():
        raise InputError(f"data: expected the samples of the test records, got none with id {min(unknown)}")
    asked = [samples[key] for key in test.sample_ids]
    points: list[dict[str, Any]] = []
    for name, folders in settings.routers.items():
        for folder in folders:
            router = load_router(require_directory(folder, "routers"))
            require_unseen(folder, asked, "data")
            points += _curve(name, folder, router, tables, settings)
    if not points:
        raise InputError(f"budgets: expected one that a router can meet on validation, got {settings.budgets}")
    content = {
        "schema": SCHEMA,
        **provenance(plain),
        "n": len(records["test"]),
        "inputs": {f"{split}.jsonl": sha256_file(settings.records / f"{split}.jsonl") for split in records},
        "full": {
            "accuracy": sum(record.full.right for record in records["test"]) / len(records["test"]),
            "depth": float(known.depths[0]),
        },
        "static": [
            {"chain": str(test.chains[i]), "depth": test.chains[i].depth, "accuracy": float(test.accuracy[i])}
            for i in known.best_of_each_depth()
        ],
        "points": points,
        "summary": summary_of(points),
    }
    write_json(settings.out / CURVES_FILE, content)
    figures = save_figure(partial(draw, content), [settings.out / name for name in FIGURE_FILES], "eval")
    print_curves(content)
    print("written to " + ", ".join(str(path) for path in (settings.out / CURVES_FILE, *figures)))


def _records(settings: CurvesSettings, split: str) -> list[SearchRecord]:
    records = read_records(settings.records / f"{split}.jsonl", f"records: {split}")
    if settings.tasks:
        unknown = set(settings.tasks) - {record.task for record in records}
        if unknown:
            raise InputError(f"tasks: expected tasks of the records, got {', '.join(sorted(unknown))}")
        records = [record for record in records if record.task in settings.tasks]
    if any(record.split != split or record.reward_target != "gold" for record in records):
        raise InputError(f"records: expected a menu table of {split}, run for the right answers, got another")
    return records


def _curve(name: str, folder: Path, router: Router, tables: Tables, settings: CurvesSettings) -> list[dict[str, Any]]:
    """Measure one router at every budget that it can meet on validation."""
    config = router.config
    kept = [chain for chain in tables.known.chains if chain.unedited_prefix >= config.read_layer]
    columns = np.array([tables.known.place(chain) for chain in kept])
    origin = StatesOrigin(config.fingerprints, config.dtype)

    def values_of(split: str, table: DenseTable) -> tuple[Tensor, Tensor | None]:
        folder = settings.records / f"{split}.states"
        read = kept_at_each(folder, origin, table.sample_ids, config.read_layers, split)
        parts = [router.values(part[0], kept, known_late(part[-1])) for part in read]
        first, late = zip(*parts, strict=True)
        return torch.cat(first).double(), None if config.late is None else torch.cat(late).double()

    values = {"validation": values_of("validation", tables.validation), "test": values_of("test", tables.test)}
    depths = torch.tensor(tables.known.depths[columns]).double()
    first, late = values["validation"]
    points = operating_points(first, depths.expand_as(first), late)
    found = []
    for budget in settings.budgets:
        if not points[-1].mean_depth <= budget <= points[0].mean_depth:
            continue
        price = offset_for(points, budget, config.num_layers)
        chosen = {
            split: columns[priced_choice(first, depths.expand_as(first), price, late).numpy()]
            for split, (first, late) in values.items()
        }
        measured = measure(tables, chosen["validation"], chosen["test"], budget, settings.seed)
        found.append({"name": name, "router": str(folder), "weights": sha256_file(folder / WEIGHTS_FILE), **measured})
    return found


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
        their 95 % intervals, the permutation test's p, and the same of each kind (task).
    """
    known, of_test = tables.known, tables.test
    right, correct = of_test.right(test), of_test.correct.astype(float)
    depth, bound = float(of_test.depths[test].mean()), float(tables.validation.depths[validation].mean())
    candidates = candidates_of(known)
    static = known.place(choose_static(candidates, bound).chain)
    by_kind = static_by_kind(tables, validation)
    # At the router's own depth on test, so that the mixture never runs fewer layers than it is compared with.
    mixture = choose_mixture(candidates, depth)
    first, second = (correct[:, of_test.place(chain)] for chain in (mixture.first, mixture.second))
    # Of each baseline: every sample's probability of a right answer, and the mean depth.
    baselines = {
        "full": (correct[:, 0], float(of_test.depths[0])),
        "static": (correct[:, static], float(of_test.depths[static])),
        "static_by_kind": (of_test.right(by_kind), float(of_test.depths[by_kind].mean())),
        "mixture": (mixture.share * first + (1 - mixture.share) * second, mixture.mean_depth),
        "same_menu": (same_menu(of_test, test), depth),
        "random": (random_of_depth(of_test, test), depth),
    }
    against = {}
    for name, (values, mean_depth) in baselines.items():
        estimate = mean_of(right - values, seed)
        assert estimate is not None
        against[name] = {
            "accuracy": float(values.mean()),
            "depth": mean_depth,
            "difference": estimate.value,
            "interval": list(estimate.interval),
        }
    p, permuted = permutation_p(of_test.correct, test, of_test.tasks, seed)
    entropy, within = entropies(test.tolist(), of_test.tasks)
    kinds = {kind: kind_of(of_test, kind, test, static, by_kind, seed) for kind in sorted(set(of_test.tasks))}
    return {
        "budget": budget,
        "accuracy": float(right.mean()),
        "depth": depth,
        "validation_accuracy": float(tables.validation.right(validation).mean()),
        "validation_depth": bound,
        "against": against,
        "permutation_p": p,
        "permuted_accuracy": permuted,
        "kinds": kinds,
        "worst_kind": min(kinds, key=lambda kind: kinds[kind]["difference"]),
        "distinct_chains": len(set(test.tolist())),
        "entropy_bits": entropy,
        "entropy_within_bits": within,
        "full_share": float((test == 0).mean()),
        "static_chain": str(of_test.chains[static]),
    }


def candidates_of(known: DenseTable, kind: str | None = None) -> list[Candidate]:
    """Return a table's chains as candidates for the static one, on one kind's samples where one is named."""
    own = [kind in (None, task) for task in known.tasks]
    counts = known.correct[own].sum(0).tolist()
    return [Candidate(chain, count, sum(own)) for chain, count in zip(known.chains, counts, strict=True)]


def static_by_kind(tables: Tables, validation: Int[np.ndarray, " samples"]) -> Int[np.ndarray, " samples"]:
    """Return each test sample's column where every kind (task) has a static chain of its own.

    They are chosen on train and validation samples, together at most as deep as the arm is on validation.

    Args:
        tables: the tables.
        validation: the arm's column for each validation sample.
    """
    known, counts = tables.known, Counter(tables.validation.tasks)
    candidates = {kind: candidates_of(known, kind) for kind in sorted(counts)}
    chosen = choose_by_kind(candidates, counts, float(tables.validation.depths[validation].mean()))
    return np.array([known.place(chosen[kind].chain) for kind in tables.test.tasks])


def kind_of(
    dense: DenseTable,
    kind: str,
    choices: Int[np.ndarray, " samples"],
    static: int,
    by_kind: Int[np.ndarray, " samples"],
    seed: int,
) -> dict[str, Any]:
    """Measure an arm and static chains on the samples of one kind (task).

    Args:
        dense: the test table.
        kind: the task.
        choices: the arm's column for each sample.
        static: column of the best static chain of all samples.
        by_kind: for each sample the column of its kind's best static chain.
        seed: seed of the bootstrap.
    """
    own = np.array(dense.tasks) == kind
    right, correct, column = dense.right(choices)[own], dense.correct[own], int(by_kind[own][0])
    estimate = mean_of(right - correct[:, 0], seed)
    assert estimate is not None
    return {
        "n": int(own.sum()),
        "accuracy": float(right.mean()),
        "depth": float(dense.depths[choices[own]].mean()),
        "full": float(correct[:, 0].mean()),
        "difference": estimate.value,
        "interval": list(estimate.interval),
        "static": float(correct[:, static].mean()),
        "static_by_kind": float(correct[:, column].mean()),
        "static_by_kind_depth": float(dense.depths[column]),
        "static_by_kind_chain": str(dense.chains[column]),
    }


def same_menu(dense: DenseTable, choices: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Return each sample's probability of a right answer under a static menu.

    Its chain is drawn as often as the router chose it for the sample's task, but whatever the sample: the mean over all
    permutations of the router's chains within tasks. What this lacks against the router is what the router read of a
    sample beyond its task.
    """
    result = np.empty(len(choices))
    tasks = np.array(dense.tasks)
    for task in np.unique(tasks):
        own = np.flatnonzero(tasks == task)
        shares = np.bincount(choices[own], minlength=len(dense.chains)) / len(own)
        result[own] = dense.correct[own].astype(float) @ shares
    return result


def random_of_depth(dense: DenseTable, choices: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Return each sample's probability of a right answer when its chain is any of the menu's of the same depth."""
    result: np.ndarray = np.average(dense.correct, axis=1, weights=dense.depths[choices][:, None] == dense.depths)
    return result


def summary_of(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the seeds of each router and budget: means over seeds, and the range of the accuracy."""
    found = []
    for name, budget in dict.fromkeys((point["name"], point["budget"]) for point in points):
        own = [point for point in points if (point["name"], point["budget"]) == (name, budget)]
        accuracies = [point["accuracy"] for point in own]
        kinds = {
            kind: {
                field: _mean(own, "kinds", kind, field) for field, value in first.items() if isinstance(value, float)
            }
            for kind, first in own[0]["kinds"].items()
        }
        found.append(
            {
                "name": name,
                "budget": budget,
                "seeds": len(own),
                "accuracy": _mean(own, "accuracy"),
                "spread": [min(accuracies), max(accuracies)],
                "depth": _mean(own, "depth"),
                "against": {arm: _mean(own, "against", arm, "difference") for arm in own[0]["against"]},
                "worst_p": max(point["permutation_p"] for point in own),
                "kinds": kinds,
                "worst_kind": min(kinds, key=lambda kind: kinds[kind]["difference"]),
                **{field: _mean(own, field) for field in ("entropy_bits", "entropy_within_bits")},
            }
        )
    return found


def _mean(points: Sequence[dict[str, Any]], *path: str) -> float:
    """Return the mean over points of a number that stands at a path of keys."""
    return float(np.mean([reduce(getitem, path, point) for point in points]))


def print_curves(content: dict[str, Any]) -> None:
    """Print the tables of `curves.json`."""
    console = console_for(sys.stdout)
    full, points = content["full"], content["points"]
    baselines = list(points[0]["against"])
    rows = [
        [
            point["name"],
            f"{point['budget']:g}",
            f"{point['depth']:.2f}",
            f"{point['accuracy']:.4f}",
            *(_difference(point["against"][name]) for name in baselines),
            f"{point['permutation_p']:.4f}",
            f"{point['entropy_bits']:.2f}/{point['entropy_within_bits']:.2f}",
        ]
        for point in points
    ]
    told = [SHOWN.get(name, name) for name in baselines]
    names = ("router", "budget", "depth", "accuracy", *told, "perm. p", "bits/within kinds")
    heading = f"full depth {full['accuracy']:.4f} at {full['depth']:g}, n = {content['n']}"
    console.print(table(heading, names, rows))
    if any(len(one["kinds"]) > 1 for one in content["summary"]):
        console.print(_kinds(content["summary"]))
    for one in content["summary"]:
        against = ", ".join(f"{name} {value:+.4f}" for name, value in one["against"].items())
        console.print(
            f"{one['name']}, budget {one['budget']:g}, {one['seeds']} seeds: {one['accuracy']:.4f} "
            f"({one['spread'][0]:.4f}..{one['spread'][1]:.4f}) at {one['depth']:.2f}; against {against}"
        )


def _kinds(summary: Sequence[dict[str, Any]]) -> Table:
    """Return a line for each router, budget and kind, means over seeds."""
    rows = [
        [
            one["name"],
            f"{one['budget']:g}",
            kind + (" (worst)" if kind == one["worst_kind"] else ""),
            f"{of_kind['depth']:.2f}",
            *(f"{of_kind[field]:.4f}" for field in ("accuracy", "full")),
            f"{of_kind['difference']:+.4f}",
            f"{of_kind['static']:.4f}",
            f"{of_kind['static_by_kind']:.4f} at {of_kind['static_by_kind_depth']:.2f}",
        ]
        for one in summary
        for kind, of_kind in one["kinds"].items()
    ]
    names = ("router", "budget", "kind", "depth", "accuracy", "full", "difference", "static", "static_by_kind")
    return table("by kind of task, means over seeds", names, rows)


def _difference(against: dict[str, Any]) -> str:
    low, high = against["interval"]
    return f"{against['difference']:+.4f} ({low:+.3f}..{high:+.3f})"


COLOURS = (BLUE, GREEN, PURPLE, ORANGE, SKY)
"""One a kind of router."""
MARKERS = "osDv^"


def draw(content: dict[str, Any]) -> Figure:
    """Return the figure: each kind's mean over seeds and its range, static chains, full depth."""
    figure = new_figure(narrow=False, height=4.2)
    axes = figure.add_subplot()
    full = content["full"]
    axes.axhline(full["accuracy"], color=BLACK, linewidth=0.8, linestyle=":")
    axes.plot(full["depth"], full["accuracy"], "s", color=BLACK, label="full depth", zorder=3)
    static = sorted((one["depth"], one["accuracy"]) for one in content["static"])
    axes.plot(*zip(*static, strict=True), "^--", color=VERMILLION, label="static chains, and their mixtures")
    for i, name in enumerate(dict.fromkeys(one["name"] for one in content["summary"])):
        own = sorted((one for one in content["summary"] if one["name"] == name), key=lambda one: one["depth"])
        means, seeds = [one["accuracy"] for one in own], sorted({one["seeds"] for one in own})
        axes.errorbar(
            [one["depth"] for one in own],
            means,
            yerr=whiskers(means, [one["spread"] for one in own]),
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            capsize=3,
            label=literal(f"router {name} (mean and range of {' or '.join(map(str, seeds))} seeds)"),
        )
    axes.set_xlabel("mean depth, layers executed")
    axes.set_ylabel(f"accuracy on {content['n']} test samples")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    tidy(axes)
    figure.tight_layout()
    return figure
