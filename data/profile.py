"""The read-layer profile of a model on prepared samples: at which layer a router can read what the model will do.

`python -m data profile --data runs/mine/data --model smollm2-135m-instruct --out runs/mine/profile`

One pass over the samples: states at every layer, full depth's answers, and what each skip keeps. The executor shares
chain prefixes within a block, so the states at all layers cost one run of the model, and a chain that skips layer l is
computed from layer l+1 on. `data.probes` says what the states know.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from data.accuracy import MeasureSettings, identity_of
from data.figures import save_figure
from data.probes import CHANCE, Measure, Observations, Profile, Skip, probe
from data.records import ChainResult, agrees
from data.sample import Sample, Split
from data.scoring import ChainScorer, batches_by_length, open_scorer
from data.statistics import greatest_probability
from data.store import differences
from router.chain import Chain
from router.command import one_line, provenance
from router.engine.load import DEFAULT_MODEL
from router.files import read_json, replacing, sha256_json, writable_directory, write_json
from router.validation import SETTINGS, Count, InputError, Positive

CHUNK = 64
"""Samples observed between two writes."""
JOBS_PER_CALL = 256
"""(Sample, chain) pairs run at once, which bounds the memory of their last states; shared prefixes stay cached."""
PROFILE_FILE, FIGURE_FILE, IDENTITY_FILE = "profile.json", "profile.png", "identity.json"
# Colours that differ for colour-blind readers too (Okabe and Ito 2008); line style and marker say the same once more.
PROBE, REFERENCE, CHOSEN, GUESS = "#0072B2", "#D55E00", "#009E73", "#777777"
PANELS = {
    "confidence": "r with full depth's\nconfidence",
    "correct": "AUC, full depth\nis right",
    "kept": "AUC, skip keeps\nthe answer",
}


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ProfileSettings(MeasureSettings):
    """Settings of `python -m data profile`.

    Attributes:
        first_skip: first of the single layers whose skip is tried; null: the model's middle.
        folds: folds of the cross-validation.
        components: principal components that the probe reads.
        resamples: bootstrap resamples.
        seed: draws folds, permutations and resamples.
    """

    split: Split = "train"
    first_skip: int | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    components: Positive = 64
    resamples: Annotated[int, Field(ge=2)] = 1000
    seed: Count = 0


def run_profile(settings: ProfileSettings, resolved: dict[str, Any]) -> None:
    """Observe the model, fit the probes, and write `profile.json` and the figure; prints the table.

    Raises:
        InputError: at bad input.
    """
    model = settings.model or DEFAULT_MODEL
    scorer, samples = open_scorer(
        settings, settings.data, settings.split, limit=settings.limit, batch_tokens=settings.batch_tokens
    )
    n = scorer.num_layers
    first = n // 2 if settings.first_skip is None else settings.first_skip
    if not 1 <= first < n:
        raise InputError(f"first_skip: expected 1..{n - 1}, got {first}")
    if len(samples) < 4 * settings.folds:
        raise InputError(f"folds: expected at least 4 samples each, got {len(samples)} for {settings.folds} folds")
    skips = [(layer,) for layer in range(first, n)]
    identity = {**identity_of(settings, scorer, samples), "first_skip": first}
    _claim(settings.out, identity)
    found = probe(
        observe_in_chunks(scorer, samples, skips, settings, sha256_json(identity)),
        folds=settings.folds,
        seed=settings.seed,
        components=settings.components,
        resamples=settings.resamples,
    )
    content = {**provenance(resolved | {"model": model}), "identity": identity, "profile": found.to_json()}
    write_json(settings.out / PROFILE_FILE, content)
    title = f"{model}, {scorer.tasks.name} ({scorer.tasks.mode}), n = {len(samples)}"
    figures = draw_profile(found, title, settings.out / FIGURE_FILE)
    print(table(found))
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")
    print("written to " + ", ".join(map(str, (settings.out / PROFILE_FILE, *figures))))


def _claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder one profile's own.

    Raises:
        InputError: where it holds another one, or cannot be written.
    """
    path = writable_directory(out, "out") / IDENTITY_FILE
    if not path.exists():
        write_json(path, identity)
    elif differing := differences(read_json(path), identity):
        raise InputError(
            f"out: expected an empty folder or one of the same settings and inputs, got {str(out)!r} "
            f"of another {', '.join(differing[:3])}"
        )


