"""What routing costs and saves in time: full depth, an exported chain, its view, and the routed model.

    python benchmarks/routed_latency.py [--quick] [--json PATH]

SmolLM2-135M-Instruct in bfloat16; random prompts of 128 tokens, 32 greedy tokens, batch 1 and 8. In one run, in turns:

full      the stock model, all 30 layers
exported  the chain 0-19,26-29 (24 layers) as a stock checkpoint (`python -m router export`)
view      the same chain as a view of the full model (`router.engine.view.chain_view`)
routed    `RoutedModel.generate` with a router that reads layer 12 and picks that chain
twice     the same with a router that reads once more, after 18 layers, before it picks the chain

Each call goes through the library's `generate`; a streamer notes when the first token is there (prefill) and when the
last is (decode). The router is untrained, of the usual size, and its operating point always picks the chain: time does
not hang on what it has learnt. All arms read the output embedding from contiguous states (`with_contiguous_head`);
`stock` is the full model as the library has it. Ratios are medians over rounds of the ratio within a round, with 95 %
bootstrap intervals. Bars, on the worst of prefill and decode at both batches: view at most 1.02 of exported; routed,
net of the router, at most 1.03 of it; router at most 0.01 of the prefill's floating-point operations.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from data.flops import count_forward
from router.chain import Chain
from router.decision import HeadSettings, LateConfig, Router, RouterConfig
from router.engine.copies import with_contiguous_head
from router.engine.load import load_model
from router.engine.view import chain_view
from router.files import write_json
from router.fingerprint import Fingerprints
from router.heads.budget import BudgetPoint
from router.heads.head import Decision
from router.heads.menu import MenuHead
from router.routed import RoutedModel
from router.routed.export import export_chain

CHAIN = "0-19,26-29"
READ_LAYER, LATE_LAYER = 12, 18
PROMPT, NEW, NEW_QUICK = 128, 32, 8
BATCHES = (1, 8)
WARM_UP = 3
BARS = {"view_over_export": 1.02, "routed_net_over_export": 1.03, "router_flops_share": 0.01}


class Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when the prompt, the first token and the last came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:  # noqa: ARG002
        """Note a step."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Need nothing."""


@dataclass(frozen=True)
class TimedRouter(Router):
    """A router that notes how long it takes to decide.

    Attributes:
        seconds: a time for each call.
    """

    seconds: list[float] = field(default_factory=list)

    def decide(self, *args: Any) -> list[Decision]:
        """Do as a router does."""
        start = time.perf_counter()
        decided = super().decide(*args)
        self.seconds.append(time.perf_counter() - start)
        return decided


def make_router(model: PreTrainedModel, chain: Chain, *, late: bool = False) -> TimedRouter:
    """Return an untrained menu router whose operating point always picks the chain; `late`: after a second reading."""
    torch.manual_seed(0)
    width = int(model.config.hidden_size)
    settings: HeadSettings = {"chains": [str(Chain.full(chain.num_layers)), str(chain)], "hidden": 64}
    head = MenuHead(chain.num_layers, READ_LAYER, width, **settings).eval()
    head.budget_points = (BudgetPoint(float(chain.depth), 1e3),)
    prints = Fingerprints("", "", "")
    config = RouterConfig(
        "menu", settings, chain.num_layers, READ_LAYER, width, "none", "generate", "smollm2", None, "bfloat16", prints
    )
    if not late:
        return TimedRouter(config, head)
    config = replace(config, late=LateConfig(LATE_LAYER, config.head_settings))
    second = config.build_late()
    assert second is not None
    return TimedRouter(config, head, late=second.eval())


@dataclass(frozen=True)
class Call:
    """Seconds of one call.

    Attributes:
        prefill: up to the first token, the router's time included.
        decode: each further token.
        router: the router's own; 0 without one.
    """

    prefill: float
    decode: float
    router: float = 0.0


def measure(generate: Callable[..., Any], ids: Tensor, new_tokens: int, router: TimedRouter | None) -> Call:
    """Time one call."""
    clock = Clock()
    start = time.perf_counter()
    generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        streamer=clock,
        pad_token_id=0,
    )
    first, last = clock.times[1], clock.times[-1]
    own = 0.0 if router is None else router.seconds[-1]
    return Call(first - start, (last - first) / (new_tokens - 1), own)


