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
from data.models import load_model
from data.records import SearchRecord, pareto_front
from data.sample import SPLITS, Sample, write_samples
from data.scoring import ChainScorer
from data.tasks import load_task
from eval.__main__ import main
from router.chain import Chain
from router.durable import sha256_file
from router.head import pad_states
from router.storage import Router, save_router
from tests.tiny import NUM_LAYERS, random_router, save_tiny

ROOT = Path(data.sample.__file__).parent.parent
PREFIX = 2
SIZES = {"train": 20, "validation": 8, "test": 14}
FULL = Chain.full(NUM_LAYERS)
TRIED = [FULL, *(FULL.skip(i, k) for k in (1, 2) for i in range(PREFIX, NUM_LAYERS + 1 - k)), FULL.repeat(3, 1, 1)]
WORDS = ("ice", "tea", "oil", "ash", "mud", "fog")


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


def make_data(folder: Path, samples: dict[str, list[Sample]]) -> None:
    folder.mkdir(exist_ok=True)
    for split, of_split in samples.items():
        write_samples(folder / f"{split}.jsonl", of_split)
    vouch(folder)


def vouch(folder: Path) -> None:
    files = {f"{split}.jsonl": sha256_file(folder / f"{split}.jsonl") for split in SPLITS}
    (folder / "manifest.json").write_text(json.dumps({"task": "arc_easy", "files": files}))


def make_records(scorer: ChainScorer, samples: list[Sample], split: str) -> list[SearchRecord]:
    block = scorer.load([scorer.encode(sample) for sample in samples])
    records = []
    for i, sample in enumerate(samples):
        results = tuple(scorer.score(block, [(i, chain) for chain in TRIED]))
        records.append(
            SearchRecord(
                sample_id=sample.id,
                task="arc_easy",
                split=split,
                mode="continuation",
                num_layers=NUM_LAYERS,
                prefix_layers=PREFIX,
                dtype="float32",
                reward_target="gold",
                seed=0,
                simulations=len(TRIED),
                nominal_layers=sum(chain.depth for chain in TRIED),
                executed_layers=block.executed(i),
                results=results,
                pareto=pareto_front(results),
                fingerprints=scorer.fingerprints,
                search="0" * 64,
            )
        )
    return records


def write_records(path: Path, records: list[SearchRecord]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))


def make_router(scorer: ChainScorer, samples: list[Sample], folder: Path) -> None:
    """Save a random router with operating points on validation."""
    router = random_router(scorer, PREFIX)
    states = scorer.states(scorer.load([scorer.encode(sample) for sample in samples]), PREFIX)
    with torch.inference_mode():
        router.head.calibrate(router.head(*pad_states(states)))
    save_router(
        folder, Router(dataclasses.replace(router.config, budget_points=router.head.budget_points), router.head)
    )


@dataclasses.dataclass(frozen=True)
class World:
    """A folder with everything that an evaluation reads."""

    folder: Path

    def arguments(self, **changed: object) -> list[str]:
        values: dict[str, object] = {
            **{name: self.folder / name for name in ("data", "records", "router", "model", "out")},
            "dtype": "float32",
            "device": "cpu",
            "batch_samples": 5,
            "budget": 4.2,
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

    def edit_config(self, **changed: object) -> None:
        path = self.folder / "router" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that has been evaluated once; tests read it and never change it."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    model, tokenizer = load_model(str(folder / "model"), dtype="float32", device="cpu")
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy"))
    samples = make_samples()
    make_data(folder / "data", samples)
    for split in ("train", "test"):
        write_records(folder / "records" / f"{split}.jsonl", make_records(scorer, samples[split], split))
    make_router(scorer, samples["validation"], folder / "router")
    world = World(folder)
    main(world.arguments())
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy without results, to be changed."""
    for name in ("data", "records", "router"):
        shutil.copytree(finished.folder / name, tmp_path / name)
    (tmp_path / "model").symlink_to(finished.folder / "model")
    return World(tmp_path)
