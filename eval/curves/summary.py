"""What `python -m eval.curves` says of its points: means over seeds, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def summary_of(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the seeds of each kind and budget: means over seeds, and the range of the accuracy."""
    found = []
    for name, budget in dict.fromkeys((point["name"], point["budget"]) for point in points):
        own = [point for point in points if (point["name"], point["budget"]) == (name, budget)]
        accuracies = [point["accuracy"] for point in own]
        found.append(
            {
                "name": name,
                "budget": budget,
                "seeds": len(own),
                "accuracy": float(np.mean(accuracies)),
                "spread": [min(accuracies), max(accuracies)],
                "depth": float(np.mean([point["depth"] for point in own])),
                "against": {
                    arm: float(np.mean([point["against"][arm]["difference"] for point in own]))
                    for arm in own[0]["against"]
                    if all(arm in point["against"] for point in own)
                },
                "worst_p": max(point["permutation_p"] for point in own),
            }
        )
    return found


def table_of(content: dict[str, Any]) -> str:
    """Return `curves.json` as a table for the terminal."""
    full = content["full"]
    lines = [f"full depth {full['accuracy']:.4f} at {full['depth']:g}, n = {content['n']}"]
    arms = ("full", "static", "mixture", "same_menu", "random", "early_exit")
    lines.append(
        f"{'kind':<14}{'budget':>7}{'depth':>7}{'accuracy':>9}"
        + "".join(f"{arm:>28}" for arm in arms)
        + f"{'perm. p':>9}"
    )
    for point in content["points"]:
        cells = []
        for arm in arms:
            one = point["against"].get(arm)
            cells.append(
                f"{'':>28}"
                if one is None
                else f"{one['difference']:>+11.4f} ({one['interval'][0]:+.3f}..{one['interval'][1]:+.3f})"
            )
        lines.append(
            f"{point['name']:<14}{point['budget']:>7g}{point['depth']:>7.2f}{point['accuracy']:>9.4f}"
            + "".join(cells)
            + f"{point['permutation_p']:>9.4f}"
        )
    for one in content["summary"]:
        against = ", ".join(f"{arm} {value:+.4f}" for arm, value in one["against"].items())
        lines.append(
            f"{one['name']}, budget {one['budget']:g}, {one['seeds']} seeds: {one['accuracy']:.4f} "
            f"({one['spread'][0]:.4f}..{one['spread'][1]:.4f}) at {one['depth']:.2f}; against {against}"
        )
    return "\n".join(lines)
