"""What the controls of the oracle say, a line each."""

from __future__ import annotations

from typing import Any


def control_lines(controls: dict[str, Any] | None) -> list[str]:
    """Return lines for a report's block `controls`, as `eval.controls.controls_block` makes it."""
    if controls is None:
        return []
    makers = {"luck": _luck, "random_search": _random, "reshuffled": _reshuffled, "generated": _generated}
    return [line for name, make in makers.items() if controls[name] is not None for line in make(controls[name])]


def _luck(luck: dict[str, Any]) -> list[str]:
    if not luck["eligible"]:
        return ["control, luck: no sample on which full depth gives neither the right answer nor the told one"]
    return [
        f"control, luck: of {luck['eligible']} samples that full depth answers otherwise the search sets "
        f"{_share(luck['gold'])} right and, told a wrong answer, {_share(luck['luck'])} to that one; "
        f"the oracle's gain is {_value(luck['gain'])}, net of luck {_value(luck['net_gain'])}"
    ]


def _random(found: dict[str, Any]) -> list[str]:
    pair = found["paired"]
    return [
        f"control, random search of equal {found['equal'].replace('_', ' ')}: a right chain for "
        f"{_share(found['random'])} of {found['n']} samples, the oracle {_share(found['oracle'])}"
        + ("" if pair is None else f", {_difference(pair)}")
    ]


def _reshuffled(found: dict[str, Any]) -> list[str]:
    rescued = found["rescued"]
    if rescued["oracle"] is None:
        return ["control, choices reshuffled: no rescued sample among those that were run"]
    line = (
        f"control, choices reshuffled: of {rescued['n']} rescued samples {_share(rescued['oracle'])} stay right under "
        f"the same chain, full depth gets {_share(rescued['full'])} of them"
    )
    right = found["full_right"]
    return [line + ("" if right is None else f"; of what full depth gets right {_share(right)} stays so")]


def _generated(found: dict[str, Any]) -> list[str]:
    parts = [
        f"of {found[arm]['right']} right answers of {label} {_share(found[arm]['confirmed'])} are confirmed"
        f" ({found[arm]['right_no_answer']} texts could not be read)"
        for arm, label in (("full", "full depth"), ("oracle", "the oracle"))
        if found[arm]["confirmed"] is not None
    ]
    return [f"control, real generation on {found['n']} samples: {'; '.join(parts) or 'nothing was right'}"]


def _share(share: dict[str, Any]) -> str:
    return _with(f"{share['share']:.3f}", share["interval"], "")


def _value(value: dict[str, Any]) -> str:
    return _with(f"{value['value']:+.3f}", value["interval"], "+")


def _difference(pair: dict[str, Any]) -> str:
    return _with(f"{pair['difference']:+.3f}", pair["difference_interval"], "+")


def _with(text: str, interval: list[float], sign: str) -> str:
    low, high = interval
    return f"{text} ({low:{sign}.3f}..{high:{sign}.3f})"
