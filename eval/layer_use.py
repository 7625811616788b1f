"""Which layers chains run, skip and repeat; no model, no files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from router.chain import Chain


@dataclass(frozen=True)
class LayerUse:
    """How often chains run each layer of a model, a value a layer.

    Attributes:
        chains: number of chains.
        mean_runs: times that a chain runs the layer, mean.
        skip_rate: share of chains that do not run it.
        repeat_rate: share of chains that run it more than once.
        entropy_bits: entropy of the layers' shares of all executions, bits; log2 of the layers where all are alike.
    """

    chains: int
    mean_runs: tuple[float, ...]
    skip_rate: tuple[float, ...]
    repeat_rate: tuple[float, ...]
    entropy_bits: float


def layer_use(chains: Sequence[Chain]) -> LayerUse:
    """Count how chains of one model use its layers.

    Raises:
        ValueError: where there are none, or they are for different numbers of layers.
    """
    if len({chain.num_layers for chain in chains}) != 1:
        raise ValueError(f"chains: expected some of one model, got {len(chains)} with different numbers of layers")
    n, layers = len(chains), range(chains[0].num_layers)
    counts = [Counter(chain.layers) for chain in chains]
    runs = [sum(count[layer] for count in counts) for layer in layers]
    total = sum(runs)
    return LayerUse(
        chains=n,
        mean_runs=tuple(times / n for times in runs),
        skip_rate=tuple(sum(count[layer] == 0 for count in counts) / n for layer in layers),
        repeat_rate=tuple(sum(count[layer] > 1 for count in counts) / n for layer in layers),
        entropy_bits=sum(times / total * math.log2(total / times) for times in runs if times),
    )
