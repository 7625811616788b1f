"""Which chains make a good menu: a greedy choice by what a router could gain with them.

A router that knew every outcome would gain the most from chains that are right by luck; one that knew nothing, from
those that are best on average. What a router can know lies between, so each outcome is shrunk towards its chain's mean
on the sample's task: a value v of chain k on sample s counts as (1 - p) * mean + p * v, where p, the *predictable
share*, says how much of the difference between samples a router is expected to foresee (1: coverage; 0: the static
frontier of each task). At a price per layer a menu is worth the mean over samples of its best priced value; the sum
over prices from 0 up serves several budgets at once. This worth is monotone and submodular in the menu, so the greedy
choice reaches at least 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978), and a chain that does what another one
does gains nothing: diversity follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data.records import ChainResult, SearchRecord
from router.chain import Chain

TASK_TRUST = 16.0
"""Samples' worth of a chain's mean over all tasks that is added to its mean on one task."""
LEAST_GAIN = 1e-9
"""Mean worth that a chain must add to be chosen."""
ValueKind = Literal["correct", "agree", "both"]


@dataclass(frozen=True)
class Outcomes:
    """What chains did on samples.

    Attributes:
        chains: the chains, the full one first.
        values: `[samples, chains]`, each in 0..1; nan: not tried.
        tasks: each sample's task; none: all are of one.
    """

    chains: tuple[Chain, ...]
    values: Float[np.ndarray, "samples chains"]
    tasks: tuple[str, ...] = ()

    def only(self, columns: Sequence[int]) -> Outcomes:
        """Return the outcomes of some of the chains."""
        return Outcomes(tuple(self.chains[i] for i in columns), self.values[:, list(columns)], self.tasks)

    def shrunk(self, predictable: float) -> Float[np.ndarray, "samples chains"]:
        """Return the values shrunk towards their chain's mean on the sample's task: a router can tell tasks apart.

        Args:
            predictable: p of the module's text, 0..1.
        """
        overall = chain_means(self.values)
        means = np.tile(overall, (len(self.values), 1))
        known = ~np.isnan(self.values)
        filled = np.where(known, self.values, 0.0)
        names = np.array(self.tasks)
        for task in dict.fromkeys(self.tasks):
            own = names == task
            means[own] = (filled[own].sum(0) + TASK_TRUST * overall) / (known[own].sum(0) + TASK_TRUST)
        result: NDArray[np.float64] = np.where(known, (1 - predictable) * means + predictable * filled, means)
        return result


def outcomes_of(records: Iterable[SearchRecord], value: ValueKind, prefix_layers: int, tried: int = 1) -> Outcomes:
    """Return the outcomes of all chains in some records.

    Args:
        records: records of training samples, at least one.
        value: "correct": 1 where a chain answers rightly; "agree": 1 where it answers as full depth does; "both": the
            mean of the two.
        prefix_layers: chains that edit an earlier layer are left out.
        tried: samples on which a chain must have been tried; the full chain always stays.

    Raises:
        ValueError: where there are no records.
    """
    rows: list[dict[Chain, float]] = []
    tasks: list[str] = []
    counts: dict[Chain, int] = defaultdict(int)
    full: Chain | None = None
    for record in records:
        full = record.full.chain
        row = {
            result.chain: _value(result, record.full, value)
            for result in record.results
            if result.chain.unedited_prefix >= prefix_layers
        }
        for chain in row:
            counts[chain] += 1
        rows.append(row)
        tasks.append(record.task)
    if full is None:
        raise ValueError("records: expected at least one, got none")
    others = sorted(
        (chain for chain, count in counts.items() if count >= tried and chain != full),
        key=lambda chain: (-chain.depth, chain.layers),
    )
    chains = (full, *others)
    values = np.array([[row.get(chain, np.nan) for chain in chains] for row in rows])
    return Outcomes(chains, values, tuple(tasks))


def _value(result: ChainResult, full: ChainResult, kind: ValueKind) -> float:
    agrees = float(result.prediction == full.prediction)
    return {"correct": float(result.correct), "agree": agrees, "both": (result.correct + agrees) / 2}[kind]


def chain_means(values: Float[np.ndarray, "samples chains"], trust: float = 4.0) -> Float[np.ndarray, " chains"]:
    """Return the mean value of each chain; a chain tried seldom, drawn towards the mean of all.

    Args:
        values: see `Outcomes`.
        trust: samples' worth of the mean of all chains that is added to each chain's own.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    overall = filled.sum() / known.sum()
    result: NDArray[np.float64] = (filled.sum(0) + trust * overall) / (known.sum(0) + trust)
    return result


def choose_chains(
    outcomes: Outcomes, size: int, *, predictable: float, prices: Sequence[float], keep: Sequence[Chain] = ()
) -> list[tuple[Chain, float]]:
    """Choose a menu greedily.

    Args:
        outcomes: what the candidates did; the full chain is always chosen, first.
        size: chains of the menu, at most.
        predictable: share of the difference between samples that a router is expected to foresee.
        prices: prices of a whole model's depth, in units of value, each at least 0; each weighs alike.
        keep: candidates that are chosen in any case, after the full chain.

    Returns:
        The chains in the order of choice, each with what it added to the menu's worth.

    Raises:
        ValueError: where a bound is not met, or a chain to keep is no candidate.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    if not 0 <= predictable <= 1:
        raise ValueError(f"predictable: expected 0..1, got {predictable}")
    if not prices or min(prices) < 0:
        raise ValueError(f"prices: expected some, each at least 0, got {list(prices)}")
    places = {chain: i for i, chain in enumerate(outcomes.chains)}
    strangers = [chain for chain in keep if chain not in places]
    if strangers:
        raise ValueError(f"keep: expected candidates, got {strangers[0]}")
    shares = np.array([chain.depth / chain.num_layers for chain in outcomes.chains])
    values = outcomes.shrunk(predictable)
    worths = np.stack([values - price * shares for price in prices])  # [prices, samples, chains]
    held = worths[:, :, 0].copy()
    chosen = [(outcomes.chains[0], float(held.mean()))]
    taken = {0}
    waiting = [i for i in dict.fromkeys(places[chain] for chain in keep) if i not in taken]
    while len(chosen) < min(size, len(outcomes.chains)):
        gains = _gains(worths, held)
        gains[list(taken)] = -1.0
        best = waiting.pop(0) if waiting else int(gains.argmax())
        if best in taken or (not waiting and gains[best] <= LEAST_GAIN and outcomes.chains[best] not in keep):
            break
        chosen.append((outcomes.chains[best], float(gains[best])))
        taken.add(best)
        np.maximum(held, worths[:, :, best], out=held)
    return chosen


def _gains(worths: NDArray[np.float64], held: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each chain would add, in mean worth."""
    total = np.zeros(worths.shape[2])
    for of_price, of_held in zip(worths, held, strict=True):
        total += np.maximum(of_price - of_held[:, None], 0.0).mean(0)
    return total / len(worths)


def best_of_each_depth(outcomes: Outcomes, trust: float = 4.0) -> list[Chain]:
    """Return for each depth the chain of greatest (shrunk) mean value: the static frontier's candidates."""
    means = chain_means(outcomes.values, trust)
    best: dict[int, int] = {}
    for i, chain in enumerate(outcomes.chains):
        if chain.depth not in best or means[i] > means[best[chain.depth]]:
            best[chain.depth] = i
    return [outcomes.chains[best[depth]] for depth in sorted(best, reverse=True)]
