"""Make a prior for later searches, once, from what is known already.

    python -m search.priors --kind redundancy --data runs/demo/data --prefix_layers 12 --out runs/prior.json
    python -m search.priors --kind records --records runs/demo/search/train.jsonl --out runs/prior.json
    python -m search.priors --kind router --router runs/demo/router --data runs/demo/data --out runs/prior.json

The file is frozen: a search names it (`--prior`), its SHA-256 is part of the search's settings, and a search of another
model, prompt or prefix refuses it; another prompt it takes where it is told so (`--prior_of_other_task true`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.accuracy import ModelSettings, open_scorer
from data.records import read_records
from data.sample import SPLITS, read_samples
from router.command import InputError, parse_settings, provenance, run_command
from router.durable import sha256_file, writable_directory
from router.storage import WEIGHTS_FILE, load_router
from search.prior_file import ModelPrior, write_prior
from search.prior_sources import (
    LayerWeights,
    chosen_chains,
    from_records,
    from_redundancy,
    router_outputs,
    split_common,
    weights_of_output,
)

REDUNDANCY_SAMPLES = 128
"""Samples that tell how redundant layers are, unless the settings say otherwise."""


@dataclass(frozen=True)
class PriorSettings:
    """Settings of `python -m search.priors`.

    Attributes:
        kind: "redundancy": how often skipping or repeating a single layer keeps full depth's answer; "records": how
            often chains of an earlier search were right; "router": what a trained router of any head thinks of each
            sample.
        out: the file to write.
        strength: factor on all log weights; 0 makes layers alike, above 1 sharpens.
        records: record file of the earlier search, of a training split (kind records).
        known: chains to keep as known, at most: those that solved most samples (kind records), or those that the router
            chooses for most (kind router).
        router: folder of the router (kind router).
        data: folder of `python -m data prepare` (kinds redundancy and router).
        split: split to measure or to route; never the test split for redundancy.
        more_splits: further splits to route into the same file, since a search has one prior (kind router).
        budget: mean depth at which the router ranks chains and chooses the known ones, layers; null: its own choice,
            which of a menu head is mostly full depth (kind router).
        common: give all samples the mean of the routed samples' weights, and each routed sample its difference from it,
            so that the prior says something of samples of another task too; otherwise samples that were not routed have
            neutral weights (kind router).
        prefix_layers: layers that run unedited in every chain: of kind redundancy; of kind router at most the router's,
            null: the router's. Records know it.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        dtype: dtype of the model: float32, bfloat16 or float16.
        device: torch device, or auto.
        limit: samples of a split at most, the first ones; null: all, of kind redundancy the first 128.
    """

    kind: Literal["redundancy", "records", "router"]
    out: Path
    strength: float = 1.0
    records: Path | None = None
    known: int = 32
    router: Path | None = None
    data: Path | None = None
    split: str = "train"
    more_splits: tuple[str, ...] = ()
    budget: float | None = None
    common: bool = False
    prefix_layers: int | None = None
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        needed = {"redundancy": ("data", "prefix_layers"), "records": ("records",), "router": ("router", "data")}
        for name in needed[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: expected a value with kind {self.kind}, got none")
        if self.kind == "redundancy" and self.split == "test":
            raise ValueError("split: expected train or validation, got test, of which nothing may be learnt")
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength: expected a finite number of at least 0, got {self.strength}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")
        if self.data is not None:
            self.model_settings()  # refuses what it refuses
        if self.known < 0:
            raise ValueError(f"known: expected at least 0, got {self.known}")
        splits = (self.split, *self.more_splits)
        if not set(splits) <= set(SPLITS) or len(set(splits)) < len(splits):
            raise ValueError(f"more_splits: expected others of {', '.join(SPLITS)}, got {list(self.more_splits)}")

    def model_settings(self) -> ModelSettings:
        """Return the model and samples that are named."""
        assert self.data is not None
        return ModelSettings(
            data=self.data,
            out=self.out.parent,
            model=self.model,
            revision=self.revision,
            split=self.split,
            dtype=self.dtype,
            device=self.device,
            limit=REDUNDANCY_SAMPLES if self.limit is None and self.kind == "redundancy" else self.limit,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    settings, plain = parse_settings(PriorSettings, argv, "search.priors", "Make a prior for later searches.")
    writable_directory(settings.out.parent, "out")
    made = {"records": _of_records, "redundancy": _of_redundancy, "router": _of_router}[settings.kind]
    prior = made(settings, provenance(plain))
    write_prior(settings.out, prior)
    print(_summary(prior))
    print(f"prior: {settings.out} (sha256 {prior.sha256[:16]})")


def _of_records(settings: PriorSettings, source: dict[str, Any]) -> ModelPrior:
    assert settings.records is not None
    records = read_records(settings.records)[: settings.limit]
    if {record.split for record in records} == {"test"}:
        raise InputError("records: expected those of a training split, got the test split's")
    if any(record.reward_target != "gold" for record in records):
        raise InputError("records: expected a search told the right answers, got the control's, told wrong ones")
    first = records[0]
    for record in records:
        record.fingerprints.require(first.fingerprints, f"records: {settings.records}")
        if record.prefix_layers != first.prefix_layers:
            raise InputError(f"records: expected one prefix_layers in {settings.records}, got several")
    weights, known = from_records(records, settings.known)
    return ModelPrior(
        kind="records",
        num_layers=first.num_layers,
        prefix_layers=first.prefix_layers,
        fingerprints=first.fingerprints,
        source=source | {"records_sha256": sha256_file(settings.records), "samples": len(records)},
        skip=weights.scaled(settings.strength).skip,
        repeat=weights.scaled(settings.strength).repeat,
        known=known,
    )


def _of_redundancy(settings: PriorSettings, source: dict[str, Any]) -> ModelPrior:
    assert settings.prefix_layers is not None
    scorer, samples = open_scorer(settings.model_settings())
    if not 0 <= settings.prefix_layers < scorer.num_layers:
        raise InputError(f"prefix_layers: expected 0..{scorer.num_layers - 1}, got {settings.prefix_layers}")
    weights = from_redundancy(scorer, samples, settings.prefix_layers).scaled(settings.strength)
    return ModelPrior(
        kind="redundancy",
        num_layers=scorer.num_layers,
        prefix_layers=settings.prefix_layers,
        fingerprints=scorer.fingerprints,
        source=source | {"samples": len(samples)},
        skip=weights.skip,
        repeat=weights.repeat,
    )


def _of_router(settings: PriorSettings, source: dict[str, Any]) -> ModelPrior:
    assert settings.router is not None
    assert settings.data is not None
    scorer, samples = open_scorer(settings.model_settings())
    for split in settings.more_splits:
        samples += read_samples(settings.data / f"{split}.jsonl", f"data: {split}")[: settings.limit]
    router = load_router(settings.router, scorer.fingerprints)
    head, prefix = router.head, router.config.prefix_layers
    if settings.prefix_layers is not None and not 0 <= settings.prefix_layers <= prefix:
        raise InputError(f"prefix_layers: expected 0..{prefix}, where the router reads, got {settings.prefix_layers}")
    try:
        offset = head.offset_for(settings.budget)
    except ValueError as error:
        raise InputError(str(error)) from error
    output = router_outputs(router, scorer, samples)
    own = [weights.scaled(settings.strength) for weights in weights_of_output(head, output, offset)]
    neutral = (0.0,) * scorer.num_layers
    common = LayerWeights(neutral, neutral)
    if settings.common:
        common, own = split_common(own)
    return ModelPrior(
        kind="router",
        num_layers=scorer.num_layers,
        prefix_layers=prefix if settings.prefix_layers is None else settings.prefix_layers,
        fingerprints=scorer.fingerprints,
        source=source | {"weights_sha256": sha256_file(settings.router / WEIGHTS_FILE), "samples": len(samples)},
        skip=common.skip,
        repeat=common.repeat,
        known=chosen_chains(head, output, offset, settings.known),
        samples={sample.id: (one.skip, one.repeat) for sample, one in zip(samples, own, strict=True)},
    )


def _summary(prior: ModelPrior) -> str:
    """Return what the prior prefers, in a line."""
    if prior.samples:
        return f"{prior.kind}: log weights of {len(prior.samples)} samples; {len(prior.known)} known chains"
    editable = range(prior.prefix_layers, prior.num_layers)
    best = sorted(editable, key=lambda layer: -prior.skip[layer])[:5]
    liked = ", ".join(f"{layer} ({prior.skip[layer]:+.2f})" for layer in best)
    return f"{prior.kind}: layers liked most to skip {liked}; {len(prior.known)} known chains"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
