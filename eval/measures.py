"""Measures of per-sample results: arms, pairs of arms, groups of samples, use of layers; no model, no files."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from data.statistics import Interval, Signed, SignedInterval, holm, mean_interval, paired_shares, wilson_interval
from eval.arms import FULL, ROUTER
from eval.results import ArmName, ArmResult, text_of
from router.chain import Chain
from router.validation import STORED, Count, NotNegative, Positive, Share

Above0 = Annotated[float, Field(gt=0)]
"""A depth in layers, or a ratio to full depth."""
Kind = Literal["task", "difficulty", "subject"]
"""What the samples of a group have in common."""


@dataclass(frozen=True, config=STORED)
class Paired:
    """An arm against a baseline on the same samples.

    Attributes:
        wrong_to_right: samples that the baseline answers wrongly and the arm rightly.
        right_to_wrong: samples that the baseline answers rightly and the arm wrongly.
        mcnemar_p: two-sided exact McNemar p-value of these two counts; 1 where both are 0.
        difference: accuracy of the arm minus the baseline's.
        difference_interval: its 95 % percentile bootstrap interval over samples.
        mcnemar_p_holm: the same p-value, corrected by Holm's method for all comparisons of the report; null: not one of
            them, because the arm saw the answers.
    """

    wrong_to_right: Count
    right_to_wrong: Count
    mcnemar_p: Share
    difference: Signed
    difference_interval: SignedInterval
    mcnemar_p_holm: Share | None


@dataclass(frozen=True, config=STORED, kw_only=True)
class Answered:
    """What an arm answered on some samples, and how deep it went.

    Attributes:
        name: name of the arm in `results.jsonl`; `router@23.5`: the router at a further budget, layers.
        n: samples.
        correct: samples answered rightly.
        accuracy: `correct` / `n`.
        accuracy_interval: its 95 % Wilson score interval.
        no_answer: samples in whose generated text no answer could be read (format failures); they count as wrong.
        mean_depth: layers executed, mean over samples; a repeated layer counts each time.
        out_of_scope: of a router's arm, samples unlike those that it was trained on, which run at full depth; 0 where
            it has no scope.
    """

    name: ArmName
    n: Positive
    correct: Count
    accuracy: Share
    accuracy_interval: Interval
    no_answer: Count
    mean_depth: Above0
    out_of_scope: Count = 0

    @staticmethod
    def counts(results: Sequence[ArmResult]) -> dict[str, Any]:
        """Return the fields of `Answered` of one arm's results, at least one."""
        n, correct = len(results), sum(result.correct for result in results)
        return {
            "name": results[0].arm,
            "n": n,
            "correct": correct,
            "accuracy": correct / n,
            "accuracy_interval": wilson_interval(correct, n),
            "no_answer": sum(result.prediction is None for result in results),
            "mean_depth": sum(result.chain.depth for result in results) / n,
            "out_of_scope": sum(not result.in_scope for result in results),
        }


@dataclass(frozen=True, config=STORED, kw_only=True)
class ArmMeasures(Answered):
    """An arm's measures.

    Attributes:
        mean_depth_interval: 95 % percentile bootstrap interval of the mean depth over samples, layers.
        depth_ratio: `mean_depth` by the model's layers.
        rescued_share: error-correction rate: of the samples that full depth answers wrongly, the share that this arm
            answers rightly; null for full depth itself, and where that is never wrong.
        rescued_interval: its 95 % Wilson score interval; null with it.
        against_full: the arm against full depth; null for full depth itself.
    """

    mean_depth_interval: tuple[Above0, Above0]
    depth_ratio: Above0
    rescued_share: Share | None
    rescued_interval: Interval | None
    against_full: Paired | None


@dataclass(frozen=True, config=STORED, kw_only=True)
class GroupArm(Answered):
    """One arm on a group's samples.

    Attributes:
        mean_depth_interval: 95 % percentile bootstrap interval of the mean depth over samples, layers; of no width with
            one sample.
        difference: accuracy minus full depth's on the same samples; null for full depth itself.
        difference_interval: its 95 % percentile bootstrap interval; null with it. Not corrected for the number of
            groups.
    """

    mean_depth_interval: tuple[Above0, Above0]
    difference: Signed | None
    difference_interval: SignedInterval | None


