"""How near a layer's forward comes to what its matrix products alone reach, by tokens in a call; and its parts.

    python benchmarks/layer_roofline.py [--quick] [--json PATH]

SmolLM2-135M-Instruct in bfloat16, layer 5, rows of 90 tokens. For each number of rows, in turns: the layer, the same
with the attention implementation "eager", and its linear maps alone on the same number of tokens. A rate is
2 * parameters of the linear maps * tokens / seconds; so the products inside attention (3 % at this length) do not
count.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from router.engine.executor import ChainExecutor
from router.engine.load import load_model
from router.engine.rows import plain_row
from router.files import write_json

LAYER, TOKENS = 5, 90
PARTS = {
    "linear maps": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::bmm", "aten::_softmax"),
}


def layer_call(model: PreTrainedModel, rows: int) -> Callable[[], object]:
    """Return a call of the layer on a number of rows."""
    texts = [plain_row([(37 * i + 11 * j) % 4000 + 5 for j in range(TOKENS)]) for i in range(rows)]
    executor = ChainExecutor(model)
    layers, block = executor._layers, executor.load(texts, share=False)
    call = block.arguments.tokens(LAYER, range(rows), 0, TOKENS)
    hidden = torch.stack([root.state for root in block.roots if root.state is not None])
    return lambda: layers.run(LAYER, hidden, call, None)


def calls_of(model: PreTrainedModel, eager: PreTrainedModel, rows: int) -> dict[str, Callable[[], object]]:
    """Return what is timed for a number of rows."""
    linear = linear_maps(model)
    inputs = {m.in_features: torch.randn(rows * TOKENS, m.in_features, dtype=model.dtype) for m in linear}
    return {
        "layer": layer_call(model, rows),
        "layer, eager": layer_call(eager, rows),
        "linear maps": lambda: [m(inputs[m.in_features]) for m in linear],
    }


def linear_maps(model: PreTrainedModel) -> list[nn.Linear]:
    """Return the linear maps of the layer."""
    return [module for module in model.model.layers[LAYER].modules() if isinstance(module, nn.Linear)]


def shares(call: Callable[[], object], times: int) -> dict[str, float]:
    """Return the share of a call's time in each part."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(times):
            call()
    events = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(events.values())
    parts = {part: sum(events.get(name, 0) for name in names) / total for part, names in PARTS.items()}
    return {**parts, "norms, rotary, activation, copies": 1 - sum(parts.values())}


@torch.inference_mode()
def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    times = 7 if options.quick else 25
    model, _ = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    parameters = sum(module.weight.numel() for module in linear_maps(model))
    calls = {rows: calls_of(model, eager, rows) for rows in (1, 2, 4, 6, 8, 11, 16, 22)}
    taken: dict[tuple[int, str], list[float]] = {(rows, name): [] for rows, named in calls.items() for name in named}
    for _ in range(times):
        for (rows, name), seconds in taken.items():
            calls[rows][name]()
            start = time.perf_counter()
            calls[rows][name]()
            seconds.append(time.perf_counter() - start)
    print(f"{torch.get_num_threads()} threads, {parameters} parameters, median of {times} in ms (TFLOP/s)")
    table: dict[str, dict[str, float]] = {}
    for rows, named in calls.items():
        table[str(rows * TOKENS)] = row = {name: 1e3 * statistics.median(taken[rows, name]) for name in named}
        rate = 2e-9 * parameters * rows * TOKENS
        cells = [
            f"{name} {row[name]:6.2f}" + (f" ({rate / row[name]:.2f})" if name.startswith(("layer", "linear")) else "")
            for name in named
        ]
        print(f"{rows * TOKENS:5} tokens: {', '.join(cells)}")
    parts = {name: shares(calls[4][name], times) for name in ("layer", "layer, eager")}
    for name, found in parts.items():
        print(f"{name}, {4 * TOKENS} tokens: " + ", ".join(f"{part} {share:.2f}" for part, share in found.items()))
    if options.json:
        write_json(options.json, {"milliseconds": table, "shares": parts, "parameters": parameters})


if __name__ == "__main__":
    main()
