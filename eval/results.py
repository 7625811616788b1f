"""Per-sample results of an evaluation, and what its folder says of the run.

<out>/run.json         what was run on what (`Run`)
<out>/results.jsonl    one line for each arm and sample (`ArmResult`), in a `data.store.Store`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from data.flops import ForwardFlops
from data.records import Answer, ChainResult
from data.sample import Sample
from data.store import Store, read_finished
from eval.arms import ALWAYS, FULL
from router.files import read_json, require_file
from router.fingerprint import Fingerprints
from router.validation import STORED, ChainField, Count, InputError, NotNegative, Positive, from_plain

SCHEMA: Literal[4] = 4
"""Version of `run.json` and of the results' lines."""
RUN_FILE, RESULTS_FILE = "run.json", "results.jsonl"
Label = str | int | float | None
"""A difficulty or subject, as the sample's metadata has it."""
SAMPLE_FIELDS = ("task", "difficulty", "subject", "choices", "tokens")
"""Fields of a result that are the sample's, whatever the arm."""


@dataclass(frozen=True, slots=True, config=STORED)
class ArmResult:
    """What an arm's chain answered on one sample.

    Attributes:
        arm: name of the arm.
        sample_id: `Sample.id`.
        task: the sample's task.
        difficulty: what its metadata says of it; null: nothing.
        subject: what its metadata says of it; null: nothing.
        choices: number of its choices; 0: the answer is free.
        tokens: tokens of its prompt and choices, which every chain reads.
        chain: the chain that was run.
        depth: its layers, for readers without the chain's rules.
        prediction: what was answered, as in `ChainResult`; null where no answer could be read in what was generated (a
            format failure).
        correct: whether it is right.
        scores: as in `ChainResult`; none of a generated answer.
        margin: as in `ChainResult`.
    """

    arm: str
    sample_id: str
    task: str
    difficulty: Label
    subject: Label
    choices: Count
    tokens: Positive
    chain: ChainField
    depth: Count
    prediction: Answer
    correct: bool
    scores: tuple[float, ...]
    margin: float

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse a depth that is not the chain's."""
        if self.depth != self.chain.depth:
            raise ValueError(f"depth: expected {self.chain.depth}, as of the chain, got {self.depth}")
        return self

    @classmethod
    def of(cls, arm: str, sample: Sample, tokens: int, result: ChainResult) -> ArmResult:
        """Join what the scorer found and what is known of the sample, which has so many tokens."""
        return cls(
            arm=arm,
            sample_id=sample.id,
            task=sample.task,
            difficulty=sample.label("difficulty"),
            subject=sample.label("subject"),
            choices=len(sample.choices),
            tokens=tokens,
            chain=result.chain,
            depth=result.chain.depth,
            prediction=result.prediction,
            correct=result.correct,
            scores=result.scores,
            margin=result.margin,
        )


def key_of(result: ArmResult) -> str:
    """Return a result's key in its store."""
    return f"{result.arm}/{result.sample_id}"


def result_store(path: Path, identity: Mapping[str, Any], num_layers: int) -> Store[ArmResult]:
    """Open a file of results of a model of so many layers, to go on with it; errors as of `Store`."""
    return Store(path, ArmResult, identity, key_of, num_layers=num_layers)


@dataclass(frozen=True, config=STORED)
class Model:
    """The base model.

    Attributes:
        name: asset, folder or hub id, as it was given.
        revision: hub revision; null: the default.
        dtype: dtype in which it ran.
        num_layers: layers: the depth of full depth.
        read_layer: layers that run unedited before the router reads.
    """

    name: str
    revision: str | None
    dtype: str
    num_layers: Positive
    read_layer: Count


@dataclass(frozen=True, config=STORED)
class RunArm:
    """An arm of a run.

    Attributes:
        name: name in results files.
        label: name for readers.
    """

    name: str
    label: str


@dataclass(frozen=True, config=STORED)
class Run:
    """What was evaluated: the content of `run.json`.

    Attributes:
        provenance: settings, commit, versions, threads and time of the start.
        task: task, or tasks of a mixture joined by `+`.
        mode: mode in which the search scored chains and the static chain was chosen (several tasks': joined).
        judged_mode: mode in which every arm's answers are judged: what a user would see.
        split: split that was evaluated.
        n: its samples.
        seed: seed of draws and of the bootstrap.
        model: the base model.
        fingerprints: what the results are valid for.
        inputs: SHA-256 of each file that was read, by a name that does not hang on where it lay.
        oracle_found: samples for which the search found a right chain.
        arms: the arms, in the order in which they are shown.
        flops: what a forward pass of the model costs, operations.
        router_flops: what the router costs, operations, mean over samples.
        notes: what is particular to this run.
        schema: version of the format.
    """

    provenance: dict[str, Any]
    task: str
    mode: str
    judged_mode: str
    split: str
    n: Positive
    seed: Count
    model: Model
    fingerprints: Fingerprints
    inputs: dict[str, str]
    oracle_found: Count
    arms: tuple[RunArm, ...]
    flops: ForwardFlops
    router_flops: NotNegative
    notes: tuple[str, ...]
    schema: Literal[4] = Field(default=SCHEMA)


def read_run(out: Path) -> Run:
    """Read `run.json`.

    Raises:
        InputError: where it is missing, corrupt or of another schema.
    """
    path = require_file(out / RUN_FILE, "out")
    return from_plain(Run, read_json(path), str(path))


def read_results(path: Path, num_layers: int, setting: str = "out") -> list[ArmResult]:
    """Read a finished results file.

    Raises:
        InputError: where it is missing, not finished or corrupt; names file and line.
    """
    return [from_plain(ArmResult, value, where, num_layers=num_layers) for where, value in read_finished(path, setting)]


def read_arms(out: Path) -> dict[str, list[ArmResult]]:
    """Return the results of each arm of a run, in the order of its report; see `by_arm`.

    Raises:
        InputError: where a file is missing or corrupt, or an arm's results are not complete.
    """
    run, path = read_run(out), out / RESULTS_FILE
    return by_arm(read_results(path, run.model.num_layers), [arm.name for arm in run.arms], run.n, path)


def by_arm(results: Sequence[ArmResult], names: Sequence[str], n: int, path: Path) -> dict[str, list[ArmResult]]:
    """Return each arm's results by sample id, complete and on the same samples.

    Args:
        results: all results.
        names: the arms.
        n: samples of each.
        path: file that a refusal names.

    Raises:
        InputError: where results are missing, or belong to no arm.
    """
    arms: dict[str, list[ArmResult]] = {name: [] for name in names}
    if missing := [name for name in ALWAYS if name not in arms]:
        raise InputError(f"{path}: expected the arms {', '.join(ALWAYS)} in {RUN_FILE}, got none of {missing[0]}")
    for result in results:
        if result.arm not in arms:
            raise InputError(f"{path}: expected the arms {', '.join(names)}, got {result.arm!r}")
        arms[result.arm].append(result)
    for name, of_arm in arms.items():
        of_arm.sort(key=lambda result: result.sample_id)
        if len(of_arm) != n or [one.sample_id for one in of_arm] != [one.sample_id for one in arms[FULL]]:
            raise InputError(
                f"{path}: expected {n} samples for each arm, got {len(of_arm)} for {name}; run python -m eval again"
            )
        for one, full in zip(of_arm, arms[FULL], strict=True):
            if [getattr(one, key) for key in SAMPLE_FIELDS] != [getattr(full, key) for key in SAMPLE_FIELDS]:
                raise InputError(
                    f"{path}: expected sample {one.sample_id} alike in all arms, got it otherwise in {name}"
                )
    return arms
