"""Evaluate a router against full depth, a static chain, random chains and the oracle on the test split.

Answers on test are judged in the real mode of each sample's task (`Task.judged_mode`: what a user would see); the
static chain is chosen on train and validation in the cheap mode of the search (`Task.mode`).

python -m eval --config configs/eval/demo.yaml
accelerate launch --num_processes 8 -m eval --config configs/eval/demo.yaml     # a GPU for each process
python -m eval compare A/report.json B/report.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

from data.flops import count_forward
from data.launch import Launch, this_process
from data.sample import Sample, write_samples
from data.scoring import ChainScorer
from data.tasks import TaskSet
from eval import compare
from eval.arms import (
    EARLY_EXIT,
    FULL,
    GUARANTEE,
    MIXTURE,
    ORACLE,
    PRUNED,
    RANDOM,
    RANDOM_SEARCH,
    STATIC,
    Arm,
    arms_of_run,
)
from eval.baselines import (
    EXIT_FILE,
    PRUNED_FILE,
    read_early_exit,
    read_mixture,
    read_pruned,
    write_early_exit,
    write_pruned,
)
from eval.controls_ import ControlRecords, ControlSettings, controls_finished, make_plan, run_controls
from eval.inputs import Inputs, identity_of, read_inputs
from eval.policies import (
    FullDepth,
    Oracle,
    Policy,
    RandomChain,
    RouterPolicy,
    RouterReading,
    StaticChain,
    shortest_standing,
)
from eval.refresh import SAMPLES_FILE, refresh
from eval.report import REPORT_FILE
from eval.results import RESULTS_FILE, check_identity, read_results, write_run
from eval.running import run_policies
from eval.settings import EvalSettings
from eval.shared_results import merge_shards
from eval.static import CANDIDATES_FILE, STATIC_FILE, best_static, read_static_depth
from eval.tables import print_report
from eval.tracking import track_report
from router.command import parse_settings, provenance, run_command
from router.engine.load import load_model, resolve_device
from router.files import JsonLog, writable_directory
from router.latency import budget_for
from router.storage import load_router

STATISTICS_PACKAGES = ("numpy", "statsmodels")
"""Libraries that the report's numbers hang on, beside those of every run."""


