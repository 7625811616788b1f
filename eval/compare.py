"""Compare two evaluations on the samples that both answered, arm by arm.

    python -m eval compare runs/a/eval runs/b/eval
    python -m eval compare A B --arm_a router --arm_b router@23.5 --json difference.json

Model, task, prompt, split and judged mode must be the same; samples are paired by their id, which is their content.
Everything is counted from `run.json` and `results.jsonl` of each; B is measured against A.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal, TextIO

from jsonargparse import ArgumentError, ArgumentParser
from pydantic.dataclasses import dataclass

from data.records import agrees
from eval.arms import FULL
from eval.measures import Answered, Paired, corrected, paired
from eval.report import Comparisons
from eval.results import RESULTS_FILE, ArmResult, Model, Run, Sha256, read_arms, read_run
from eval.tables import console_for, number, printable, probability, table
from router.command import one_line
from router.files import require_directory, sha256_file, write_json
from router.fingerprint import Fingerprints
from router.validation import STORED, Count, InputError, Positive, to_plain

SCHEMA: Literal[2] = 2
"""Version of the format that `--json` writes (docs/report.md)."""
SAME = {
    "model fingerprint": "fingerprints.model",
    "tokenizer fingerprint": "fingerprints.tokenizer",
    "task": "task",
    "prompt fingerprint": "fingerprints.prompt",
    "split": "split",
    "judged_mode": "judged_mode",
}
"""Fields of the runs that must agree."""
NOTED = {
    "mode of the search": "mode",
    "dtype": "model.dtype",
    "revision": "model.revision",
    "read_layer": "model.read_layer",
    "late_read_layer": "model.late_read_layer",
}
"""Fields that may differ, which is then said; so are inputs."""
COLUMNS = (
    "accuracy A (95 %)",
    "accuracy B (95 %)",
    "depth A",
    "depth B",
    "B against A, 95 %",
    "wrong->right",
    "right->wrong",
    "McNemar p",
    "p (Holm)",
)


@plain_dataclass(frozen=True)
class Evaluation:
    """One side of the comparison.

    Attributes:
        folder: its folder.
        run: what was evaluated.
        arms: results of each arm by sample id, the arms in the order of the run.
    """

    folder: Path
    run: Run
    arms: dict[str, dict[str, ArmResult]]


@dataclass(frozen=True, config=STORED)
class Side:
    """One evaluation of a comparison.

    Attributes:
        folder: the evaluation's folder.
        results_sha256: SHA-256 of the results that were compared.
        commit: commit of the source tree that evaluated; null: unknown.
        model: the base model.
        n: its samples.
        n_only_here: how many of them the other evaluation has not.
    """

    folder: str
    results_sha256: Sha256
    commit: str | None
    model: Model
    n: Positive
    n_only_here: Count


@dataclass(frozen=True, config=STORED, kw_only=True)
class SideArm(Answered):
    """One side's arm on the common samples.

    Attributes:
        label: name for readers.
    """

    label: str


@dataclass(frozen=True, config=STORED, kw_only=True)
class ComparedArm(Paired):
    """An arm of B against one of A, its baseline, on the common samples.

    Attributes:
        a: A's arm.
        b: B's arm.
    """

    a: SideArm
    b: SideArm


@dataclass(frozen=True, config=STORED, kw_only=True)
class Comparison:
    """What `python -m eval compare` found: B against A.

    Attributes:
        schema: version of the format.
        a: the baseline.
        b: what is measured against it.
        task: task, or tasks of a mixture joined by `+`.
        judged_mode: mode in which answers were judged.
        split: split that was evaluated.
        fingerprints: what the results are valid for.
        n: samples that both answered.
        seed: seed of the bootstrap.
        arms: the pairs of arms.
        comparisons: how p-values are corrected.
        notes: what a reader must know of these two evaluations.
    """

    schema: Literal[2]
    a: Side
    b: Side
    task: str
    judged_mode: str
    split: str
    fingerprints: Fingerprints
    n: Positive
    seed: Count
    arms: tuple[ComparedArm, ...]
    comparisons: Comparisons
    notes: tuple[str, ...]


def main(argv: Sequence[str] | None) -> None:
    """Compare two evaluations; prints a table and writes JSON where asked.

    Raises:
        InputError: at bad input, or evaluations that cannot be compared.
    """
    parser = ArgumentParser(
        prog="python -m eval compare",
        description="Compare two evaluations of one model and task on the samples that both answered: B against A.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("a", type=Path, help="folder of the first evaluation, or a file in it")
    parser.add_argument("b", type=Path, help="folder of the second one, or a file in it")
    parser.add_argument("--arm_a", type=str | None, default=None, help="one arm of A; unset: all that both have")
    parser.add_argument("--arm_b", type=str | None, default=None, help="arm of B to set against it; unset: the same")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap, at least 0")
    parser.add_argument("--json", type=Path | None, default=None, help="also write the comparison to this file")
    try:
        given = parser.parse_args(None if argv is None else list(argv))
    except (ArgumentError, ValueError) as error:
        raise InputError(one_line(error)) from error
    if given.seed < 0:
        raise InputError(f"seed: expected an integer of at least 0, got {given.seed}")
    first, second = read_evaluation(given.a), read_evaluation(given.b)
    if given.json is not None:
        _check_target(given.json, (first, second))
    found = compare(first, second, given.arm_a, given.arm_b, given.seed)
    print_comparison(found, sys.stdout)
    if given.json is not None:
        write_json(given.json, to_plain(found))
        print(f"written to {given.json}")


def read_evaluation(place: Path) -> Evaluation:
    """Read what was evaluated, and the per-sample results.

    Args:
        place: the evaluation's folder, or any file in it.

    Raises:
        InputError: where a file is missing, corrupt, not finished or of another schema.
    """
    folder = place.parent if place.is_file() else require_directory(place, "evaluation")
    arms = {name: {one.sample_id: one for one in of_arm} for name, of_arm in read_arms(folder).items()}
    return Evaluation(folder, read_run(folder), arms)


def compare(
    first: Evaluation, second: Evaluation, arm_a: str | None = None, arm_b: str | None = None, seed: int = 0
) -> Comparison:
    """Compare two evaluations.

    Args:
        first: A, the baseline.
        second: B.
        arm_a: an arm of A; None: all arms that both have, or `arm_b`.
        arm_b: the arm of B that it is set against; None: that of the same name.
        seed: seed of the bootstrap.

    Raises:
        InputError: where they cannot be compared: another model, task, prompt, split or judged mode, no common sample,
            an arm that is not there.
    """
    for words, field in SAME.items():
        one, other = (attrgetter(field)(side.run) for side in (first, second))
        if one != other:
            raise InputError(f"{second.folder}: expected {words} {one!r}, as in {first.folder}, got {other!r}")
    common = sorted(first.arms[FULL].keys() & second.arms[FULL].keys())
    if not common:
        raise InputError(f"{second.folder}: expected samples that {first.folder} has too, got none in common")
    names = _pairs(first, second, arm_a, arm_b)
    aligned = [([first.arms[a][key] for key in common], [second.arms[b][key] for key in common]) for a, b in names]
    for one, other in zip(*aligned[0], strict=True):
        if (one.task, one.choices) != (other.task, other.choices):  # which the id decides
            raise InputError(
                f"{second.folder}: expected sample {one.sample_id} as in the other evaluation, got another"
            )
    tested = corrected([paired(in_b, in_a, seed) for in_a, in_b in aligned])
    text = "1 McNemar test, nothing to correct for"
    if len(tested) > 1:
        text = (
            f"{len(tested)} McNemar tests, one for each pair of arms shown; mcnemar_p_holm is corrected for all of "
            "them, mcnemar_p and intervals for none"
        )
    sides = (_side(first, common), _side(second, common))
    return Comparison(
        schema=SCHEMA,
        a=sides[0],
        b=sides[1],
        task=first.run.task,
        judged_mode=first.run.judged_mode,
        split=first.run.split,
        fingerprints=first.run.fingerprints,
        n=len(common),
        seed=seed,
        arms=tuple(
            ComparedArm(**vars(one), a=_arm(first, in_a), b=_arm(second, in_b))
            for (in_a, in_b), one in zip(aligned, tested, strict=True)
        ),
        comparisons=Comparisons("Holm", len(tested), text),
        notes=(
            *(["both evaluations have the same results"] if sides[0].results_sha256 == sides[1].results_sha256 else []),
            *_notes(first, second, common),
            *(_alone(first, second) if arm_a is None and arm_b is None else []),
        ),
    )


def _pairs(first: Evaluation, second: Evaluation, arm_a: str | None, arm_b: str | None) -> list[tuple[str, str]]:
    """Return the pairs of arms to be compared."""
    one, other = arm_a or arm_b, arm_b or arm_a
    if one is None or other is None:
        return [(name, name) for name in first.arms if name in second.arms]
    for side, setting, name in ((first, "arm_a", one), (second, "arm_b", other)):
        if name not in side.arms:
            raise InputError(f"{setting}: expected an arm of {side.folder} ({', '.join(side.arms)}), got {name!r}")
    return [(one, other)]


def _check_target(path: Path, sides: Sequence[Evaluation]) -> None:
    """Refuse a file for the comparison beside what is compared."""
    require_directory(path.parent, "json")
    if path.is_dir() or path.resolve().parent in {side.folder.resolve() for side in sides}:
        raise InputError(f"json: expected a file outside the two evaluations' folders, got {str(path)!r}")


def _side(side: Evaluation, common: Sequence[str]) -> Side:
    run = side.run
    return Side(
        folder=str(side.folder),
        results_sha256=sha256_file(side.folder / RESULTS_FILE),
        commit=run.provenance.commit,
        model=run.model,
        n=run.n,
        n_only_here=run.n - len(common),
    )


def _arm(side: Evaluation, results: Sequence[ArmResult]) -> SideArm:
    labels = {arm.name: arm.label for arm in side.run.arms}
    return SideArm(**Answered.counts(results), label=labels[results[0].arm])


def _notes(first: Evaluation, second: Evaluation, common: Sequence[str]) -> list[str]:
    """Return what a reader must know of these two evaluations."""
    notes = []
    for words, field in NOTED.items():
        one, other = (attrgetter(field)(side.run) for side in (first, second))
        if one != other:
            notes.append(f"{words}: {one} in A, {other} in B")
    inputs = [side.run.inputs for side in (first, second)]
    if differing := sorted(name for name in {*inputs[0], *inputs[1]} if inputs[0].get(name) != inputs[1].get(name)):
        notes.append(f"A and B read different {', '.join(differing)}")
    full = [(first.arms[FULL][key].result, second.arms[FULL][key].result) for key in common]
    if changed := sum(not agrees(in_a, in_b) for in_a, in_b in full):
        notes.append(
            f"full depth answers {changed} of {len(common)} common samples otherwise in B: that much comes of dtype, "
            f"device or batches, not of the router"
        )
    return notes


def _alone(first: Evaluation, second: Evaluation) -> list[str]:
    """Say which arms were left out because one evaluation has them alone."""
    sides = (("A", first, second), ("B", second, first))
    alone = {which: [name for name in one.arms if name not in other.arms] for which, one, other in sides}
    return [f"arms that only {which} has: {', '.join(names)}" for which, names in alone.items() if names]


def print_comparison(found: Comparison, stream: TextIO) -> None:
    """Print what `compare` found."""
    console = console_for(stream)
    for which, side in (("A", found.a), ("B", found.b)):
        only = f", {side.n_only_here} of them only here: left out" if side.n_only_here else ""
        console.print(printable(f"{which}: {side.folder}, n = {side.n}{only}"))
    console.print(
        printable(
            f"{found.task} ({found.judged_mode}), split {found.split}, {found.a.model.name}: "
            f"n = {found.n} common samples; B against A"
        )
    )
    failures = any(arm.a.no_answer or arm.b.no_answer for arm in found.arms)
    rows = [
        [
            arm.a.label if arm.a.label == arm.b.label else f"{arm.a.label} -> {arm.b.label}",
            *(number(side.accuracy, side.accuracy_interval) for side in (arm.a, arm.b)),
            *(f"{side.mean_depth:.2f}" for side in (arm.a, arm.b)),
            number(arm.difference, arm.difference_interval, "+.3f"),
            str(arm.wrong_to_right),
            str(arm.right_to_wrong),
            probability(arm.mcnemar_p),
            probability(arm.mcnemar_p_holm),
            *([f"{arm.a.no_answer}/{arm.b.no_answer}"] if failures else []),
        ]
        for arm in found.arms
    ]
    console.print(table(None, ("arm", *COLUMNS, *(["no answer A/B"] if failures else [])), rows))
    console.print(f"{found.comparisons.method}: {found.comparisons.text}")
    for note in found.notes:
        console.print(printable(f"note: {note}"))