def observe_in_chunks(
    scorer: ChainScorer, samples: Sequence[Sample], skips: Sequence[Skip], settings: ProfileSettings, key: str
) -> Observations:
    """Observe the samples, some at a time, and keep each chunk in a file; a run that was stopped goes on after it.

    Args:
        scorer: runs chains.
        samples: the samples.
        skips: layers to leave out.
        settings: where the chunks go, and samples in a block.
        key: of the measurement; a chunk of another one is made anew.

    Raises:
        InputError: as `observe`.
    """
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
    return Observations(
        scorer.num_layers,
        {e: np.concatenate([part.features[e] for part in parts]) for e in parts[0].features},
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.correct for part in parts]),
        {skip: np.concatenate([part.kept[skip] for part in parts]) for skip in skips},
    )


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


def observe(
    scorer: ChainScorer, samples: Sequence[Sample], skips: Sequence[Skip], batch_samples: int = 16
) -> Observations:
    """Run full depth and every skip on every sample, and read the states at every layer; shows a progress bar.

    Args:
        scorer: runs chains on the samples.
        samples: the samples, at least one.
        skips: sets of layers to leave out, each once, ascending and within 1..num_layers-1: layer 0 runs in every
            chain that a router picks, since it reads the states after one layer or more.
        batch_samples: samples in one block; it changes speed and memory, not the result (but for rounding).

    Raises:
        InputError: where a sample cannot be asked, or the model gives a number that is not finite.
    """
    n = scorer.num_layers
    encoded = scorer.encode_all(samples)
    features = {e: np.empty((len(samples), 2 * scorer.d_model), np.float32) for e in range(1, n)}
    confidence = np.empty(len(samples))
    correct = np.empty(len(samples), np.bool_)
    kept = {skip: np.empty(len(samples), np.bool_) for skip in skips}
    full = Chain.full(n)
    chains = {skip: without(skip, n) for skip in skips}
    # Neighbours in this order share the most layers, so little must be held for them.
    ordered = sorted([full, *chains.values()], key=lambda chain: chain.layers)
    with tqdm(total=len(samples) * len(ordered), desc="observe", unit="chain") as progress:
        for batch in batches_by_length([sample.length for sample in encoded], batch_samples):
            block = scorer.load([encoded[i] for i in batch])
            for e in range(1, n):
                for i, sample, state in zip(batch, block.samples, scorer.states(block, e), strict=True):
                    # The prompt's last token, after which the answer begins, beside the mean over tokens.
                    state = state.float()
                    features[e][i] = torch.cat([state[len(sample.prompt) - 1], state.mean(0)]).cpu().numpy()
            jobs = [(j, chain) for chain in ordered for j in range(len(batch))]
            results: dict[tuple[int, Chain], ChainResult] = {}
            for start in range(0, len(jobs), JOBS_PER_CALL):
                part = jobs[start : start + JOBS_PER_CALL]
                results |= dict(zip(part, scorer.score(block, part), strict=True))
                progress.update(len(part))
            for j, i in enumerate(batch):
                answer = results[j, full]
                confidence[i] = confidence_of(samples[i], answer)
                correct[i] = answer.correct
                for skip, chain in chains.items():
                    kept[skip][i] = agrees(results[j, chain], answer)
    try:
        return Observations(n, features, confidence, correct, kept)
    except ValueError as error:
        raise InputError(f"dtype: in {scorer.dtype}: {one_line(error)}") from error


def without(skip: Skip, num_layers: int) -> Chain:
    """Return the full chain without the given layers, which ascend."""
    chain = Chain.full(num_layers)
    for layer in reversed(skip):
        chain = chain.skip(layer, 1)  # above it nothing has moved yet
    return chain


