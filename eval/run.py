"""`python -m eval`: run every arm's chains on the test split, then report, figures, page and table.

Answers on test are judged in the real mode of each sample's task (`Task.judged_mode`: what a user would see); the
static chain is chosen on train and validation in the cheap mode of the search (`Task.mode`).
"""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from data.flops import ForwardFlops, count_forward
from data.pool import Pool
from data.sample import read_samples, write_samples
from data.scoring import ChainScorer, base_model
from data.store import Store, meta_path
from eval.arms import (
    EARLY_EXIT,
    FULL,
    GUARANTEE,
    MIXTURE,
    ORACLE,
    PERMUTED,
    PRUNED,
    RANDOM,
    RANDOM_SEARCH,
    STATIC,
    STATIC_BY_KIND,
    Arm,
    ArmPlan,
    EarlyExitArm,
    RandomArm,
    RouterArm,
    StatesReader,
    kind_arm,
    mixture_arm,
    oracle_arm,
    permuted_arm,
    plan_arms,
    static_arm,
)
from eval.baselines import (
    CHOICES,
    Candidate,
    EarlyExitChoice,
    MixtureChoice,
    PrunedChoice,
    StaticByKind,
    StaticChoice,
    StaticPool,
    candidate_arms,
    choose_by_kind,
    choose_early_exit,
    choose_mixture,
    choose_pruned,
    choose_static,
    describe_static,
    from_tables,
    keep_choice,
    kept,
    read_choice,
    routed_chains,
    tally,
)
from eval.controls import PLAN_FILE, Plan, controls_finished, plan_controls, run_controls
from eval.figures import write_figures
from eval.inputs import EvalSettings, Inputs, identity_of, read_inputs
from eval.page import NBSP, headline, sentences, write_page
from eval.report import REPORT_FILE, Report, write_report
from eval.results import (
    RESULTS_FILE,
    RUN_FILE,
    SCHEMA,
    ArmResult,
    Model,
    Provenance,
    Run,
    RunArm,
    read_arms,
    result_store,
    run_arms,
)
from eval.tables import print_report, printable
from eval.tracking import track_report
from router.chain import Chain
from router.command import parse_settings, provenance
from router.decision import Operation
from router.engine.load import resolve_device
from router.files import writable_directory, write_json
from router.latency import budget_for
from router.storage import load_router
from router.validation import InputError, to_plain

CANDIDATES_FILE, SAMPLES_FILE = "candidates.jsonl", "samples.jsonl"
"""Results of the candidates for the static chain; the test samples, copied so that the page can show them."""
OF_RESULTS = (RUN_FILE, PLAN_FILE, *(kind.FILE for kind in CHOICES))
"""Files that hold for the results beside them: without results they are of a run, perhaps by other settings, that
somebody removed."""
STATISTICS_PACKAGES = ("numpy", "statsmodels")
"""Libraries that the report's numbers hang on, beside those of every run."""


def main(argv: Sequence[str] | None) -> None:
    """Evaluate, or go on where an earlier run was stopped, and write report, figures, page and table.

    Raises:
        InputError: at bad input.
    """
    description = "Evaluate a router on the test split against full depth, static, random and oracle chains."
    settings, resolved = parse_settings(EvalSettings, argv, "eval", description)
    settings = with_budget(settings)
    inputs = read_inputs(settings)
    identity = identity_of(settings, inputs)
    num_layers = inputs.router.config.num_layers
    store = result_store(settings.out / RESULTS_FILE, identity, num_layers)
    writable_directory(settings.out, "out")
    plan = make_plan(settings, inputs)  # records that do not fit each other are refused before anything runs
    arms = arms_asked(settings, inputs)
    if not finished(settings, inputs, arms, store, plan):
        evaluate(settings, resolved, inputs, identity, arms, store, plan)
    shown = refresh(settings.out)
    tracked = track_report(settings.tracking, settings.out, shown.report, shown.figures, shown.page)
    print_report(shown.report, sys.stdout)
    if tracked is not None:
        print(f"tracked in {tracked}")
    print(f"written to {settings.out}: {REPORT_FILE}, {shown.page.name}, and {len(shown.figures)} figures")
    for line in ("", f"{headline(shown.report)}.", *sentences(shown.report)):
        print(printable(line.replace(NBSP, " ")))
    print(f"Look at {shown.page} in a browser.")


