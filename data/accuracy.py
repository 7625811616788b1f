"""Full depth's accuracy on prepared samples, in the cheap and in the real mode: what a task is worth for a model.

`python -m data accuracy --data runs/mine/data --model smollm2-135m-instruct`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.models import load_model
from data.records import ChainResult
from data.sample import SPLITS, Sample, read_samples
from data.scoring import ChainScorer, batches_by_length
from data.statistics import wilson_interval
from data.task_files import read_tasks
from router.chain import Chain
from router.command import InputError, provenance
from router.durable import require_directory, sha256_file, write_json

SCHEMA = 1
"""Version of the file that `out` names."""


@dataclass(frozen=True)
class ModelSettings:
    """The model and samples of a measurement.

    Attributes:
        data: folder of `python -m data prepare`.
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


@dataclass(frozen=True)
class AccuracySettings(ModelSettings):
    """Settings of `python -m data accuracy`.

    Attributes:
        out: JSON file for the figures; null: none.
    """

    out: Path | None = None


@dataclass(frozen=True)
class Accuracy:
    """Full depth on one group of samples in one mode.

    Attributes:
        task: the task.
        mode: the scoring mode.
        difficulty: the group's difficulty; None: all of the task.
        n: samples.
        correct: samples answered rightly.
        interval: 95 % Wilson interval of the accuracy.
        chance: expected accuracy of guessing a choice; 0 for free answers.
        no_answer: samples in whose generated text no answer could be read (format failures, counted as wrong).
    """

    task: str
    mode: str
    difficulty: int | str | None
    n: int
    correct: int
    interval: tuple[float, float]
    chance: float
    no_answer: int


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


def measure(scorer: ChainScorer, samples: Sequence[Sample], batch_samples: int) -> list[Accuracy]:
    """Run full depth on every sample, in its task's mode and in the real one where that is another.

    Raises:
        InputError: where a sample cannot be asked.
    """
    try:
        encoded = [scorer.encode(sample) for sample in samples]
    except ValueError as error:
        raise InputError(f"data: {error}") from error
    full = Chain.full(scorer.num_layers)
    results: dict[tuple[str, str], list[tuple[Sample, ChainResult]]] = {}
    with tqdm(total=len(samples), desc="full depth", unit="sample") as bar:
        for batch in batches_by_length([one.length for one in encoded], batch_samples):
            block = scorer.load([encoded[i] for i in batch])
            jobs = [(j, full) for j in range(len(batch))]
            for real, run in ((False, scorer.score), (True, scorer.judge)):
                own = [job for job in jobs if not real or _judged_apart(scorer, samples[batch[job[0]]])]
                for (j, _), result in zip(own, run(block, own), strict=True):
                    sample = samples[batch[j]]
                    task = scorer.tasks[sample.task]
                    mode = task.judged_mode if real else task.mode
                    results.setdefault((task.name, mode), []).append((sample, result))
            bar.update(len(batch))
    return [one for key in sorted(results) for one in _groups(*key, results[key])]


def _judged_apart(scorer: ChainScorer, sample: Sample) -> bool:
    task = scorer.tasks[sample.task]
    return task.judged_mode != task.mode


def _groups(task: str, mode: str, results: list[tuple[Sample, ChainResult]]) -> list[Accuracy]:
    levels = {sample.metadata.get("difficulty") for sample, _ in results}
    ordered = sorted((level for level in levels if level is not None), key=str)
    groups = [_accuracy(task, mode, None, results)]
    for level in ordered if len(levels) > 1 else []:
        groups.append(_accuracy(task, mode, level, [r for r in results if r[0].metadata.get("difficulty") == level]))
    return groups


def _accuracy(
    task: str, mode: str, difficulty: int | str | None, results: list[tuple[Sample, ChainResult]]
) -> Accuracy:
    n, correct = len(results), sum(result.correct for _, result in results)
    return Accuracy(
        task=task,
        mode=mode,
        difficulty=difficulty,
        n=n,
        correct=correct,
        interval=wilson_interval(correct, n),
        chance=sum(1 / len(sample.choices) for sample, _ in results if sample.choices) / n,
        no_answer=sum(result.prediction is None for _, result in results),
    )


def accuracy(settings: AccuracySettings, resolved: dict[str, Any], write: Callable[[str], None] = print) -> None:
    """Measure full depth, print a table and write it where `out` says.

    Raises:
        InputError: at bad input.
    """
    scorer, samples = open_scorer(settings)
    figures = measure(scorer, samples, settings.batch_samples)
    write(f"{settings.model}, {scorer.num_layers} layers, {scorer.dtype}, full depth, split {settings.split}")
    head = f"{'task':<22}{'mode':<14}{'difficulty':>10}{'n':>7}{'accuracy':>10}{'95 % interval':>17}{'chance':>8}"
    write(f"{head}{'no answer':>11}")
    for one in figures:
        level = "all" if one.difficulty is None else str(one.difficulty)
        interval = f"{one.interval[0]:.3f}..{one.interval[1]:.3f}"
        share = one.correct / one.n
        row = f"{one.task:<22}{one.mode:<14}{level:>10}{one.n:>7}{share:>10.3f}{interval:>17}{one.chance:>8.3f}"
        write(f"{row}{one.no_answer:>11}")
    if settings.out is not None:
        content = {
            "schema": SCHEMA,
            **provenance(resolved),
            "fingerprints": asdict(scorer.fingerprints),
            "samples_sha256": sha256_file(settings.data / f"{settings.split}.jsonl"),
            "accuracy": [asdict(one) for one in figures],
        }
        write_json(settings.out, content)
        write(f"written to {settings.out}")
