"""How right and how deep a trained router is on the validation split: at its own choice, and at some of its budgets.

What the search's records hold of a sample's chains is taken from them. Of a menu that is everything; a layerwise head
picks chains that no search has run, and those are run here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.encoding import batches_by_length
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, delivered, in_parts
from data.states import BATCH_SAMPLES
from router.chain import Chain
from router.decision import OWN_CHOICE, OperatingPoint, Operation, Router
from router.heads.budget import BudgetPoint, operating_points
from router.heads.head import Decision, Head, known_late
from router.heads.menu import MenuHead
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
    router: Router, data: RouterData, late: RouterData | None = None
) -> tuple[dict[str, float], tuple[BudgetPoint, ...]]:
    """Return how right a router is at its own choice, and its operating points, with their accuracy where it is known.

    Args:
        router: the trained and calibrated router.
        data: the data of what it reads first, set up.
        late: those of what it reads late; None: it reads once.

    Returns:
        `accuracy`, `full_accuracy` (full depth's), `chance_accuracy` (guessing's) and `samples`, of all validation
        samples; `mean_depth`, `full_share` and `distinct_chains` as the router runs them; with a scope `out_of_scope`
        (share); and the points.
    """
    records, samples = zip(*data.pairs["validation"], strict=True)
    states = data.states("validation", list(samples))
    further = None if late is None else late.states("validation", list(samples))
    points = router.head.budget_points
    operations = [OWN_CHOICE, *(Operation(point=OperatingPoint(point.offset)) for point in points)]
    decided: list[list[Decision]] = [[] for _ in operations]
    for start in range(0, len(states), BATCH_SAMPLES):
        read_on = None if further is None else known_late(further[start : start + BATCH_SAMPLES])
        part = router.decide_each(states[start : start + BATCH_SAMPLES], operations, read_on)
        for all_of_it, one in zip(decided, part, strict=True):
            all_of_it += one
    jobs = [[(i, one.chain) for i, one in enumerate(every)] for every in decided]
    judged = {(i, one.chain): one for i, record in enumerate(records) for one in record.results}
    spread = {0, *range(1, len(jobs), max(1, len(points) // POINTS)), len(jobs) - 1}
    wanted = {job for place in spread for job in jobs[place]}
    judged |= _run(data.open_scorer, samples, wanted - judged.keys())

    def accuracy(place: int) -> float | None:
        if not judged.keys() >= {*jobs[place]}:
            return None
        pairs = [
            (judged[job], one, data.tasks[samples[job[0]].task])
            for job, one in zip(jobs[place], decided[place], strict=True)
        ]
        return _mean(delivered(result, task, one_token=one.one_token).correct for result, one, task in pairs)

    own = accuracy(0)
    assert own is not None
    measured = tuple(
        dataclasses.replace(point, accuracy=accuracy(place)) for place, point in enumerate(points, start=1)
    )
    figures = {
        "accuracy": own,
        # Of all chains the first judging: of those that no search has verified there is no other.
        "full_accuracy": _mean(record.full.correct for record in records),
        "chance_accuracy": _mean(1 / len(sample.choices) if sample.choices else 0.0 for sample in samples),
        "samples": float(len(samples)),
        "mean_depth": _mean(one.chain.depth for one in decided[0]),
        "full_share": _mean(one.chain.is_full for one in decided[0]),
        "distinct_chains": float(len({one.chain for one in decided[0]})),
    }
    if router.scope is not None:
        figures["out_of_scope"] = _mean(not one.in_scope for one in decided[0])
    return figures, measured


def calibrate_in_scope(
    head: Head,
    output: Float[Tensor, "examples ..."],
    data: RouterData,
    inside: Inside,
    late: Float[Tensor, "examples chains"] | None = None,
) -> None:
    """Set a head's operating points; their mean depth counts what lies outside of the scope at full depth.

    Args:
        head: the trained head, of a router that reads once its only one.
        output: its output on the validation examples, which are the samples with a target.
        data: the data, set up.
        inside: which validation samples lie inside of the scope; None: all.
        late: what a late head thinks that the head's chains are worth on the same examples; None: there is none.

    Raises:
        InputError: where no sample with a target lies inside.
    """
    known = torch.ones(len(output), dtype=torch.bool)
    if inside is not None:
        known = inside[torch.tensor(data.has_target["validation"])]
    if not known.any():
        raise InputError("scope.share: expected a validation sample with a target inside of the scope, got none")
    if late is None:
        head.calibrate(output[known])
    else:
        assert isinstance(head, MenuHead)
        values = head.values(output[known])
        head.budget_points = operating_points(values, head.depths.expand_as(values), late[known])
    share = 1.0 if inside is None else _mean(inside.tolist())
    head.budget_points = tuple(
        dataclasses.replace(point, mean_depth=share * point.mean_depth + (1 - share) * head.num_layers)
        for point in head.budget_points
    )


def _run(
    open_scorer: Callable[[], ChainScorer], samples: Sequence[Sample], jobs: Collection[Job]
) -> dict[Job, ChainResult]:
    """Return the results of chains that the records do not have, judged in the samples' own scoring mode."""
    if not jobs:
        return {}
    scorer = open_scorer()
    encoded = scorer.encode_all(samples)
    judged: dict[Job, ChainResult] = {}
    with progress(len(jobs), "accuracy on validation", "chain") as bar:
        for batch in batches_by_length([one.length for one in encoded], BATCH_SAMPLES):
            places = {place: i for i, place in enumerate(batch)}
            own = sorted(
                ((places[i], chain) for i, chain in jobs if i in places), key=lambda job: (job[0], job[1].layers)
            )
            block = scorer.load([encoded[i] for i in batch])
            results = in_parts(scorer.score, block, own, bar.update)
            judged |= {(batch[i], chain): result for (i, chain), result in results.items()}
    return judged


def _mean(values: Iterable[float]) -> float:
    every = [float(value) for value in values]
    return sum(every) / len(every)