def with_budget(settings: EvalSettings) -> EvalSettings:
    """Return settings with the budget that a share of the router's range, or a latency factor on this device, means.

    Raises:
        InputError: where the profile is missing or of another model, device or dtype, or the router has no range.
    """
    if settings.budget_share is not None:
        depths = [point.mean_depth for point in load_router(settings.router).config.budget_points]
        if not depths:
            raise InputError(f"budget_share: expected a router with measured depths, got {settings.router} without")
        share = settings.budget_share
        depth = (1 - share) * min(depths) + share * max(depths)
        print(f"budget share {share:g}: a mean depth of {depth:.2f} layers of {min(depths):.2f}..{max(depths):.2f}")
        depth = min(max(round(depth, 2), min(depths)), max(depths))  # what is rounded must not leave the range
        return replace(settings, budget=depth, budget_share=None)
    if settings.latency_factor is None or settings.latency_profile is None:
        return settings
    known, device = load_router(settings.router).config, resolve_device(settings.device)
    dtype = settings.dtype or known.dtype
    depth = budget_for(settings.latency_profile, settings.latency_factor, known.fingerprints, device, dtype)
    print(
        f"latency factor {settings.latency_factor:g}: a mean depth of {depth:.2f} layers by {settings.latency_profile}"
    )
    return replace(settings, budget=depth, latency_factor=None, latency_profile=None)


def arms_asked(settings: EvalSettings, inputs: Inputs) -> list[ArmPlan]:
    """Return the arms of the run, in order."""
    certified = inputs.router.guarantee
    promise = None
    if certified is not None:
        promise = f"loss of at most {certified.epsilon:g} with probability {1 - certified.delta:g}"
    baselines = settings.baselines_on(inputs.tasks)
    return plan_arms(settings.budget, settings.budgets, baselines, promise, inputs.random_search is not None)


def finished(
    settings: EvalSettings, inputs: Inputs, arms: Sequence[ArmPlan], store: Store[ArmResult], plan: Plan | None
) -> bool:
    """Whether every answer stands in `out` already, so that no model is needed and only the report is written."""
    needed = (RUN_FILE, StaticChoice.FILE, SAMPLES_FILE)
    if not store.finished or not all((settings.out / name).exists() for name in needed):
        return False
    if plan is not None and not controls_finished(settings.out, plan, store.identity, inputs.router.config.num_layers):
        return False
    return all(f"{arm.name}/{sample.id}" in store for arm in arms for sample in inputs.samples["test"])


def make_plan(settings: EvalSettings, inputs: Inputs) -> Plan | None:
    """Return what the controls of the oracle do; None: there are none."""
    plan = plan_controls(
        settings.control_samples,
        settings.reshuffles,
        settings.seed,
        inputs.tasks,
        inputs.samples["test"],
        inputs.records["test"],
        inputs.wrong,
        inputs.random_search,
    )
    found = (plan.luck, plan.random_search, plan.headroom)
    return None if settings.control_samples == 0 and all(one is None for one in found) else plan


def evaluate(
    settings: EvalSettings,
    resolved: dict[str, Any],
    inputs: Inputs,
    identity: dict[str, Any],
    arms: Sequence[ArmPlan],
    store: Store[ArmResult],
    plan: Plan | None,
) -> None:
    """Run every arm's chains on the test split, judged in the real mode, and the controls.

    Raises:
        InputError: where router or records were made for another model, tokenizer or prompt.
    """
    base = base_model(settings, inputs.router.config)
    scorer = ChainScorer.open(base, inputs.tasks, batch_tokens=settings.batch_tokens)
    inputs.require(scorer.fingerprints, settings)
    run = describe_run(settings, resolved, inputs, scorer, arms, count_forward(scorer.model))
    note = {**to_plain(run.provenance), "run": uuid.uuid4().hex[:12]}
    if not meta_path(store.path).exists():
        for name in OF_RESULTS:
            (settings.out / name).unlink(missing_ok=True)
    store.note(note)  # from here on, the folder is this evaluation's
    if not (settings.out / RUN_FILE).exists():
        write_json(settings.out / RUN_FILE, to_plain(run))
    test = inputs.samples["test"]
    write_samples(settings.out / SAMPLES_FILE, test)
    with settings.pool() as pool:
        made = make_arms(settings, inputs, scorer, arms, identity, pool)
        run_arms(made, test, scorer, scorer.judge, store, settings.batch_samples, "test", pool, note)
        if plan is not None:
            rows = list(store.rows())
            run_controls(settings.out, plan, identity, scorer, test, rows, settings.batch_samples, pool)
    print("".join(f"note: {note}\n" for note in scorer.notes), end="")


