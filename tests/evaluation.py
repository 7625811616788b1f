"""A tiny evaluation for the tests: samples, records that the chain scorer made, and an untrained router."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import data.sample
from data.answers import wrong_answers
from data.records import SearchRecord, pareto_front
from data.sample import Sample, write_samples
from data.scoring import ChainScorer
from data.store import meta_path
from data.tasks import TASKS_FILE, TaskSet, load_task, write_tasks
from eval.__main__ import main
from eval.inputs import SPLITS
from router.chain import Chain
from router.decision import Guarantee, Router
from router.files import sha256_file
from router.heads.head import pad_states
from router.storage import WEIGHTS_FILE, save_router, write_guarantee
from tests.menus import write_records
from tests.tiny import FULL, NUM_LAYERS, edit_json, random_router, save_tiny, scorer_of

ROOT = Path(data.sample.__file__).parent.parent
PREFIX = 2
INPUTS = ("data", "records", "random", "wrong", "router")
"""Folders that an evaluation reads."""
SIZES = {"train": 20, "validation": 8, "test": 14}
OTHERS = [
    FULL,
    *(FULL.repeat(i, 1, 1 + i % 2) for i in range(PREFIX, NUM_LAYERS)),
    *(FULL.skip(i, 1) for i in (2, 3, 4)),
]
"""Chains that a "random search" has tried."""
TRIED = [FULL, *(FULL.skip(i, k) for k in (1, 2) for i in range(PREFIX, NUM_LAYERS + 1 - k)), FULL.repeat(3, 1, 1)]
WORDS = ("ice", "tea", "oil", "ash", "mud", "fog")


ARM_NAMES = [
    "full",
    "router",
    "router@4.5",
    "guarantee",
    "static",
    "mixture",
    "random",
    "early_exit",
    "pruned",
    "random_search",
    "oracle",
]
"""Arms of the evaluation, in the order of its report."""


def make_samples() -> dict[str, list[Sample]]:
    """Samples of several lengths whose choices are equally long, so that no choice wins by length alone."""
    made, number = {}, 0
    for split in SPLITS:
        made[split] = []
        for _ in range(SIZES[split]):
            choices = tuple(WORDS[(number * 5 + j) % 6] for j in range(3))
            question = f"Which {'really ' * (number % 3)}is number {number}?"
            made[split].append(Sample("arc_easy", split, question, choices, (number * 7 // 3) % 3))
            number += 1
    return made


def make_data(folder: Path, samples: dict[str, list[Sample]], tasks: TaskSet | None = None) -> None:
    folder.mkdir(exist_ok=True)
    write_tasks(folder, tasks or TaskSet.of(load_task("arc_easy")))
    for split, of_split in samples.items():
        write_samples(folder / f"{split}.jsonl", of_split)
    vouch(folder)


def vouch(folder: Path) -> None:
    """Write the manifest that names the folder's files."""
    files = {path.name: sha256_file(path) for path in (folder / TASKS_FILE, *sorted(folder.glob("*.jsonl")))}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def make_records(
    scorer: ChainScorer,
    samples: list[Sample],
    split: str,
    tried: list[Chain] = TRIED,
    targets: dict[str, int | str] | None = None,
) -> list[SearchRecord]:
    """Records of the tried chains in the cheap mode, all verified in the real one; targets: wrong answers told."""
    block = scorer.load(scorer.encode_all(samples, targets))
    jobs = [(i, chain) for i in range(len(samples)) for chain in tried]
    judged = [*zip(scorer.score(block, jobs), scorer.judge(block, jobs), strict=True)]
    records = []
    for i, encoded in enumerate(block.samples):
        sample = encoded.sample
        results = tuple(
            dataclasses.replace(cheap, verified=cheap.correct == real.correct, verified_by=encoded.task.judged_mode)
            for cheap, real in judged[i * len(tried) : (i + 1) * len(tried)]
        )
        records.append(
            SearchRecord(
                sample_id=sample.id,
                task=sample.task,
                split=split,
                metadata=sample.metadata,
                mode=encoded.task.mode,
                num_layers=NUM_LAYERS,
                first_editable=PREFIX,
                dtype="float32",
                reward_target="wrong" if targets else "gold",
                target=encoded.target,
                seed=0,
                simulations=len(tried),
                nominal_layers=sum(chain.depth for chain in tried),
                executed_layers=block.executed(i),
                results=results,
                pareto=pareto_front(results),
                fingerprints=scorer.fingerprints,
                search="0" * 64,
            )
        )
    return records


