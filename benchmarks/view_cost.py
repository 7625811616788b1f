"""What a chain view costs to make and to keep, against a deep copy of the model.

    python benchmarks/view_cost.py [--quick] [--json PATH]

Runs on SmolLM2-135M-Instruct (30 layers, float32). Bars: no parameter memory, at most 1 ms for each layer.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.load import load_model
from router.engine.view import chain_view
from router.files import write_json


def seconds(make: Callable[[], object], times: int) -> list[float]:
    """Return how long each of `times` calls took, after one that does not count."""
    make()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        make()
        taken.append(time.perf_counter() - start)
    return taken


def own_bytes(view: PreTrainedModel, model: PreTrainedModel) -> int:
    """Return the bytes of parameters and buffers of a view that are not the model's."""
    shared = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    tensors = (*view.parameters(), *view.buffers())
    return sum(tensor.nbytes for tensor in tensors if tensor.data_ptr() not in shared)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    times = 10 if options.quick else 50
    model, _ = load_model("smollm2-135m-instruct", device="cpu")
    full = Chain.full(30)
    deep = statistics.median(seconds(lambda: copy.deepcopy(model), 3))
    rows = {}
    for name, chain in {"full": full, "half": full.skip(8, 15), "twice": full.repeat(0, 30, 1)}.items():
        taken = seconds(lambda chain=chain: chain_view(model, chain), times)  # type: ignore[misc]
        median = statistics.median(taken)
        rows[name] = {
            "depth": chain.depth,
            "ms": 1e3 * median,
            "ms_min": 1e3 * min(taken),
            "ms_max": 1e3 * max(taken),
            "ms_per_layer": 1e3 * median / chain.depth,
            "own_bytes": own_bytes(chain_view(model, chain), model),
            "ratio_to_deepcopy": median / deep,
        }
    print(f"SmolLM2-135M, float32; median of {times} (min..max); a deep copy takes {1e3 * deep:.0f} ms")
    for name, row in rows.items():
        print(
            f"{name:>6}: depth {row['depth']:2}, {row['ms']:6.2f} ms ({row['ms_min']:.2f}..{row['ms_max']:.2f}), "
            f"{row['ms_per_layer']:.3f} ms a layer, {row['own_bytes']} own bytes, "
            f"{row['ratio_to_deepcopy']:.4f} of a deep copy"
        )
    if options.json:
        write_json(options.json, {"views": rows, "deepcopy_ms": 1e3 * deep})


if __name__ == "__main__":
    main()