def make_arms(
    settings: EvalSettings,
    inputs: Inputs,
    scorer: ChainScorer,
    arms: Sequence[ArmPlan],
    identity: dict[str, Any],
    pool: Pool,
) -> list[Arm]:
    """Return every arm; those that are chosen on train and validation are chosen, or read again."""
    n, out, size, router = scorer.num_layers, settings.out, settings.batch_samples, inputs.router
    read_layer = router.config.read_layer
    reader = StatesReader(scorer)
    routed = RouterArm(reader, router, Operation(budget=settings.budget))
    static, mixture, by_kind = choose_static_arms(settings, inputs, scorer, routed, identity, pool)
    depth = static.router_validation_depth

    def early_exit() -> Arm:
        chosen = kept(
            out,
            EarlyExitChoice,
            n,
            lambda: choose_early_exit(scorer, inputs.samples["validation"], read_layer, depth, size),
        )
        return EarlyExitArm(scorer, chosen.layer, chosen.threshold)

    def pruned() -> Arm:
        chosen = kept(out, PrunedChoice, n, lambda: choose_pruned(scorer, inputs.samples["train"], depth, size))
        return static_arm(chosen.chain, PRUNED)

    def permuted() -> Arm:
        test = inputs.samples["test"]
        return permuted_arm(routed_chains(routed, test, scorer, size), test, settings.seed)

    made: dict[str, Callable[[], Arm]] = {
        FULL: lambda: static_arm(Chain.full(n), FULL),
        GUARANTEE: lambda: RouterArm(reader, router, Operation(guaranteed=True), GUARANTEE),
        STATIC: lambda: static_arm(static.chain),
        STATIC_BY_KIND: lambda: kind_arm({kind: one.chain for kind, one in by_kind.kinds.items()}, static.chain),
        MIXTURE: lambda: mixture_arm(mixture.first, mixture.second, mixture.share, settings.seed),
        PERMUTED: permuted,
        RANDOM: lambda: RandomArm(routed, n, read_layer, settings.seed),
        EARLY_EXIT: early_exit,
        PRUNED: pruned,
        ORACLE: lambda: oracle_arm(inputs.records["test"]),
        RANDOM_SEARCH: lambda: oracle_arm(inputs.random_search or [], RANDOM_SEARCH),
    }
    return [
        made[arm.name]() if arm.name in made else RouterArm(reader, router, Operation(budget=arm.budget), arm.name)
        for arm in arms
    ]


def choose_static_arms(
    settings: EvalSettings, inputs: Inputs, scorer: ChainScorer, router: Arm, identity: dict[str, Any], workers: Pool
) -> tuple[StaticChoice, MixtureChoice, StaticByKind]:
    """Choose the best static chain, the best mixture and each kind's chain, or read the choice of an earlier run.

    No kind has a chain of its own where the run has no such arm. Where the records of train and validation are menu
    tables that hold every candidate, nothing needs to run.
    """
    out, n, size = settings.out, scorer.num_layers, settings.batch_samples
    wanted = STATIC_BY_KIND in settings.baselines_on(inputs.tasks)
    if (out / StaticChoice.FILE).exists():  # written last
        by_kind = read_choice(out, StaticByKind, n) if wanted else StaticByKind({})
        return read_choice(out, StaticChoice, n), read_choice(out, MixtureChoice, n), by_kind
    validation = inputs.samples["validation"]
    routed = routed_chains(router, validation, scorer, size)
    sizes = (settings.static_pool, settings.static_trials)
    pool = StaticPool.of(inputs.records["train"], routed, *sizes)
    kinds: dict[str, StaticPool] = {}
    for kind in sorted({one.task for one in inputs.records["train"]}) if wanted else []:
        trained = [one for one in inputs.records["train"] if one.task == kind]
        if of_kind := [chain for chain, one in zip(routed, validation, strict=True) if one.task == kind]:
            kinds[kind] = StaticPool.of(trained, of_kind, *sizes).joined(pool)
    candidates, *by_place = _judged(inputs, scorer, pool, kinds, settings, identity, workers)
    best, mixture = choose_static(candidates, pool.max_depth), choose_mixture(candidates, pool.max_depth)
    static, by_kind = describe_static(best, candidates, pool, scorer.tasks.mode), StaticByKind({})
    if wanted:
        found = dict(zip(kinds, by_place, strict=True))
        chosen = choose_by_kind(found, Counter(one.task for one in validation), pool.max_depth)
        described = {
            kind: describe_static(chosen[kind], found[kind], kinds[kind], scorer.tasks[kind].mode) for kind in kinds
        }
        by_kind = StaticByKind(described)
        keep_choice(out, by_kind)
    keep_choice(out, mixture)
    keep_choice(out, static)
    return static, mixture, by_kind


