"""How right and how deep a trained router is on the validation split: at its own choice, and at some of its budgets.

What the search's records hold of a sample's chains is taken from them. Of a menu that is everything; a layerwise head
picks chains that no search has run, and those are run here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.encoding import batches_by_length
from data.sample import Sample
from data.scoring import ChainScorer, in_parts
from data.states import BATCH_SAMPLES
from router.chain import Chain
from router.heads.budget import BudgetPoint
from router.heads.head import Head, pad_states
from router.progress import progress
from router.validation import InputError
from train.datamodule import RouterData

POINTS = 4
"""Operating points that are measured where chains have to be run for it, about: each runs all samples once."""
Job = tuple[int, Chain]
"""A sample's place, and a chain for it."""
Inside = Bool[Tensor, " validation"] | None
"""Which validation samples lie inside of a router's scope; None: it has none."""


@torch.inference_mode()
def measure_accuracy(
    head: Head, data: RouterData, inside: Inside = None
) -> tuple[dict[str, float], tuple[BudgetPoint, ...]]:
    """Return how right a head is at its own choice, and its operating points with their accuracy where it is measured.

    Args:
        head: the trained and calibrated head, on the CPU, in evaluation mode.
        data: the data, set up.
        inside: which validation samples lie inside of the router's scope, the others run at full depth; None: all do.

    Returns:
        `accuracy`, `full_accuracy` (full depth's), `chance_accuracy` (guessing's) and `samples`, of all validation
        samples; with a scope `out_of_scope` (share), and `mean_depth` and `full_share` as the router then runs; and the
        points.
    """
    records, samples = zip(*data.pairs["validation"], strict=True)
    states = data.states("validation", list(samples))
    parts = [states[start : start + BATCH_SAMPLES] for start in range(0, len(states), BATCH_SAMPLES)]
    output = torch.cat([head(*pad_states(part)) for part in parts])
    judged = {(i, one.chain): one.right for i, record in enumerate(records) for one in record.results}
    run = [True] * len(samples) if inside is None else inside.tolist()
    own = _chosen(head, output, 0.0, run)
    by_point = {point: _chosen(head, output, point.offset, run) for point in head.budget_points}
    spread = {*head.budget_points[:: max(1, len(head.budget_points) // POINTS)], head.budget_points[-1]}
    wanted = {*own, *(one for point in spread for one in by_point[point])}
    judged |= _run(data.open_scorer, samples, sorted(wanted - judged.keys(), key=lambda job: (job[0], job[1].layers)))
    points = tuple(
        dataclasses.replace(
            point, accuracy=_mean(judged[one] for one in chosen) if judged.keys() >= {*chosen} else None
        )
        for point, chosen in by_point.items()
    )
    figures = {
        "accuracy": _mean(judged[one] for one in own),
        "full_accuracy": _mean(record.full.right for record in records),
        "chance_accuracy": _mean(1 / len(sample.choices) if sample.choices else 0.0 for sample in samples),
        "samples": float(len(samples)),
    }
    if inside is not None:
        figures["out_of_scope"] = _mean(not one for one in run)
        figures["mean_depth"] = _mean(chain.depth for _, chain in own)
        figures["full_share"] = _mean(chain.is_full for _, chain in own)
    return figures, points


def calibrate_in_scope(head: Head, output: Float[Tensor, "examples ..."], data: RouterData, inside: Inside) -> None:
    """Set a head's operating points; their mean depth counts what lies outside of the scope at full depth.

    Args:
        head: the trained head.
        output: its output on the validation examples, which are the samples with a target.
        data: the data, set up.
        inside: which validation samples lie inside of the scope; None: all.

    Raises:
        InputError: where no sample with a target lies inside.
    """
    if inside is None:
        head.calibrate(output)
        return
    known = inside[torch.tensor(data.has_target["validation"])]
    if not known.any():
        raise InputError("scope.share: expected a validation sample with a target inside of the scope, got none")
    head.calibrate(output[known])
    share = _mean(inside.tolist())
    head.budget_points = tuple(
        dataclasses.replace(point, mean_depth=share * point.mean_depth + (1 - share) * head.num_layers)
        for point in head.budget_points
    )


def _chosen(head: Head, output: Tensor, offset: float, inside: Sequence[bool]) -> list[Job]:
    """Return each sample's place with its chain at an operating point: the full one outside of the scope."""
    full = Chain.full(head.num_layers)
    best = [ranked[0].chain for ranked in head.decode_at(output, offset)]
    return [(i, chain if inside[i] else full) for i, chain in enumerate(best)]


def _run(open_scorer: Callable[[], ChainScorer], samples: Sequence[Sample], jobs: Sequence[Job]) -> dict[Job, bool]:
    """Return whether chains are right that the records do not have, judged in the samples' own scoring mode."""
    if not jobs:
        return {}
    scorer = open_scorer()
    encoded = scorer.encode_all(samples)
    judged: dict[Job, bool] = {}
    with progress(len(jobs), "accuracy on validation", "chain") as bar:
        for batch in batches_by_length([one.length for one in encoded], BATCH_SAMPLES):
            places = {place: i for i, place in enumerate(batch)}
            own = sorted(
                ((places[i], chain) for i, chain in jobs if i in places), key=lambda job: (job[0], job[1].layers)
            )
            block = scorer.load([encoded[i] for i in batch])
            results = in_parts(scorer.score, block, own, bar.update)
            judged |= {(batch[i], chain): result.right for (i, chain), result in results.items()}
    return judged


def _mean(values: Iterable[float]) -> float:
    every = [float(value) for value in values]
    return sum(every) / len(every)