@dataclass(frozen=True, config=STORED)
class Group:
    """Samples that have something in common, within their task.

    Attributes:
        kind: what they have in common.
        task: their task.
        value: their difficulty or subject as text, or their task's name; null: samples without one, of a task whose
            other samples have one.
        n: samples.
        chance_accuracy: expected accuracy of guessing among each sample's choices; a free answer is never guessed.
        arms: every arm, in the order of the report.
    """

    kind: Kind
    task: str
    value: str | None
    n: Positive
    chance_accuracy: Share
    arms: tuple[GroupArm, ...]

    def arms_named(self, *names: str) -> list[GroupArm]:
        """Return the arms of these names that the group has, in the order of the names."""
        return [arm for name in names for arm in self.arms if arm.name == name]


@dataclass(frozen=True, config=STORED)
class Collapse:
    """How far the router has fallen back to few chains.

    Attributes:
        share_full: share of samples that get the full chain.
        distinct_chains: different chains.
        share_most_common: share of samples that get the most common chain.
        most_common: that chain in text form: `0-4,5*2,6-17` runs layers 0 to 4, 5 twice, 6 to 17.
        entropy_bits: entropy of the chains' shares, bits; 0 where all samples get one chain.
        entropy_within_bits: the same among the samples of one task, mean over tasks, each of which weighs alike; 0
            where a sample's task alone decides.
    """

    share_full: Share
    distinct_chains: Positive
    share_most_common: Share
    most_common: str
    entropy_bits: NotNegative
    entropy_within_bits: NotNegative


@dataclass(frozen=True, config=STORED)
class LayerUse:
    """Which layers an arm's chains run; lists have one value a layer.

    Attributes:
        chains: chains, one a sample.
        mean_runs: times that a chain runs the layer, mean.
        skip_rate: share of chains that do not run the layer.
        repeat_rate: share of chains that run the layer more than once.
        entropy_bits: entropy of the layers' shares of all executions, bits; log2 of the layers where all are alike.
    """

    chains: Positive
    mean_runs: tuple[NotNegative, ...]
    skip_rate: tuple[Share, ...]
    repeat_rate: tuple[Share, ...]
    entropy_bits: NotNegative


def arm_of(results: Sequence[ArmResult], full: Sequence[ArmResult], seed: int) -> ArmMeasures:
    """Measure one arm.

    Args:
        results: the arm's results, one a sample.
        full: full depth's results on the same samples, in the same order; the arm's own for full depth.
        seed: seed of the bootstrap.
    """
    against = None if results is full else paired(results, full, seed)
    wrong = 0 if against is None else sum(not result.correct for result in full)
    rescued = against.wrong_to_right if against is not None and wrong else None
    counts = Answered.counts(results)
    return ArmMeasures(
        **counts,
        mean_depth_interval=mean_interval([result.chain.depth for result in results], seed),
        depth_ratio=counts["mean_depth"] / results[0].chain.num_layers,
        rescued_share=None if rescued is None else rescued / wrong,
        rescued_interval=None if rescued is None else wilson_interval(rescued, wrong),
        against_full=against,
    )


def paired(results: Sequence[ArmResult], baseline: Sequence[ArmResult], seed: int) -> Paired:
    """Compare two arms on the same samples, at least one, in the same order (`eval.results.by_arm`)."""
    found = paired_shares([one.correct for one in results], [one.correct for one in baseline], seed)
    assert found is not None
    return Paired(
        wrong_to_right=found.first_only,
        right_to_wrong=found.second_only,
        mcnemar_p=found.mcnemar_p,
        difference=found.difference,
        difference_interval=found.difference_interval,
        mcnemar_p_holm=None,
    )


def corrected(comparisons: Sequence[Paired]) -> list[Paired]:
    """Return comparisons with their p-values corrected for each other (Holm 1979)."""
    p_values = holm([one.mcnemar_p for one in comparisons])
    return [replace(one, mcnemar_p_holm=p) for one, p in zip(comparisons, p_values, strict=True)]


def chance_accuracy(results: Sequence[ArmResult]) -> float:
    """Return the expected accuracy of guessing one of each sample's choices; a free answer is never guessed."""
    return sum(1 / result.choices if result.choices else 0.0 for result in results) / len(results)