def _judged(
    inputs: Inputs,
    scorer: ChainScorer,
    pool: StaticPool,
    kinds: Mapping[str, StaticPool],
    settings: EvalSettings,
    identity: dict[str, Any],
    workers: Pool,
) -> list[list[Candidate]]:
    """Return the candidates of all samples, then those of each kind, with what they answer on train and validation."""
    seen = [*inputs.samples["train"], *inputs.samples["validation"]]
    records = [*inputs.records["train"], *inputs.records.get("validation", [])]
    found = [from_tables(records, seen, pool.chains)]
    found += [
        from_tables(records, [one for one in seen if one.task == kind], of_kind.chains)
        for kind, of_kind in kinds.items()
    ]
    known = [one for one in found if one is not None]
    if len(known) == len(found):
        return known
    store = result_store(settings.out / CANDIDATES_FILE, identity, scorer.num_layers)
    size = settings.batch_samples
    run_arms(candidate_arms(pool, kinds), seen, scorer, scorer.score, store, size, "static chains", workers)
    rows = list(store.rows())
    return [
        tally(rows, pool.chains),
        *(tally([row for row in rows if row.task == kind], of_kind.chains) for kind, of_kind in kinds.items()),
    ]


def describe_run(
    settings: EvalSettings,
    resolved: dict[str, Any],
    inputs: Inputs,
    scorer: ChainScorer,
    arms: Sequence[ArmPlan],
    flops: ForwardFlops,
) -> Run:
    """Return what `run.json` says."""
    origin = provenance(resolved)
    origin["versions"] |= {name: metadata.version(name) for name in STATISTICS_PACKAGES}
    config, oracle, test = inputs.router.config, inputs.records["test"], inputs.samples["test"]
    lengths = [one.length for one in scorer.encode_all(test)]
    name, revision = config.base(settings.model, settings.revision)
    return Run(
        schema=SCHEMA,
        provenance=Provenance(**origin),
        task=inputs.tasks.name,
        mode=inputs.tasks.mode,
        judged_mode=inputs.tasks.judged_mode,
        split="test",
        n=len(test),
        seed=settings.seed,
        model=Model(name, revision, scorer.dtype, scorer.num_layers, *config.read_layers),
        fingerprints=scorer.fingerprints,
        inputs=inputs.hashes,
        oracle_found=sum(record.shortest is not None for record in oracle),
        arms=tuple(RunArm(arm.name, arm.label) for arm in arms),
        flops=flops,
        router_flops=sum(inputs.router.forward_flops(length) for length in lengths) / len(lengths),
        notes=tuple(_notes(inputs, scorer.dtype)),
    )


def _notes(inputs: Inputs, dtype: str) -> list[str]:
    """Return what is particular to a run."""
    config, notes = inputs.router.config, []
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
        "test records": inputs.records["test"][0].dtype,
        "train records": inputs.records["train"][0].dtype,
        "router": config.dtype,
    }
    return notes + [
        f"{what} were made in {other}, this run is in {dtype}: predictions of small margin can differ"
        for what, other in others.items()
        if other != dtype
    ]


@plain_dataclass(frozen=True)
class Shown:
    """What was rebuilt of a run.

    Attributes:
        report: the report.
        figures: the figures' files.
        page: the HTML page.
    """

    report: Report
    figures: list[Path]
    page: Path


def refresh(out: Path) -> Shown:
    """Rebuild report, figures and page from a run's files, without the model.

    Raises:
        InputError: where a file is missing or corrupt, or an arm's results are not complete.
    """
    by_arm = read_arms(out)
    report = write_report(out, by_arm)
    figures = write_figures(report, out)
    return Shown(report, figures, write_page(report, by_arm, read_samples(out / SAMPLES_FILE, "out"), out))
