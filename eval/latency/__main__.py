"""Time the arms of an evaluation on this device: prefill and decoding, beside what their depth promises.

    python -m eval.latency --evaluation runs/demo/eval --router runs/demo/router

All chains run in turns in one process, with equal prompts and equally many generated tokens. Writes `latency.json`
into the evaluation's folder and rebuilds its report. The profile in it (seconds as a line in depth) turns a latency
factor into a budget: `python -m eval --latency_factor 0.9 --latency_profile latency.json`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from eval.arms import FULL, is_routed
from eval.latency.arms import Timed, chains_to_time, latency_of, spread_of
from eval.latency.table import print_latency
from eval.results import RESULTS_FILE, ArmResult, read_arms, read_run
from eval.run import refresh
from router.chain import Chain
from router.command import parse_settings, provenance, run_command
from router.engine.load import load_model, resolve_device
from router.files import require_directory, sha256_file, write_json
from router.fingerprint import model_fingerprint
from router.latency import LATENCY_FILE, SCHEMA, LatencyProfile, Line, ladder, time_chains, time_router
from router.storage import Router, load_router
from router.validation import InputError

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit in which the system tells a process's greatest memory."""


@dataclass(frozen=True)
class LatencySettings:
    """Settings of `python -m eval.latency`.

    Attributes:
        evaluation: folder of `python -m eval`, finished; `latency.json` is written there.
        router: the router that was evaluated.
        device: torch device; auto: CUDA where there is one, else CPU.
        dtype: dtype of the base model; unset: the evaluation's.
        batches: rows of a call, each at least 1; all rows of a call share a chain.
        new_tokens: tokens generated after the prompt, the same for every arm, at least 0.
        prompt_tokens: tokens of a prompt; unset: the evaluation's median.
        rounds: timed rounds, at least 3; every round runs every chain once.
        chains: chains timed of each arm, at least 1; an arm with more gives those at equal steps of its depths.
        seed: draws prompts and the order of the chains.
    """

    evaluation: Path
    router: Path
    device: str = "auto"
    dtype: str | None = None
    batches: tuple[int, ...] = (1, 8)
    new_tokens: int = 16
    prompt_tokens: int | None = None
    rounds: int = 9
    chains: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        for name, least in (("new_tokens", 0), ("prompt_tokens", 1), ("rounds", 3), ("chains", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: expected at least {least}, got {value}")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) != len(self.batches):
            raise InputError(f"batches: expected different numbers of at least 1, got {list(self.batches)}")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise InputError(f"dtype: expected float32, bfloat16 or float16, got {self.dtype!r}")


def main(argv: Sequence[str] | None) -> None:
    """Time the arms, write `latency.json` and rebuild the report.

    Raises:
        InputError: at bad input.
    """
    description = "Time the arms of an evaluation on this device: prefill and decoding."
    settings, resolved = parse_settings(LatencySettings, argv, "eval.latency", description)
    require_directory(settings.evaluation, "evaluation")
    require_directory(settings.router, "router")
    run = read_run(settings.evaluation)
    router = load_router(settings.router)
    path = settings.evaluation / RESULTS_FILE
    described = run.model
    by_arm = read_arms(settings.evaluation)
    model, _ = load_model(
        described.name,
        dtype=settings.dtype or described.dtype,
        device=resolve_device(settings.device),
        revision=described.revision,
    )
    fingerprint = model_fingerprint(model)
    for what, found in (("evaluation", run.fingerprints.model), ("router", router.config.fingerprints.model)):
        if found != fingerprint:
            raise InputError(f"{what}: expected one of the model {fingerprint}, got one of {found}")
    content = measure(model, router, by_arm, settings)
    content = {"schema": SCHEMA, "model": fingerprint, "results_sha256": sha256_file(path), **content}
    write_json(settings.evaluation / LATENCY_FILE, content | provenance(resolved))
    refresh(settings.evaluation)
    print_latency(content, sys.stdout)
    print(f"written to {settings.evaluation / LATENCY_FILE}, report rebuilt")


def measure(
    model: Any, router: Router, by_arm: dict[str, list[ArmResult]], settings: LatencySettings
) -> dict[str, Any]:
    """Return the content of `latency.json`, but for where it comes from."""
    arms = {name: chains_to_time([one.chain for one in results], settings.chains) for name, results in by_arm.items()}
    steps = ladder(router.config.num_layers)
    chains = list(dict.fromkeys([*steps, *(chain for of_arm in arms.values() for chain in of_arm)]))
    tokens = settings.prompt_tokens or int(np.median([one.tokens for one in by_arm[FULL]]))
    cells = []
    with tqdm(total=len(settings.batches) * len(chains) * settings.rounds, desc="latency", unit="call") as bar:
        for batch in settings.batches:
            sizes = {"batch": batch, "prompt_tokens": tokens, "rounds": settings.rounds, "seed": settings.seed}
            times = time_chains(model, chains, new_tokens=settings.new_tokens, progress=bar.update, **sizes)
            cells.append(_cell(times, time_router(router, **sizes), steps, arms, by_arm, batch, tokens))
    device = model.device
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} threads",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None),
        "new_tokens": settings.new_tokens,
        "rounds": settings.rounds,
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT,
        "cells": cells,
    }


def _cell(
    times: Timed,
    router: Sequence[float],
    steps: Sequence[Chain],
    arms: dict[str, list[Chain]],
    by_arm: dict[str, list[ArmResult]],
    batch: int,
    prompt_tokens: int,
) -> dict[str, Any]:
    """Return what was found for one size of batch."""
    depths = [chain.depth for chain in steps]
    profile = LatencyProfile(
        steps[0].num_layers,
        batch,
        prompt_tokens,
        Line.through(depths, [float(np.median(times[chain].prefill)) for chain in steps]),
        Line.through(depths, [float(np.median(times[chain].decode)) for chain in steps]),
        float(np.median(router)),
    )
    peaks = [one.peak_bytes for one in times.values() if one.peak_bytes is not None]
    return {
        "profile": asdict(profile),
        "router_ms": spread_of([1000 * one for one in router]),
        "peak_bytes": max(peaks, default=None),
        "arms": [
            {"name": name, **latency_of(times, arms[name], by_arm[name], router if is_routed(name) else None)}
            for name in arms
        ],
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
