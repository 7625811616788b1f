"""Per-sample results of an evaluation: how arms are run into them, and what the folder says of the run.

<out>/run.json         what was run on what (`Run`)
<out>/results.jsonl    one line for each arm and sample (`ArmResult`), in a `data.store.Store`
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from data.encoding import EncodedSample, batches_by_length
from data.flops import ForwardFlops
from data.pool import Batch, Pool, Report, Task, Tick, run_batches
from data.prompts import NotEmpty
from data.records import Answer, ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, Judge, SampleBlock, delivered, in_parts
from data.store import Store, read_finished
from eval.arms import ALWAYS, FULL, LABELS, Arm, RouterArm
from router.files import read_json, require_file
from router.fingerprint import Fingerprints
from router.heads.head import Decision
from router.validation import STORED, ChainField, Count, InputError, NotNegative, Positive, from_plain

SCHEMA: Literal[4] = 4
"""Version of `run.json` and of the report made from it."""
RUN_FILE, RESULTS_FILE = "run.json", "results.jsonl"
Label = str | int | float | None
"""A difficulty or subject, as the sample's metadata has it."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256, 64 hex digits."""
ArmName = Annotated[str, Field(pattern=rf"^({'|'.join(LABELS)}|router@[0-9.e+]+)$")]
"""Name of an arm; `router@23.5` is the router at a further budget, layers."""
ALWAYS_READ = ("data/test", "records/test", "router/config.json", "router/router.safetensors")
"""Files whose SHA-256 every run names."""
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
        in_scope: whether it is in the router's scope; true of other arms than the router's. Left out where true.
        one_token: whether the router ends generation after one token; left out where not.
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
    in_scope: Annotated[bool, Field(exclude_if=bool)] = True
    one_token: Annotated[bool, Field(exclude_if=operator.not_)] = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse a depth that is not the chain's."""
        if self.depth != self.chain.depth:
            raise ValueError(f"depth: expected {self.chain.depth}, as of the chain, got {self.depth}")
        return self

    @classmethod
    def of(cls, arm: str, sample: Sample, tokens: int, result: ChainResult, decision: Decision) -> ArmResult:
        """Join what the scorer found, what is known of the sample, which has so many tokens, and what was decided."""
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
            in_scope=decision.in_scope,
            one_token=decision.one_token,
        )

    @property
    def result(self) -> ChainResult:
        """What the chain answered, without the sample."""
        return ChainResult(self.chain, self.scores, self.prediction, self.correct, self.margin)


def text_of(label: Label) -> str | None:
    """Return a difficulty or subject as text; None: there is none."""
    return None if label is None else str(label)


def key_of(result: ArmResult) -> str:
    """Return a result's key in its store."""
    return f"{result.arm}/{result.sample_id}"


def result_store(path: Path, identity: Mapping[str, Any], num_layers: int) -> Store[ArmResult]:
    """Open a file of results of a model of so many layers, to go on with it; errors as of `Store`."""
    return Store(path, ArmResult, identity, key_of, num_layers=num_layers)


def run_arms(
    arms: Sequence[Arm],
    samples: Sequence[Sample],
    scorer: ChainScorer,
    judge: Judge,
    store: Store[ArmResult],
    batch_samples: int,
    label: str,
    pool: Pool | None = None,
    run: dict[str, Any] | None = None,
) -> None:
    """Run each arm's chain on each sample, or go on where an earlier run was stopped; finishes the store.

    Every chain really runs through the executor. Where arms agree on a sample's chain, it runs once. Batches are the
    same in a resumed run as in an unbroken one.

    Args:
        arms: arms with different names.
        samples: the samples.
        scorer: encodes and loads the samples.
        judge: runs the chains: the scorer's `judge` in the real mode, or `score` in the cheap one.
        store: where the results go.
        batch_samples: samples loaded at once.
        label: name of the progress bar.
        pool: where the chains run; None: in this process.
        run: what the store says of this run.

    Raises:
        InputError: where the model's scores are no finite numbers, or another process writes the store.
    """
    encoded = scorer.encode_all(samples)
    batches = []
    for number, indices in enumerate(batches_by_length([one.length for one in encoded], batch_samples)):
        items = tuple(encoded[i] for i in indices)
        keys = tuple(f"{arm.name}/{one.sample.id}" for arm in arms for one in items)
        batches.append(Batch(str(number), items, keys, len(keys)))

    def work(batch: Batch[EncodedSample], report: Report) -> list[ArmResult]:
        return _run_batch(arms, batch.items, scorer, judge, report.tick)

    run_batches(store, batches, Task(work, key_of, scorer), label=label, unit="answer", pool=pool, run=run)
    store.finish([f"{arm.name}/{sample.id}" for arm in arms for sample in samples])


