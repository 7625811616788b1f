"""`report.json`: every measure of an evaluation, rebuilt from its files alone, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data.flops import ForwardFlops
from eval.arms import FULL, LABELS, ORACLE, ROUTER, SAW_ANSWERS, is_routed
from eval.baselines import EXIT_FILE, MIXTURE_FILE, PRUNED_FILE, STATIC_FILE, StaticChoice
from eval.caveats import caveats_of
from eval.controls import controls_block
from eval.measures import (
    ArmMeasures,
    Paired,
    arm_of,
    chance_accuracy,
    collapse_of,
    corrected,
    groups_of,
    layer_use,
    paired,
)
from eval.results import RESULTS_FILE, ArmResult, read_arms, read_run
from eval.schema import validate_report
from router.command import plain_values
from router.files import read_json, sha256_file, write_json
from router.latency import LATENCY_FILE, read_latency
from router.validation import InputError, from_plain, to_plain

SCHEMA = 4
"""Version of the report's format (docs/report.md)."""
REPORT_FILE = "report.json"
DESCRIBED = ("provenance", "task", "mode", "judged_mode", "split", "model", "fingerprints")
"""Fields of `run.json` that stand in the report as they are."""
BASELINE_FILES = {"mixture": MIXTURE_FILE, "early_exit": EXIT_FILE, "pruned": PRUNED_FILE}


def write_report(out: Path, by_arm: Mapping[str, Sequence[ArmResult]] | None = None) -> dict[str, Any]:
    """Rebuild `report.json` from `run.json`, `static.json` and the per-sample results.

    Args:
        out: the run's folder.
        by_arm: what `read_arms` gave for it, where that was read already.

    Returns:
        The report.

    Raises:
        InputError: where a file is missing or corrupt, or an arm's results are not complete.
    """
    report = build_report(out, by_arm)
    validate_report(report, str(out))
    write_json(out / REPORT_FILE, report)
    return report


def build_report(out: Path, by_arm: Mapping[str, Sequence[ArmResult]] | None = None) -> dict[str, Any]:
    """Return the report's content; see `write_report`."""
    run, seed = read_run(out), read_run(out).seed
    num_layers, labels = run.model.num_layers, {arm.name: arm.label for arm in run.arms}
    plain_run = to_plain(run)
    described = {key: plain_run[key] for key in DESCRIBED}
    by_arm = read_arms(out) if by_arm is None else by_arm
    results = [result for of_arm in by_arm.values() for result in of_arm]
    static = from_plain(StaticChoice, read_json(out / STATIC_FILE), str(out / STATIC_FILE), num_layers=num_layers)
    measures, against, comparisons = compared(by_arm, seed)
    costs = {name: cost_of(by_arm[name], run.flops, run.router_flops if is_routed(name) else 0.0) for name in labels}
    controls = controls_block(out, results, num_layers)
    hashed = sha256_file(out / RESULTS_FILE)
    latency = read_latency(out / LATENCY_FILE)
    if latency is not None and latency.get("results_sha256") != hashed:
        raise InputError(
            f"{out / LATENCY_FILE}: expected times of these results, got those of others; remove it, or run "
            "python -m eval latency again"
        )
    report: dict[str, Any] = {
        "schema": SCHEMA,
        **described,
        "inputs": run.inputs,
        "results_sha256": hashed,
        "n": run.n,
        "chance_accuracy": chance_accuracy(by_arm[FULL]),
        "arms": [
            {
                "name": name,
                "label": label,
                "saw_answers": name in SAW_ANSWERS,
                **asdict(measures[name]),
                "flops_ratio": costs[name] / costs[FULL],
            }
            for name, label in labels.items()
        ],
        "groups": [asdict(group) for group in groups_of(by_arm, seed)],
        "router_against": {name: asdict(one) for name, one in against.items()},
        "router_collapse": asdict(collapse_of(by_arm[ROUTER])),
        "layer_use": {name: asdict(layer_use([one.chain for one in by_arm[name]])) for name in labels},
        "oracle": {
            "label": LABELS[ORACLE],
            "right_chain_in_records": run.oracle_found,
            "right_when_run_again": sum(result.correct for result in by_arm[ORACLE]),
        },
        "static": to_plain(static),
        "baselines": {name: read_json(out / file) if name in labels else None for name, file in BASELINE_FILES.items()},
        "comparisons": comparisons,
        "controls": controls,
        "latency": latency,
        "caveats": caveats_of(run.mode, run.judged_mode, set(labels), controls, latency),
        "notes": list(run.notes),
    }
    plain: dict[str, Any] = plain_values(report)  # tuples as lists: the same as what is read back
    return plain


def compared(
    by_arm: Mapping[str, Sequence[ArmResult]], seed: int
) -> tuple[dict[str, ArmMeasures], dict[str, Paired], dict[str, Any]]:
    """Measure every arm, compare it with full depth and the router with it, and correct the p-values together.

    Arms that saw the answers are compared with full depth, but not tested: their p-values are not corrected and
    do not count.

    Returns:
        Measures of each arm, the router against each other policy, and what was corrected.
    """
    full = by_arm[FULL]
    measures = {name: arm_of(results, full, seed) for name, results in by_arm.items()}
    policies = [name for name in by_arm if name not in SAW_ANSWERS and name != FULL]
    others = [name for name in policies if name != ROUTER]
    against = [paired(by_arm[ROUTER], by_arm[name], seed) for name in others]
    with_full = [one for name in policies for one in [measures[name].against_full] if one is not None]
    tested = corrected([*with_full, *against])
    for name, one in zip(policies, tested, strict=False):
        measures[name] = replace(measures[name], against_full=one)
    comparisons = {
        "method": "Holm",
        "count": len(tested),
        "text": f"{len(tested)} McNemar tests: {len(with_full)} policies against full depth and the router against "
        f"{len(against)} others. mcnemar_p_holm is corrected for all of them, mcnemar_p and intervals for none.",
    }
    return measures, dict(zip(others, tested[len(with_full) :], strict=True)), comparisons


def cost_of(results: Sequence[ArmResult], flops: ForwardFlops, router: float) -> float:
    """Return the operations of an arm, mean over samples: chain, output head for one token, and router."""
    return sum(flops.of(result.chain, result.tokens) for result in results) / len(results) + router
