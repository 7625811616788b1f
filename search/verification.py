"""Which of the chains that a search found are judged once more, and in which company.

A label must not rest on one rounding: in bfloat16 an answer of small margin changes when its batch has another shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data.records import ChainResult, pareto_front
from data.scoring import ChainScorer, SampleBlock
from router.heads.layerwise import classes_of

RULE = 3
"""Version of the rule below, part of the hash of a search's settings: 1 verified the front of all right chains only, 2
also that of the chains that a program of segments (PoLar, arXiv 2606.06574) can write."""
MOST_GROUPS = 8
"""Groups that a batch is split into at most before its samples are run one by one."""


def chains_to_verify(results: Sequence[ChainResult], first_editable: int) -> tuple[int, ...]:
    """Return the indices of the chains that can become a label and have not been judged a second time yet.

    A label is the shortest right chain (of greatest margin among equals) or the one of greatest margin (the shortest
    among equals) of some kind: of all chains, or of those that per-layer counts can write. Both stand on their kind's
    front of (depth, margin), so both fronts are verified, and full depth. A chain that failed is no label, and the next
    best takes its place. So call this again after judging, until nothing is returned: then every label under either
    rule has stood.

    Args:
        results: every chain tried; those judged a second time have `verified` set. The first is full depth.
        first_editable: layers that run once in every chain, unedited.

    Returns:
        Indices into `results`, ascending.
    """
    standing = [i for i, result in enumerate(results) if result.stands]
    counted = [i for i in standing if classes_of(results[i].chain, first_editable) is not None]
    wanted = {0}
    for own in (standing, counted):
        wanted.update(own[i] for i in pareto_front([results[i] for i in own]))
    return tuple(sorted(i for i in wanted if results[i].verified is None))


def verify(
    scorer: ChainScorer,
    block: SampleBlock,
    found: Sequence[Sequence[ChainResult]],
    first_editable: int,
) -> list[tuple[ChainResult, ...]]:
    """Judge every chain that can become a label once more: in the real mode, and in other batches than the search did.

    Run again in the same batches, a layer would round alike and the second run would prove nothing: the search's first
    round runs the layers before every edit for the same samples side by side, and tokens that prompts begin with alike
    once for all. So the samples are split into companies (`companies`), each loaded and run alone, every row whole, as
    a deployed model would; what was computed before is not used.

    Args:
        scorer: runs the chains.
        block: the samples, as the search ran them side by side, asked as usual.
        found: for each sample every chain tried.
        first_editable: layers that run in every chain.

    Returns:
        For each sample the same results, with `verified` and `verified_by` set on those that were judged.
    """
    decoded = [sample.task.judged_mode == "generate" for sample in block.samples]
    lengths = [[len(block.block.rows[row].tokens) for row in rows] for rows in block.rows]
    everyone = list(range(len(lengths)))
    groups = companies(lengths, scorer.batch_tokens)
    if all(decoded):
        # Decoding is another way of running them, whatever the company; where the search decoded too, halves are.
        again_alike = any(sample.task.mode == "generate" for sample in block.samples)
        groups = [half for half in (everyone[::2], everyone[1::2]) if half] if again_alike else [everyone]
    verified = [list(results) for results in found]
    for company in groups:
        alone = scorer.load([block.samples[i] for i in company], share=False)
        while jobs := [
            (place, i, j)
            for place, i in enumerate(company)
            if i not in company[:place] or not decoded[i]
            for j in chains_to_verify(verified[i], first_editable)
        ]:
            judged = scorer.judge(alone, [(place, verified[i][j].chain) for place, i, j in jobs])
            for (place, i, j), again in zip(jobs, judged, strict=True):
                if i not in company[:place]:  # its copies are company only
                    one = verified[i][j]
                    verified[i][j] = dataclasses.replace(
                        one, verified=again.correct == one.correct, verified_by=block.samples[i].task.judged_mode
                    )
    return [tuple(results) for results in verified]


def companies(lengths: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Split samples into groups whose rows run through the first layers in calls of other shapes than all together.

    A call's shape is its number of rows and the length of its longest one; it decides how a matrix product is cut and
    so how it rounds. Every second, third, ... sample makes a group; where no such split changes the shape of every
    call, each sample runs by itself, beside as many copies of itself as it takes. What cannot be changed so: a row of
    more than half of `batch_tokens`, which runs alone in any company, and calls that are full with the rows of one
    sample, which has several where the model cannot pack them into one.

    Args:
        lengths: for each sample the tokens of its rows.
        batch_tokens: tokens in one call at most.

    Returns:
        Groups of indices, which hold every sample; one index several times: copies that keep it company.
    """
    n = len(lengths)
    before = _calls(lengths, range(n), batch_tokens)

    def unchanged(group: Sequence[int]) -> int:
        return sum(map(bool, map(set.intersection, _calls(lengths, group, batch_tokens), (before[i] for i in group))))

    for step in range(2, min(n, MOST_GROUPS) + 1):
        groups = [list(range(start, n, step)) for start in range(step)]
        if not any(map(unchanged, groups)):
            return groups
    return [min(([i] * copies for copies in (1, 2, 3)), key=unchanged) for i in range(n)]


def _calls(lengths: Sequence[Sequence[int]], group: Sequence[int], batch_tokens: int) -> list[set[tuple[int, int]]]:
    """Return for each member of a group the shapes of its rows' calls, cut as the executor cuts the first layer's."""
    rows = sorted((length, place) for place, i in enumerate(group) for length in lengths[i])
    shapes: list[set[tuple[int, int]]] = [set() for _ in group]
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and rows[stop][0] * (stop + 1 - start) <= batch_tokens:
            stop += 1
        for _, place in rows[start:stop]:
            shapes[place].add((stop - start, rows[stop - 1][0]))
        start = stop
    return shapes
