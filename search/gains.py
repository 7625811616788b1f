"""Chains that set the answers of a kind right beyond luck, told from those that merely look so.

Of many chains on few samples of a kind (task) the best one looks better than full depth by luck alone. So each kind's
samples are parted in two: the chain of the greatest gain on one half is judged on the other, and the other way round.
Both halves together are put to a one-sided sign test (McNemar's, exact) of whether more answers are set right than
broken. What stands after Holm's correction over the kinds is a gain, by the chain that is best on all of its samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from scipy.stats import binomtest

from data.statistics import Estimate, holm, mean_of
from router.chain import Chain

SIGNIFICANT = 0.05
"""Corrected p below which a gain stands."""


@dataclass(frozen=True)
class Gain:
    """What choosing a chain for a kind gains.

    Attributes:
        kind: the task.
        chain: the chain that is right most often on the kind's samples.
        judged: right answers over full depth's, a sample, by chains that the sample did not choose.
        p: of the sign test, corrected for the other kinds.
    """

    kind: str
    chain: Chain
    judged: Estimate
    p: float

    @property
    def stands(self) -> bool:
        """Whether it is more than luck."""
        return self.p < SIGNIFICANT

    def line(self) -> str:
        """Return it as a line of text."""
        low, high = self.judged.interval
        told = f"{self.judged.value:+.3f} ({low:+.3f}..{high:+.3f}) on {self.judged.n}, p {self.p:.3f}"
        return f"  {self.kind:<20} {self.chain!s:<24} {told}{'  gains' if self.stands else ''}"


def find_gains(
    chains: Sequence[Chain],
    right: Bool[np.ndarray, "samples chains"],
    kinds: Sequence[str],
    known: Collection[Chain] = (),
    seed: int = 0,
) -> list[Gain]:
    """Return for each kind the chain that it would choose, and what choosing so gains on samples that did not choose.

    Args:
        chains: the chains, the full one first.
        right: whether each chain was right on each training sample.
        kinds: each sample's kind; one with a single sample says nothing.
        known: chains that are not to be chosen, because a menu holds them already; the full one never is.
        seed: seed of the halves and of the bootstrap.
    """
    candidates = [i for i, chain in enumerate(chains) if not chain.is_full and chain not in known]

    def best_on(rows: Int[np.ndarray, " rows"]) -> int:
        return candidates[int(right[rows][:, candidates].sum(0).argmax())]

    found: list[tuple[str, Chain, Estimate]] = []
    p_values = []
    for kind in dict.fromkeys(kinds) if candidates else ():
        own = np.random.default_rng(seed).permutation(np.flatnonzero(np.array(kinds) == kind))
        if len(own) < 2:
            continue
        first, second = np.array_split(own, 2)
        every = np.concatenate(
            [
                right[judging, best_on(choosing)].astype(float) - right[judging, 0]
                for choosing, judging in ((first, second), (second, first))
            ]
        )
        judged, gained, changed = mean_of(every, seed), int((every > 0).sum()), int((every != 0).sum())
        assert judged is not None
        found.append((kind, chains[best_on(own)], judged))
        p_values.append(float(binomtest(gained, changed, alternative="greater").pvalue) if changed else 1.0)
    return [Gain(*one, p) for one, p in zip(found, holm(p_values), strict=True)]
