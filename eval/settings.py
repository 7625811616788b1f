"""Settings of `python -m eval`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.tracking import TrackingSettings
from eval.arms import EARLY_EXIT, MIXTURE, PRUNED, Baseline
from router.validation import InputError


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
        budget: mean depth that the router is asked for, layers; unset: the router's own choice. The baselines are
            matched with this arm.
        budgets: further mean depths, an arm each.
        latency_factor: in place of `budget`: time that a routed call may take, in units of full depth's.
        latency_profile: latency.json of `python -m eval.latency`, measured on this device, for `latency_factor`.
        baselines: which of mixture (of static chains), early_exit and pruned (ShortGPT) are arms besides.
        random_search: folder of the records of a random search at the oracle's cost (test.jsonl), an arm; unset: none.
        wrong_records: folder of the records of the oracle's search told wrong answers (`--reward_target wrong`,
            test.jsonl): the report then says what of the oracle is luck; unset: it does not.
        control_samples: test samples on which choices are reshuffled and labels verified by real generation; 0: none.
        reshuffles: other orders of the choices of each such sample, at least 1.
        seed: draws the random chains and the bootstrap, at least 0.
        static_pool: chains of each depth, of the search's and of the router's, that are candidates for the best
            static chain, at least 1.
        static_trials: training samples that a candidate of the search should have been tried on, at least 1; where
            a depth has too few such chains, less tried ones fill it up.
        tracking: Weights & Biases.

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
    budgets: tuple[float, ...] = ()
    latency_factor: float | None = None
    latency_profile: Path | None = None
    baselines: tuple[Baseline, ...] = (MIXTURE, EARLY_EXIT, PRUNED)
    random_search: Path | None = None
    wrong_records: Path | None = None
    control_samples: int = 0
    reshuffles: int = 3
    seed: int = 0
    static_pool: int = 4
    static_trials: int = 8
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        least = {"batch_samples": 1, "batch_tokens": 1, "seed": 0, "static_pool": 1, "static_trials": 1}
        least |= {"control_samples": 0, "reshuffles": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise InputError(f"{name}: expected an integer of at least {bound}, got {value!r}")
        for name, budget in (("budget", self.budget), *(("budgets", one) for one in self.budgets)):
            if budget is not None and not (math.isfinite(budget) and budget > 0):
                raise InputError(f"{name}: expected a mean depth above 0 layers, got {budget!r}")
        if (self.latency_factor is None) != (self.latency_profile is None):
            raise InputError("latency_factor: expected it and latency_profile together, got one of them")
        if self.latency_factor is not None and self.budget is not None:
            raise InputError("latency_factor: expected it or budget, got both")
        for name in ("budgets", "baselines"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise InputError(f"{name}: expected each once, got {list(getattr(self, name))}")
        if not self.model.strip():
            raise InputError(f"model: expected a name, got {self.model!r}")
