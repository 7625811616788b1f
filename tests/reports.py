"""Finished evaluations made by hand, without a model: what each arm answered is given, the report is the real one."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.flops import ForwardFlops
from data.store import meta_path
from eval.arms import ALWAYS, LABELS
from eval.baselines import (
    Candidate,
    Considered,
    StaticChoice,
    choose_mixture,
    keep_choice,
)
from eval.report import Report, write_report
from eval.results import RESULTS_FILE, RUN_FILE, ArmResult, key_of, result_store
from router.chain import Chain
from router.files import read_json, write_json
from router.validation import from_plain, to_plain

NUM_LAYERS = 4
FULL = Chain.full(NUM_LAYERS)
SHORT = FULL.skip(2, 1)
IDS = tuple(f"{i:016x}" for i in range(12))
"""Ids of the samples."""
RIGHT = {
    "full": IDS[:6],
    "router": IDS[2:9],
    "router@2.5": IDS[3:6],
    "static": IDS[1:6],
    "mixture": IDS[:5],
    "random": IDS[4:6],
    "oracle": IDS[:10],
}
"""Samples that each arm answers rightly."""
STATIC = StaticChoice(
    chain=SHORT,
    text=str(SHORT),
    depth=SHORT.depth,
    router_validation_depth=3.2,
    source="search",
    chosen_on="train+validation",
    correct=7,
    n=20,
    candidates=(Considered(str(SHORT), SHORT.depth, 7, "search"),),
    mode="letter",
)


def hash_of(letter: str) -> str:
    """A SHA-256 that is told apart by eye."""
    return letter * 64


def run_of(n: int, arms: Sequence[str]) -> dict[str, Any]:
    """The content of `run.json`."""
    names = ("data/train", "data/validation", "data/test", "data/tasks", "records/train", "records/validation")
    names += ("records/test", "router/config.json", "router/router.safetensors")
    return {
        "schema": 4,
        "seed": 0,
        "inputs": {name: hash_of(f"{i:x}") for i, name in enumerate(names)},
        "provenance": {
            "settings": {"model": "tiny", "router": "runs/router", "records": "runs/search", "budget": 3.2},
            "commit": None,
            "versions": {"python": "3.11"},
            "threads": 2,
            "started": "2026-01-01T00:00:00+0000",
        },
        "task": "quiz",
        "mode": "letter",
        "judged_mode": "letter",
        "split": "test",
        "n": n,
        "model": {"name": "tiny", "revision": None, "dtype": "float32", "num_layers": NUM_LAYERS, "read_layer": 1},
        "fingerprints": {"model": hash_of("a"), "tokenizer": hash_of("b"), "prompt": hash_of("c")},
        "oracle_found": 10,
        "notes": [],
        "arms": [{"name": name, "label": LABELS.get(name, name.replace("@", ", budget "))} for name in arms],
        "flops": to_plain(ForwardFlops(((1000.0, 2.0),) * NUM_LAYERS, 500.0)),
        "router_flops": 40.0,
    }


def result_of(**changed: Any) -> ArmResult:
    """A generated answer of a free question under full depth; right unless said otherwise."""
    values = {"arm": "router", "sample_id": "s", "task": "t", "difficulty": None, "subject": None, "choices": 0}
    answered = {"tokens": 9, "chain": FULL, "prediction": "4", "correct": True, "scores": (), "margin": 1.0}
    given = values | answered | changed
    return ArmResult(**{"depth": given["chain"].depth} | given)


def results_of(ids: Sequence[str], right: Mapping[str, Collection[str]]) -> list[ArmResult]:
    """One result for each arm and sample; samples come from two difficulties."""
    return [
        ArmResult(
            arm=arm,
            sample_id=key,
            task="quiz",
            difficulty=int(key, 16) % 2,
            subject=None,
            choices=4,
            tokens=20 + int(key, 16),
            chain=chain,
            depth=chain.depth,
            prediction=1 if key in right[arm] else 0,
            correct=key in right[arm],
            scores=(0.0, 0.0, 0.0, 0.0),
            margin=1.0 if key in right[arm] else -1.0,
        )
        for arm in right
        for key in ids
        for chain in [FULL if arm == "full" or key in ids[::3] else SHORT]
    ]


def write_evaluation(
    folder: Path,
    ids: Sequence[str] = IDS,
    right: Mapping[str, Collection[str]] = RIGHT,
    changed: Mapping[str, Any] | None = None,
) -> Report:
    """Write a finished evaluation and return its report.

    Args:
        folder: an absent folder.
        ids: its samples.
        right: samples that each arm answers rightly, in the order of the arms.
        changed: fields of `run.json` that are otherwise.
    """
    assert set(ALWAYS) <= set(right)
    folder.mkdir(parents=True)
    write_json(folder / RUN_FILE, run_of(len(ids), list(right)) | dict(changed or {}))
    keep_choice(folder, STATIC)
    if "mixture" in right:
        keep_choice(folder, choose_mixture([Candidate(FULL, 10, 20), Candidate(SHORT, 9, 20)], 3.2))
    write_results(folder, results_of(ids, right))
    return write_report(folder)


def read_report(path: Path) -> Report:
    """Read a `report.json`, which no command does."""
    value = read_json(path)
    return from_plain(Report, value, str(path), num_layers=value["model"]["num_layers"])


def write_results(folder: Path, results: Sequence[ArmResult]) -> None:
    """Write `results.jsonl` as a finished store."""
    path = folder / RESULTS_FILE
    for old in (path, meta_path(path)):
        old.unlink(missing_ok=True)
    with result_store(path, {"of": "a test"}, NUM_LAYERS) as store:
        store.append(results)
        store.finish([key_of(one) for one in results])


T = TypeVar("T")


def unchecked(value: T, **changed: object) -> T:
    """A copy of a frozen value with other fields, whatever its type would say: what is drawn need not add up."""
    made = copy.copy(value)
    for name, field in changed.items():
        object.__setattr__(made, name, field)
    return made


GOLDEN = Path(__file__).parent / "golden" / "report.json"


if __name__ == "__main__":  # python -m tests.reports: write the golden report anew; read the diff
    with tempfile.TemporaryDirectory() as place:
        GOLDEN.write_text(json.dumps(to_plain(write_evaluation(Path(place) / "toy")), indent=1) + "\n")
