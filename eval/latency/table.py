"""What `python -m eval.latency` found, as a table in the terminal."""

from __future__ import annotations

from typing import Any, TextIO

from rich import box
from rich.table import Table

from eval.tables import console_for


def print_latency(content: dict[str, Any], stream: TextIO) -> None:
    """Print a table a size of batch."""
    console, style = console_for(stream)
    for cell in content["cells"]:
        profile = cell["profile"]
        console.print(
            f"{content['device']} ({content['device_name']}), {content['dtype']}, batch {profile['batch']}, prompts of "
            f"{profile['prompt_tokens']} tokens, {content['new_tokens']} new tokens, {content['rounds']} rounds; "
            f"medians (quartiles)"
        )
        console.print(_cell(cell, style))
        layer, fixed = 1000 * profile["prefill"]["layer"], 1000 * profile["prefill"]["fixed"]
        console.print(
            f"prefill: {fixed:.2f} ms + {layer:.2f} ms a layer (worst error {profile['prefill']['worst']:.1%}); "
            f"router {cell['router_ms']['median']:.2f} ms a batch"
        )


def _cell(cell: dict[str, Any], style: box.Box) -> Table:
    table = Table(box=style)
    table.add_column("arm", overflow="fold")
    for name in ("depth of full", "prefill ms", "of full depth", "without router", "ms a new token", "of full depth"):
        table.add_column(name, justify="right", overflow="fold")
    for arm in cell["arms"]:
        table.add_row(
            arm["name"],
            f"{arm['depth_ratio']:.3f}",
            _spread(arm["prefill_ms"], 1),
            _spread(arm["ratio_prefill"], 3),
            _spread(arm["ratio_prefill_without_router"], 3),
            _spread(arm["decode_ms_per_token"], 1),
            _spread(arm["ratio_decode"], 3),
        )
    return table


def _spread(value: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}..{value['high']:.{digits}f})"
