"""How sure a chain's answer is, without knowing the right one."""

from __future__ import annotations

import torch

from data.scoring import ChainScorer, SampleBlock
from data.tasks import CHOICE_MODES
from router.chain import Chain


def confidences(scorer: ChainScorer, block: SampleBlock, chain: Chain) -> list[float]:
    """Return for each sample, in 0..1, how sure a chain's answer is; the right answer is not looked at.

    With choices it is the probability of its choice (softmax over their scores), of a free answer that of its first
    token.
    """
    found = {}
    free = [i for i, one in enumerate(block.samples) if one.task.mode not in CHOICE_MODES]
    jobs = [(i, chain) for i in range(len(block.samples)) if i not in free]
    for (i, _), result in zip(jobs, scorer.score(block, jobs), strict=True):
        found[i] = float(torch.tensor(result.scores, dtype=torch.float64).softmax(0).max())
    for i, logits in zip(free, scorer.first_token_logits(block, free, chain), strict=True):
        found[i] = float(logits.double().softmax(0).max())
    return [found[i] for i in range(len(block.samples))]
