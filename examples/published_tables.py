"""The published tables of one model family: every search that they need, at equal budget, and the analysis.

    python -m examples.published_tables --config configs/analysis/smollm2.yaml
    python -m examples.published_tables --config configs/analysis/llama3-8b.yaml --commands_only true

For each model it prepares the data and searches them once for each set of edits (skip, repeat, both, both+move), for
some of these once more told a wrong answer, which measures luck. Then `python -m eval analysis` writes
`<out>/analysis.json`, figures and tables (docs/evaluation.md). Every stage keeps what it has finished: the same command
goes on, and a finished search of other settings is refused. It prints each search's command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data.prepare import PrepareSettings, prepare
from eval.analysis import main as analyse
from router.command import parse_settings, plain_values, run_command
from router.files import writable_directory
from search.__main__ import main as search

ActionSet = Literal["skip", "repeat", "both", "both+move"]
ACTION_SETS: tuple[str, ...] = get_args(ActionSet)
"""Kinds of edits that a search may make, in the order of the tables."""


@dataclass(frozen=True)
class ModelSettings:
    """One variant of a model, and how it is asked.

    Attributes:
        model: its name in tables and folders.
        variant: which of its variants, such as base or instruct.
        path: base model: an offline asset, a local directory or a hub id.
        data: settings of `python -m data prepare`; each variant is asked in its own way, so it has its own folder.
        revision: hub revision.
        dtype: float32, bfloat16 or float16.

    Raises:
        ValueError: where a name cannot be a folder's.
    """

    model: str
    variant: str
    path: str
    data: PrepareSettings
    revision: str | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse names that are no folder's."""
        for name in ("model", "variant"):
            value = getattr(self, name)
            if not re.fullmatch(r"\w[\w.+-]*", value):
                raise ValueError(f"models.{name}: expected letters, digits, '.', '+' and '-', got {value!r}")


@dataclass(frozen=True)
class TablesSettings:
    """Settings of the example.

    Attributes:
        out: folder for the searches, analysis.json and the figures.
        models: the models, each in its variants.
        first_editable: layers that run unedited in every chain; the published searches edit all.
        split: split that is searched and analysed.
        action_sets: the sets of edits that are compared.
        told_wrong: those of them whose search is run once more told a wrong answer.
        search_args: further arguments of every `python -m search`: presets, budget, batches.
        device: torch device, or auto.
        seed: seed of the analysis's bootstrap.
        commands_only: print the commands of the searches, and stop.

    Raises:
        ValueError: where there is no model or no set of edits, one stands twice, or `told_wrong` has another.
    """

    out: Path
    models: list[ModelSettings]
    first_editable: int = 0
    split: str = "test"
    action_sets: tuple[ActionSet, ...] = ("skip", "repeat", "both", "both+move")
    told_wrong: tuple[ActionSet, ...] = ("both",)
    search_args: tuple[str, ...] = ()
    device: str = "auto"
    seed: int = 0
    commands_only: bool = False

    def __post_init__(self) -> None:
        """Refuse empty and contradictory questions."""
        named = [(one.model, one.variant) for one in self.models]
        if not named or len(set(named)) < len(named):
            raise ValueError(f"models: expected some, each model and variant once, got {named}")
        if not self.action_sets or len(set(self.action_sets)) < len(self.action_sets):
            raise ValueError(f"action_sets: expected some of {', '.join(ACTION_SETS)}, got {list(self.action_sets)}")
        if other := [name for name in self.told_wrong if name not in self.action_sets]:
            raise ValueError(f"told_wrong: expected some of the action_sets, got {other[0]}")

    def records(self, model: ModelSettings, action_set: str, target: str = "gold") -> Path:
        """Return a search's folder."""
        name = action_set if target == "gold" else f"{action_set}-told-wrong"
        return self.out / model.model / model.variant / name

    def searches(self, model: ModelSettings) -> dict[Path, list[str]]:
        """Return the arguments of each of a model's searches, by its folder."""
        wanted = [(name, "gold") for name in self.action_sets] + [(name, "wrong") for name in self.told_wrong]
        named = {"data": model.data.out, "model": model.path, "revision": model.revision, "dtype": model.dtype}
        named |= {"device": self.device, "first_editable": self.first_editable, "splits": f"[{self.split}]"}
        shared = [f"--{name}={value}" for name, value in named.items() if value is not None]
        return {
            folder: [
                *self.search_args, *shared,
                f"--out={folder}", f"--reward_target={target}", f"--search.action_set={action_set}",
            ]
            for action_set, target in wanted
            for folder in [self.records(model, action_set, target)]
        }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    settings, _ = parse_settings(TablesSettings, argv, "examples.published_tables", "The published tables.")
    writable_directory(settings.out, "out")
    for model in settings.models:
        prepare(model.data, plain_values(model.data))
    for model in settings.models:
        for arguments in settings.searches(model).values():
            print(f"python -m search {shlex.join(arguments)}", flush=True)
            if not settings.commands_only:
                search(arguments)
    if not settings.commands_only:
        analyse([f"--records={settings.out}", f"--out={settings.out}", f"--seed={settings.seed}"])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
