"""Compare two evaluations on the samples that both answered, arm by arm.

    python -m eval compare runs/a/eval runs/b/eval
    python -m eval compare A/report.json B/report.json --arm_a router --arm_b router@23.5 --json difference.json

Model, task, prompt, split and judged mode must be the same; samples are paired by their id, which is their content.
Everything is counted from the `results.jsonl` beside each report; B is measured against A.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from jsonargparse import ArgumentError, ArgumentParser

from data.statistics import wilson_interval
from eval.arms import FULL
from eval.measures import corrected, paired
from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE, ArmResult, by_arm, read_results
from eval.schema import validate_report
from eval.tables import console_for, probability, table
from router.command import one_line, plain_values
from router.files import read_json, require_directory, require_file, sha256_file, write_json
from router.validation import InputError

SCHEMA = 1
"""Version of the format that `--json` writes (docs/report.md)."""
SAME = {
    "model fingerprint": ("fingerprints", "model"),
    "tokenizer fingerprint": ("fingerprints", "tokenizer"),
    "task": ("task",),
    "prompt fingerprint": ("fingerprints", "prompt"),
    "split": ("split",),
    "judged_mode": ("judged_mode",),
}
"""Fields of the reports that must agree."""
NOTED = {
    "mode of the search": ("mode",),
    "dtype": ("model", "dtype"),
    "revision": ("model", "revision"),
    "read_layer": ("model", "read_layer"),
}
"""Fields that may differ, which is then said; so are inputs."""
CONTENT = ("task", "choices")
"""Fields of a result that the sample's id decides."""


@dataclass(frozen=True)
class Evaluation:
    """One side of the comparison.

    Attributes:
        path: its report.
        report: the report's content.
        arms: results of each arm by sample id, the arms in the report's order.
    """

    path: Path
    report: dict[str, Any]
    arms: dict[str, dict[str, ArmResult]]

    @property
    def sample_ids(self) -> set[str]:
        """Ids of its samples, the same for every arm."""
        return set(self.arms[FULL])

    @property
    def labels(self) -> dict[str, str]:
        """Label of each arm, by name."""
        return {arm["name"]: arm["label"] for arm in self.report["arms"]}


