"""What an old task's router is worth on a new task, and what training on the new one costs on the old.

`python -m examples.expert_iteration --new_task FOLDER` runs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dense_table import DenseTable
from data.records import read_records
from data.sample import read_samples
from eval.dense import best_static
from examples.stages import Iteration, claim, search_for, told, train_on
from router.command import InputError, provenance
from router.durable import sha256_file, writable_directory, write_json
from router.menu_head import MenuHead
from router.storage import WEIGHTS_FILE, load_router
from search.menu_file import Menu, write_menu
from train.__main__ import MEASURED_AT_ONCE
from train.datamodule import SPLITS, RouterData
from train.module import LayerwiseSettings, MenuSettings, ProgramSettings, RouterModule
from train.objectives import collapse
from train.warm_start import WarmStart


class Task:
    """A task's validation split, on which routers are measured."""

    def __init__(self, settings: Iteration, taught: dict[str, Any], data: Path, records: Path) -> None:
        """Read it; `taught` are the settings `model` of the training, which decide the targets."""
        kinds = {"layerwise": LayerwiseSettings, "menu": MenuSettings, "program": ProgramSettings}
        module = RouterModule(**{**taught, **{name: kind(**taught[name]) for name, kind in kinds.items()}})
        self.objective, self.budget = module.objective, settings.budget
        self.data = RouterData(
            data, records, settings.model, settings.revision, settings.device, settings.prefix_layers
        )
        self.data.teach(self.objective)
        self.data.setup()
        by_id = [sorted(read_records(records / f"{split}.jsonl"), key=lambda one: one.sample_id) for split in SPLITS]
        self.train, self.validation = by_id

    @torch.inference_mode()
    def measure(self, folder: Path, size: int | None = None) -> dict[str, Any]:
        """Return a router's measures on validation; with a size and a budget also those of the best static chain.

        The price that meets the budget is set on validation's states, without its answers; the static chain is the
        most accurate one within the budget on the first `size` training samples.
        """
        router = load_router(folder)
        head = router.head
        examples = self.data.examples["validation"]
        if isinstance(head, MenuHead) and self.data.head_settings["chains"] != [str(chain) for chain in head.chains]:
            raise InputError(f"records: expected a menu table of the router's own menu ({folder}), got another")
        starts = range(0, len(examples), MEASURED_AT_ONCE)
        output = torch.cat([router.outputs(examples.states[i : i + MEASURED_AT_ONCE]) for i in starts])
        found: dict[str, Any] = self.objective.measures(head, output, self.objective.collate(examples.targets))
        found |= collapse(head, output)
        if self.budget is None or not isinstance(head, MenuHead):
            return found
        table = DenseTable.of(self.validation, head.chains)
        head.calibrate(output)
        low, high = head.budget_points[-1].mean_depth, head.budget_points[0].mean_depth
        if low <= self.budget <= high:
            chosen = [ranked[0].chain for ranked in head.decode_at(output, head.offset_for(self.budget))]
            found["priced_accuracy"] = float(table.right(np.array([table.place(chain) for chain in chosen])).mean())
            found["priced_depth"] = sum(chain.depth for chain in chosen) / len(chosen)
        static = None if size is None else best_static(DenseTable.of(self.train[:size], head.chains), self.budget)
        if static is not None:
            found |= {"static_accuracy": float(table.accuracy[static]), "static_depth": float(table.depths[static])}
        return found


def transfer(settings: Iteration, new_task: Path, plain: dict[str, Any]) -> None:
    """Measure what an old task's router is worth on a new task, and what is forgotten of the old one."""
    folder, last = writable_directory(settings.out / "transfer", "out"), settings.round(settings.rounds - 1)
    old = settings.old_router or last / "router"
    router = load_router(old)
    weights = sha256_file(old / WEIGHTS_FILE)
    claim(folder, plain, settings.data, new_task, old_router=weights)
    for name in ("head", "prefix_layers"):
        wanted, got = getattr(settings, name), getattr(router.config, name)
        if wanted != got:
            raise InputError(f"old_router: expected one with {name} {wanted}, as set here, got {got}")
    if "settings" not in router.config.training:
        raise InputError(
            "old_router: expected a router of python -m train, got one that does not say how it was taught"
        )
    taught = router.config.training["settings"]["model"]
    records = settings.new_records or folder / "records"
    more = []
    if isinstance(router.head, MenuHead):
        write_menu(folder / "menu.json", Menu(router.head.chains, router.config.prefix_layers))
        more = [f"--menu={folder / 'menu.json'}"]
    search_for(settings, new_task, records, *more)
    old_task = Task(settings, taught, settings.data, settings.old_records or last / ("table" if more else "records"))
    router.config.fingerprints.require(old_task.data.origin.fingerprints, "old_router")
    task = Task(settings, taught, new_task, records)
    if max(settings.sizes) > len(task.train):
        raise InputError(f"sizes: expected at most the new task's {len(task.train)} records, got {max(settings.sizes)}")
    asked = {sample.split_hash for sample in read_samples(new_task / "validation.jsonl")}
    known = len(asked & WarmStart.read(old, folder).split_hashes)
    if known:
        print(f"caution: the old router saw {known} of the new task's {len(asked)} validation questions in training")
    entries: list[dict[str, Any]] = []

    def log(start: str, size: int, seed: int | None, made: Path) -> None:
        entry = {"start": start, "samples": size, "seed": seed, "new_task": task.measure(made, size or None)}
        entries.append(entry | {"old_task": old_task.measure(made)})
        print(f"{start}, {size} samples, seed {seed}: new task: {told(entries[-1]['new_task'])}")
        print(f"{start}, {size} samples, seed {seed}: old task: {told(entries[-1]['old_task'])}")

    log("old router as it is", 0, None, old)
    for size in settings.sizes:
        for seed in settings.seeds:
            for start, given in (("from scratch", []), ("warm start", [f"--warm_start={old}"])):
                made = folder / f"{start.replace(' ', '-')}-{size}-{seed}"
                chosen = [f"--data.limit={size}", f"--seed_everything={seed}", *given]
                train_on(settings, new_task, records, made, *_flags("model", taught), *settings.train_args, *chosen)
                log(start, size, seed, made)
    content = {"old_router": weights, "validation_questions_seen_by_old_router": known, "entries": entries}
    write_json(folder / "transfer.json", {**provenance(plain), **content})
    print(f"transfer: {folder / 'transfer.json'}")


def _flags(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [flag for key, item in value.items() for flag in _flags(f"{name}.{key}", item)]
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}"]
