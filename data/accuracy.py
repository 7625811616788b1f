"""Full depth's accuracy on prepared samples, in the cheap and in the real mode: what a task is worth for a model.

`python -m data accuracy --data runs/mine/data --model smollm2-135m-instruct --out runs/mine/accuracy`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.measured import ModelSettings, claim, open_scorer
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from data.statistics import wilson_interval
from data.tasks import Task
from router.chain import Chain
from router.command import InputError, provenance
from router.durable import JsonLog, read_json_lines, write_json

SCHEMA = 1
"""Version of `accuracy.json`."""
RESULTS_FILE, ACCURACY_FILE = "results.jsonl", "accuracy.json"


@dataclass(frozen=True)
class AccuracySettings(ModelSettings):
    """Settings of `python -m data accuracy`."""


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

    @classmethod
    def of(cls, sample: Sample, mode: str, result: ChainResult) -> Answered:
        """Take over what the scorer found."""
        difficulty = sample.label("difficulty")
        return cls(sample.id, sample.task, mode, difficulty, len(sample.choices), result.prediction, result.correct)


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
            if all((samples[i].id, mode) in done for i in batch for mode in _modes(encoded[i].task)):
                bar.update(len(batch))
                continue
            block = scorer.load([encoded[i] for i in batch])
            for run, modes in (
                (scorer.score, [task.mode for task in tasks]),
                (scorer.judge, [task.judged_mode for task in tasks]),
            ):
                left = [j for j, i in enumerate(batch) if (samples[i].id, modes[j]) not in done]
                results = run(block, [(j, full) for j in left])
                new = [Answered.of(samples[batch[j]], modes[j], one) for j, one in zip(left, results, strict=True)]
                log.append(*(asdict(one) for one in new))
                done.update((one.sample_id, one.mode) for one in new)
                answered += new
            bar.update(len(batch))
    return answered


def _modes(task: Task) -> set[str]:
    return {task.mode, task.judged_mode}


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
    groups: list[Accuracy] = []
    for task, mode in sorted({(one.task, one.mode) for one in answered}):
        own = [one for one in answered if (one.task, one.mode) == (task, mode)]
        groups.append(_accuracy(None, own))
        levels = {one.difficulty for one in own if one.difficulty is not None}
        for level in sorted(levels, key=lambda level: (isinstance(level, str), level)) if len(levels) > 1 else ():
            groups.append(_accuracy(level, [one for one in own if one.difficulty == level]))
    return groups


def _accuracy(difficulty: str | int | float | None, answered: Sequence[Answered]) -> Accuracy:
    n, correct = len(answered), sum(one.correct for one in answered)
    return Accuracy(
        task=answered[0].task,
        mode=answered[0].mode,
        difficulty=difficulty,
        n=n,
        correct=correct,
        interval=wilson_interval(correct, n),
        chance=sum(1 / one.choices for one in answered if one.choices) / n,
        no_answer=sum(one.prediction is None for one in answered),
    )


def accuracy(settings: AccuracySettings, resolved: dict[str, Any]) -> None:
    """Measure full depth, print a table, and write `results.jsonl` and `accuracy.json`.

    Raises:
        InputError: at bad input.
    """
    scorer, samples = open_scorer(settings)
    identity = claim(settings, scorer, samples, {})
    figures = accuracies(answer_all(scorer, samples, settings.out / RESULTS_FILE, settings.batch_samples))
    print(f"{settings.model}, {scorer.num_layers} layers, {scorer.dtype}, full depth, split {settings.split}")
    head = f"{'task':<22}{'mode':<14}{'difficulty':>10}{'n':>7}{'accuracy':>10}{'95 % interval':>17}{'chance':>8}"
    print(f"{head}{'no answer':>11}")
    for one in figures:
        level = "all" if one.difficulty is None else str(one.difficulty)
        interval = f"{one.interval[0]:.3f}..{one.interval[1]:.3f}"
        row = f"{one.task:<22}{one.mode:<14}{level:>10}{one.n:>7}{one.correct / one.n:>10.3f}{interval:>17}"
        print(f"{row}{one.chance:>8.3f}{one.no_answer:>11}")
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
