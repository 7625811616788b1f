"""What the router is to predict: per-layer classes from search records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from data.records import ChainResult, SearchRecord
from router.layerwise import classes_of

TargetRule = Literal["shortest", "margin"]


def layer_classes(record: SearchRecord, prefix_layers: int, rule: TargetRule = "shortest") -> tuple[int, ...] | None:
    """Return a record's target as one class (skip, run, repeat) for each layer after the prefix.

    Only right chains that skip layers or run them once or twice in a row can be written so; block repeats and layers
    run three times cannot. A chain that did not stand its verification is no target.

    Args:
        record: what the search found.
        prefix_layers: layers that every chain begins with.
        rule: "shortest": the shortest such chain, greatest margin among equals (the target of Dr.LLM,
            arXiv 2510.12773); "margin": the one with the greatest margin.

    Returns:
        The classes, or None where no right chain can be written so.
    """
    candidates = [
        (result, classes)
        for result in record.results
        if result.correct
        and result.verified is not False
        and (classes := classes_of(result.chain, prefix_layers)) is not None
    ]
    if not candidates:
        return None

    def rank(candidate: tuple[ChainResult, tuple[int, ...]]) -> tuple[float, float]:
        result = candidate[0]
        depth = float(result.chain.depth)
        return (depth, -result.margin) if rule == "shortest" else (-result.margin, depth)

    return min(candidates, key=rank)[1]


def class_counts(targets: Sequence[Sequence[int]], classes: int) -> list[int]:
    """Return how often each class stands in the targets."""
    counts = [0] * classes
    for target in targets:
        for value in target:
            counts[value] += 1
    return counts


def layer_frequencies(targets: Sequence[Sequence[int]], classes: int) -> list[list[float]]:
    """Return the share of each class at each layer, with one more of each counted so that none is 0 (Laplace)."""
    layers = list(zip(*targets, strict=True))
    return [[(layer.count(c) + 1) / (len(layer) + classes) for c in range(classes)] for layer in layers]
