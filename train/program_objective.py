"""Teaching a program head: all right chains of a sample at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from data.records import SearchRecord
from router.chain import Chain
from router.head import Head
from router.program import ProgramHead
from router.program_lattice import Program, ProgramLattice
from train.objectives import HeadName, Objective

WeightedPrograms = tuple[list[Program], list[float]]


class ProgramObjective(Objective):
    """The probability of a sample's right chains, shorter ones weighing more."""

    name: HeadName = "program"

    def __init__(self, *, shorter: float, max_block: int, max_times: int, beam: int) -> None:
        """Set the training.

        Args:
            shorter: a right chain that is one model's depth shorter weighs e^shorter times as much; 0: all alike.
            max_block: layers of a segment at most.
            max_times: how many more times a segment runs at most.
            beam: chains that decoding looks at.

        Raises:
            ValueError: where a number is out of its bounds.
        """
        if not 0 <= shorter < 100:
            raise ValueError(f"shorter: expected at least 0 and below 100, got {shorter}")
        self._shorter = shorter
        self._settings: dict[str, Any] = {"max_block": max_block, "max_times": max_times, "beam": beam}
        ProgramHead(2, 1, 1, **self._settings)  # refuses what it refuses, before any data is read
        self._bounds = (max_block, max_times)

    def settings(self, records: Sequence[SearchRecord], prefix_layers: int) -> dict[str, Any]:  # noqa: ARG002
        """Return the head's bounds."""
        return dict(self._settings)

    def target(self, record: SearchRecord, prefix_layers: int) -> WeightedPrograms | None:
        """Return the programs of a record's right chains that can be written so, and their weights (sum 1)."""
        lattice = _lattice(record.num_layers, prefix_layers, *self._bounds)
        found: list[tuple[Program, Chain]] = []
        for result in record.results:
            if result.correct and result.verified is not False:
                program = lattice.program_of(result.chain)
                if program is not None:
                    found.append((program, result.chain))
        if not found:
            return None
        weights = [math.exp(-self._shorter * chain.depth / chain.num_layers) for _, chain in found]
        return [program for program, _ in found], [weight / sum(weights) for weight in weights]

    def start(self, head: Head, targets: Sequence[WeightedPrograms]) -> None:
        """Start from the segments' frequencies; every sample counts alike."""
        assert isinstance(head, ProgramHead)
        programs = [program for of_row, _ in targets for program in of_row]
        head.start_from(programs, [weight for _, of_row in targets for weight in of_row])

    def collate(self, targets: Sequence[WeightedPrograms]) -> list[WeightedPrograms]:
        """Keep the lists."""
        return list(targets)

    def loss(self, head: Head, output: Tensor, targets: list[WeightedPrograms]) -> Tensor:
        """Return the mean of -log of the weighted probability of each row's right programs (nats)."""
        assert isinstance(head, ProgramHead)
        return head.loss(output, [programs for programs, _ in targets], [weights for _, weights in targets])

    def measures(self, head: Head, output: Tensor, targets: list[WeightedPrograms]) -> dict[str, float]:
        """Return the share of rows whose own choice is one of the right programs known."""
        assert isinstance(head, ProgramHead)
        hits = [
            head.program_of(ranked[0].chain) in set(programs)
            for ranked, (programs, _) in zip(head.decode(output), targets, strict=True)
        ]
        return {"known_right": sum(hits) / len(hits)}


@lru_cache(maxsize=1)
def _lattice(num_layers: int, prefix_layers: int, max_block: int, max_times: int) -> ProgramLattice:
    """Return the programs of a model's layers; one training asks for the same ones for every record."""
    return ProgramLattice(num_layers, prefix_layers, max_block, max_times)