def make_router(scorer: ChainScorer, samples: list[Sample], folder: Path) -> None:
    """Save a random router with operating points on validation."""
    router = random_router(scorer, PREFIX)
    states = scorer.states(scorer.load([scorer.encode(sample) for sample in samples]), PREFIX)
    with torch.inference_mode():
        router.head.calibrate(router.head(*pad_states(states)))
    config = dataclasses.replace(
        router.config,
        task=scorer.tasks.name,
        mode=scorer.tasks.mode,
        budget_points=router.head.budget_points,
    )
    save_router(folder, Router(config, router.head))
    promised = Guarantee(0.5, 0.1, "accuracy", config.budget_points[-1].offset, None, 8, 0.1, 4.0, 0.4)
    write_guarantee(folder, promised, sha256_file(folder / WEIGHTS_FILE), {})


@dataclasses.dataclass(frozen=True)
class World:
    """A folder with everything that an evaluation reads."""

    folder: Path

    def arguments(self, **changed: object) -> list[str]:
        values: dict[str, object] = {
            **{name: self.folder / name for name in ("data", "records", "router", "model", "out")},
            "device": "cpu",
            "batch_samples": 5,
            "budget": 4.2,
            "budgets": "[4.5]",
            "random_search": self.folder / "random",
            "wrong_records": self.folder / "wrong",
            "control_samples": 6,
            "reshuffles": 2,
            "tracking.mode": "disabled",
            "static_pool": 2,
            "static_trials": 4,
        }
        return [f"--{name}={value}" for name, value in (values | changed).items()]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def edit_lines(self, name: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
        path = self.folder / name
        values = [json.loads(line) for line in path.read_text().splitlines()]
        change(values)
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        beside = meta_path(path)
        if beside.exists():
            edit_json(beside, sha256=sha256_file(path), count=len(values))


def prepared(folder: Path, tasks: TaskSet, samples: dict[str, list[Sample]], tried: list[Chain] = TRIED) -> World:
    """Write data, records and router for the model in the folder."""
    scorer = scorer_of(folder, tasks)
    make_data(folder / "data", samples, tasks)
    for split in ("train", "test"):
        write_records(folder / "records" / f"{split}.jsonl", make_records(scorer, samples[split], split, tried))
    test = samples["test"]
    write_records(folder / "random" / "test.jsonl", make_records(scorer, test, "test", OTHERS[: len(tried)]), "random")
    told = wrong_answers(test, scorer.means_the_same)
    write_records(folder / "wrong" / "test.jsonl", make_records(scorer, test, "test", tried, told))
    make_router(scorer, samples["validation"], folder / "router")
    return World(folder)


_FINISHED: list[World] = []
"""The world of `finished`, made once a process, however many modules ask for it."""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that has been evaluated once; tests read it and never change it."""
    if not _FINISHED:
        folder = tmp_path_factory.mktemp("world")
        save_tiny(folder / "model")
        world = prepared(folder, TaskSet.of(load_task("arc_easy")), make_samples())
        main(world.arguments())
        _FINISHED.append(world)
    return _FINISHED[0]


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy without results, to be changed."""
    for name in INPUTS:
        shutil.copytree(finished.folder / name, tmp_path / name)
    (tmp_path / "model").symlink_to(finished.folder / "model")
    return World(tmp_path)
