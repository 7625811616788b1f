"""Train a router for every combination of some settings, seeds among them: sweeps and learning curves.

    python -m train.sweep --train configs/train/qwen.yaml --out runs/qwen/sweep \
        --vary '{data.limit: [250, 500, 1000, 2000], seed_everything: [0, 1, 2]}'

Each router lies in `<out>/<its settings>`; one that is there already is not trained again. Writes `sweep.json`: the
validation measures of all, and their mean and spread over seeds. Settings are chosen on validation, never on test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.command import InputError, parse_settings, provenance, run_command
from router.durable import read_json, require_file, writable_directory, write_json
from train.__main__ import DONE_FILE
from train.__main__ import main as train

SWEEP_FILE = "sweep.json"
SEED = "seed_everything"


@dataclass(frozen=True)
class SweepSettings:
    """Settings of `python -m train.sweep`.

    Attributes:
        train: configuration of `python -m train` that all share.
        out: folder for the routers and sweep.json.
        vary: values to try by setting of the training, such as {model.hidden: [32, 64], seed_everything: [0, 1, 2]}.
        fixed: settings of the training that differ from the configuration for all.
    """

    train: Path
    out: Path
    vary: dict[str, list[Any]]
    fixed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an empty sweep."""
        if not self.vary or not all(self.vary.values()):
            raise ValueError(f"vary: expected settings with values to try, got {self.vary}")
        taken = {"out", "config"} & (self.vary.keys() | self.fixed.keys())
        if taken:
            raise ValueError(f"vary: expected settings of the training, got {taken.pop()}, which the sweep sets")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(SweepSettings, argv, "train.sweep", "Train a router for every combination.")
    require_file(settings.train, "train")
    writable_directory(settings.out, "out")
    runs = []
    for values in itertools.product(*settings.vary.values()):
        chosen = dict(zip(settings.vary, values, strict=True))
        folder = settings.out / _name(chosen)
        print(f"--- {_name(chosen)}", flush=True)
        given = settings.fixed | chosen
        train([f"--config={settings.train}", f"--out={folder}", *(f"--{key}={value}" for key, value in given.items())])
        runs.append({"settings": chosen, "router": str(folder), "validation": _measures(folder)})
        summary = _summary(runs)
        write_json(settings.out / SWEEP_FILE, {"schema": 1, **provenance(plain), "runs": runs, "summary": summary})
    print(_table(_summary(runs)))
    print(f"written to {settings.out / SWEEP_FILE}")


def _measures(folder: Path) -> dict[str, float]:
    measures = read_json(folder / DONE_FILE).get("validation")
    if not isinstance(measures, dict):
        raise InputError(f"{folder / DONE_FILE}: expected validation measures, got none")
    return measures


def _name(chosen: dict[str, Any]) -> str:
    """Return a folder's name for some settings."""
    text = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in chosen.items())
    return "".join(sign if sign.isalnum() or sign in "=,.-_" else "_" for sign in text)


def _summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join runs that differ in the seed alone: mean and standard deviation of each measure."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple((k, str(v)) for k, v in run["settings"].items() if k != SEED), []).append(run)
    found = []
    for group in groups.values():
        names = list(group[0]["validation"])
        means, deviations = {}, {}
        for name in names:
            values = [run["validation"][name] for run in group if name in run["validation"]]
            means[name] = sum(values) / len(values)
            squares = sum((value - means[name]) ** 2 for value in values)
            deviations[name] = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
        shared = {key: value for key, value in group[0]["settings"].items() if key != SEED}
        found.append({"settings": shared, "runs": len(group), "mean": means, "deviation": deviations})
    return found


def _table(summary: Sequence[dict[str, Any]]) -> str:
    names = [name for name in summary[0]["mean"] if all(name in one["mean"] for one in summary)]
    width = max(10, *(len(_name(one["settings"])) + 2 for one in summary))
    lines = [f"{'settings':<{width}}{'runs':>5}" + "".join(f"{name:>18}" for name in names)]
    for one in summary:
        cells = "".join(f"{one['mean'][name]:>10.4f} ±{one['deviation'][name]:<6.4f}" for name in names)
        lines.append(f"{_name(one['settings']) or 'all':<{width}}{one['runs']:>5}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
