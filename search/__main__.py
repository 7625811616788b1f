"""Search chains for every sample of one or more splits, or make a menu of chains.

    python -m search --config configs/demo/search.yaml             # a menu table: every chain on every sample
    python -m search --config configs/small/search.yaml --splits '[train]' --search.simulations 200
    python -m search menu --kind subsets --model qwen2.5-coder-1.5b-instruct --first_editable 22 --out runs/x/menu.json

Writes `<out>/<split>.jsonl`, one record a sample (docs/formats.md), and `<out>/<split>.meta.json`. A run
that was killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from data.manifest import MANIFEST, read_manifest
from data.pool import RunSettings
from data.sample import Sample, Split
from data.scoring import ChainScorer
from data.tasks import TaskSet, read_split, read_tasks
from router.command import one_line, parse_settings, provenance, run_command
from router.engine.load import DEFAULT_MODEL, ModelSettings
from router.files import require_directory, writable_directory
from router.validation import SETTINGS, Count, InputError, Positive, UnfinishedError
from search import menu, merge
from search.menu import Menu, read_menu
from search.run import BatchSearch, Cost, SplitSearch
from search.settings import SearchSettings
from search.variants import VariantSettings


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class SearchRun(VariantSettings, ModelSettings, RunSettings):
    """Settings of `python -m search`.

    Attributes:
        first_editable: layers 0..first_editable-1 run unedited in every chain.
        splits: splits to search, in this order.
        reward_target: "gold", or "wrong": the control that searches for a wrong answer.
        shuffle: 0: the listed choices in their usual order; any other number: in another one, for the control
            whether what was found survives it.
        verify: judge the chains that can become labels once more, in the mode of evaluation.
        state_bytes: bytes of computed states kept for reuse.
        menu: file of `python -m search menu`: run its chains on every sample in place of a search (a menu table); the
            settings under `search` then decide nothing; null: search.
        read_layers: layers e whose `hidden_states[e]` are kept in `<out>/<split>.states` for routers to be trained on,
            which costs next to no time here and a run of the model later.
        part: which of how many parts of each split to search, for several drivers, "2/16"; `python -m search merge`
            puts their records together.
        estimate_only: search one batch, say what the run would cost, keep nothing, and stop.
        search: settings of each sample's search.
    """

    first_editable: Count
    splits: Annotated[tuple[Split, ...], Field(min_length=1)] = ("train", "validation", "test")
    reward_target: Literal["gold", "wrong"] = "gold"
    shuffle: Count = 0
    verify: bool = True
    state_bytes: Count = 2**30
    menu: Path | None = None
    read_layers: tuple[Positive, ...] = ()
    part: Annotated[str, Field(pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")] = "1/1"
    estimate_only: bool = False
    search: SearchSettings = SearchSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse a split named twice, and a part that there is not."""
        if len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits: expected each split once, got {list(self.splits)}")
        number, parts = map(int, self.part.split("/"))
        if number > parts:
            raise ValueError(f"part: expected 1/{parts} to {parts}/{parts}, got {self.part!r}")
        return self

    def read_samples(self, split: str, tasks: TaskSet) -> list[Sample]:
        """Read the samples of a split.

        Raises:
            InputError: where they are missing, of another split or task, or the prompt is not the prepared one.
        """
        samples = read_split(self.data, split, tasks)
        manifest = read_manifest(self.data)
        if manifest is not None and manifest.prompt_hash not in (None, tasks.prompt_hash()):
            raise InputError(
                f"data: expected tasks.json with the prompt that {self.data / MANIFEST} names, "
                f"got another ({tasks.name})"
            )
        return samples


VERBS = {"menu": menu.main, "merge": merge.main}
"""Words that may follow `python -m search`; without one it searches."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        InputError: at bad input.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if given and given[0] in VERBS:
        VERBS[given[0]](given[1:])
        return
    settings, plain = parse_settings(SearchRun, given, "search", "Search chains of layers for every sample.")
    require_directory(settings.data, "data")
    tasks = read_tasks(settings.data)
    samples = {split: settings.read_samples(split, tasks) for split in settings.splits}
    if settings.shuffle:
        tasks = tasks.shuffled(settings.shuffle)
    writable_directory(settings.out, "out")
    plain["model"] = settings.model or DEFAULT_MODEL
    scorer = ChainScorer.open(
        settings.base, tasks, batch_tokens=settings.batch_tokens, state_bytes=settings.state_bytes
    )
    search = _search(settings, scorer)
    splits = [
        SplitSearch(split, search, samples[split], settings.limit, settings.batch_samples, settings.out, settings.part)
        for split in settings.splits
    ]
    waiting = [one for split in splits for one in split.waiting]
    total = sum(split.count for split in splits)
    print(f"{len(waiting):,} samples to search, {total - len(waiting):,} of {total:,} are finished", flush=True)
    cost = Cost(waiting, settings.out)
    if settings.estimate_only:
        first = next((batch for split in splits for batch in split.missing), None)
        if first is not None:
            start = time.monotonic()
            cost.say(first.items, search.search(first.items, lambda _: None), time.monotonic() - start)
        return
    unfinished = []
    with settings.pool() as pool:
        for split in splits:
            try:
                split.run(provenance(plain), cost, pool)
            except UnfinishedError as error:
                unfinished.append(f"{split.name}: {error}")
    if unfinished:
        raise UnfinishedError("; ".join(unfinished))
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")
    print(f"records: {settings.out}")


def _search(settings: SearchRun, scorer: ChainScorer) -> BatchSearch:
    """Return how samples are searched.

    Raises:
        InputError: where a setting does not fit the model.
    """
    for name, layer in (
        ("first_editable", settings.first_editable),
        ("read_layers", max(settings.read_layers, default=0)),
    ):
        if layer >= scorer.num_layers:
            raise InputError(f"{name}: expected fewer than the model's {scorer.num_layers} layers, got {layer}")
    chosen = _menu(settings, scorer)
    plan = settings.search
    if chosen is not None:  # all its chains at once
        plan = replace(plan, simulations=len(chosen.chains), in_flight=len(chosen.chains))
    search = BatchSearch(
        scorer,
        plan,
        settings.first_editable,
        settings.reward_target,
        settings.verify,
        chosen,
        settings.read_layers,
        VariantSettings(variants=settings.variants, stand_share=settings.stand_share, held_out=settings.held_out),
    )
    try:
        search.searcher("any")
    except ValueError as error:
        raise InputError(f"search.{one_line(error)}") from error
    return search


def _menu(settings: SearchRun, scorer: ChainScorer) -> Menu | None:
    """Read the menu, and refuse one of another model or with chains that edit the first layers."""
    if settings.menu is None:
        return None
    found = read_menu(settings.menu)
    if found.num_layers != scorer.num_layers:
        raise InputError(f"menu: expected chains of {scorer.num_layers} layers, got {found.num_layers}")
    if found.first_editable < settings.first_editable:
        raise InputError(
            f"first_editable: expected at most the menu's {found.first_editable}, got {settings.first_editable}"
        )
    return found


if __name__ == "__main__":
    raise SystemExit(run_command(main))
