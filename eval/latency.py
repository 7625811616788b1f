"""Time the arms of an evaluation on this device: prefill and decoding, beside what their depth promises.

    python -m eval latency --evaluation runs/demo/eval --router runs/demo/router

All chains run in turns in one process, with equal prompts and equally many generated tokens. Writes `latency.json`
into the evaluation's folder and rebuilds its report. The profile in it (seconds as a line in depth) turns a latency
factor into a budget: `python -m eval --latency_factor 0.9 --latency_profile latency.json`.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import numpy as np
import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass as settings_dataclass
from rich.table import Table

from eval.arms import FULL, is_routed
from eval.results import RESULTS_FILE, ArmResult, read_arms, read_run
from eval.run import refresh
from eval.tables import console_for, number, table
from router.chain import Chain
from router.command import parse_settings, provenance
from router.decision import Router
from router.engine.load import context_of, load_model
from router.files import require_directory, sha256_file, write_json
from router.fingerprint import model_fingerprint
from router.latency import LATENCY_FILE, SCHEMA, ChainTimes, LatencyProfile, Line, ladder, time_chains, time_router
from router.progress import progress
from router.storage import WEIGHTS_FILE, load_router
from router.validation import SETTINGS, Count, InputError, Positive

Timed = Mapping[Chain, ChainTimes]
"""Times of every chain that was run."""
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit in which the system tells a process's greatest memory."""


