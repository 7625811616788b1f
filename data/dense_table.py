"""A dense table of outcomes: every chain of a menu on every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from data.records import SearchRecord, shared_chains
from data.statistics import greatest_probability
from router.chain import Chain
from router.command import InputError


@dataclass(frozen=True)
class DenseTable:
    """What every chain of a menu answered on every sample.

    Attributes:
        chains: the chains, the full one first.
        sample_ids: the samples.
        tasks: each sample's task.
        correct: `[samples, chains]`.
        confidence: `[samples, chains]`: the greatest probability among the choices, 0..1; nan: a free answer.
    """

    chains: tuple[Chain, ...]
    sample_ids: tuple[str, ...]
    tasks: tuple[str, ...]
    correct: Bool[np.ndarray, "samples chains"]
    confidence: Float[np.ndarray, "samples chains"]

    @classmethod
    def of(cls, records: Sequence[SearchRecord], chains: Sequence[Chain] | None = None) -> DenseTable:
        """Gather the chains that all records have (or those given), in the first record's order.

        Raises:
            InputError: where a record lacks a chain that was asked for.
        """
        by_sample = [{result.chain: result for result in record.results} for record in records]
        chains = shared_chains(records) if chains is None else chains
        for record, known in zip(records, by_sample, strict=True):
            missing = [chain for chain in chains if chain not in known]
            if missing:
                raise InputError(f"records: expected {missing[0]} for every sample, got none for {record.sample_id}")
        rows = [[known[chain] for chain in chains] for known in by_sample]
        return cls(
            chains=tuple(chains),
            sample_ids=tuple(record.sample_id for record in records),
            tasks=tuple(record.task for record in records),
            correct=np.array([[result.correct for result in row] for row in rows], dtype=bool),
            confidence=np.array([[_confidence(result.scores, result.prediction) for result in row] for row in rows]),
        )

    @cached_property
    def depths(self) -> Int[np.ndarray, " chains"]:
        """Depth of each chain, layers."""
        return np.array([chain.depth for chain in self.chains])

    @property
    def accuracy(self) -> Float[np.ndarray, " chains"]:
        """Share of samples that each chain answers rightly."""
        result: NDArray[np.float64] = self.correct.mean(0)
        return result

    def best_of_each_depth(self) -> list[int]:
        """Return each depth's most accurate chain (among equals the first by layers) as a column, shallowest first."""
        right = self.correct.sum(0)
        best: dict[int, int] = {}
        for i in sorted(range(len(self.chains)), key=lambda i: (-right[i], self.chains[i].layers)):
            best.setdefault(int(self.depths[i]), i)
        return [best[depth] for depth in sorted(best)]

    def place(self, chain: Chain) -> int:
        """Return a chain's column.

        Raises:
            InputError: where it is not in the table.
        """
        try:
            return self.chains.index(chain)
        except ValueError:
            raise InputError(f"records: expected a table with the chain {chain}, got one without") from None

    def right(self, choices: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
        """Return 1 for each sample that its chosen chain answers rightly, else 0."""
        found: NDArray[np.float64] = self.correct[np.arange(len(choices)), choices].astype(float)
        return found


def _confidence(scores: Sequence[float], prediction: object) -> float:
    if not isinstance(prediction, int) or len(scores) < 2:
        return float("nan")
    return greatest_probability(scores)