def main(argv: Sequence[str] | None) -> None:
    """Compare two reports; prints a table and writes JSON where asked.

    Raises:
        InputError: at bad input, or evaluations that cannot be compared.
    """
    parser = ArgumentParser(
        prog="python -m eval compare",
        description="Compare two evaluations of one model and task on the samples that both answered: B against A.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("a", type=Path, help="report.json of the first evaluation, or its folder")
    parser.add_argument("b", type=Path, help="report.json of the second one, or its folder")
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
    content = compare(first, second, given.arm_a, given.arm_b, given.seed)
    print_comparison(content, sys.stdout)
    if given.json is not None:
        write_json(given.json, content)
        print(f"written to {given.json}")


def read_evaluation(place: Path) -> Evaluation:
    """Read a report and the per-sample results that it was made from.

    Args:
        place: `report.json`, or the folder that holds it.

    Raises:
        InputError: where a file is missing, corrupt or of another schema, or the results are not the report's.
    """
    path = require_file(place / REPORT_FILE if place.is_dir() else place, "report")
    try:
        report = read_json(path)
    except RecursionError as error:
        raise InputError(f"{path}: expected a report, got JSON nested too deeply") from error
    validate_report(report, str(path))
    results = path.parent / RESULTS_FILE
    if not results.is_file():
        raise InputError(f"{path}: expected {RESULTS_FILE} beside it, which holds each sample's answers, got none")
    digest = sha256_file(results)
    if digest != report["results_sha256"]:
        raise InputError(
            f"{results}: expected the file that {path} was made from, SHA-256 {report['results_sha256'][:12]}..., "
            f"got {digest[:12]}...; python -m eval writes the report anew"
        )
    names = [arm["name"] for arm in report["arms"]]
    found = by_arm(read_results(results, report["model"]["num_layers"]), names, report["n"], results)
    return Evaluation(path, report, {name: {one.sample_id: one for one in of_arm} for name, of_arm in found.items()})


def compare(
    first: Evaluation, second: Evaluation, arm_a: str | None = None, arm_b: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the comparison of two evaluations as JSON data.

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
    for words, keys in SAME.items():
        one, other = (_field(side.report, keys) for side in (first, second))
        if one != other:
            raise InputError(f"{second.path}: expected {words} {one!r}, as in {first.path}, got {other!r}")
    common = sorted(first.sample_ids & second.sample_ids)
    if not common:
        raise InputError(f"{second.path}: expected samples that {first.path} has too, got none in common")
    names = _pairs(first, second, arm_a, arm_b)
    aligned = [([first.arms[a][key] for key in common], [second.arms[b][key] for key in common]) for a, b in names]
    _check_content(aligned[0], second.path)
    tested = corrected([paired(ours, theirs, seed) for theirs, ours in aligned])
    plain: dict[str, Any] = plain_values(
        {
            "schema": SCHEMA,
            "a": _side(first, common),
            "b": _side(second, common),
            "task": first.report["task"],
            "judged_mode": first.report["judged_mode"],
            "split": first.report["split"],
            "fingerprints": first.report["fingerprints"],
            "n": len(common),
            "seed": seed,
            "arms": [
                {"a": _arm(first, a, in_a), "b": _arm(second, b, in_b), **asdict(one)}
                for (a, b), (in_a, in_b), one in zip(names, aligned, tested, strict=True)
            ],
            "comparisons": _comparisons(len(tested)),
            "notes": _notes(first, second, common) + (_alone(first, second) if arm_a is None and arm_b is None else []),
        }
    )
    return plain


def _pairs(first: Evaluation, second: Evaluation, arm_a: str | None, arm_b: str | None) -> list[tuple[str, str]]:
    """Return the pairs of arms to be compared."""
    if arm_a is None and arm_b is None:
        return [(name, name) for name in first.arms if name in second.arms]
    wanted = [(first, "arm_a", arm_a or arm_b), (second, "arm_b", arm_b or arm_a)]
    for side, setting, name in wanted:
        if name not in side.arms:
            raise InputError(f"{setting}: expected an arm of {side.path} ({', '.join(side.arms)}), got {name!r}")
    return [(str(wanted[0][-1]), str(wanted[1][-1]))]


def _check_content(pair: tuple[Sequence[ArmResult], Sequence[ArmResult]], path: Path) -> None:
    for one, other in zip(*pair, strict=True):
        if [getattr(one, name) for name in CONTENT] != [getattr(other, name) for name in CONTENT]:
            raise InputError(f"{path}: expected sample {one.sample_id} as in the other evaluation, got another")


def _check_target(path: Path, sides: Sequence[Evaluation]) -> None:
    """Refuse a file for the comparison that would replace what is compared."""
    require_directory(path.parent, "json")
    inputs = {file.resolve() for side in sides for file in (side.path, side.path.parent / RESULTS_FILE)}
    if path.is_dir() or path.resolve() in inputs:
        raise InputError(f"json: expected a file of its own, got {str(path)!r}")


def _comparisons(count: int) -> dict[str, Any]:
    """Say what was corrected."""
    text = "1 McNemar test, nothing to correct for"
    if count > 1:
        text = f"{count} McNemar tests, one for each pair of arms shown; mcnemar_p_holm is corrected for all of them, "
        text += "mcnemar_p and intervals for none"
    return {"method": "Holm", "count": count, "text": text}


def _side(side: Evaluation, common: Sequence[str]) -> dict[str, Any]:
    report = side.report
    return {
        "report": str(side.path),
        "report_sha256": sha256_file(side.path),
        "results_sha256": report["results_sha256"],
        "commit": report["provenance"]["commit"],
        "model": report["model"],
        "n": report["n"],
        "n_only_here": report["n"] - len(common),
    }


def _arm(side: Evaluation, name: str, results: Sequence[ArmResult]) -> dict[str, Any]:
    """Measure one arm on the common samples."""
    n, correct = len(results), sum(one.correct for one in results)
    return {
        "name": name,
        "label": side.labels[name],
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "accuracy_interval": wilson_interval(correct, n),
        "no_answer": sum(one.prediction is None for one in results),
        "mean_depth": sum(one.chain.depth for one in results) / n,
    }


def _field(report: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = report
    for key in keys:
        value = value[key]
    return value


def _notes(first: Evaluation, second: Evaluation, common: Sequence[str]) -> list[str]:
    """Return what a reader must know of these two evaluations."""
    notes = []
    if first.report["results_sha256"] == second.report["results_sha256"]:
        notes.append("both reports rest on the same results")
    for words, keys in NOTED.items():
        one, other = (_field(side.report, keys) for side in (first, second))
        if one != other:
            notes.append(f"{words}: {one} in A, {other} in B")
    inputs = [side.report["inputs"] for side in (first, second)]
    if differing := sorted(name for name in {*inputs[0], *inputs[1]} if inputs[0].get(name) != inputs[1].get(name)):
        notes.append(f"A and B read different {', '.join(differing)}")
    answers = [[side.arms[FULL][key].prediction for key in common] for side in (first, second)]
    if changed := sum(one != other for one, other in zip(*answers, strict=True)):
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


def print_comparison(content: dict[str, Any], stream: TextIO) -> None:
    """Print what `eval.compare.compare` returned."""
    console, _ = console_for(stream)
    for side in ("a", "b"):
        told = content[side]
        only = f", {told['n_only_here']} of them only here: left out" if told["n_only_here"] else ""
        console.print(printable(f"{side.upper()}: {told['report']}, n = {told['n']}{only}"))
    console.print(
        printable(
            f"{content['task']} ({content['judged_mode']}), split {content['split']}, "
            f"{content['a']['model']['name']}: n = {content['n']} common samples; B against A"
        )
    )
    failures = any(arm[side]["no_answer"] for arm in content["arms"] for side in ("a", "b"))
    rows = []
    for arm in content["arms"]:
        counts = [f"{arm['a']['no_answer']}/{arm['b']['no_answer']}"] if failures else []
        rows.append([printable(_label(arm)), *_cells(arm), *counts])
    console.print(table(None, ("arm", *COLUMNS, *(["no answer A/B"] if failures else [])), rows))
    console.print(f"{content['comparisons']['method']}: {content['comparisons']['text']}")
    for note in content["notes"]:
        console.print(printable(f"note: {note}"))


def printable(text: str) -> str:
    """Return text of a file without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _label(arm: dict[str, Any]) -> str:
    first, second = arm["a"], arm["b"]
    alike = all(first[field] == second[field] for field in ("name", "label"))
    return str(first["label"]) if alike else f"{first['label']} -> {second['label']}"


def _cells(arm: dict[str, Any]) -> list[str]:
    low, high = arm["difference_interval"]
    sides = [arm["a"], arm["b"]]
    intervals = [side["accuracy_interval"] for side in sides]
    return [
        *(f"{one['accuracy']:.3f} ({lo:.3f}..{hi:.3f})" for one, (lo, hi) in zip(sides, intervals, strict=True)),
        *(f"{side['mean_depth']:.2f}" for side in sides),
        f"{arm['difference']:+.3f} ({low:+.3f}..{high:+.3f})",
        str(arm["wrong_to_right"]),
        str(arm["right_to_wrong"]),
        probability(arm["mcnemar_p"]),
        probability(arm["mcnemar_p_holm"]),
    ]
