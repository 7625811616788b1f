"""Settings of `python -m search`, and the samples that they name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.sample import SPLITS, Sample, read_samples
from data.tasks import TaskSet
from router.command import InputError
from router.durable import read_json
from search.settings import SearchSettings


@dataclass(frozen=True)
class RunSettings:
    """Settings of `python -m search`.

    Attributes:
        data: directory with the splits' sample files and their tasks, made by `python -m data prepare`.
        out: directory for the records; several processes may share it.
        splits: splits to search, in this order.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        prefix_layers: layers 0..prefix_layers-1 run unedited in every chain; the router will read their output.
        reward_target: "gold", or "wrong": the control that counts a wrong answer as right.
        shuffle: 0: the listed choices in their usual order; any other number: in another one, for the control
            whether what was found survives it.
        verify: judge the chains that can become labels once more, in the mode of evaluation.
        dtype: dtype of the model: float32, bfloat16 or float16.
        device: torch device, or auto: a GPU where there is one, each process of a launch its own.
        limit: samples of each split to search at most; null: all.
        batch_samples: samples whose trees advance together; a process takes as many at a time.
        batch_tokens: tokens in one call of a layer at most.
        state_bytes: bytes of computed states kept for reuse.
        menu: file of `python -m search.menu`: run its chains on every sample in place of a search (a menu table); the
            settings under `search` then decide nothing; null: search.
        read_layers: layers e whose `hidden_states[e]` are kept in `<out>/<split>.states` for routers to be trained on,
            which costs next to no time here and a run of the model later; each at least 1.
        estimate_only: search one batch, say what the run would cost, keep nothing, and stop.
        search: settings of each sample's search.
    """

    data: Path
    out: Path
    prefix_layers: int
    splits: tuple[str, ...] = ("train", "validation", "test")
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    reward_target: Literal["gold", "wrong"] = "gold"
    shuffle: int = 0
    verify: bool = True
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None
    batch_samples: int = 32
    batch_tokens: int = 1024
    state_bytes: int = 2**30
    menu: Path | None = None
    read_layers: tuple[int, ...] = ()
    estimate_only: bool = False
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown or not self.splits or len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, each once, got {list(self.splits)}")
        for name, least in (
            ("batch_samples", 1),
            ("batch_tokens", 1),
            ("state_bytes", 0),
            ("prefix_layers", 0),
            ("shuffle", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if min(self.read_layers, default=1) < 1:
            raise ValueError(f"read_layers: expected layers of at least 1, got {list(self.read_layers)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")

    def read_samples(self, split: str, tasks: TaskSet) -> list[Sample]:
        """Read the samples of a split.

        Raises:
            InputError: where they are missing, of another split or task, or the prompt is not the prepared one.
        """
        samples = read_samples(self.data / f"{split}.jsonl", f"data: {split}")
        other = [sample for sample in samples if sample.split != split]
        if other:
            raise InputError(f"data: expected samples of the split {split}, got one of {other[0].split}")
        for name in {sample.task for sample in samples}:
            tasks[name]  # refuses a sample of another task
        manifest = self.data / "manifest.json"
        if manifest.exists() and read_json(manifest).get("prompt_hash") not in (None, tasks.prompt_hash()):
            raise InputError(
                f"data: expected tasks.json with the prompt that {manifest} names, got another ({tasks.name})"
            )
        return samples
