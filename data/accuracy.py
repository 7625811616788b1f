"""Full depth's accuracy on prepared samples, in the cheap and in the real mode: what a task is worth for a model.

`python -m data accuracy --data runs/mine/data --model smollm2-135m-instruct --out runs/mine/accuracy`

`ModelSettings`, `open_scorer` and `claim` serve every command that measures a model on prepared samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.records import ChainResult
from data.sample import SPLITS, Sample, read_samples
from data.scoring import ChainScorer, batches_by_length
from data.statistics import wilson_interval
from data.tasks import TASKS_FILE, read_tasks
from router.chain import Chain
from router.command import provenance
from router.engine.load import load_model
from router.files import (
    JsonLog,
    read_json,
    read_json_lines,
    require_directory,
    sha256_file,
    sha256_json,
    writable_directory,
    write_json,
)
from router.validation import InputError

SCHEMA = 1
"""Version of `accuracy.json`."""
RESULTS_FILE, ACCURACY_FILE, IDENTITY_FILE = "results.jsonl", "accuracy.json", "identity.json"


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


@dataclass(frozen=True)
class Answered:
    """Full depth's answer to one sample in one mode, a line of `results.jsonl`.

    Attributes:
        sample_id: `Sample.id`.
        task: its task.
        mode: the scoring mode.
        difficulty: its difficulty, where it has one.
        choices: number of choices; 0: a free answer.
        prediction: index of the choice, text, or None: no answer could be read in the generated text.
        correct: whether it is right.
    """

    sample_id: str
    task: str
    mode: str
    difficulty: str | int | float | None
    choices: int
    prediction: int | str | None
    correct: bool


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
    difficulty: str | int | float | None
    n: int
    correct: int
    interval: tuple[float, float]
    chance: float
    no_answer: int


def answer_all(scorer: ChainScorer, samples: Sequence[Sample], path: Path, batch_samples: int) -> list[Answered]:
    """Run full depth on every sample, in its task's mode and in the real one where that is another.

    Answers are appended to `path` batch by batch; what stands there is not run again.

    Raises:
        InputError: where a sample cannot be asked, or the file is corrupt.
    """
    encoded = scorer.encode_all(samples)
    full = Chain.full(scorer.num_layers)
    with JsonLog(path) as log, tqdm(total=len(samples), desc="full depth", unit="sample") as bar:
        answered = read_answers(path)
        done = {(one.sample_id, one.mode) for one in answered}
        for batch in batches_by_length([one.length for one in encoded], batch_samples):
            tasks = [encoded[i].task for i in batch]
            block = None
            for run, modes in (
                (scorer.score, [task.mode for task in tasks]),
                (scorer.judge, [task.judged_mode for task in tasks]),
            ):
                left = [j for j, i in enumerate(batch) if (samples[i].id, modes[j]) not in done]
                if not left:
                    continue
                block = block or scorer.load([encoded[i] for i in batch])
                results = run(block, [(j, full) for j in left])
                new = [_answered(samples[batch[j]], modes[j], one) for j, one in zip(left, results, strict=True)]
                log.append(*(asdict(one) for one in new))
                done.update((one.sample_id, one.mode) for one in new)
                answered += new
            bar.update(len(batch))
    return answered


def _answered(sample: Sample, mode: str, result: ChainResult) -> Answered:
    difficulty, choices = sample.label("difficulty"), len(sample.choices)
    return Answered(sample.id, sample.task, mode, difficulty, choices, result.prediction, result.correct)


def read_answers(path: Path) -> list[Answered]:
    """Read a results file; missing: no answers.

    Raises:
        InputError: where a line is corrupt; names file and line.
    """
    answered = []
    for number, value in read_json_lines(path) if path.exists() else ():
        try:
            answered.append(Answered(**value))
        except TypeError as error:
            raise InputError(f"{path}, line {number}: expected an answer, got {error}") from error
    return answered


def accuracies(answered: Sequence[Answered]) -> list[Accuracy]:
    """Return the accuracy of each task in each mode, and, where there are several, of each difficulty in it."""

    def place(one: Answered) -> tuple[str, str]:
        return one.task, one.mode

    groups: list[Accuracy] = []
    for _, members in groupby(sorted(answered, key=place), place):
        own = list(members)
        groups.append(_accuracy(None, own))
        levels = {one.difficulty for one in own if one.difficulty is not None}
        for level in sorted(levels, key=lambda level: (isinstance(level, str), level)) if len(levels) > 1 else ():
            groups.append(_accuracy(level, [one for one in own if one.difficulty == level]))
    return groups


def _accuracy(difficulty: str | int | float | None, answered: Sequence[Answered]) -> Accuracy:
    n, correct = len(answered), sum(one.correct for one in answered)
    chance = sum(1 / one.choices for one in answered if one.choices) / n
    no_answer = sum(one.prediction is None for one in answered)
    first, interval = answered[0], wilson_interval(correct, n)
    return Accuracy(first.task, first.mode, difficulty, n, correct, interval, chance, no_answer)


def accuracy(settings: ModelSettings, resolved: dict[str, Any]) -> None:
    """Measure full depth, print a table, and write `results.jsonl` and `accuracy.json`.

    Raises:
        InputError: at bad input.
    """
    scorer, samples = open_scorer(settings)
    identity = claim(settings, scorer, samples, {})
    figures = accuracies(answer_all(scorer, samples, settings.out / RESULTS_FILE, settings.batch_samples))
    print(f"{settings.model}, {scorer.num_layers} layers, {scorer.dtype}, full depth, split {settings.split}")
    heads = ("task", "mode", "difficulty", "n", "accuracy", "95 % interval", "chance", "no answer")
    line = "{:<22}{:<14}{:>10}{:>7}{:>10}{:>17}{:>8}{:>11}"
    print(line.format(*heads))
    for one in figures:
        level = "all" if one.difficulty is None else str(one.difficulty)
        interval = "{:.3f}..{:.3f}".format(*one.interval)
        share, chance = f"{one.correct / one.n:.3f}", f"{one.chance:.3f}"
        print(line.format(one.task, one.mode, level, one.n, share, interval, chance, one.no_answer))
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")
    content = {
        "schema": SCHEMA,
        **provenance(resolved),
        "identity": identity,
        "accuracy": [asdict(one) for one in figures],
        "notes": scorer.notes,
    }
    write_json(settings.out / ACCURACY_FILE, content)
    print(f"written to {settings.out}")
