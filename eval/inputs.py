"""Everything that an evaluation reads, checked before any model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings_dataclass

from data.manifest import MANIFEST, read_manifest
from data.pool import RunSettings
from data.records import SearchRecord, read_records
from data.sample import Sample, read_samples
from data.scoring import base_model
from data.splits import require_unseen
from data.tasks import TASKS_FILE, TaskSet, read_split, read_tasks
from data.tracking import TrackingSettings
from eval.arms import EARLY_EXIT, MIXTURE, PERMUTED, PRUNED, RANDOM, STATIC_BY_KIND, Baseline, budget_name
from eval.luck import require_random_search, require_same_search
from eval.measures import Above0
from router.decision import Router
from router.engine.load import ModelSettings, resolve_device
from router.files import require_directory, require_file, sha256_file
from router.fingerprint import Fingerprints
from router.storage import CONFIG_FILE, GUARANTEE_FILE, WEIGHTS_FILE, load_router
from router.validation import SETTINGS, Count, InputError, Positive, Share

SPLITS = ("train", "validation", "test")
"""Splits that an evaluation reads."""
CALIBRATION = "calibration"
"""A split that it only checks: its questions must not be test's."""
RECORD_SPLITS = ("train", "test")
"""Splits whose search records are needed: train for the static pool, test for the oracle."""


