"""The read-layer profile of a model on prepared samples: at which layer a router can read what the model will do.

`python -m data profile --data runs/mine/data --model smollm2-135m-instruct --out runs/mine/profile`

One pass over the samples: states at every layer, full depth's answers, and what each skip keeps. The executor shares
chain prefixes within a block, so the states at all layers cost one run of the model, and a chain that skips layer l is
computed from layer l+1 on. `data.probes` says what the states know. The same chains answer each sample in some variants
besides; `data.headroom` says from them whether there is something to route.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from data.accuracy import MeasureSettings, identity_of
from data.encoding import EncodedSample, batches_by_length
from data.figures import BLUE, GREEN, GREY, VERMILLION, save_figure, tidy
from data.headroom import FOLDS, Headroom
from data.pool import Batch, Pool, Report, States, Task, Tick, run_batches
from data.probes import CHANCE, Measure, Observations, Profile, Skip, probe
from data.records import ChainResult, agrees
from data.sample import Sample, Split
from data.scoring import ChainScorer, SampleBlock, in_parts
from data.states import StatesOrigin, read_states, write_states
from data.statistics import greatest_probability
from data.store import Store
from router.chain import Chain
from router.command import provenance
from router.engine.load import DEFAULT_MODEL
from router.files import sha256_json, writable_directory, write_json
from router.validation import SETTINGS, STORED, Count, InputError, Positive, Share, to_plain

VARIANTS = 3
"""Variants, where the settings name no number."""
ANSWERS_FILE, PROFILE_FILE, FIGURE_FILES = "answers.jsonl", "profile.json", ("profile.png", "profile.svg")
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
        variants: variants in which each sample is asked, the usual one among them; the answers to the others say
            whether there is something to route, and cost as much each as the usual ones. null: 3, or fewer
            where a sample has no more.
        folds: folds of the cross-validation.
        components: principal components that the probe reads.
        resamples: bootstrap resamples.
        seed: draws folds, permutations and resamples.
    """

    split: Split = "train"
    first_skip: int | None = None
    variants: Positive | None = None
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
    scorer, samples = settings.opened()
    n = scorer.num_layers
    first = n // 2 if settings.first_skip is None else settings.first_skip
    if not 1 <= first < n:
        raise InputError(f"first_skip: expected 1..{n - 1}, got {first}")
    if len(samples) < 4 * settings.folds:
        raise InputError(f"folds: expected at least 4 samples each, got {len(samples)} for {settings.folds} folds")
    skips = [(layer,) for layer in range(first, n)]
    variants = variants_of(scorer, samples, settings.variants)
    identity = {**identity_of(settings, scorer, samples), "first_skip": first}
    identity |= {"variants": variants} if variants > 1 else {}
    # In this order, which is no data set's, folds are dealt.
    samples = sorted(samples, key=lambda one: hashlib.sha256(one.id.encode()).digest())
    with settings.pool() as pool:
        observed = observe(scorer, samples, skips, settings.out, identity, settings.batch_samples, pool, variants)
    found = probe(
        observed,
        folds=settings.folds,
        seed=settings.seed,
        components=settings.components,
        resamples=settings.resamples,
    )
    content = {**provenance(resolved | {"model": model}), "identity": identity, "profile": found.to_json()}
    headroom = headroom_of(samples, observed, settings.seed)
    if headroom is not None:
        content["headroom"] = to_plain(headroom)
    write_json(settings.out / PROFILE_FILE, content)
    title = f"{model}, {scorer.tasks.name} ({scorer.tasks.mode}), n = {len(samples)}"
    figures = save_figure(partial(draw, found, title), [settings.out / name for name in FIGURE_FILES], "profile")
    print(table(found))
    print("headroom: not measured (--variants)" if headroom is None else f"headroom: {headroom.advice}")
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")
    print("written to " + ", ".join(map(str, (settings.out / PROFILE_FILE, *figures))))


def variants_of(scorer: ChainScorer, samples: Sequence[Sample], wanted: int | None) -> int:
    """Return in how many variants the samples are asked: as many as wanted, or at most `VARIANTS` where they have them.

    Raises:
        InputError: where a sample has fewer variants than are wanted.
    """
    for variant in range(1, wanted or VARIANTS):
        try:
            scorer.encode_all(samples, variant=variant)
        except InputError:
            if wanted is None:
                return variant
            raise
    return wanted or VARIANTS