@settings_dataclass(frozen=True, kw_only=True, config=SETTINGS)
class LatencySettings:
    """Settings of `python -m eval latency`.

    Attributes:
        evaluation: folder of `python -m eval`, finished; `latency.json` is written there.
        router: the router that was evaluated.
        device: torch device; auto: CUDA where there is one, else CPU.
        dtype: dtype of the base model; null: the evaluation's.
        batches: rows of a call; all rows of a call share a chain.
        new_tokens: tokens generated after the prompt, the same for every arm.
        prompt_tokens: tokens of a prompt; unset: the evaluation's median.
        rounds: timed rounds; every round runs every chain once.
        chains: chains timed of each arm; an arm with more gives those at equal steps of its depths.
        seed: draws prompts and the order of the chains.
    """

    evaluation: Path
    router: Path
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batches: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 8)
    new_tokens: Count = 16
    prompt_tokens: Positive | None = None
    rounds: Annotated[int, Field(ge=3)] = 9
    chains: Positive = 8
    seed: Count = 0

    @field_validator("batches")
    @classmethod
    def _different(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        """Refuse a size of batch that stands twice."""
        if len(set(batches)) != len(batches):
            raise ValueError(f"batches: expected each once, got {list(batches)}")
        return batches


def main(argv: Sequence[str] | None) -> None:
    """Time the arms, write `latency.json` and rebuild the report.

    Raises:
        InputError: at bad input.
    """
    description = "Time the arms of an evaluation on this device: prefill and decoding."
    settings, resolved = parse_settings(LatencySettings, argv, "eval latency", description)
    require_directory(settings.evaluation, "evaluation")
    require_directory(settings.router, "router")
    run = read_run(settings.evaluation)
    router = load_router(settings.router)
    evaluated, given = run.inputs[f"router/{WEIGHTS_FILE}"], sha256_file(settings.router / WEIGHTS_FILE)
    if given != evaluated:
        raise InputError(f"router: expected the one that was evaluated, with SHA-256 {evaluated}, got {given}")
    by_arm = read_arms(settings.evaluation)
    dtype = settings.dtype or run.model.dtype
    model, _ = load_model(run.model.name, dtype=dtype, device=settings.device, revision=run.model.revision)
    fingerprint = model_fingerprint(model)
    if run.fingerprints.model != fingerprint:
        raise InputError(f"evaluation: expected one of the model {fingerprint}, got one of {run.fingerprints.model}")
    made_of = {"model": fingerprint, "results_sha256": sha256_file(settings.evaluation / RESULTS_FILE)}
    content = {"schema": SCHEMA, **made_of, **measure(model, router, by_arm, settings)}
    write_json(settings.evaluation / LATENCY_FILE, content | provenance(resolved))
    refresh(settings.evaluation)
    print_latency(content, sys.stdout)
    print(f"written to {settings.evaluation / LATENCY_FILE}, report rebuilt")


def prompt_length(model: Any, results: Sequence[ArmResult], settings: LatencySettings) -> int:
    """Return the tokens of a timed prompt: as asked, else the median, or fewer where the model's positions end."""
    usual = settings.prompt_tokens or int(np.median([one.tokens for one in results]))
    positions, new = context_of(model), settings.new_tokens
    if positions is None:
        return usual
    if new >= positions:
        raise InputError(f"new_tokens: expected fewer than the model's {positions} positions, got {new}")
    if settings.prompt_tokens is not None and usual > positions - new:
        raise InputError(
            f"prompt_tokens: expected at most {positions - new} of the model's {positions} positions beside {new} new "
            f"tokens, got {usual}"
        )
    return min(usual, positions - new)


def measure(
    model: Any, router: Router, by_arm: dict[str, list[ArmResult]], settings: LatencySettings
) -> dict[str, Any]:
    """Return the content of `latency.json`, but for where it comes from."""
    arms = {name: chains_to_time([one.chain for one in results], settings.chains) for name, results in by_arm.items()}
    steps = ladder(router.config.num_layers)
    chains = list(dict.fromkeys([*steps, *(chain for of_arm in arms.values() for chain in of_arm)]))
    tokens = prompt_length(model, by_arm[FULL], settings)
    cells = []
    with progress(len(settings.batches) * len(chains) * settings.rounds, "latency", "call") as bar:
        for batch in settings.batches:
            sizes = {"batch": batch, "prompt_tokens": tokens, "rounds": settings.rounds, "seed": settings.seed}
            times = time_chains(model, chains, new_tokens=settings.new_tokens, progress=bar.update, **sizes)
            cells.append(_measured_cell(times, time_router(router, **sizes), steps, arms, by_arm, batch, tokens))
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


def _measured_cell(
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


def chains_to_time(chains: Sequence[Chain], count: int) -> list[Chain]:
    """Return chains that stand for an arm: all its different ones, or those at `count` equal steps of depth.

    A chain may stand there more than once: each entry stands for as many samples as another.

    Args:
        chains: the arm's chain of each sample.
        count: entries wanted where there are more different chains.
    """
    different = Counter(chains)
    if len(different) == 1:
        return list(different)
    ordered = sorted(chains, key=lambda chain: (chain.depth, chain.layers))
    if len(different) <= count:
        # Few chains, many samples: as many entries as keep the shares to a percent.
        count = min(100, len(ordered))
    return [ordered[int((i + 0.5) / count * len(ordered))] for i in range(count)]


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Return median and quartiles of rounds."""
    low, median, high = (float(one) for one in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high, "n": len(values)}


def latency_of(
    times: Timed, chains: Sequence[Chain], results: Sequence[ArmResult], router: Sequence[float] | None
) -> dict[str, Any]:
    """Return an arm's latency, and its ratio to full depth's of the same round.

    Args:
        times: times of the arm's chains and of the full one.
        chains: what `chains_to_time` gave.
        results: the arm's results.
        router: seconds of the router, an entry a round; None: the arm has none.
    """
    full = times[Chain.full(chains[0].num_layers)]
    prefill = np.mean([times[chain].prefill for chain in chains], 0)
    decode = np.mean([times[chain].decode for chain in chains], 0)
    overhead = np.zeros(len(prefill)) if router is None else np.asarray(router)
    decoded = bool(np.asarray(full.decode).any())
    mean_depth = sum(one.chain.depth for one in results) / len(results)
    return {
        "chains_timed": len(set(chains)),
        "mean_depth_timed": sum(chain.depth for chain in chains) / len(chains),
        "mean_depth": mean_depth,
        "depth_ratio": mean_depth / chains[0].num_layers,
        "prefill_ms": spread_of(1000 * (prefill + overhead)),
        "decode_ms_per_token": spread_of(1000 * decode) if decoded else None,
        "ratio_prefill": spread_of((prefill + overhead) / np.asarray(full.prefill)),
        "ratio_prefill_without_router": spread_of(prefill / np.asarray(full.prefill)),
        "ratio_decode": spread_of(decode / np.asarray(full.decode)) if decoded else None,
    }


def print_latency(content: dict[str, Any], stream: TextIO) -> None:
    """Print a table a size of batch."""
    console = console_for(stream)
    for cell in content["cells"]:
        profile = cell["profile"]
        console.print(
            f"{content['device']} ({content['device_name']}), {content['dtype']}, batch {profile['batch']}, prompts of "
            f"{profile['prompt_tokens']} tokens, {content['new_tokens']} new tokens, {content['rounds']} rounds; "
            f"medians (quartiles)"
        )
        console.print(_cell(cell))
        layer, fixed = 1000 * profile["prefill"]["layer"], 1000 * profile["prefill"]["fixed"]
        console.print(
            f"prefill: {fixed:.2f} ms + {layer:.2f} ms a layer (worst error {profile['prefill']['worst']:.1%}); "
            f"router {cell['router_ms']['median']:.2f} ms a batch"
        )


def _cell(cell: dict[str, Any]) -> Table:
    names = ("arm", "depth of full", "prefill ms", "of full depth", "without router", "ms a new token", "of full depth")
    rows = [
        [
            arm["name"],
            f"{arm['depth_ratio']:.3f}",
            _spread(arm["prefill_ms"], 1),
            _spread(arm["ratio_prefill"], 3),
            _spread(arm["ratio_prefill_without_router"], 3),
            _spread(arm["decode_ms_per_token"], 1),
            _spread(arm["ratio_decode"], 3),
        ]
        for arm in cell["arms"]
    ]
    return table(None, names, rows)


def _spread(value: dict[str, Any] | None, digits: int) -> str:
    return "-" if value is None else number(value["median"], (value["low"], value["high"]), f".{digits}f")