def main(argv: Sequence[str] | None) -> None:
    """Evaluate, or go on where an earlier run was stopped, and write report, figures, page and table.

    Raises:
        InputError: at bad input.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["compare"]:
        compare.main(given[1:])
        return
    description = "Evaluate a router on the test split against full depth, static, random and oracle chains."
    settings, resolved = parse_settings(EvalSettings, argv, "eval", description)
    launch = this_process(settings.device)
    settings = with_budget(settings)
    inputs = read_inputs(settings)
    identity = identity_of(settings, inputs)
    check_identity(settings.out, identity)
    writable_directory(settings.out, "out")
    if controlled(settings):  # records that do not fit each other are refused before anything runs
        make_plan(*control_inputs(settings, inputs))
    arms = arms_asked(settings, inputs)
    if not finished(settings, inputs, arms):
        evaluate(settings, resolved, inputs, identity, arms, launch)
    if not launch.is_main:
        return
    merge_shards(settings.out / CANDIDATES_FILE, inputs.router.config.num_layers)
    shown = refresh(settings.out)
    tracked = track_report(settings.tracking, settings.out, shown.report, shown.figures, shown.page)
    print_report(shown.report, sys.stdout)
    if tracked is not None:
        print(f"tracked in {tracked}")
    print("written to " + ", ".join(str(path) for path in (settings.out / REPORT_FILE, shown.page, *shown.figures)))


def with_budget(settings: EvalSettings) -> EvalSettings:
    """Return settings with the budget that a latency factor stands for on this device.

    Raises:
        InputError: where the profile is missing or of another model, device or dtype.
    """
    if settings.latency_factor is None or settings.latency_profile is None:
        return settings
    expected = load_router(settings.router).config.fingerprints
    device = resolve_device(settings.device)
    depth = budget_for(settings.latency_profile, settings.latency_factor, expected, device, settings.dtype)
    print(
        f"latency factor {settings.latency_factor:g}: a mean depth of {depth:.2f} layers by {settings.latency_profile}"
    )
    return replace(settings, budget=depth, latency_factor=None, latency_profile=None)


def arms_asked(settings: EvalSettings, inputs: Inputs) -> list[Arm]:
    """Return the arms of the run, in order."""
    certified = inputs.router.guarantee
    promise = None if certified is None else f"loss {certified.epsilon:g}, delta {certified.delta:g}"
    return arms_of_run(settings.budget, settings.budgets, settings.baselines, promise, settings.random_search)


def finished(settings: EvalSettings, inputs: Inputs, arms: Sequence[Arm]) -> bool:
    """Whether every answer stands in `out` already, so that no model is needed."""
    path = settings.out / RESULTS_FILE
    needed = (path, settings.out / STATIC_FILE, settings.out / SAMPLES_FILE)
    if not all(file.exists() for file in needed):
        return False
    layers = inputs.router.config.num_layers
    if controlled(settings) and not controls_finished(settings.out, layers):
        return False
    with JsonLog(path):  # cuts a line off that a killed run left torn
        done = {(one.policy, one.sample_id) for one in read_results(path, layers)}
    return all((arm.name, sample.id) in done for arm in arms for sample in inputs.samples["test"])


def controlled(settings: EvalSettings) -> bool:
    """Whether the run has controls of the oracle."""
    given = (settings.wrong_records, settings.random_search)
    return settings.control_samples > 0 or any(one is not None for one in given)


def control_inputs(
    settings: EvalSettings, inputs: Inputs
) -> tuple[ControlSettings, TaskSet, list[Sample], ControlRecords]:
    """Return what the controls hang on."""
    cost = ControlSettings(settings.control_samples, settings.reshuffles, settings.seed, settings.batch_samples)
    records = ControlRecords(inputs.records["test"], inputs.wrong, inputs.random_search)
    return cost, inputs.tasks, inputs.samples["test"], records


def evaluate(
    settings: EvalSettings,
    resolved: dict[str, Any],
    inputs: Inputs,
    identity: dict[str, Any],
    arms: Sequence[Arm],
    launch: Launch,
) -> None:
    """Run every arm's chains on the test split, judged in the real mode, and the controls.

    Raises:
        InputError: where router or records were made for another model, tokenizer or prompt.
    """
    model, tokenizer = load_model(
        settings.model, dtype=settings.dtype, device=launch.device, revision=settings.revision
    )
    scorer = ChainScorer(model, tokenizer, inputs.tasks, batch_tokens=settings.batch_tokens)
    inputs.require(scorer.fingerprints, settings)
    test = inputs.samples["test"]
    lengths = [one.length for one in scorer.encode_all(test)]
    described = describe_run(settings, resolved, inputs, scorer) | {
        "arms": [{"name": arm.name, "label": arm.label} for arm in arms],
        "flops": count_forward(model).to_json()
        | {"router": sum(inputs.router.head.forward_flops(length) for length in lengths) / len(lengths)},
    }
    write_run(settings.out, identity, described)
    write_samples(settings.out / SAMPLES_FILE, test)
    policies = make_policies(settings, inputs, scorer, arms, launch)
    path = settings.out / RESULTS_FILE
    results = run_policies(policies, test, scorer, scorer.judge, path, settings.batch_samples, "test", launch)
    if controlled(settings) and launch.is_main:
        cost, _, _, records = control_inputs(settings, inputs)
        run_controls(settings.out, cost, model, tokenizer, scorer, test, results, records)
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")


def make_policies(
    settings: EvalSettings, inputs: Inputs, scorer: ChainScorer, arms: Sequence[Arm], launch: Launch
) -> list[Policy]:
    """Return the policy of every arm; those that are chosen on train and validation are chosen, or read again."""
    n, out, prefix = scorer.num_layers, settings.out, inputs.router.config.read_layer
    reading = RouterReading(scorer, inputs.router)
    router = RouterPolicy(reading, settings.budget)
    static = best_static(
        inputs.records["train"], inputs.records.get("validation", []), inputs.samples, router, scorer, settings, launch
    )
    depth = read_static_depth(out / STATIC_FILE)
    wanted = {arm.name for arm in arms}
    if EARLY_EXIT in wanted and not (out / EXIT_FILE).exists():
        write_early_exit(out, scorer, inputs.samples["validation"], prefix, depth, settings.batch_samples)
    if PRUNED in wanted and not (out / PRUNED_FILE).exists():
        write_pruned(out, scorer, inputs.samples["train"], depth, settings.batch_samples)
    made: dict[str, Callable[[], Policy]] = {
        FULL: lambda: FullDepth(n),
        GUARANTEE: lambda: RouterPolicy(reading, guaranteed=True, name=GUARANTEE),
        STATIC: lambda: StaticChain(static),
        MIXTURE: lambda: read_mixture(out, n, settings.seed),
        RANDOM: lambda: RandomChain(router, n, prefix, settings.seed),
        EARLY_EXIT: lambda: read_early_exit(out, scorer),
        PRUNED: lambda: StaticChain(read_pruned(out, n), PRUNED),
        ORACLE: lambda: Oracle({record.sample_id: record for record in inputs.records["test"]}, n),
        RANDOM_SEARCH: lambda: Oracle(
            {record.sample_id: record for record in inputs.random_search or []}, n, RANDOM_SEARCH
        ),
    }
    return [made[arm.name]() if arm.name in made else RouterPolicy(reading, arm.budget, name=arm.name) for arm in arms]


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
            "read_layer": config.read_layer,
        },
        "fingerprints": asdict(scorer.fingerprints),
        "oracle_found": sum(shortest_standing(record) is not None for record in oracle),
        "notes": notes,
    }


if __name__ == "__main__":
    raise SystemExit(run_command(main))
