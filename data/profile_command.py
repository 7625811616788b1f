"""The read-layer profile of a model on prepared samples.

`python -m data profile --data runs/mine/data --model smollm2-135m-instruct --out runs/mine/profile`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data.accuracy import ModelSettings, claim, open_scorer
from data.observe import Observations, Skip, observe
from data.profile import profile
from data.profile_figure import draw_profile
from data.sample import Sample
from data.scoring import ChainScorer
from router.command import InputError, one_line, provenance
from router.durable import replacing, sha256_json, write_json

CHUNK = 64
"""Samples observed between two writes."""
PROFILE_FILE, FIGURE_FILE = "profile.json", "profile.png"


@dataclass(frozen=True)
class ProfileSettings(ModelSettings):
    """Settings of `python -m data profile`.

    Attributes:
        first_skip: first of the single layers whose skip is tried; null: the model's middle.
        folds: folds of the cross-validation.
        components: principal components that the probe reads.
        resamples: bootstrap resamples.
        seed: draws folds, permutations and resamples.
    """

    split: str = "train"
    first_skip: int | None = None
    folds: int = 5
    components: int = 64
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        super().__post_init__()
        for name, least in (("folds", 2), ("components", 1), ("resamples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


def run_profile(settings: ProfileSettings, resolved: dict[str, Any]) -> None:
    """Observe the model, fit the probes, and write `profile.json` and the figure; prints the table.

    Raises:
        InputError: at bad input.
    """
    scorer, samples = open_scorer(settings)
    n = scorer.num_layers
    first = n // 2 if settings.first_skip is None else settings.first_skip
    if not 1 <= first < n:
        raise InputError(f"first_skip: expected 1..{n - 1}, got {first}")
    if len(samples) < 4 * settings.folds:
        raise InputError(f"folds: expected at least 4 samples each, got {len(samples)} for {settings.folds} folds")
    skips = [(layer,) for layer in range(first, n)]
    identity = claim(settings, scorer, samples, {"first_skip": first})
    observations = observe_in_chunks(scorer, samples, skips, settings, sha256_json(identity))
    found = profile(
        observations,
        folds=settings.folds,
        seed=settings.seed,
        components=settings.components,
        resamples=settings.resamples,
    )
    content = {**provenance(resolved), "identity": identity, "profile": found.to_json()}
    write_json(settings.out / PROFILE_FILE, content)
    title = f"{settings.model}, {scorer.tasks.name} ({scorer.tasks.mode}), n = {len(samples)}"
    figures = draw_profile(found, title, settings.out / FIGURE_FILE)
    print(found.table())
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")
    print("written to " + ", ".join(map(str, (settings.out / PROFILE_FILE, *figures))))


def observe_in_chunks(
    scorer: ChainScorer, samples: Sequence[Sample], skips: Sequence[Skip], settings: ProfileSettings, key: str
) -> Observations:
    """Observe the samples, a file for every `CHUNK` of them; files that are there are not made again."""
    folder = settings.out / "observations"
    folder.mkdir(exist_ok=True)
    parts = []
    # Chunks in an order that is no data set's, so that each is a fair share of lengths and tasks.
    order = sorted(samples, key=lambda sample: hashlib.sha256(sample.id.encode()).digest())
    for start in range(0, len(order), CHUNK):
        path = folder / f"{start:06d}.safetensors"
        part = _read(path, key, scorer.num_layers, skips)
        if part is None:
            part = observe(scorer, order[start : start + CHUNK], skips, settings.batch_samples)
            _write(path, key, part)
        parts.append(part)
    try:
        return Observations(
            scorer.num_layers,
            {e: np.concatenate([part.features[e] for part in parts]) for e in parts[0].features},
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.correct for part in parts]),
            {skip: np.concatenate([part.kept[skip] for part in parts]) for skip in skips},
        )
    except ValueError as error:
        raise InputError(f"out: {one_line(error)}") from error


def _write(path: Path, key: str, part: Observations) -> None:
    arrays = {f"features.{e}": array for e, array in part.features.items()}
    arrays |= {f"kept.{json.dumps(skip)}": array.astype(np.uint8) for skip, array in part.kept.items()}
    arrays |= {"confidence": part.confidence, "correct": part.correct.astype(np.uint8)}
    with replacing(path) as aside:
        save_file(arrays, aside, metadata={"key": key})


def _read(path: Path, key: str, num_layers: int, skips: Sequence[Skip]) -> Observations | None:
    """Return a chunk that was observed before; None where there is none, or it is damaged or another's."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as stream:
            if (stream.metadata() or {}).get("key") != key:
                return None
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError:
        return None
    return Observations(
        num_layers,
        {e: arrays[f"features.{e}"] for e in range(1, num_layers)},
        arrays["confidence"],
        arrays["correct"].astype(np.bool_),
        {skip: arrays[f"kept.{json.dumps(skip)}"].astype(np.bool_) for skip in skips},
    )
