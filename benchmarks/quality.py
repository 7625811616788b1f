"""How much a search found for what it cost: measures of its trials, one after another. No model, no files.

Cost is the nominal depth of the evaluated chains, summed, once for each variant of the sample in which a chain was
asked: what a search without any reuse of states would run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """The chains that a search tried on one sample, in order; the full chain is the first.

    Attributes:
        num_layers: layers of the unedited model.
        depths: depth of each chain, layers.
        correct: whether each chain gives the answer that the search looked for, in enough variants of the sample.
        asked: in how many variants each chain was asked; (): in one.
    """

    num_layers: int
    depths: tuple[int, ...]
    correct: tuple[bool, ...]
    asked: tuple[int, ...] = ()

    @property
    def costs(self) -> tuple[int, ...]:
        """Nominal cost of each trial, layers."""
        asked = self.asked or (1,) * len(self.depths)
        return tuple(depth * times for depth, times in zip(self.depths, asked, strict=True))

    @property
    def cost(self) -> int:
        """Nominal cost of all trials, layers."""
        return sum(self.costs)

    def within(self, budget: float) -> Trace:
        """Return the trials that a budget in layers pays for; the full chain always is among them."""
        spent = count = 0
        for cost in self.costs:
            spent += cost
            if spent > budget and count:
                break
            count += 1
        return Trace(self.num_layers, self.depths[:count], self.correct[:count], self.asked[:count])

    @property
    def shortest(self) -> int | None:
        """Depth of the shortest right chain, layers; None where no chain is right."""
        return min((depth for depth, right in zip(self.depths, self.correct, strict=True) if right), default=None)

    @property
    def hypervolume(self) -> float:
        """Share of the area between (wrong, twice the model's layers) and (right, none) that the trials dominate.

        The hypervolume indicator (Zitzler and Thiele 1999) of (correct, depth) with the reference point (0, 2n),
        divided by 2n: (2n - shortest) / 2n, or 0 where no chain is right or the shortest has 2n layers or more.
        """
        worst = 2 * self.num_layers
        return 0.0 if self.shortest is None else max(0.0, (worst - self.shortest) / worst)


@dataclass(frozen=True)
class Found:
    """What a search found over many samples.

    Attributes:
        samples: number of samples.
        cost: mean nominal cost of a sample, layers.
        hypervolume: mean hypervolume.
        right: share of samples with a right chain.
        shortest: mean depth of the shortest right chain, over samples that have one; None without any.
        full_right: samples whose full depth gives the answer that was looked for.
        shortened: of those, the share with a right chain shorter than full depth; None without any.
        full_wrong: samples whose full depth does not give it.
        set_right: of those, the share with a right chain; None without any.
    """

    samples: int
    cost: float
    hypervolume: float
    right: float
    shortest: float | None
    full_right: int
    shortened: float | None
    full_wrong: int
    set_right: float | None


def found_by(traces: Sequence[Trace]) -> Found:
    """Summarise what was found by searches (of samples, or of samples and seeds), at least one."""
    n = traces[0].num_layers
    depths = [trace.shortest for trace in traces]
    full_right = [depth for trace, depth in zip(traces, depths, strict=True) if trace.correct[0]]
    full_wrong = [depth for trace, depth in zip(traces, depths, strict=True) if not trace.correct[0]]
    return Found(
        samples=len(traces),
        cost=_mean([trace.cost for trace in traces]) or 0.0,
        hypervolume=_mean([trace.hypervolume for trace in traces]) or 0.0,
        right=_mean([depth is not None for depth in depths]) or 0.0,
        shortest=_mean([depth for depth in depths if depth is not None]),
        full_right=len(full_right),
        shortened=_mean([depth is not None and depth < n for depth in full_right]),
        full_wrong=len(full_wrong),
        set_right=_mean([depth is not None for depth in full_wrong]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
