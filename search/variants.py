"""Robust rewards: a sample is asked in several variants, and a chain stands only where it is right in enough of them.

With four choices a chain that answers at random is right in one variant of four, and in all four rotations of the
choices once in 256: what stands so is hardly luck. The variants of one chain are tried one after the other, and stop
where it can no longer stand, so that a wrong chain costs one; those of all chains of a round run side by side, as rows
of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from data.encoding import EncodedSample
from data.records import ChainResult, VariantResult, pareto_front
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from data.tasks import TaskSet
from router.chain import Chain
from router.validation import SETTINGS, Count, InputError, Positive
from search.settings import SearchSettings

ROUNDING = 1e-9
"""Of a share of the variants: 0.7 of 10 are 7, whatever the product's last digit."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class VariantSettings:
    """In how many variants a sample is asked (`Task.variant`).

    Attributes:
        variants: variants in which the search asks each sample, the usual one among them. Above 1 a chain stands only
            where it is right in enough of them, and its reward is their mean.
        stand_share: share of the variants in which a chain must be right to stand, the usual one always.
        held_out: further variants that the search never sees, in which full depth and the chains of the front that
            stand are judged after it, as evaluation would.
    """

    variants: Positive = 1
    stand_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    held_out: Count = 0

    @property
    def needed(self) -> int:
        """Variants in which a chain must be right to stand."""
        return max(1, math.ceil(self.stand_share * self.variants - ROUNDING))

    @property
    def last(self) -> int:
        """Number of the last variant that is asked."""
        return self.variants + self.held_out - 1

    def decides(self, tasks: TaskSet) -> dict[str, Any]:
        """Return what of it decides a search, as JSON data; nothing where samples are asked as usual only."""
        if not self.last:
            return {}
        share = {"stand_share": self.stand_share} if self.variants > 1 else {}
        prompt = tasks.varied(self.last).prompt_hash()
        return {"variants": {"count": self.variants, "held_out": self.held_out, **share, "prompt": prompt}}

    def require(self, tasks: TaskSet, samples: Sequence[Sample]) -> None:
        """Refuse samples that have not so many variants.

        Raises:
            InputError: at the first task, or sample, of which one would be the same question again.
        """
        varied = tasks.varied(self.last)
        for sample in samples if self.last else ():
            try:
                varied[sample.task].query(sample)
            except ValueError as error:
                raise InputError(f"data: sample {sample.id}: {error}") from error

    def may_stand(self, result: ChainResult, further: Sequence[VariantResult]) -> bool:
        """Whether a chain that answered so as usual, and so in the variants tried until now, can still stand."""
        wrong = sum(not one.correct for one in further)
        return result.correct and wrong <= self.variants - self.needed

    def goes_on(self, result: ChainResult, further: Sequence[VariantResult]) -> bool:
        """Whether a search asks such a chain in the next variant: full depth always, others while they can stand."""
        return result.chain.is_full or self.may_stand(result, further)

    def reward(self, result: ChainResult, settings: SearchSettings) -> float:
        """Return the mean reward of a chain in the variants, in 0..1; one that was not tried counts as 0."""
        return sum(settings.reward_for(one.correct, one.margin) for one in result.answers) / self.variants

    def with_variants(self, result: ChainResult, further: Sequence[VariantResult]) -> ChainResult:
        """Return the result with what the chain answered in the variants tried, and whether it is robust.

        It stays as it is where samples are asked as usual only.
        """
        if self.variants == 1:
            return result
        right = 1 + sum(one.correct for one in further)
        return replace(result, variants=tuple(further), robust=result.correct and right >= self.needed)


def load_variants(
    scorer: ChainScorer, samples: Sequence[EncodedSample], asked: VariantSettings
) -> tuple[SampleBlock, ...]:
    """Return the samples as they are asked usually, and in each further variant.

    Each variant is a block of its own: in one block the variants of a sample would share the tokens that they begin
    with, and rows that share different tokens do not run in one batch.
    """
    further = [_in_variant(scorer, samples, variant) for variant in range(1, asked.variants)]
    return (scorer.load(samples), *(scorer.load(one, beside=True) for one in further))


def _in_variant(scorer: ChainScorer, samples: Sequence[EncodedSample], variant: int) -> list[EncodedSample]:
    targets = {one.sample.id: one.target for one in samples}
    return scorer.encode_all([one.sample for one in samples], targets, variant)


def score_variants(
    scorer: ChainScorer,
    blocks: Sequence[SampleBlock],
    jobs: Sequence[tuple[int, Chain]],
    asked: VariantSettings,
    *,
    whole: bool,
) -> list[ChainResult]:
    """Run each (index of a sample, chain) in the sample's variants, and judge it; one result a job, in order.

    Each round runs one variant of all jobs that go on: full depth always, others while they can still stand.

    Args:
        scorer: runs the chains.
        blocks: the samples in each variant, by `load_variants`.
        jobs: what to run.
        asked: in how many variants.
        whole: whether all chains go on to the last variant.
    """
    results = scorer.score(blocks[0], jobs)
    further: list[list[VariantResult]] = [[] for _ in jobs]
    for block in blocks[1:]:
        going = [place for place in range(len(jobs)) if whole or asked.goes_on(results[place], further[place])]
        answers = scorer.score(block, [jobs[place] for place in going])
        for place, result in zip(going, answers, strict=True):
            further[place].append(VariantResult.of(result))
    return [asked.with_variants(*pair) for pair in zip(results, further, strict=True)]


def judge_held_out(
    scorer: ChainScorer,
    samples: Sequence[EncodedSample],
    found: Sequence[Sequence[ChainResult]],
    asked: VariantSettings,
) -> list[tuple[ChainResult, ...]]:
    """Judge full depth, and the front of the chains that stand, in variants that the search never saw.

    Args:
        scorer: runs the chains, in the mode of evaluation.
        samples: the samples.
        found: for each of them every chain tried; the first is full depth.
        asked: in how many variants.

    Returns:
        The same results, with `held_out` set on those that were judged.
    """
    wanted = [(i, place) for i, results in enumerate(found) for place in _best(results)]
    jobs = [(i, found[i][place].chain) for i, place in wanted]
    answers: list[list[VariantResult]] = [[] for _ in wanted]
    for variant in range(asked.variants, asked.last + 1):
        block = scorer.load(_in_variant(scorer, samples, variant))
        for own, result in zip(answers, scorer.judge(block, jobs), strict=True):
            own.append(VariantResult.of(result))
    marked = [list(results) for results in found]
    for (i, place), own in zip(wanted, answers, strict=True):
        marked[i][place] = replace(found[i][place], held_out=tuple(own))
    return [tuple(results) for results in marked]


def _best(results: Sequence[ChainResult]) -> list[int]:
    """Return the places of full depth and of the front of the chains that stand."""
    standing = [place for place, result in enumerate(results) if result.stands]
    return sorted({0, *(standing[i] for i in pareto_front([results[place] for place in standing]))})
