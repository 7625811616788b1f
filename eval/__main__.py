"""Evaluate a router against full depth, a static chain, random chains and the oracle on the test split.

Answers on test are judged in the real mode of each sample's task (`Task.judged_mode`: what a user would see); the
static chain is chosen on train and validation in the cheap mode of the search (`Task.mode`).

python -m eval --config configs/eval/demo.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from data.models import load_model
from data.scoring import ChainScorer
from eval.figure import write_figure
from eval.inputs import Inputs, identity_of, read_inputs
from eval.policies import (
    ARMS,
    FullDepth,
    Oracle,
    Policy,
    RandomChain,
    RouterPolicy,
    StaticChain,
    shortest_standing,
)
from eval.report import REPORT_FILE, write_report
from eval.results import RESULTS_FILE, check_identity, read_results, run_policies, write_run
from eval.settings import EvalSettings
from eval.static import STATIC_FILE, best_static
from eval.table import print_report
from router.command import parse_settings, provenance, run_command
from router.durable import JsonLog, writable_directory

STATISTICS_PACKAGES = ("numpy", "statsmodels")
"""Libraries that the report's numbers hang on, beside those of every run."""


def main(argv: Sequence[str] | None) -> None:
    """Evaluate, or go on where an earlier run was stopped, and write report, figure and table.

    Raises:
        InputError: at bad input.
    """
    description = "Evaluate a router on the test split against full depth, static, random and oracle chains."
    settings, resolved = parse_settings(EvalSettings, argv, "eval", description)
    inputs = read_inputs(settings)
    identity = identity_of(settings, inputs)
    check_identity(settings.out, identity)
    writable_directory(settings.out, "out")
    if not finished(settings, inputs):
        evaluate(settings, resolved, inputs, identity)
    report = write_report(settings.out)
    figures = write_figure(report, settings.out)
    print_report(report, sys.stdout)
    print("written to " + ", ".join(str(path) for path in (settings.out / REPORT_FILE, *figures)))


def finished(settings: EvalSettings, inputs: Inputs) -> bool:
    """Whether every answer stands in `out` already, so that no model is needed."""
    path = settings.out / RESULTS_FILE
    if not path.exists() or not (settings.out / STATIC_FILE).exists():
        return False
    with JsonLog(path):  # cuts a line off that a killed run left torn
        done = {(one.policy, one.sample_id) for one in read_results(path, inputs.router.config.num_layers)}
    return all((name, sample.id) in done for name in ARMS for sample in inputs.samples["test"])


def evaluate(settings: EvalSettings, resolved: dict[str, Any], inputs: Inputs, identity: dict[str, Any]) -> None:
    """Run every arm's chains on the test split, judged in the real mode.

    Raises:
        InputError: where router or records were made for another model, tokenizer or prompt.
    """
    model, tokenizer = load_model(
        settings.model, dtype=settings.dtype, device=inputs.device, revision=settings.revision
    )
    scorer = ChainScorer(model, tokenizer, inputs.tasks, batch_tokens=settings.batch_tokens)
    inputs.require(scorer.fingerprints, settings)
    write_run(settings.out, identity, describe_run(settings, resolved, inputs, scorer))
    n = scorer.num_layers
    router = RouterPolicy(scorer, inputs.router, settings.budget)
    static = best_static(
        inputs.records["train"], inputs.records.get("validation", []), inputs.samples, router, scorer, settings
    )
    policies: list[Policy] = [
        FullDepth(n),
        router,
        StaticChain(static),
        RandomChain(router, n, inputs.router.config.prefix_layers, settings.seed),
        Oracle({record.sample_id: record for record in inputs.records["test"]}, n),
    ]
    assert [policy.name for policy in policies] == list(ARMS)
    path = settings.out / RESULTS_FILE
    run_policies(policies, inputs.samples["test"], scorer, scorer.judge, path, settings.batch_samples, "test")
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")


def describe_run(
    settings: EvalSettings, resolved: dict[str, Any], inputs: Inputs, scorer: ChainScorer
) -> dict[str, Any]:
    """Return what `run.json` says beside the identity."""
    origin = provenance(resolved)
    origin["versions"] |= {name: metadata.version(name) for name in STATISTICS_PACKAGES}
    config, oracle = inputs.router.config, inputs.records["test"]
    notes = []
    if config.task != inputs.tasks.name:
        notes.append(f"the router was trained on another task, {config.task}")
    if config.training.get("search") not in (None, inputs.records["train"][0].search):
        notes.append("the router was taught with records of another search than those of the static chains")
    taught = {name: digest for name, digest in config.training.get("sources", {}).items() if "samples/" in name}
    if not taught:
        notes.append("the router does not say which samples it was trained on: that test is unseen is not checked")
    elif any(inputs.hashes.get(name.replace("samples/", "data/")) != digest for name, digest in taught.items()):
        notes.append("the router was trained on other samples than these train and validation splits")
    others = {
        "test records": oracle[0].dtype,
        "train records": inputs.records["train"][0].dtype,
        "router": config.dtype,
    }
    notes += [
        f"{what} were made in {dtype}, this run is in {scorer.dtype}: predictions of small margin can differ"
        for what, dtype in others.items()
        if dtype != scorer.dtype
    ]
    return {
        "provenance": origin,
        "task": inputs.tasks.name,
        "mode": inputs.tasks.mode,
        "judged_mode": inputs.tasks.judged_mode,
        "split": "test",
        "n": len(inputs.samples["test"]),
        "model": {
            "name": settings.model,
            "revision": settings.revision,
            "dtype": scorer.dtype,
            "num_layers": scorer.num_layers,
            "prefix_layers": config.prefix_layers,
        },
        "fingerprints": asdict(scorer.fingerprints),
        "oracle_found": sum(shortest_standing(record) is not None for record in oracle),
        "notes": notes,
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
