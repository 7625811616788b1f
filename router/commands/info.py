"""Say what a router is, from its files alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from router.command import first_word, parse_settings
from router.menu_head import MenuHead
from router.routed.hub import router_folder
from router.storage import Router, load_router
from router.strip import draw_strip, marks_for


@dataclass(frozen=True)
class InfoSettings:
    """Settings of `python -m router info`.

    Attributes:
        router: a router's folder or its hub id; may stand alone, as the first word.
        revision: its hub revision.
        json: whether the result is printed as JSON.
    """

    router: str
    revision: str | None = None
    json: bool = False


def main(argv: Sequence[str]) -> None:
    """Print what a router is.

    Raises:
        InputError: at bad input.
    """
    description = "Say what a router is: its base model, head, budgets and guarantee. No model is loaded."
    settings, _ = parse_settings(InfoSettings, first_word(argv, "router"), "router info", description)
    router = load_router(router_folder(settings.router, revision=settings.revision))
    facts = describe(router)
    if settings.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_shown(value)}")
    if isinstance(router.head, MenuHead):
        print(f"\n{marks_for(sys.stdout.encoding).legend()}")
        for chain in router.head.chains:
            strip = draw_strip(chain, router.config.prefix_layers, marks_for(sys.stdout.encoding))
            print(f"  {strip}  {chain.depth:3}  {chain}")


def describe(router: Router) -> dict[str, Any]:
    """Return what is worth knowing of a router, as JSON data."""
    config, certified = router.config, router.guarantee
    depths = sorted(point.mean_depth for point in config.budget_points)
    facts: dict[str, Any] = {
        "base_model": config.base_model,
        "revision": config.revision,
        "dtype": config.dtype,
        "num_layers": config.num_layers,
        "prefix_layers": config.prefix_layers,
        "head": config.head,
        "parameters": sum(parameter.numel() for parameter in router.head.parameters()),
        "task": config.task,
        "mode": config.mode,
        "budgets": [round(depths[0], 2), round(depths[-1], 2)] if depths else None,
        "guarantee": None if certified is None else asdict(certified),
        "fingerprints": asdict(config.fingerprints),
    }
    if isinstance(router.head, MenuHead):
        facts["menu"] = [str(chain) for chain in router.head.chains]
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one[:12] if isinstance(one, str) else one}" for name, one in value.items())
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, float) for one in value):
        return f"{value[0]:g}..{value[1]:g} layers"
    if isinstance(value, list):
        return f"{len(value)} chains"
    return "-" if value is None else str(value)
