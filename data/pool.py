"""The one way to run work in batches: a function from a batch of samples to rows, and one writer of the rows.

Search, menu tables, evaluation, `data accuracy`, `data profile` and `train calibrate` all run through `run_batches`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic.dataclasses import dataclass as settings
from tqdm import tqdm

from data.store import RowT, Store
from router.validation import SETTINGS, Positive

ItemT = TypeVar("ItemT")


@settings(frozen=True, kw_only=True, config=SETTINGS)
class RunSettings:
    """What a command that runs a model on prepared samples works on, and where.

    Attributes:
        data: folder of `python -m data prepare`.
        out: folder for the results; a run that was stopped goes on there.
        limit: samples of each split at most, the first ones; null: all.
        batch_samples: samples that run together.
        batch_tokens: tokens in one call of a layer at most.
    """

    data: Path
    out: Path
    limit: Positive | None = None
    batch_samples: Positive = 32
    batch_tokens: Positive = 1024


Tick = Callable[[float], object]
"""Told how many units of work (chains, samples) were done since the last call."""


@dataclass(frozen=True)
class Batch(Generic[ItemT]):
    """Samples that run together. The partition does not depend on what is finished, nor do the rows.

    Attributes:
        name: what tells it from the others, the same in every run.
        items: the samples.
        keys: keys of the rows that it makes.
        units: units of work in it, for the progress bar.
    """

    name: str
    items: tuple[ItemT, ...]
    keys: tuple[str, ...]
    units: int


def run_batches(
    store: Store[RowT],
    batches: Sequence[Batch[ItemT]],
    work: Callable[[Batch[ItemT], Tick], Sequence[RowT]],
    *,
    label: str,
    unit: str,
    run: dict[str, Any] | None = None,
) -> int:
    """Run every batch of which a row is missing, and add the missing rows to the store; shows the progress.

    A batch of which only some rows are there runs whole, so that no row depends on what was killed before.

    Args:
        store: where the rows go.
        batches: all batches of the work.
        work: makes the rows of a batch.
        label: what the progress bar says.
        unit: name of a unit of work.
        run: what the store's meta file says of this run (with its name, `run`); its `searched` and `seconds` are
            brought up to date after every batch. None: nothing.

    Returns:
        Rows that were added.
    """
    missing = [batch for batch in batches if not all(one in store for one in batch.keys)]
    total = sum(batch.units for batch in batches)
    added = 0
    began = time.monotonic()
    with tqdm(total=total, initial=total - sum(b.units for b in missing), desc=label, unit=unit) as bar, store:
        shown = bar.n

        def tick(units: float) -> None:
            nonlocal shown
            shown += units
            bar.update(min(int(shown), total) - bar.n)

        for batch in missing:
            new = [row for row in work(batch, tick) if store.key(row) not in store]
            store.append(new)
            added += len(new)
            if run is not None:
                run |= {"searched": added, "seconds": round(time.monotonic() - began, 3)}
                store.note(run)
        bar.update(total - bar.n)
    return added