def collapse_of(results: Sequence[ArmResult]) -> Collapse:
    """Measure how varied an arm's chains are."""
    counts = Counter(result.chain for result in results)
    n = len(results)
    # Among equally common chains the first by layers, so that the answer does not hang on the samples' order.
    most, times = min(counts.items(), key=lambda item: (-item[1], item[0].layers))
    entropy, within = entropies([result.chain for result in results], [result.task for result in results])
    return Collapse(
        share_full=sum(count for chain, count in counts.items() if chain.is_full) / n,
        distinct_chains=len(counts),
        share_most_common=times / n,
        most_common=str(most),
        entropy_bits=entropy,
        entropy_within_bits=within,
    )


def entropies(choices: Sequence[Hashable], kinds: Sequence[str]) -> tuple[float, float]:
    """Return the entropy of choices, one a sample, and its mean over kinds of samples of that within a kind, bits."""
    of_kind: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for choice, kind in zip(choices, kinds, strict=True):
        of_kind[kind][choice] += 1
    within = [_entropy(counts.values()) for counts in of_kind.values()]
    return _entropy(Counter(choices).values()), sum(within) / len(within)


def layer_use(chains: Sequence[Chain]) -> LayerUse:
    """Count how chains of one model, at least one, use its layers."""
    runs = np.array([np.bincount(chain.layers, minlength=chain.num_layers) for chain in chains])
    return LayerUse(
        chains=len(chains),
        mean_runs=tuple(runs.mean(0).tolist()),
        skip_rate=tuple((runs == 0).mean(0).tolist()),
        repeat_rate=tuple((runs > 1).mean(0).tolist()),
        entropy_bits=_entropy(runs.sum(0).tolist()),
    )


def _entropy(counts: Iterable[int]) -> float:
    """Return the entropy of counts' shares of their sum, bits."""
    seen = [count for count in counts if count]
    total = sum(seen)
    return sum(count / total * math.log2(total / count) for count in seen)


def groups_of(by_arm: Mapping[str, Sequence[ArmResult]], seed: int) -> tuple[Group, ...]:
    """Return the groups, by kind, task and value (numbers in it by their value), each with every arm's measures.

    Tasks are groups where there are several, difficulties and subjects where a sample of the task has one. A difficulty
    or subject counts within its task: level 3 of one task is not level 3 of another.

    Args:
        by_arm: results of each arm on the same samples in the same order, full depth among them.
        seed: seed of the bootstrap.
    """
    kinds = get_args(Kind)
    members: dict[tuple[Kind, str, str | None], list[int]] = defaultdict(list)
    for i, result in enumerate(by_arm[FULL]):
        for kind in kinds:
            members[kind, result.task, text_of(getattr(result, kind))].append(i)
    several = len({task for _, task, _ in members}) > 1
    shown = {(kind, task) for kind, task, value in members if value is not None and (kind != "task" or several)}
    ordered = sorted(
        (key for key in members if key[:2] in shown),
        key=lambda key: (kinds.index(key[0]), key[1], _natural_order(key[2])),
    )
    groups = []
    for kind, task, value in ordered:
        of_group = {name: [results[i] for i in members[kind, task, value]] for name, results in by_arm.items()}
        full = of_group[FULL]
        arms = tuple(_group_arm(results, full, seed) for results in of_group.values())
        groups.append(Group(kind, task, value, len(full), chance_accuracy(full), arms))
    return tuple(groups)


def worst_kind(groups: Sequence[Group]) -> str | None:
    """Return the task on which the router loses the most against full depth; None: no group is a task."""
    lost = {group.task: arm.difference for group in groups if group.kind == "task" for arm in group.arms_named(ROUTER)}
    return min(lost, key=lambda task: lost[task] or 0.0, default=None)


def _group_arm(results: Sequence[ArmResult], full: Sequence[ArmResult], seed: int) -> GroupArm:
    against = None if results is full else paired(results, full, seed)
    return GroupArm(
        **Answered.counts(results),
        mean_depth_interval=mean_interval([result.chain.depth for result in results], seed),
        difference=None if against is None else against.difference,
        difference_interval=None if against is None else against.difference_interval,
    )


def _natural_order(value: str | None) -> tuple[bool, list[Any]]:
    """Return a key that sorts Level 9 before Level 10, and what has no value last."""
    if value is None:
        return True, []
    # Texts stand at even places and digits at odd ones, so that only like is compared with like.
    return False, [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]{1,18})", value))]
