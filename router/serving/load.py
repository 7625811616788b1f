"""Shallower under load: the budget falls as requests queue up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadBudget:
    """A mean depth that falls linearly with the number of choices that wait.

    Attributes:
        calm: mean depth, layers, while none waits; None: whatever the model is set to, at any load.
        busy: mean depth, layers, from `busy_queue` waiting choices on; None: `calm` at any load.
        busy_queue: waiting choices at which `busy` is reached.
    """

    calm: float | None = None
    busy: float | None = None
    busy_queue: int = 1

    def __post_init__(self) -> None:
        """Refuse what does not fall."""
        if self.busy_queue < 1:
            raise ValueError(f"busy_queue: expected at least 1, got {self.busy_queue}")
        if self.busy is None:
            return
        if self.calm is None:
            raise ValueError("busy_budget: expected a budget beside it, from which to fall, got none")
        if self.busy > self.calm:
            raise ValueError(f"busy_budget: expected at most the budget of {self.calm}, got {self.busy}")

    def at(self, waiting: int) -> float | None:
        """Return the mean depth, layers, for a batch that leaves `waiting` choices behind."""
        if self.calm is None or self.busy is None:
            return self.calm
        share = min(1.0, waiting / self.busy_queue)
        return self.busy if share == 1 else self.calm - share * (self.calm - self.busy)
