"""What the two parts of the expert-iteration example share: settings, and stages that keep what they have finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.tasks import TASKS_FILE
from router.command import InputError
from router.durable import read_json, sha256_file, write_json
from search.__main__ import main as search
from train.__main__ import DONE_FILE
from train.__main__ import main as train
from train.datamodule import SPLITS
from train.objectives import HeadName


@dataclass(frozen=True)
class Iteration:
    """Settings of the example.

    Attributes:
        data: folder of `python -m data prepare`: the task, or the old task.
        out: folder for the rounds and for `transfer`.
        prefix_layers: layers that run unedited in every chain; the routers read their output.
        rounds: searches in all; the first has no prior.
        head: kind of the routers; for "menu" each round chooses a menu from all training records so far and runs it.
        algorithm: of every search, the first included, so that rounds differ by the prior alone.
        model: base model: an offline asset, a local directory or a hub id.
        revision: its hub revision.
        dtype: its dtype: float32, bfloat16 or float16.
        device: torch device, or auto.
        search_args: further arguments of every `python -m search`, menu tables included.
        menu_args: further arguments of every `python -m search.menu`.
        train_args: further arguments of every `python -m train`.
        prior_args: further arguments of every `python -m search.priors`.
        new_task: data folder of another task: measure the transfer to it, in place of rounds.
        sizes: numbers of training samples of the new task, the first by their ids, to train on.
        seeds: seeds of each such training.
        budget: mean depth at which menu routers are compared with the best static chain, layers; null: they are not.
        old_router: router that is taken to the new task; null: the last round's.
        old_records: records or menu tables that it was trained on; null: the last round's.
        new_records: the new task's; null: they are searched for, without a prior, or made with the old router's menu.
    """

    data: Path
    out: Path
    prefix_layers: int
    rounds: int = 3
    head: HeadName = "layerwise"
    algorithm: Literal["puct", "gumbel", "beam"] = "puct"
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: str = "bfloat16"
    device: str = "auto"
    search_args: tuple[str, ...] = ()
    menu_args: tuple[str, ...] = ()
    train_args: tuple[str, ...] = ()
    prior_args: tuple[str, ...] = ()
    new_task: Path | None = None
    sizes: tuple[int, ...] = (32, 128, 512)
    seeds: tuple[int, ...] = (0,)
    budget: float | None = None
    old_router: Path | None = None
    old_records: Path | None = None
    new_records: Path | None = None

    def __post_init__(self) -> None:
        """Refuse empty questions."""
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")
        if not self.sizes or min(self.sizes) < 1 or not self.seeds:
            raise ValueError(f"sizes and seeds: expected some, got {list(self.sizes)} and {list(self.seeds)}")

    @property
    def model_args(self) -> list[str]:
        """Arguments that name the model."""
        revision = [] if self.revision is None else [f"--revision={self.revision}"]
        return [f"--model={self.model}", f"--dtype={self.dtype}", f"--device={self.device}", *revision]

    def round(self, number: int) -> Path:
        """Return a round's folder."""
        return self.out / f"round-{number}"


FREE = ("out", "rounds", "device", "new_task", "sizes", "seeds", "budget", "old_router", "old_records")
"""Settings that may change between runs in one folder."""


def claim(folder: Path, plain: dict[str, Any], *data: Path, **more: str) -> None:
    """Make a folder one experiment's own, so that what lies in it can be taken as finished.

    Args:
        folder: the folder.
        plain: the settings as plain data; those in `FREE` do not count.
        data: data folders, whose files count.
        more: what counts besides.

    Raises:
        InputError: where the folder is another experiment's, or files are missing.
    """
    files = [place / name for place in data for name in (TASKS_FILE, *(f"{split}.jsonl" for split in SPLITS))]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise InputError(f"data: expected the files of python -m data prepare, got none of {', '.join(missing)}")
    identity = {name: value for name, value in plain.items() if name not in (*FREE, "data")} | more
    identity["data"] = [sha256_file(file) for file in files]
    path = folder / "identity.json"
    stored = read_json(path) if path.exists() else identity
    if differing := [name for name in {**identity, **stored} if stored.get(name) != identity.get(name)]:
        raise InputError(f"out: expected an empty folder or the same {', '.join(differing)}, got {str(folder)!r}")
    write_json(path, identity)


def search_for(settings: Iteration, data: Path, out: Path, *more: str) -> None:
    """Search train and validation, with further arguments, unless it is done."""
    if not all((out / f"{split}.jsonl").exists() for split in SPLITS):
        named = [f"--data={data}", f"--out={out}", f"--splits=[{', '.join(SPLITS)}]"]
        named += [f"--prefix_layers={settings.prefix_layers}", f"--search.algorithm={settings.algorithm}"]
        search([*named, *settings.model_args, *settings.search_args, *more])


def train_on(settings: Iteration, data: Path, records: Path, out: Path, *more: str) -> dict[str, float]:
    """Train a router, with further arguments, unless it is done; returns its measures on its validation split."""
    if not (out / DONE_FILE).exists():
        named = [f"--out={out}", f"--data.data={data}", f"--data.records={records}"]
        named += [f"--data.base_model={settings.model}", f"--data.device={settings.device}"]
        named += [] if settings.revision is None else [f"--data.revision={settings.revision}"]
        train([*named, f"--data.prefix_layers={settings.prefix_layers}", *more])
    measured: dict[str, float] = read_json(out / DONE_FILE)["validation"]
    return measured


def told(figures: dict[str, Any]) -> str:
    """Return the numbers among figures as one line."""
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
