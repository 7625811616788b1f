"""The published tables of one model family: every search that they need, at equal budget, and the analysis.

    python -m examples.published_tables --config configs/analysis/smollm2.yaml
    python -m examples.published_tables --config configs/analysis/llama3-8b.yaml --commands_only true

For each model it prepares the data and searches them once for each set of edits (skip, repeat, both, both+move), for
some of these once more for a wrong answer, which measures luck. Then `python -m eval analysis` writes
`<out>/analysis.json`, figures and tables (docs/evaluation.md). Every stage keeps what it has finished: the same command
goes on, and a finished search of other settings is refused. It prints each search's command.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from data.prepare import PrepareSettings, prepare
from data.sample import Split
from eval.analysis import main as analyse
from router.command import parse_settings, plain_values, run_command
from router.files import writable_directory
from router.validation import SETTINGS, Count
from search.__main__ import main as search
from search.settings import ActionSet

Name = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
"""What can be a folder's name."""


@dataclass(frozen=True, config=SETTINGS)
class ModelVariant:
    """One variant of a model, and how it is asked.

    Attributes:
        model: its name in tables and folders.
        variant: which of its variants, such as base or instruct.
        path: base model: an offline asset, a local directory or a hub id.
        data: settings of `python -m data prepare`; each variant is asked in its own way, so it has its own folder.
        revision: hub revision.
        dtype: its dtype.
    """

    model: Name
    variant: Name
    path: str
    data: PrepareSettings
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TablesSettings:
    """Settings of the example.

    Attributes:
        out: folder for the searches, analysis.json and the figures.
        models: the models, each in its variants.
        first_editable: layers that run unedited in every chain; the published searches edit all.
        split: split that is searched and analysed.
        action_sets: the sets of edits that are compared.
        wrong_searches: those of them whose search is run once more for a wrong answer.
        search_args: further arguments of every `python -m search`: presets, budget, batches.
        device: torch device, or auto.
        seed: seed of the analysis's bootstrap.
        commands_only: print the commands of the searches, and stop.
    """

    out: Path
    models: Annotated[list[ModelVariant], Field(min_length=1)]
    first_editable: Count = 0
    split: Split = "test"
    action_sets: Annotated[tuple[ActionSet, ...], Field(min_length=1)] = ("skip", "repeat", "both", "both+move")
    wrong_searches: tuple[ActionSet, ...] = ("both",)
    search_args: tuple[str, ...] = ()
    device: str = "auto"
    seed: Count = 0
    commands_only: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse what stands twice, and a search for a wrong answer without its search."""
        named = [(one.model, one.variant) for one in self.models]
        for name, values in (("models", named), ("action_sets", self.action_sets)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: expected each once, got {list(values)}")
        if other := set(self.wrong_searches) - set(self.action_sets):
            raise ValueError(f"wrong_searches: expected some of the action_sets, got {min(other)}")
        return self

    def searches(self, model: ModelVariant) -> dict[Path, list[str]]:
        """Return the arguments of each of a model's searches, by its folder."""
        named = {"data": model.data.out, "model": model.path, "revision": model.revision, "dtype": model.dtype}
        named |= {"device": self.device, "first_editable": self.first_editable, "splits": f"[{self.split}]"}
        shared = [*self.search_args, *(f"--{name}={value}" for name, value in named.items() if value is not None)]
        wanted = [(name, name, "gold") for name in self.action_sets]
        wanted += [(f"{name}-wrong", name, "wrong") for name in self.wrong_searches]
        found = {}
        for name, action_set, target in wanted:
            folder = self.out / model.model / model.variant / name
            own = [f"--out={folder}", f"--reward_target={target}", f"--search.action_set={action_set}"]
            found[folder] = [*shared, *own]
        return found


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