def headroom_of(samples: Sequence[Sample], observed: Observations, seed: int) -> Headroom | None:
    """Return what a router could reach with the chains that were tried; None: no variants, or too few samples."""
    if observed.margins is None or len(samples) < FOLDS:
        return None
    depths = np.array([observed.num_layers, *(observed.num_layers - len(skip) for skip in observed.kept)])
    ids, tasks = [one.id for one in samples], [one.task for one in samples]
    return Headroom.crossed(ids, tasks, observed.margins, depths, seed)


@dataclass(frozen=True, config=STORED)
class Observed:
    """What full depth and the skips answer to one sample, a line of `answers.jsonl`.

    Attributes:
        sample_id: `Sample.id`.
        confidence: the probability of full depth's answer (`confidence_of`); null: the mode gives no scores.
        correct: whether full depth is right.
        kept: whether each skip, in the run's order, answers as full depth does.
        margins: for each variant the margin of full depth and of each skip, in the run's order, above 0 where right;
            left out with one variant.
    """

    sample_id: str
    confidence: Share | None
    correct: bool
    kept: tuple[bool, ...]
    margins: Annotated[tuple[tuple[float, ...], ...], Field(exclude_if=operator.not_)] = ()


def observe(
    scorer: ChainScorer,
    samples: Sequence[Sample],
    skips: Sequence[Skip],
    out: Path,
    identity: Mapping[str, Any],
    batch_samples: int = 32,
    pool: Pool | None = None,
    variants: int = 1,
) -> Observations:
    """Run full depth and every skip on every sample, and read the states at every layer; shows a progress bar.

    Answers and states are kept batch by batch; what stands in the folder is not run again.

    Args:
        scorer: runs chains on the samples.
        samples: the samples, at least one.
        skips: sets of layers to leave out, each once, ascending and within 1..num_layers-1: layer 0 runs in every
            chain that a router picks, since it reads the states after one layer or more.
        out: the folder.
        identity: what the answers are of.
        batch_samples: samples in one block; it changes speed and memory, not the result (but for rounding).
        pool: where the chains run; None: in this process.
        variants: variants in which the chains answer each sample, the usual one among them.

    Raises:
        InputError: where a sample cannot be asked, the model gives a number that is not finite, or the folder holds
            answers of another identity.
    """
    encoded = [scorer.encode_all(samples, variant=variant) for variant in range(variants)]
    chains = [Chain.full(scorer.num_layers), *(without(skip, scorer.num_layers) for skip in skips)]
    ids = [sample.id for sample in samples]
    layers = range(1, scorer.num_layers)
    folder, origin = writable_directory(out, "out") / "states", StatesOrigin(scorer.fingerprints, scorer.dtype)

    def work(batch: Batch[EncodedSample], report: Report) -> list[Observed]:
        n = len(batch.keys)
        usual, *others = (batch.items[start : start + n] for start in range(0, len(batch.items), n))
        block = scorer.load(usual)
        report.keep({e: dict(zip(batch.keys, features_at(scorer, block, e), strict=True)) for e in layers})
        answers = [answers_of(scorer, block, chains, report.tick)]
        answers += [answers_of(scorer, scorer.load(items), chains, report.tick) for items in others]
        return [observed_of(one, of_sample) for one, *of_sample in zip(usual, *answers, strict=True)]

    def keep(name: str, states: States) -> None:
        write_states(folder / f"{name}.safetensors", origin, states)

    batches = []
    for places in batches_by_length([one.length for one in encoded[0]], batch_samples):
        keys = tuple(ids[i] for i in places)
        items = tuple(of_variant[i] for of_variant in encoded for i in places)
        batches.append(Batch(sha256_json(keys)[:16], items, keys, len(items) * len(chains)))
    store = Store(out / ANSWERS_FILE, Observed, identity, _key_of)
    there = set.intersection(*(set(read_states([folder], origin, ids, e)) for e in layers))
    for batch in batches:
        if any(key in store and key not in there for key in batch.keys):
            work(batch, Report(lambda _: None, partial(keep, batch.name)))  # the states were deleted or damaged
    run_batches(store, batches, Task(work, _key_of, scorer, keep), label="observe", unit="chain", pool=pool)
    store.finish(ids)
    rows = list(store.rows())
    features = {}
    for e in layers:
        states = read_states([folder], origin, ids, e)
        features[e] = np.stack([states[one].numpy() for one in ids])
    return Observations(
        scorer.num_layers,
        features,
        np.array([math.nan if row.confidence is None else row.confidence for row in rows]),
        np.array([row.correct for row in rows]),
        {skip: np.array([row.kept[j] for row in rows]) for j, skip in enumerate(skips)},
        np.array([row.margins for row in rows]).transpose(1, 0, 2) if variants > 1 else None,
    )


