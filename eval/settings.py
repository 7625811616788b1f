"""Settings of `python -m eval`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from router.command import InputError


@dataclass(frozen=True)
class EvalSettings:
    """Settings of `python -m eval`.

    Attributes:
        data: folder of `python -m data prepare`: train.jsonl, validation.jsonl, test.jsonl, tasks.json, manifest.json.
        records: folder of `python -m search`: train.jsonl (pool of the static chains) and test.jsonl (oracle).
        router: folder of a trained router.
        out: folder for results, report, table and figure; a killed run goes on there.
        model: name of an offline asset, local directory or hub id of the base model.
        revision: hub revision of the base model.
        dtype: dtype of the base model.
        device: torch device; auto: CUDA where there is one, else CPU.
        batch_samples: samples loaded at once, at least 1.
        batch_tokens: tokens in one call of a layer at most, at least 1.
        budget: mean depth that the router is asked for, layers; unset: the router's own choice.
        seed: draws the random chains and the bootstrap, at least 0.
        static_pool: chains of each depth, of the search's and of the router's, that are candidates for the best
            static chain, at least 1.
        static_trials: training samples that a candidate of the search should have been tried on, at least 1; where
            a depth has too few such chains, less tried ones fill it up.

    Raises:
        InputError: where a field is out of its bounds.
    """

    data: Path
    records: Path
    router: Path
    out: Path
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: str = "auto"
    batch_samples: int = 32
    batch_tokens: int = 1024
    budget: float | None = None
    seed: int = 0
    static_pool: int = 4
    static_trials: int = 8

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        least = {"batch_samples": 1, "batch_tokens": 1, "seed": 0, "static_pool": 1, "static_trials": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise InputError(f"{name}: expected an integer of at least {bound}, got {value!r}")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise InputError(f"budget: expected a mean depth above 0 layers, got {self.budget!r}")
        if not self.model.strip():
            raise InputError(f"model: expected a name, got {self.model!r}")
