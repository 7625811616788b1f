"""Measures of per-sample results; no model, no files."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic.dataclasses import dataclass

from data.statistics import holm, mean_interval, paired_shares, wilson_interval
from eval.arms import FULL
from eval.results import ArmResult
from router.chain import Chain
from router.validation import STORED


@dataclass(frozen=True, config=STORED)
class Paired:
    """An arm against a baseline on the same samples.

    Attributes:
        wrong_to_right: samples that the baseline answers wrongly and the arm rightly.
        right_to_wrong: samples that the baseline answers rightly and the arm wrongly.
        mcnemar_p: two-sided exact McNemar p-value of these two counts (1 where both are 0).
        mcnemar_p_holm: the same, corrected by Holm's method for all comparisons of the report; None: not one of them.
        difference: accuracy of the arm minus the baseline's, in -1..1.
        difference_interval: its 95 % percentile bootstrap interval over samples.
    """

    wrong_to_right: int
    right_to_wrong: int
    mcnemar_p: float
    difference: float
    difference_interval: tuple[float, float]
    mcnemar_p_holm: float | None = None


@dataclass(frozen=True, config=STORED)
class ArmMeasures:
    """An arm's measures.

    Attributes:
        n: samples.
        correct: samples answered rightly.
        accuracy: correct / n.
        accuracy_interval: 95 % Wilson score interval.
        no_answer: samples in whose generated text no answer could be read (format failures); they count as wrong.
        mean_depth: layers executed, mean over samples.
        mean_depth_interval: its 95 % percentile bootstrap interval over samples.
        depth_ratio: mean depth by the model's layers.
        rescued_share: of the samples that full depth answers wrongly the share that the arm answers rightly (error
            correction rate); None where there are none, and for full depth itself.
        rescued_interval: its 95 % Wilson score interval.
        against_full: the comparison with full depth; None for full depth itself.
    """

    n: int
    correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    no_answer: int
    mean_depth: float
    mean_depth_interval: tuple[float, float]
    depth_ratio: float
    rescued_share: float | None
    rescued_interval: tuple[float, float] | None
    against_full: Paired | None


@dataclass(frozen=True, config=STORED)
class Collapse:
    """How far an arm has fallen back to few chains.

    Attributes:
        share_full: share of samples that get the full chain.
        distinct_chains: number of different chains.
        share_most_common: share of samples that get the most common chain.
        most_common: its text form.
        entropy_bits: entropy of the chains' shares, bits; 0 where all samples get one chain.
    """

    share_full: float
    distinct_chains: int
    share_most_common: float
    most_common: str
    entropy_bits: float


def arm_of(results: Sequence[ArmResult], full: Sequence[ArmResult], seed: int) -> ArmMeasures:
    """Measure one arm.

    Args:
        results: the arm's results, one a sample.
        full: full depth's results on the same samples, in the same order; the arm's own for full depth.
        seed: seed of the bootstrap.

    Raises:
        ValueError: where the samples differ or there are none.
    """
    _check_aligned(results, full)
    n = len(results)
    correct = sum(result.correct for result in results)
    depth = sum(result.chain.depth for result in results) / n
    against = None if results is full else paired(results, full, seed)
    wrong = 0 if against is None else n - sum(result.correct for result in full)
    rescued = against.wrong_to_right if against is not None and wrong else None
    return ArmMeasures(
        n=n,
        correct=correct,
        accuracy=correct / n,
        accuracy_interval=wilson_interval(correct, n),
        no_answer=sum(result.prediction is None for result in results),
        mean_depth=depth,
        mean_depth_interval=mean_interval([result.chain.depth for result in results], seed),
        depth_ratio=depth / results[0].chain.num_layers,
        rescued_share=None if rescued is None else rescued / wrong,
        rescued_interval=None if rescued is None else wilson_interval(rescued, wrong),
        against_full=against,
    )


def paired(results: Sequence[ArmResult], baseline: Sequence[ArmResult], seed: int) -> Paired:
    """Compare two arms on the same samples.

    Raises:
        ValueError: where the samples differ or there are none.
    """
    _check_aligned(results, baseline)
    return paired_outcomes([one.correct for one in results], [one.correct for one in baseline], seed)


def paired_outcomes(ours: Sequence[bool], theirs: Sequence[bool], seed: int) -> Paired:
    """Compare two series of outcomes of the same samples, at least one; `theirs` is the baseline."""
    found = paired_shares(ours, theirs, seed)
    assert found is not None
    return Paired(
        wrong_to_right=found.first_only,
        right_to_wrong=found.second_only,
        mcnemar_p=found.mcnemar_p,
        difference=found.difference,
        difference_interval=found.difference_interval,
    )


def corrected(comparisons: Sequence[Paired]) -> list[Paired]:
    """Return comparisons with their p-values corrected for each other (Holm 1979)."""
    p_values = holm([one.mcnemar_p for one in comparisons])
    return [replace(one, mcnemar_p_holm=p) for one, p in zip(comparisons, p_values, strict=True)]


def collapse_of(results: Sequence[ArmResult]) -> Collapse:
    """Measure how varied an arm's chains are."""
    counts = Counter(result.chain for result in results)
    n = len(results)
    # Among equally common chains the first by layers, so that the answer does not hang on the samples' order.
    most, times = min(counts.items(), key=lambda item: (-item[1], item[0].layers))
    entropy = sum(count / n * math.log2(n / count) for count in counts.values())
    return Collapse(
        share_full=sum(count for chain, count in counts.items() if chain.is_full) / n,
        distinct_chains=len(counts),
        share_most_common=times / n,
        most_common=str(most),
        entropy_bits=entropy,
    )