def _run_batch(
    arms: Sequence[Arm], samples: Sequence[EncodedSample], scorer: ChainScorer, judge: Judge, tick: Tick
) -> list[ArmResult]:
    """Run all arms' chains on a batch."""
    block = scorer.load(samples)
    chosen = [_decided(arm, block) for arm in arms]
    wanted = {(i, one.chain) for decided in chosen for i, one in enumerate(decided)}
    jobs = sorted(wanted, key=lambda job: (job[1].layers, job[0]))
    answered = in_parts(judge, block, jobs, lambda done: tick(done / len(jobs) * len(arms) * len(samples)))
    results = []
    for arm, decided in zip(arms, chosen, strict=True):
        for i, (encoded, one) in enumerate(zip(samples, decided, strict=True)):
            result = delivered(answered[i, one.chain], encoded.task, one_token=one.one_token)
            results.append(ArmResult.of(arm.name, encoded.sample, encoded.length, result, one))
    return results


def _decided(arm: Arm, block: SampleBlock) -> list[Decision]:
    """Return an arm's decision for each sample; arms other than the router's choose a chain and nothing else."""
    if isinstance(arm, RouterArm):
        return arm.decide(block)
    return [Decision(chain, 0.0) for chain in arm.chains(block)]


@dataclass(frozen=True, config=STORED)
class Model:
    """The base model.

    Attributes:
        name: asset, folder or hub id, as it was given.
        revision: hub revision; null: the default.
        dtype: dtype in which it ran.
        num_layers: layers: the depth of full depth.
        read_layer: layers that run unedited before the router reads.
        late_read_layer: layers that have run where it reads once more; null: it reads once.
    """

    name: NotEmpty
    revision: str | None
    dtype: str
    num_layers: Positive
    read_layer: Count
    late_read_layer: Count | None = None

    @property
    def short(self) -> str:
        """Its name without the folders before it."""
        return Path(self.name).name


@dataclass(frozen=True, config=STORED)
class Provenance:
    """Where results come from.

    Attributes:
        settings: resolved settings of the command, paths as they were given.
        commit: commit of the source tree, with `-dirty` where files differed; null outside git.
        versions: version of Python and of each library, by name.
        threads: CPU threads that the process could use; null: unknown.
        started: local time of the start, ISO 8601 with offset.
    """

    settings: dict[str, Any]
    commit: str | None
    versions: dict[str, str]
    threads: Positive | None
    started: str


@dataclass(frozen=True, config=STORED, kw_only=True)
class Evaluated:
    """What was evaluated, as `run.json` and `report.json` both say it.

    Attributes:
        schema: version of the format.
        provenance: where the results come from.
        task: task, or tasks of a mixture joined by `+`.
        mode: mode in which the search scored chains and the static chain was chosen (several tasks': joined).
        judged_mode: mode in which every arm's answers are judged: what a user would see.
        split: split that was evaluated: `test`.
        model: the base model.
        fingerprints: what the results are valid for.
        inputs: SHA-256 of each file that was read, by a name that does not hang on where it lay (`data/test`,
            `records/test`, `router/config.json`).
        n: test samples; every arm answered all of them.
        notes: what is particular to this run.
    """

    schema: Literal[4]
    provenance: Provenance
    task: NotEmpty
    mode: NotEmpty
    judged_mode: NotEmpty
    split: NotEmpty
    model: Model
    fingerprints: Fingerprints
    inputs: dict[str, Sha256]
    n: Positive
    notes: tuple[str, ...]

    @field_validator("inputs")
    @classmethod
    def _named(cls, inputs: dict[str, str]) -> dict[str, str]:
        """Refuse inputs that lack a file without which there is no evaluation."""
        if missing := [name for name in ALWAYS_READ if name not in inputs]:
            raise ValueError(f"expected the SHA-256 of {missing[0]}, got none")
        return inputs


@dataclass(frozen=True, config=STORED)
class RunArm:
    """An arm of a run.

    Attributes:
        name: name in results files.
        label: name for readers.
    """

    name: ArmName
    label: str


@dataclass(frozen=True, config=STORED, kw_only=True)
class Run(Evaluated):
    """What was evaluated: the content of `run.json`.

    Attributes:
        seed: seed of draws and of the bootstrap.
        oracle_found: samples for which the search found a right chain.
        arms: the arms, in the order in which they are shown.
        flops: what a forward pass of the model costs, operations.
        router_flops: what the router costs, operations, mean over samples.
    """

    seed: Count
    oracle_found: Count
    arms: tuple[RunArm, ...]
    flops: ForwardFlops
    router_flops: NotNegative


def fields_of(value: Any, base: type) -> dict[str, Any]:
    """Return the fields that a dataclass has of one of its bases, by name."""
    return {field.name: getattr(value, field.name) for field in fields(base)}


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