@settings_dataclass(frozen=True, kw_only=True, config=SETTINGS)
class EvalSettings(ModelSettings, RunSettings):
    """Settings of `python -m eval`; `data`, `out`, batches and the base model as everywhere.

    Attributes:
        records: folder of `python -m search`: train.jsonl (pool of the static chains) and test.jsonl (oracle).
        router: folder of a trained router.
        budget: mean depth that the router is asked for, layers; null: the router's own choice. The arms without
            training are matched with this arm.
        budget_share: in place of `budget`: how far between the shallowest (0) and the deepest (1) mean depth that was
            measured for the router.
        budgets: further mean depths, an arm each.
        latency_factor: in place of `budget`: time that a routed call may take, in units of full depth's.
        latency_profile: latency.json of `python -m eval latency`, measured on this device, for `latency_factor`.
        baselines: which of static_by_kind, mixture (of static chains), permuted (the router's chains, within kinds),
            random (a random chain of the router's depth), early_exit and pruned (ShortGPT) are arms besides; null: all
            of them with several tasks, with one those that do not tell kinds apart.
        random_search: folder of the records of a random search at the oracle's cost (test.jsonl), an arm; null: none.
        wrong_records: folder of the records of the oracle's search for a wrong answer (`--reward_target wrong`,
            test.jsonl): the report then says what of the oracle is luck; null: it does not.
        control_samples: test samples on which choices are reshuffled and labels verified by real generation; 0: none.
        reshuffles: other orders of the choices of each such sample.
        seed: draws the random chains and the bootstrap.
        static_pool: chains of each depth, of the search's and of the router's, that are candidates for the best
            static chain.
        static_trials: training samples that a candidate of the search should have been tried on; where a depth has
            too few such chains, less tried ones fill it up.
        tracking: Weights & Biases.
    """

    records: Path
    router: Path
    budget: Above0 | None = None
    budget_share: Share | None = None
    budgets: tuple[Above0, ...] = ()
    latency_factor: Above0 | None = None
    latency_profile: Path | None = None
    baselines: tuple[Baseline, ...] | None = None
    random_search: Path | None = None
    wrong_records: Path | None = None
    control_samples: Count = 0
    reshuffles: Annotated[int, Field(ge=1, le=999)] = 3
    seed: Count = 0
    static_pool: Positive = 4
    static_trials: Positive = 8
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse settings that contradict each other."""
        if (self.latency_factor is None) != (self.latency_profile is None):
            raise ValueError("latency_factor: expected it and latency_profile together, got one of them")
        wishes = [name for name in ("latency_factor", "budget_share", "budget") if getattr(self, name) is not None]
        if len(wishes) > 1:
            raise ValueError(f"{wishes[0]}: expected it or {wishes[1]}, got both")
        for name, given in (("budgets", self.budgets), ("baselines", self.baselines or ())):
            arms = {one if isinstance(one, str) else budget_name(one) for one in given}
            if len(arms) != len(given):
                raise ValueError(f"{name}: expected each once, got {list(given)}")
        return self

    def baselines_on(self, tasks: TaskSet) -> tuple[Baseline, ...]:
        """Return the baselines of a run on some tasks."""
        if self.baselines is not None:
            return self.baselines
        alone = (MIXTURE, RANDOM, EARLY_EXIT, PRUNED)
        return alone if len(tasks.tasks) == 1 else (*alone, STATIC_BY_KIND, PERMUTED)


@dataclass(frozen=True)
class Inputs:
    """What an evaluation works on.

    Attributes:
        tasks: the tasks that the samples were prepared with.
        samples: samples of each split.
        records: search records of `RECORD_SPLITS`, by split.
        random_search: records of a random search on test; None: not given.
        wrong: records of the search for wrong answers on test; None: not given.
        router: the trained router.
        hashes: SHA-256 of every file that was read, by a name that does not hang on where it lies.
        device: type of the torch device, "cpu" or "cuda".
    """

    tasks: TaskSet
    samples: dict[str, list[Sample]]
    records: dict[str, list[SearchRecord]]
    random_search: list[SearchRecord] | None
    wrong: list[SearchRecord] | None
    router: Router
    hashes: dict[str, str]
    device: str

    def require(self, expected: Fingerprints, settings: EvalSettings) -> None:
        """Check that router and records were made for this model, tokenizer and prompt.

        Raises:
            InputError: at the first that was made for another.
        """
        for split, records in self.records.items():
            records[0].fingerprints.require(expected, f"records {settings.records / f'{split}.jsonl'}")
        self.router.config.fingerprints.require(expected, f"router {settings.router}")


def read_inputs(settings: EvalSettings) -> Inputs:
    """Read and check samples, records and router.

    Raises:
        InputError: where something is missing, corrupt, or does not belong to the rest.
    """
    device = torch.device(resolve_device(settings.device)).type
    for name in ("data", "records", "router"):
        require_directory(getattr(settings, name), name)
    tasks = read_tasks(settings.data)
    samples = {split: read_split(settings.data, split, tasks) for split in SPLITS}
    _check_vouched(settings.data)
    calibration = settings.data / f"{CALIBRATION}.jsonl"
    others = {CALIBRATION: read_samples(calibration, "data")} if calibration.exists() else {}
    _check_unseen(samples | others)
    present = [split for split in SPLITS if split in RECORD_SPLITS or (settings.records / f"{split}.jsonl").exists()]
    limit = settings.limit
    records = {split: _read_records(settings.records, split, tasks, samples[split], limit) for split in present}
    targets = {"random_search": "gold", "wrong_records": "wrong"}
    folders: dict[str, Path] = {name: folder for name in targets if (folder := getattr(settings, name)) is not None}
    extra = {
        name: _read_records(folder, "test", tasks, samples["test"], limit, name, targets[name])
        for name, folder in folders.items()
    }
    if settings.wrong_records is not None:
        require_same_search(settings.records / "test.jsonl", settings.wrong_records / "test.jsonl")
    if settings.random_search is not None:
        require_random_search(settings.records / "test.jsonl", settings.random_search / "test.jsonl")
    router = load_router(settings.router)
    require_unseen(settings.router, samples["test"], "data")
    _check_agreement(records, router, settings)
    _check_prompt(router.config.fingerprints, tasks, f"router {settings.router}")
    try:
        for budget in (settings.budget, *settings.budgets):
            router.head.offset_for(budget)
    except ValueError as error:
        raise InputError(str(error)) from error
    files = {f"data/{split}": settings.data / f"{split}.jsonl" for split in SPLITS}
    files["data/tasks"] = settings.data / TASKS_FILE
    files |= {f"records/{split}": settings.records / f"{split}.jsonl" for split in records}
    files |= {f"router/{name}": settings.router / name for name in (CONFIG_FILE, WEIGHTS_FILE)}
    if router.guarantee is not None:
        files[f"router/{GUARANTEE_FILE}"] = settings.router / GUARANTEE_FILE
    files |= {f"{name}/test": folder / "test.jsonl" for name, folder in folders.items()}
    hashes = {name: sha256_file(path) for name, path in files.items()}
    if limit is not None:
        samples = {split: of_split[:limit] for split, of_split in samples.items()}
        kept = {sample.id for of_split in samples.values() for sample in of_split}
        records, extra = (
            {name: [one for one in read if one.sample_id in kept] for name, read in of.items()}
            for of in (records, extra)
        )
    return Inputs(
        tasks, samples, records, extra.get("random_search"), extra.get("wrong_records"), router, hashes, device
    )


def identity_of(settings: EvalSettings, inputs: Inputs) -> dict[str, Any]:
    """Return what decides the results, as JSON data: settings and content, not the places of files.

    Sizes of batches belong to it, because in bfloat16 a prediction can hang on the batch's shape.
    """
    base = base_model(settings, inputs.router.config)
    own: dict[str, Any] = {"model": base.model, "revision": base.revision, "dtype": base.dtype}
    own |= {name: getattr(settings, name) for name in ("limit", "batch_samples", "batch_tokens", "budget", "seed")}
    own["budgets"] = list(settings.budgets)
    pool = {name: getattr(settings, name) for name in ("static_pool", "static_trials", "control_samples", "reshuffles")}
    pool["baselines"] = sorted(settings.baselines_on(inputs.tasks))
    asked = {name: getattr(inputs.tasks, name) for name in ("mode", "judged_mode")}
    asked = {"task": inputs.tasks.name, **asked, "prompt": inputs.tasks.prompt_hash()}
    return {**own, **pool, **asked, "device": inputs.device, "inputs": inputs.hashes}


def _check_vouched(folder: Path) -> None:
    """Refuse split files, and tasks, that no manifest names; that they are those which it names is checked as read."""
    path = require_file(folder / MANIFEST, "data")
    manifest = read_manifest(folder)
    for name in (TASKS_FILE, *(f"{split}.jsonl" for split in SPLITS)):
        if manifest is None or name not in manifest.files:
            raise InputError(f"data: expected {path} to name {name}, got none")


def _check_unseen(samples: dict[str, list[Sample]]) -> None:
    """Refuse test questions that also stand in another split."""
    held_out = {sample.split_key: sample for sample in samples["test"]}
    for split in [name for name in samples if name != "test"]:
        for sample in samples[split]:
            if sample.split_key in held_out:
                raise InputError(
                    f"data: expected test questions that are in no other split, got {held_out[sample.split_key].id} "
                    f"of test in {split} too ({sample.question[:60]!r})"
                )


def _read_records(
    folder: Path,
    split: str,
    tasks: TaskSet,
    samples: Sequence[Sample],
    limit: int | None,
    setting: str = "records",
    reward_target: str = "gold",
) -> list[SearchRecord]:
    """Read the records of a split; of its first `limit` samples, if not of all, those of test need one each."""
    path = folder / f"{split}.jsonl"
    records = read_records(path, setting)
    first = records[0]
    common = {name: getattr(first, name) for name in ("num_layers", "first_editable", "fingerprints")}
    known = {sample.id: sample for sample in samples}
    for record in records:
        wanted: dict[str, Any] = {"split": split, "reward_target": reward_target, **common}
        sample = known.get(record.sample_id)
        if sample is not None:
            wanted |= {"task": sample.task, "mode": tasks[sample.task].mode}
        for name, value in wanted.items():
            if getattr(record, name) != value:
                raise InputError(
                    f"{setting}: expected {name} {value} in {path}, "
                    f"got {getattr(record, name)} (sample {record.sample_id})"
                )
        if sample is None:
            raise InputError(f"{setting}: expected only samples of the {split} split in {path}, got {record.sample_id}")
        if (record.target == sample.answer) != (reward_target == "gold"):
            raise InputError(
                f"{setting}: expected {reward_target} answers of the samples as targets in {path}, "
                f"got another (sample {record.sample_id})"
            )
    needed = {sample.id for sample in samples[:limit]}
    missing = needed - {record.sample_id for record in records}
    if missing and (split == "test" or missing == needed):
        raise InputError(
            f"{setting}: expected a record in {path} for {'each' if split == 'test' else 'some'} of {len(needed)} "
            f"{split} samples, got none for {len(missing)} of them (such as {min(missing)})"
        )
    _check_prompt(first.fingerprints, tasks, f"{setting} {path}")
    return records


def _check_prompt(fingerprints: Fingerprints, tasks: TaskSet, what: str) -> None:
    fingerprints.require(dataclasses.replace(fingerprints, prompt=tasks.prompt_hash()), what)


def _check_agreement(records: dict[str, list[SearchRecord]], router: Router, settings: EvalSettings) -> None:
    """Refuse records and a router that disagree on the model's layers or on where chains may be edited."""
    for split, of_split in records.items():
        path = settings.records / f"{split}.jsonl"
        first, config = of_split[0], router.config
        if first.num_layers != config.num_layers:
            raise InputError(
                f"records: expected num_layers {config.num_layers} in {path}, as the router has it, "
                f"got {first.num_layers}"
            )
        if first.first_editable > config.read_layer and config.head != "menu":  # a menu's chains are the records' own
            raise InputError(
                f"records: expected first_editable of at most {config.read_layer} in {path}, where the router reads, "
                f"got {first.first_editable}"
            )