def _key_of(row: Observed) -> str:
    return row.sample_id


def features_at(scorer: ChainScorer, block: SampleBlock, read_layer: int) -> list[Float[Tensor, " features"]]:
    """Return for each sample of a block what a probe reads at a layer, `[2 * d_model]`, float32.

    It is the state of the prompt's last token, after which the answer begins, beside the mean over tokens.

    Raises:
        InputError: where a state is not finite.
    """
    found = []
    for sample, state in zip(block.samples, scorer.states(block, read_layer), strict=True):
        state = state.float()
        found.append(torch.cat([state[len(sample.prompt) - 1], state.mean(0)]).cpu())
        if not found[-1].isfinite().all():
            raise InputError(f"dtype: expected finite states at layer {read_layer} in {scorer.dtype}, got others")
    return found


def answers_of(scorer: ChainScorer, block: SampleBlock, chains: Sequence[Chain], tick: Tick) -> list[list[ChainResult]]:
    """Return what each chain answers on each sample of a block; `tick` is told of each chain on each sample."""
    # Neighbours in this order share the most layers, so little must be held for them.
    ordered = sorted(chains, key=lambda chain: chain.layers)
    jobs = [(j, chain) for chain in ordered for j in range(len(block.samples))]
    results = in_parts(scorer.score, block, jobs, tick)
    return [[results[j, chain] for chain in chains] for j in range(len(block.samples))]


def observed_of(encoded: EncodedSample, answers: Sequence[Sequence[ChainResult]]) -> Observed:
    """Return what is kept of a sample: answers in each variant, the usual one first, of full depth and each skip."""
    full, *skipped = answers[0]
    kept = tuple(agrees(result, full) for result in skipped)
    margins = tuple(tuple(result.margin for result in of_variant) for of_variant in answers)
    confidence = confidence_of(encoded.sample, full)
    return Observed(encoded.sample.id, confidence, full.correct, kept, margins if len(answers) > 1 else ())


def without(skip: Skip, num_layers: int) -> Chain:
    """Return the full chain without the given layers, which ascend."""
    chain = Chain.full(num_layers)
    for layer in reversed(skip):
        chain = chain.skip(layer, 1)  # above it nothing has moved yet
    return chain


def confidence_of(sample: Sample, result: ChainResult) -> float | None:
    """Return the probability that a result gives to its own answer, in 0..1.

    With choices it is the softmax over their scores at the prediction. A free answer's scores are the log-probabilities
    (nats) of the right answer's tokens, so it is the probability of that answer. Without scores (mode "generate") it is
    None.
    """
    if not result.scores:
        return None
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


def draw(profile: Profile, title: str) -> Figure:
    """Return the figure: a panel a measure over the read layers, chance as a dashed line, the suggestion marked."""
    figure = Figure(figsize=(7.5, 7.2), layout="constrained")
    panels = figure.subplots(len(PANELS), 1, sharex=True)
    layers = [one.read_layer for one in profile.layers]
    chosen = profile.suggestion
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        _band(axes, layers, [getattr(one, name) for one in profile.layers], "probe", BLUE, "o")
        if name == "kept":
            reference = [one.by_confidence for one in profile.layers]
            _band(axes, layers, reference, "full depth's confidence", VERMILLION, "^")
        axes.axhline(CHANCE[name], color=GREY, linestyle="--", linewidth=1, zorder=0, label="chance")
        if chosen.read_layer is not None:
            mark = f"suggested e = {chosen.read_layer}" + (", by this panel" if chosen.measure == name else "")
            axes.axvline(chosen.read_layer, color=GREEN, linestyle=":", linewidth=1.8, zorder=0, label=mark)
        axes.set_ylabel(label)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
        tidy(axes)
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
