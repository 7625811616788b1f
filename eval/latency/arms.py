"""Latency of an arm from the times of its chains: medians and ratios to full depth, round by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.results import ArmResult
from router.chain import Chain
from router.latency import ChainTimes

Timed = Mapping[Chain, ChainTimes]
"""Times of every chain that was run."""


def chains_to_time(chains: Sequence[Chain], count: int) -> list[Chain]:
    """Return chains that stand for an arm: all its different ones, or those at `count` equal steps of depth.

    A chain may stand there more than once: each entry stands for as many samples as another.

    Args:
        chains: the arm's chain of each sample.
        count: entries wanted where there are more different chains.
    """
    different = Counter(chains)
    if len(different) == 1:
        return list(different)
    ordered = sorted(chains, key=lambda chain: (chain.depth, chain.layers))
    if len(different) <= count:
        # Few chains, many samples: as many entries as keep the shares to a percent.
        count = min(100, len(ordered))
    return [ordered[int((i + 0.5) / count * len(ordered))] for i in range(count)]


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles of rounds."""
    low, median, high = (float(one) for one in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high, "n": len(values)}


def latency_of(
    times: Timed, chains: Sequence[Chain], results: Sequence[ArmResult], router: Sequence[float] | None
) -> dict[str, Any]:
    """Return an arm's latency, and its ratio to full depth's of the same round.

    Args:
        times: times of the arm's chains and of the full one.
        chains: what `chains_to_time` gave.
        results: the arm's results.
        router: seconds of the router, an entry a round; None: the arm has none.
    """
    full = times[Chain.full(chains[0].num_layers)]
    prefill = np.mean([times[chain].prefill for chain in chains], 0)
    decode = np.mean([times[chain].decode for chain in chains], 0)
    overhead = np.zeros(len(prefill)) if router is None else np.asarray(router)
    decoded = bool(np.asarray(full.decode).any())
    return {
        "chains_timed": len(set(chains)),
        "mean_depth_timed": sum(chain.depth for chain in chains) / len(chains),
        "mean_depth": sum(one.chain.depth for one in results) / len(results),
        "depth_ratio": sum(one.chain.depth for one in results) / len(results) / chains[0].num_layers,
        "prefill_ms": spread_of(1000 * (prefill + overhead)),
        "decode_ms_per_token": spread_of(1000 * decode) if decoded else None,
        "ratio_prefill": spread_of((prefill + overhead) / np.asarray(full.prefill)),
        "ratio_prefill_without_router": spread_of(prefill / np.asarray(full.prefill)),
        "ratio_decode": spread_of(decode / np.asarray(full.decode)) if decoded else None,
    }
