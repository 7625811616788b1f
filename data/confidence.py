"""How sure a chain's answer is, without knowing the right one."""

from __future__ import annotations

from collections.abc import Sequence

from data.records import ChainResult
from data.scoring import ChainScorer, SampleBlock
from data.statistics import greatest_probability
from data.tasks import CHOICE_MODES
from router.chain import Chain


def confidences(
    scorer: ChainScorer, block: SampleBlock, chain: Chain, results: Sequence[ChainResult] | None = None
) -> list[float]:
    """Return for each sample, in 0..1, how sure a chain's answer is; the right answer is not looked at.

    With choices it is the probability of its choice (softmax over their scores), of a free answer that of its first
    token.

    Args:
        scorer: runs the chain.
        block: the samples.
        chain: the chain.
        results: its results on them in the cheap mode, where they are known; None: what is needed is run.
    """
    places = range(len(block.samples))
    choices = [i for i in places if block.samples[i].task.mode in CHOICE_MODES]
    free = [i for i in places if block.samples[i].task.mode not in CHOICE_MODES]
    known = dict(enumerate(results or ()))
    compared = [known[i] for i in choices] if known else scorer.score(block, [(i, chain) for i in choices])
    found = {i: greatest_probability(one.scores) for i, one in zip(choices, compared, strict=True)}
    for i, logits in zip(free, scorer.first_token_logits(block, free, chain), strict=True):
        found[i] = float(logits.double().softmax(0).max())
    return [found[i] for i in places]