def chance_accuracy(results: Sequence[ArmResult]) -> float:
    """Return the expected accuracy of guessing one of each sample's choices; a free answer is never guessed."""
    return sum(1 / result.choices if result.choices else 0.0 for result in results) / len(results)


def _check_aligned(results: Sequence[ArmResult], baseline: Sequence[ArmResult]) -> None:
    if not results or [one.sample_id for one in results] != [one.sample_id for one in baseline]:
        raise ValueError(
            f"results: expected two arms on the same samples in the same order, "
            f"got {len(results)} and {len(baseline)} results"
        )


# Groups of samples, each with every arm's measures: the tasks of a mixture, and each task's difficulties and subjects.
#
# A difficulty or subject counts within its task: level 3 of one task is not level 3 of another.


KINDS = ("task", "difficulty", "subject")


@dataclass(frozen=True, config=STORED)
class GroupArm:
    """One arm's measures on a group.

    Attributes:
        name: the arm's name.
        n: samples.
        correct: samples answered rightly.
        accuracy: correct / n.
        accuracy_interval: 95 % Wilson score interval.
        no_answer: samples in whose generated text no answer could be read; they count as wrong.
        mean_depth: layers executed, mean over samples.
        mean_depth_interval: its 95 % percentile bootstrap interval over samples; of no width with one sample.
        difference: accuracy minus full depth's on the same samples; None for full depth itself.
        difference_interval: its 95 % percentile bootstrap interval; of no width with one sample.
    """

    name: str
    n: int
    correct: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    no_answer: int
    mean_depth: float
    mean_depth_interval: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None


@dataclass(frozen=True, config=STORED)
class Group:
    """Samples that have something in common.

    Attributes:
        kind: one of `KINDS`.
        task: their task.
        value: their difficulty or subject as text, or their task's name; None: samples that have none, of a task
            whose other samples have one.
        n: samples.
        chance_accuracy: accuracy of guessing; see `eval.measures.chance_accuracy`.
        arms: every arm's measures, in the order of the report.
    """

    kind: str
    task: str
    value: str | None
    n: int
    chance_accuracy: float
    arms: tuple[GroupArm, ...]


