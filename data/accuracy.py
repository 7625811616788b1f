"""Full depth's accuracy on prepared samples, in the cheap and in the real mode: what a task is worth for a model.

`python -m data accuracy --data runs/mine/data --model smollm2-135m-instruct --out runs/mine/accuracy`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from pydantic.dataclasses import dataclass

from data.encoding import EncodedSample, batches_by_length
from data.pool import Batch, Pool, Report, RunSettings, Task, run_batches
from data.sample import Sample, Split
from data.scoring import ChainScorer, open_scorer
from data.statistics import Interval, wilson_interval
from data.store import Store
from data.tasks import TASKS_FILE
from router.chain import Chain
from router.command import provenance
from router.engine.load import DEFAULT_MODEL, ModelSettings
from router.files import sha256_file, sha256_json, write_json
from router.validation import SETTINGS, STORED, Count, Positive, Share, to_plain

SCHEMA = 1
"""Version of `accuracy.json`."""
RESULTS_FILE, ACCURACY_FILE = "results.jsonl", "accuracy.json"
Level = bool | int | float | str | None
"""A sample's difficulty; None: it has none."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class MeasureSettings(ModelSettings, RunSettings):
    """The model and samples of a measurement.

    Attributes:
        split: split to measure.
        batch_tokens: tokens in one call of a layer at most.
    """

    split: Split = "test"
    batch_tokens: Positive = 2048

    def opened(self) -> tuple[ChainScorer, list[Sample]]:
        """Load the model and read the samples."""
        return open_scorer(self, self.data, self.split, limit=self.limit, batch_tokens=self.batch_tokens)


def identity_of(settings: MeasureSettings, scorer: ChainScorer, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what identifies a measurement, as JSON data."""
    return {
        "fingerprints": asdict(scorer.fingerprints),
        "dtype": scorer.dtype,
        "tasks": sha256_file(settings.data / TASKS_FILE),
        "samples": sha256_json([sample.id for sample in samples]),
        "split": settings.split,
    }


@dataclass(frozen=True, config=STORED)
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
    difficulty: Level
    choices: Count
    prediction: int | str | None
    correct: bool


@dataclass(frozen=True, config=STORED)
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
    difficulty: Level
    n: Positive
    correct: Count
    interval: Interval
    chance: Share
    no_answer: Count


def answer_all(
    scorer: ChainScorer,
    samples: Sequence[Sample],
    store: Store[Answered],
    batch_samples: int,
    pool: Pool | None = None,
) -> list[Answered]:
    """Run full depth on every sample, in its task's mode and in the real one where that is another.

    Answers are added to the store batch by batch; what stands there is not run again.

    Returns:
        The answers, in the samples' order.

    Raises:
        InputError: where a sample cannot be asked.
        UnfinishedError: where some batches could not be run.
    """
    encoded = scorer.encode_all(samples)
    full = Chain.full(scorer.num_layers)
    keys = [[f"{one.sample.id}/{mode}" for mode in _modes(one)] for one in encoded]

    def work(batch: Batch[EncodedSample], _: Report) -> list[Answered]:
        block = scorer.load(batch.items)
        places = range(len(batch.items))
        again = [j for j in places if len(_modes(batch.items[j])) > 1]
        found = []
        for run, asked, mode in ((scorer.score, places, 0), (scorer.judge, again, -1)):
            results = run(block, [(j, full) for j in asked])
            for asked_one, result in zip((batch.items[j] for j in asked), results, strict=True):
                one = asked_one.sample
                found.append(
                    Answered(
                        sample_id=one.id,
                        task=one.task,
                        mode=_modes(asked_one)[mode],
                        difficulty=one.label("difficulty"),
                        choices=len(one.choices),
                        prediction=result.prediction,
                        correct=result.correct,
                    )
                )
        return found

    batches = [
        Batch(
            str(number), tuple(encoded[i] for i in places), tuple(key for i in places for key in keys[i]), len(places)
        )
        for number, places in enumerate(batches_by_length([one.length for one in encoded], batch_samples))
    ]
    run_batches(store, batches, Task(work, key_of, scorer), label="full depth", unit="sample", pool=pool)
    store.finish([key for own in keys for key in own])
    return list(store.rows())


def _modes(encoded: EncodedSample) -> list[str]:
    """Return the modes in which a sample is asked: its task's and, where that is another, the real one."""
    return list(dict.fromkeys((encoded.task.mode, encoded.task.judged_mode)))


def key_of(row: Answered) -> str:
    """Return a row's key in its store."""
    return f"{row.sample_id}/{row.mode}"


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


def _accuracy(difficulty: Level, answered: Sequence[Answered]) -> Accuracy:
    n, correct = len(answered), sum(one.correct for one in answered)
    chance = sum(1 / one.choices for one in answered if one.choices) / n
    no_answer = sum(one.prediction is None for one in answered)
    first, interval = answered[0], wilson_interval(correct, n)
    return Accuracy(first.task, first.mode, difficulty, n, correct, interval, chance, no_answer)


def accuracy(settings: MeasureSettings, resolved: dict[str, Any]) -> None:
    """Measure full depth, print a table, and write `results.jsonl` and `accuracy.json`.

    Raises:
        InputError: at bad input.
    """
    model = settings.model or DEFAULT_MODEL
    scorer, samples = settings.opened()
    identity = identity_of(settings, scorer, samples)
    store = Store(settings.out / RESULTS_FILE, Answered, identity, key_of)
    with settings.pool() as pool:
        figures = accuracies(answer_all(scorer, samples, store, settings.batch_samples, pool))
    print(f"{model}, {scorer.num_layers} layers, {scorer.dtype}, full depth, split {settings.split}")
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
        **provenance(resolved | {"model": model}),
        "identity": identity,
        "accuracy": [to_plain(one) for one in figures],
        "notes": scorer.notes,
    }
    write_json(settings.out / ACCURACY_FILE, content)
    print(f"written to {settings.out}")