def run(
    arms: dict[str, Callable[..., Any]], router: TimedRouter, rounds: int, new_tokens: int
) -> dict[int, dict[str, list[Call]]]:
    """Time every arm once a round and batch, in an order of its own."""
    order, generator = random.Random(0), torch.Generator().manual_seed(0)
    calls: dict[int, dict[str, list[Call]]] = {batch: {name: [] for name in arms} for batch in BATCHES}
    for number in tqdm(range(WARM_UP + rounds), desc="rounds"):
        for batch in BATCHES:
            ids = torch.randint(3, 40000, (batch, PROMPT), generator=generator)
            for name in order.sample(list(arms), len(arms)):
                call = measure(arms[name], ids, new_tokens, router if name == "routed" else None)
                if number >= WARM_UP:
                    calls[batch][name].append(call)
    return calls


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Return the median of paired ratios with its 95 % bootstrap interval."""
    values = np.array(above) / np.array(below)
    found = bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def cells(calls: dict[int, dict[str, list[Call]]]) -> dict[str, dict[str, Any]]:
    """Return milliseconds of each arm, and ratios, for prefill and decode at each batch."""
    made = {}
    for batch, of_arm in calls.items():
        for kind in ("prefill", "decode"):
            seconds = {name: [getattr(call, kind) for call in each] for name, each in of_arm.items()}
            net = list(seconds["routed"])
            if kind == "prefill":
                net = [call.prefill - call.router for call in of_arm["routed"]]
            made[f"{kind}, batch {batch}"] = {
                "ms": {name: 1e3 * statistics.median(each) for name, each in seconds.items()},
                "view_over_export": ratio(seconds["view"], seconds["exported"]),
                "routed_net_over_export": ratio(net, seconds["exported"]),
                "latency_ratio": ratio(seconds["routed"], seconds["full"]),
                "twice_over_routed": ratio(seconds["twice"], seconds["routed"]),
            }
    return made


def whole(calls: dict[int, dict[str, list[Call]]], name: str, new_tokens: int) -> list[float]:
    """Return seconds of whole calls, prefill and all tokens, of all batches."""
    return [call.prefill + (new_tokens - 1) * call.decode for of_arm in calls.values() for call in of_arm[name]]


def print_table(made: dict[str, dict[str, Any]], result: dict[str, float], router_ms: dict[int, float]) -> None:
    """Print times, ratios and bars."""
    names = list(next(iter(made.values()))["ms"])
    print(
        f"{'ms':18}"
        + "".join(f"{name:>10}" for name in names)
        + "   view/exported         routed net/exported   routed/full           twice/routed"
    )
    for cell, values in made.items():
        shown = "".join(f"{values['ms'][name]:10.2f}" for name in names)
        for key in ("view_over_export", "routed_net_over_export", "latency_ratio", "twice_over_routed"):
            one = values[key]
            shown += f"   {one['median']:.3f} ({one['low']:.3f}..{one['high']:.3f})"
        print(f"{cell:18}{shown}")
    print("router: " + ", ".join(f"{ms:.2f} ms at batch {batch}" for batch, ms in router_ms.items()))
    print(
        f"latency {result['latency_ratio']:.3f} of full depth over whole calls, depth {result['depth_ratio']:.3f} of it"
    )
    for name, bar in BARS.items():
        print(f"{name}: {result[name]:.4g} (bar {bar:g}: {'kept' if result[name] <= bar else 'MISSED'})")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tokens")
    parser.add_argument("--rounds", type=int, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rounds = options.rounds or (6 if options.quick else 40)
    model, tokenizer = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    chain = Chain.parse(CHAIN, 30)
    router = make_router(model, chain)
    with tempfile.TemporaryDirectory() as folder:
        export_chain(model, tokenizer, chain, Path(folder) / "exported")
        exported = AutoModelForCausalLM.from_pretrained(Path(folder) / "exported", dtype=torch.bfloat16)
    exported.eval().requires_grad_(False)  # as the base model, whose kernels could differ otherwise
    full = with_contiguous_head(chain_view(model, Chain.full(30)))
    view = with_contiguous_head(chain_view(model, chain))
    routed = RoutedModel.join(model, router, budget=float(chain.depth))
    twice = RoutedModel.join(model, make_router(model, chain, late=True), budget=float(chain.depth))
    arms = {
        "stock": model.generate,
        "full": full.generate,
        "exported": with_contiguous_head(exported).generate,
        "view": view.generate,
        "routed": routed.generate,
        "twice": twice.generate,
    }
    new_tokens = NEW_QUICK if options.quick else NEW
    calls = run(arms, router, rounds, new_tokens)
    made = cells(calls)
    flops = count_forward(model).of(chain, PROMPT)
    result = {
        name: max(cell[name]["median"] for cell in made.values())
        for name in ("view_over_export", "routed_net_over_export")
    }
    result |= {
        "router_flops_share": router.forward_flops(PROMPT) / flops,
        "latency_ratio": ratio(*(whole(calls, name, new_tokens) for name in ("routed", "full")))["median"],
        "depth_ratio": chain.depth / chain.num_layers,
    }
    router_ms = {
        batch: 1e3 * statistics.median(call.router for call in of_arm["routed"]) for batch, of_arm in calls.items()
    }
    print(
        f"SmolLM2-135M, bfloat16, {torch.get_num_threads()} threads; {PROMPT} + {new_tokens} tokens; "
        f"medians of {rounds} rounds"
    )
    print_table(made, result, router_ms)
    if options.json:
        details = {"cells": made, "router_ms": router_ms, "bars": BARS, "rounds": rounds, "quick": options.quick}
        write_json(options.json, {**result, **details})


if __name__ == "__main__":
    main()
