"""Policies: who chooses the chain of each sample. Siblings, so that evaluation is one loop."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from data.records import ChainResult, SearchRecord
from data.scoring import ChainScorer, SampleBlock
from eval.arms import FULL, ORACLE, RANDOM, ROUTER, STATIC
from router.chain import Chain
from router.storage import Router


class Policy(Protocol):
    """Chooses one chain for each sample."""

    @property
    def name(self) -> str:
        """The policy's name in results files."""

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return one chain for each sample of a loaded block, in order; the samples' batch does not matter."""


@dataclass(frozen=True)
class StaticChain:
    """The same chain for every sample.

    Attributes:
        chain: the chain.
        name: the policy's name.
    """

    chain: Chain
    name: str = STATIC

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return the chain for each sample."""
        return [self.chain] * len(samples.samples)


@dataclass(frozen=True)
class FullDepth:
    """The unedited model.

    Attributes:
        num_layers: layers of the model.
        name: the policy's name.
    """

    num_layers: int
    name: str = FULL

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return the full chain for each sample."""
        return [Chain.full(self.num_layers)] * len(samples.samples)


@dataclass(frozen=True)
class RouterReading:
    """What a router's head says of each sample: it reads `hidden_states[read_layer]` of prompt and choices.

    A free answer is never among what it reads. A sample is read once, whatever number of policies ask.

    Attributes:
        scorer: runs the base model's first layers.
        router: the router.
    """

    scorer: ChainScorer
    router: Router
    _read: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def outputs(self, samples: SampleBlock) -> Float[Tensor, "batch ..."]:
        """Return the head's output for each sample of a loaded block."""
        ids = [encoded.sample.id for encoded in samples.samples]
        if not all(sample_id in self._read for sample_id in ids):
            states = self.scorer.states(samples, self.router.config.read_layer)
            outputs = self.router.outputs([state.cpu() for state in states])
            for sample_id, output in zip(ids, outputs, strict=True):
                self._read.setdefault(sample_id, output)
        return torch.stack([self._read[sample_id] for sample_id in ids])


@dataclass(frozen=True)
class RouterPolicy:
    """The trained router at one operating point.

    Attributes:
        reading: what its head says.
        budget: mean depth wanted, layers; None: the router's own choice.
        guaranteed: take the certified operating point, with fallback to full depth, in place of a budget.
        name: the policy's name.
    """

    reading: RouterReading
    budget: float | None = None
    guaranteed: bool = False
    name: str = ROUTER

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return the router's chain for each sample."""
        outputs, router = self.reading.outputs(samples), self.reading.router
        if self.guaranteed:
            return [one.chain for one in router.guaranteed(outputs)]
        return [ranked[0].chain for ranked in router.head.decode(outputs, self.budget)]


@dataclass(frozen=True)
class RandomChain:
    """For each sample a random chain as deep as the router's: what depth alone is worth.

    Each sample draws from its own generator of (seed, sample id). With n layers of which those from
    `read_layer` on may be edited, and a router chain of depth d: d < n drops a uniformly random subset of n - d
    editable layers; d > n runs d - n editable layers, drawn uniformly with replacement, once more each, right
    after themselves; d = n is the full chain, also where the router's chain of that depth is an edited one.

    Attributes:
        router: the policy whose depth is matched.
        num_layers: n.
        read_layer: layers that are never edited.
        seed: seed of the draws.
        name: the policy's name.
    """

    router: Policy
    num_layers: int
    read_layer: int
    seed: int
    name: str = RANDOM

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return a random chain for each sample, of the router's depth."""
        return [
            random_chain(
                chain.depth, self.num_layers, self.read_layer, random.Random(f"{self.seed}/{encoded.sample.id}")
            )
            for chain, encoded in zip(self.router.chains(samples), samples.samples, strict=True)
        ]


def random_chain(depth: int, num_layers: int, read_layer: int, rng: random.Random) -> Chain:
    """Return a random chain of exactly `depth` layers, drawn as `RandomChain` says.

    Raises:
        ValueError: where the depth is below `read_layer` or 1.
    """
    if depth < max(1, read_layer):
        raise ValueError(f"depth: expected at least {max(1, read_layer)}, got {depth}")
    editable = range(read_layer, num_layers)
    counts = [1] * num_layers
    if depth < num_layers:
        for layer in rng.sample(editable, num_layers - depth):
            counts[layer] = 0
    else:
        for layer in rng.choices(editable, k=depth - num_layers):
            counts[layer] += 1
    return Chain.from_counts(counts)


def shortest_standing(record: SearchRecord) -> ChainResult | None:
    """Return the shortest right chain (greatest margin among equals), None where the search found none.

    Where the search verified its chains in the real mode, which includes the full one, only chains that stood it count.
    """
    verified = record.full.verified is not None
    standing = [result for result in record.results if result.correct and (result.verified or not verified)]
    return min(standing, key=lambda result: (result.chain.depth, -result.margin), default=None)


@dataclass(frozen=True)
class Oracle:
    """The shortest right chain that the search found for each sample, else full depth; see `shortest_standing`.

    It has seen the answer: no policy that has not can be expected to reach it. Its chains are run again like all
    others, so a chain that was right only in the search's batch, or only in the cheap mode, counts as wrong here.

    Attributes:
        records: the samples' search records, by sample id.
        num_layers: layers of the model.
        name: the policy's name.
    """

    records: Mapping[str, SearchRecord]
    num_layers: int
    name: str = ORACLE

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return each sample's shortest right chain, or the full chain where none is known."""
        found = [shortest_standing(self.records[encoded.sample.id]) for encoded in samples.samples]
        return [Chain.full(self.num_layers) if one is None else one.chain for one in found]
