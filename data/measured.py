"""What the commands that measure a model on prepared samples share: settings, loading, and results that last."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.sample import SPLITS, Sample, read_samples
from data.scoring import ChainScorer
from data.task_files import TASKS_FILE, read_tasks
from router.command import InputError
from router.durable import read_json, require_directory, sha256_file, sha256_json, writable_directory, write_json
from router.models import load_model

IDENTITY_FILE = "identity.json"


@dataclass(frozen=True)
class ModelSettings:
    """The model and samples of a measurement.

    Attributes:
        data: folder of `python -m data prepare`.
        out: folder for the results; a run that was stopped goes on there.
        model: base model: an offline asset, a local directory or a hub id.
        revision: hub revision of the model.
        split: split to measure.
        dtype: dtype of the model: float32, bfloat16 or float16.
        device: torch device, or auto.
        limit: samples at most, the first ones; null: all.
        batch_samples: samples run at once.
        batch_tokens: tokens in one call of a layer at most.
    """

    data: Path
    out: Path
    model: str = "smollm2-135m-instruct"
    revision: str | None = None
    split: str = "test"
    dtype: str = "bfloat16"
    device: str = "auto"
    limit: int | None = None
    batch_samples: int = 32
    batch_tokens: int = 2048

    def __post_init__(self) -> None:
        """Refuse values out of bounds."""
        if self.split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {self.split!r}")
        for name in ("limit", "batch_samples", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


def open_scorer(settings: ModelSettings) -> tuple[ChainScorer, list[Sample]]:
    """Load the model and read the samples.

    Raises:
        InputError: where something is missing or does not fit.
    """
    require_directory(settings.data, "data")
    tasks = read_tasks(settings.data)
    samples = read_samples(settings.data / f"{settings.split}.jsonl", f"data: {settings.split}")[: settings.limit]
    for name in {sample.task for sample in samples}:
        tasks[name]  # refuses a sample of another task
    model, tokenizer = load_model(
        settings.model, dtype=settings.dtype, device=settings.device, revision=settings.revision
    )
    return ChainScorer(model, tokenizer, tasks, batch_tokens=settings.batch_tokens), samples


def claim(settings: ModelSettings, scorer: ChainScorer, samples: list[Sample], more: dict[str, Any]) -> dict[str, Any]:
    """Make the output folder one measurement's own; returns what identifies the measurement.

    Raises:
        InputError: where the folder holds another one.
    """
    identity = {
        "fingerprints": asdict(scorer.fingerprints),
        "dtype": scorer.dtype,
        "tasks": sha256_file(settings.data / TASKS_FILE),
        "samples": sha256_json([sample.id for sample in samples]),
        "split": settings.split,
        **more,
    }
    path = writable_directory(settings.out, "out") / IDENTITY_FILE
    if not path.exists():
        write_json(path, identity)
        return identity
    stored = read_json(path)
    differing = [key for key in identity if stored.get(key) != identity[key]]
    if differing:
        raise InputError(
            f"out: expected an empty folder or one of the same measurement, got {str(settings.out)!r} "
            f"of another {', '.join(differing)}"
        )
    return identity
