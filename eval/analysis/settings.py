"""Settings of `python -m eval.analysis`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from data.sample import SPLITS

ActionSet = Literal["skip", "repeat", "both", "both+move"]
ACTION_SETS: tuple[str, ...] = get_args(ActionSet)
"""Kinds of edits that a search may make, in the order of the tables."""


@dataclass(frozen=True)
class CellSettings:
    """One search of one model.

    Attributes:
        model: name of the model in tables and figures.
        variant: which of its variants, such as base or instruct.
        action_set: edits that the search could make.
        records: folder of `python -m search`.
        split: split whose records are read.
        wrong: folder of the same search told a wrong answer (`--reward_target wrong`): how often it finds a chain for
            that is luck; null: not searched.

    Raises:
        ValueError: where a name is empty or the split is none.
    """

    model: str
    variant: str
    action_set: ActionSet
    records: Path
    split: str = "test"
    wrong: Path | None = None

    def __post_init__(self) -> None:
        """Refuse empty names and unknown splits."""
        for name in ("model", "variant"):
            if not getattr(self, name).strip():
                raise ValueError(f"cells.{name}: expected a name, got {getattr(self, name)!r}")
        if self.split not in SPLITS:
            raise ValueError(f"cells.split: expected one of {', '.join(SPLITS)}, got {self.split!r}")

    @property
    def label(self) -> str:
        """The cell's name for readers."""
        return f"{self.model} {self.variant}, {self.action_set}"


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of `python -m eval.analysis`.

    Attributes:
        cells: the searches to compare; those of one model and variant must have the same budget and samples.
        out: folder for analysis.json and the figures.
        seed: seed of the bootstrap.

    Raises:
        ValueError: where there is no cell, one stands twice, or the seed is negative.
    """

    cells: list[CellSettings]
    out: Path
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty question, and cells of one name."""
        if not self.cells:
            raise ValueError("cells: expected at least one, got none")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        seen: set[tuple[str, str, str, str]] = set()
        for cell in self.cells:
            key = (cell.model, cell.variant, cell.action_set, cell.split)
            if key in seen:
                raise ValueError(f"cells: expected each once, got {cell.label} on {cell.split} again")
            seen.add(key)