def groups_of(by_arm: Mapping[str, Sequence[ArmResult]], seed: int) -> list[Group]:
    """Return the groups, by kind, task and value (numbers in it by their value).

    Tasks are groups where there are several, difficulties and subjects where a sample of the task has one.

    Args:
        by_arm: results of each arm on the same samples in the same order, full depth among them.
        seed: seed of the bootstrap.

    Raises:
        ValueError: where the arms' samples differ.
    """
    members: dict[tuple[str, str, str | None], list[int]] = defaultdict(list)
    for i, result in enumerate(by_arm[FULL]):
        for kind in KINDS:
            value = getattr(result, kind)
            members[kind, result.task, None if value is None else str(value)].append(i)
    several = len({task for _, task, _ in members}) > 1
    told = {(kind, task) for kind, task, value in members if value is not None and (kind != "task" or several)}
    ordered = sorted(
        (key for key in members if key[:2] in told),
        key=lambda key: (KINDS.index(key[0]), key[1], natural_order(key[2])),
    )
    return [
        _group(*key, {name: [results[i] for i in members[key]] for name, results in by_arm.items()}, seed)
        for key in ordered
    ]


def _group(kind: str, task: str, value: str | None, by_arm: Mapping[str, list[ArmResult]], seed: int) -> Group:
    full = by_arm[FULL]
    arms = []
    for name, results in by_arm.items():
        arm = arm_of(results, full, seed)
        against = arm.against_full
        arms.append(
            GroupArm(
                name=name,
                n=arm.n,
                correct=arm.correct,
                accuracy=arm.accuracy,
                accuracy_interval=arm.accuracy_interval,
                no_answer=arm.no_answer,
                mean_depth=arm.mean_depth,
                mean_depth_interval=arm.mean_depth_interval,
                difference=None if against is None else against.difference,
                difference_interval=None if against is None else against.difference_interval,
            )
        )
    return Group(kind, task, value, len(full), chance_accuracy(full), tuple(arms))


def natural_order(value: str | None) -> tuple[bool, list[Any]]:
    """Return a key that sorts Level 9 before Level 10, and what has no value last."""
    if value is None:
        return True, []
    # Texts stand at even places and digits at odd ones, so that only like is compared with like.
    return False, [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]{1,18})", value))]


# Which layers chains run, skip and repeat; no model, no files.


@dataclass(frozen=True, config=STORED)
class LayerUse:
    """How often chains run each layer of a model, a value a layer.

    Attributes:
        chains: number of chains.
        mean_runs: times that a chain runs the layer, mean.
        skip_rate: share of chains that do not run it.
        repeat_rate: share of chains that run it more than once.
        entropy_bits: entropy of the layers' shares of all executions, bits; log2 of the layers where all are alike.
    """

    chains: int
    mean_runs: tuple[float, ...]
    skip_rate: tuple[float, ...]
    repeat_rate: tuple[float, ...]
    entropy_bits: float


def layer_use(chains: Sequence[Chain]) -> LayerUse:
    """Count how chains of one model use its layers.

    Raises:
        ValueError: where there are none, or they are for different numbers of layers.
    """
    if len({chain.num_layers for chain in chains}) != 1:
        raise ValueError(f"chains: expected some of one model, got {len(chains)} with different numbers of layers")
    n, layers = len(chains), range(chains[0].num_layers)
    counts = [Counter(chain.layers) for chain in chains]
    runs = [sum(count[layer] for count in counts) for layer in layers]
    total = sum(runs)
    return LayerUse(
        chains=n,
        mean_runs=tuple(times / n for times in runs),
        skip_rate=tuple(sum(count[layer] == 0 for count in counts) / n for layer in layers),
        repeat_rate=tuple(sum(count[layer] > 1 for count in counts) / n for layer in layers),
        entropy_bits=sum(times / total * math.log2(total / times) for times in runs if times),
    )
