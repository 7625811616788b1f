"""What a router's settings answer on a calibration split: chains really run, kept line by line, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from data.dense_table import DenseTable
from data.records import ChainResult, SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from router.budget import BudgetPoint
from router.chain import Chain
from router.command import InputError
from router.durable import JsonLog, read_json_lines
from router.storage import Router


@dataclass(frozen=True)
class Setting:
    """One setting that may be certified: of a router, or a static chain.

    Attributes:
        offset: operating point of the head; None: a static chain.
        least_score: chains that score less give way to full depth; None: none do.
        chain: the static chain; None: the router chooses.
    """

    offset: float | None
    least_score: float | None = None
    chain: Chain | None = None

    def chains(self, router: Router, output: Tensor) -> list[Chain]:
        """Return the chain of each row of the head's output."""
        if self.chain is not None:
            return [self.chain] * len(output)
        return [one.chain for one in router.route_at(output, self.offset, self.least_score)]


@dataclass(frozen=True)
class Calibration:
    """What the settings did.

    Attributes:
        full: what full depth answered, by sample.
        routed: for each setting what its chain answered, in the samples' order.
    """

    full: tuple[ChainResult, ...]
    routed: tuple[tuple[ChainResult, ...], ...]

    def losses(self, kind: Literal["accuracy", "disagreement"]) -> Int[np.ndarray, "settings samples"]:
        """Return each setting's loss against full depth: -1, 0 or 1 (accuracy), or 0 or 1 (disagreement)."""
        if kind == "disagreement":
            rows = [
                [int(a.prediction != b.prediction) for a, b in zip(self.full, row, strict=True)] for row in self.routed
            ]
        else:
            rows = [
                [int(a.correct) - int(b.correct) for a, b in zip(self.full, row, strict=True)] for row in self.routed
            ]
        return np.array(rows, dtype=np.int64)

    def part(self, settings: slice) -> Calibration:
        """Return what some of the settings did."""
        return Calibration(self.full, self.routed[settings])

    @property
    def depths(self) -> Float[np.ndarray, " settings"]:
        """Mean depth of each setting, layers."""
        return np.array([np.mean([result.chain.depth for result in row]) for row in self.routed])


def settings_of(points: Sequence[BudgetPoint], count: int, least_scores: Sequence[float]) -> list[Setting]:
    """Return settings in the order in which they are tested: from the deepest operating point to the shallowest.

    They were fixed on the validation split, so the calibration split has no part in them.

    Args:
        points: the router's operating points.
        count: how many of them to take, evenly spread.
        least_scores: for each of these the whole sequence again, with that fallback; none: without fallback.

    Raises:
        InputError: where the router has no operating points.
    """
    ordered = sorted(points, key=lambda point: -point.mean_depth)
    if not ordered:
        raise InputError("router: expected one with operating points, got one without")
    places = sorted({round(i * (len(ordered) - 1) / max(1, count - 1)) for i in range(count)})
    fallbacks: list[float | None] = list(least_scores) or [None]
    return [Setting(ordered[place].offset, least) for least in fallbacks for place in places]


def static_settings(records: Sequence[SearchRecord]) -> list[Setting]:
    """Return the best static chain of each depth below the model's, from the deepest to the shallowest.

    Args:
        records: menu tables of training and validation samples; "best" is by right answers on them.

    Raises:
        InputError: where the records have no chain in common but the full one.
    """
    table = DenseTable.of(records)
    best = [table.chains[column] for column in table.best_of_each_depth()]
    shorter = [chain for chain in reversed(best) if chain.depth < chain.num_layers]
    if not shorter:
        raise InputError("static: expected menu tables with chains shorter than the full one, got none in common")
    return [Setting(None, chain=chain) for chain in shorter]


def run_settings(
    router: Router,
    scorer: ChainScorer,
    samples: Sequence[Sample],
    settings: Sequence[Setting],
    log_path: Path,
    batch_samples: int,
) -> Calibration:
    """Route every sample at every setting and run the chains, in the mode of evaluation.

    A chain runs once for a sample, however many settings choose it. What is on the disk is not run again.

    Args:
        router: the router.
        scorer: its base model.
        samples: the calibration samples.
        settings: the settings.
        log_path: JSON Lines file that keeps the results.
        batch_samples: samples loaded at once.

    Raises:
        InputError: where the file is corrupt.
    """
    encoded = scorer.encode_all(samples)
    routes: dict[str, list[Chain]] = {}
    full = Chain.full(scorer.num_layers)
    with JsonLog(log_path) as log, tqdm(total=len(samples), desc="calibrate", unit="sample") as bar:
        known = _read(log_path, scorer.num_layers)  # the log has cut off what a killed run left torn
        for batch in batches_by_length([one.length for one in encoded], batch_samples):
            block = scorer.load([encoded[i] for i in batch])
            states = [state.cpu() for state in scorer.states(block, router.config.prefix_layers)]
            output = router.outputs(states)
            by_setting = [one.chains(router, output) for one in settings]
            jobs: list[tuple[int, Chain]] = []
            for place, i in enumerate(batch):
                routes[samples[i].id] = [chains[place] for chains in by_setting]
                jobs += [(place, chain) for chain in dict.fromkeys([full, *routes[samples[i].id]])]
            names = [samples[i].id for i in batch]
            if any((names[place], chain) not in known for place, chain in jobs):
                # The batch runs whole, so that a chain runs in the same company as in an unbroken run.
                results = zip(jobs, scorer.judge(block, jobs), strict=True)
                fresh = [(names[place], one) for (place, chain), one in results if (names[place], chain) not in known]
                log.append(*({"sample_id": name, **one.to_json()} for name, one in fresh))
                known.update({(name, one.chain): one for name, one in fresh})
            bar.update(len(batch))
    return Calibration(
        full=tuple(known[sample.id, full] for sample in samples),
        routed=tuple(
            tuple(known[sample.id, routes[sample.id][place]] for sample in samples) for place in range(len(settings))
        ),
    )


def _read(path: Path, num_layers: int) -> dict[tuple[str, Chain], ChainResult]:
    known: dict[tuple[str, Chain], ChainResult] = {}
    for number, value in read_json_lines(path) if path.exists() else ():
        fields: dict[str, Any] = dict(value)
        try:
            name = str(fields.pop("sample_id"))
            result = ChainResult.from_json(fields, num_layers)
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}, line {number}: expected a result, got {error}") from error
        known[name, result.chain] = result
    return known