def confidence_of(sample: Sample, result: ChainResult) -> float:
    """Return the probability that a result gives to its own answer, in 0..1.

    With choices it is the softmax over their scores at the prediction. A free answer's scores are the log-probabilities
    (nats) of the right answer's tokens, so it is the probability of that answer. Without scores (mode "generate") it is
    NaN.
    """
    if not result.scores:
        return math.nan
    if not sample.choices:
        return math.exp(math.fsum(result.scores))
    return greatest_probability(result.scores)


def table(profile: Profile) -> str:
    """Return a profile for a terminal: one line a layer, then what a reader must know with it."""
    heads = ("e", "editable", "r(confidence)", "AUC(correct)", "AUC(kept)", "AUC(kept) of confidence")
    rows: list[tuple[str, ...]] = [heads]
    missing: dict[str, list[int]] = {}
    for one in profile.layers:
        measures = (one.confidence, one.correct, one.kept, one.by_confidence)
        rows.append((f"{one.read_layer}", f"{one.editable}", *map(str, measures)))
        for name, measure in zip(PANELS, measures[:3], strict=True):
            if measure.reason is not None:
                missing.setdefault(f"no {name}: {measure.reason}", []).append(one.read_layer)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    means = ", ".join(f"{name} {'-' if at is None else f'{at:.3f}'}" for name, at in profile.permuted.items())
    return "\n".join(
        [
            *lines,
            f"{profile.samples} samples, full depth right on {profile.accuracy:.3f}; [95 % bootstrap interval]",
            f"targets permuted (near 0, 0.5, 0.5 unless something leaks): {means}",
            "the last column is known only after the last layer: a reference, not a read layer",
            *(f"e = {', '.join(map(str, layers))}: {why}" for why, layers in missing.items()),
            f"suggestion: {profile.suggestion.reason}",
        ]
    )


def draw_profile(profile: Profile, title: str, path: Path) -> list[Path]:
    """Draw a profile as PNG and SVG, each complete or absent; returns the files.

    Args:
        profile: the profile.
        title: what was profiled: model, task, mode.
        path: the files' path; its suffix gives way to .png and .svg.
    """
    paths = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    return save_figure(lambda: draw(profile, title), paths, "profile")


def draw(profile: Profile, title: str) -> Figure:
    """Return the figure: a panel a measure over the read layers, chance as a dashed line, the suggestion marked."""
    figure = Figure(figsize=(7.5, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    layers = [one.read_layer for one in profile.layers]
    chosen = profile.suggestion
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        _band(axes, layers, [getattr(one, name) for one in profile.layers], "probe", PROBE, "o")
        if name == "kept":
            reference = [one.by_confidence for one in profile.layers]
            _band(axes, layers, reference, "full depth's confidence", REFERENCE, "^")
        axes.axhline(CHANCE[name], color=GUESS, linestyle="--", linewidth=1, zorder=0, label="chance")
        if chosen.read_layer is not None:
            mark = f"suggested e = {chosen.read_layer}" + (", by this panel" if chosen.measure == name else "")
            axes.axvline(chosen.read_layer, color=CHOSEN, linestyle=":", linewidth=1.8, zorder=0, label=mark)
        axes.set_ylabel(label)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(f"read layer e: layers that have run when the states are read (of {profile.num_layers})")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(
        f"{title}\nn = {profile.samples}, full depth right on {profile.accuracy:.3f}; bands: 95 % bootstrap intervals",
        fontsize=9,
    )
    return figure


def _band(axes: Axes, layers: list[int], found: list[Measure], label: str, colour: str, marker: str) -> None:
    """Draw one measure over the read layers, its interval as a band; a layer without a value leaves a gap."""
    values = [np.nan if one.value is None else one.value for one in found]
    low, high = np.array([one.interval or (np.nan, np.nan) for one in found]).reshape(-1, 2).T
    axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(layers, values, color=colour, marker=marker, markersize=3.5, linewidth=1.3, label=label)
