"""`report.json`: every measure of an evaluation, rebuilt from its files alone, without the model.

`Report` is its type; docs/report.md has its fields. No command reads a report back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic.dataclasses import dataclass

from data.flops import ForwardFlops
from data.headroom import HOW
from eval.arms import (
    EARLY_EXIT,
    FULL,
    GUARANTEE,
    LABELS,
    MIXTURE,
    ORACLE,
    PRUNED,
    ROUTER,
    SAW_ANSWERS,
    STATIC_BY_KIND,
    is_routed,
)
from eval.baselines import (
    EarlyExitChoice,
    MixtureChoice,
    PrunedChoice,
    StaticByKind,
    StaticChoice,
    read_choice,
)
from eval.controls import Controls, controls_of
from eval.measures import (
    Above0,
    ArmMeasures,
    Collapse,
    Group,
    LayerUse,
    Paired,
    arm_of,
    chance_accuracy,
    collapse_of,
    corrected,
    groups_of,
    layer_use,
    paired,
    worst_kind,
)
from eval.results import (
    RESULTS_FILE,
    ArmName,
    ArmResult,
    Evaluated,
    Provenance,
    Run,
    Sha256,
    fields_of,
    read_arms,
    read_run,
)
from router.files import sha256_file, write_json
from router.latency import LATENCY_FILE, LatencyProfile, read_latency
from router.validation import STORED, Count, InputError, NotNegative, Positive, Share, from_plain, to_plain

REPORT_FILE = "report.json"
ORACLE_CAVEAT = (
    "The oracle is an upper bound that has seen the answer: for each test sample it takes the shortest chain that the "
    "search found to be right. With few choices many tries hit the right one by luck, so part of it is no skill that "
    "a router could learn"
)
LUCK_UNKNOWN = "; how much is not measured in this report (wrong_records)."
LUCK_KNOWN = "; the controls say how much."
HEADROOM_UNKNOWN = f" What it gains when it is judged anew is not measured: {HOW}."
CAVEATS = (
    "flops_ratio counts matrix products of one pass over prompt and choices, the output head for one token and the "
    "router; it is not time.",
    "Intervals and p-values speak of other samples of this task, for this one trained router; they do not cover "
    "another training seed. mcnemar_p_holm is corrected for the number of comparisons, intervals are not.",
    "A bootstrap interval of a difference has no width where both arms answer every sample alike.",
    "Groups (task, difficulty, subject) are small and many: their intervals are not corrected for their number.",
)
DEPTH_CAVEAT = "Depth counts layers executed, not time; latency was not measured (python -m eval latency)."
JUDGED_CAVEAT = (
    "Every arm's answers are judged in mode {judged_mode}; the search looked for right chains in mode {mode}, in which "
    "the static chain was chosen too. A chain that is right in the first mode only is unknown to the oracle."
)
BY_ARM = {
    GUARANTEE: "The guarantee holds for samples drawn like the calibration split, with the stated probability over "
    "calibration draws.",
    EARLY_EXIT: "Early exit decides by the model's own confidence after one layer, chosen with its threshold on "
    "validation; deciding costs one more pass of the output head, which flops_ratio leaves out.",
    STATIC_BY_KIND: "The static chain of each kind is told the kind, which the router has to read.",
    PRUNED: "The pruned chain leaves out the layers that change the states least (ShortGPT); nothing is healed by "
    "training afterwards.",
}


@dataclass(frozen=True, config=STORED, kw_only=True)
class ReportArm(ArmMeasures):
    """One arm on all test samples.

    Attributes:
        label: name for readers.
        saw_answers: whether its chains were found with the test answers in hand: an upper bound, no method.
        flops_ratio: floating-point operations by those of full depth, means over samples; output embedding and router
            included.
    """

    label: str
    saw_answers: bool
    flops_ratio: Above0


@dataclass(frozen=True, config=STORED)
class Oracle:
    """The search oracle, which has seen the answers.

    Attributes:
        label: name for readers.
        right_chain_in_records: samples for which the search found a right chain; the others run at full depth.
        right_when_run_again: samples that the oracle's chains answer rightly when run again here.
    """

    label: str
    right_chain_in_records: Count
    right_when_run_again: Count


@dataclass(frozen=True, config=STORED)
class Baselines:
    """How each further baseline was chosen, on train and validation; null: not in this run.

    Attributes:
        mixture: randomised mixture of two static chains, at most as deep as the router on validation: content of
            `mixture.json`.
        early_exit: early exit by the logit lens: content of `early_exit.json`.
        pruned: layers of least influence left out for all samples alike: content of `pruned.json`.
        static_by_kind: the best static chain of each kind: content of `static_by_kind.json`.
    """

    mixture: MixtureChoice | None
    early_exit: EarlyExitChoice | None
    pruned: PrunedChoice | None
    static_by_kind: StaticByKind | None = None


@dataclass(frozen=True, config=STORED)
class Comparisons:
    """How p-values are corrected.

    Attributes:
        method: the correction's name.
        count: comparisons that it covers.
        text: the same in words: which comparisons, and which are left out.
    """

    method: str
    count: Count
    text: str


@dataclass(frozen=True, config=STORED)
class Spread:
    """A measure over timed rounds.

    Attributes:
        median: median.
        low: lower quartile.
        high: upper quartile.
        n: rounds.
    """

    median: NotNegative
    low: NotNegative
    high: NotNegative
    n: Positive


@dataclass(frozen=True, config=STORED)
class LatencyArm:
    """One arm timed at one size of batch.

    Attributes:
        name: name of the arm.
        chains_timed: different chains that stand for it.
        mean_depth_timed: their layers, mean.
        mean_depth: layers executed, mean over all its samples.
        depth_ratio: `mean_depth` by the model's layers, to set beside the ratios of time.
        prefill_ms: time of the pass over the prompts, router included, milliseconds a call.
        decode_ms_per_token: time of each generated token after it, milliseconds; null: none were generated.
        ratio_prefill: prefill time by full depth's of the same round.
        ratio_prefill_without_router: the same, the router's time left out.
        ratio_decode: decoding time by full depth's of the same round; null: none were generated.
    """

    name: ArmName
    chains_timed: Positive
    mean_depth_timed: Above0
    mean_depth: Above0
    depth_ratio: Above0
    prefill_ms: Spread
    decode_ms_per_token: Spread | None
    ratio_prefill: Spread
    ratio_prefill_without_router: Spread
    ratio_decode: Spread | None


@dataclass(frozen=True, config=STORED)
class LatencyCell:
    """Every arm timed at one size of batch.

    Attributes:
        profile: seconds as a line in depth; `batch`: rows of a call, `prompt_tokens`: tokens of each.
        router_ms: time of the router for the whole batch, milliseconds.
        peak_bytes: most memory allocated on the accelerator, bytes; null on a CPU.
        arms: every arm.
    """

    profile: LatencyProfile
    router_ms: Spread
    peak_bytes: Count | None
    arms: tuple[LatencyArm, ...]


@dataclass(frozen=True, config=STORED, kw_only=True)
class Latency(Provenance):
    """Times of the arms on one device: the content of `latency.json`.

    Attributes:
        schema: version of the format.
        model: SHA-256 of configuration and weights, dtype apart.
        results_sha256: SHA-256 of the results whose arms were timed.
        device: type of the device on which it was timed.
        device_name: its name; of a CPU the number of threads.
        dtype: dtype in which the model ran.
        attention: the library's name of the attention's implementation; null: unknown.
        new_tokens: tokens generated after each prompt, the same for every arm.
        rounds: timed rounds.
        process_peak_bytes: most memory that the process held, bytes.
        cells: sizes of batch.
    """

    schema: Positive
    model: Sha256
    results_sha256: Sha256
    device: str
    device_name: str
    dtype: str
    attention: str | None
    new_tokens: Count
    rounds: Positive
    process_peak_bytes: Count
    cells: tuple[LatencyCell, ...]


@dataclass(frozen=True, config=STORED, kw_only=True)
class Report(Evaluated):
    """Every measure of an evaluation: the content of `report.json`.

    Shares lie in 0..1, depths are layers, intervals cover 95 %.

    Attributes:
        results_sha256: SHA-256 of `results.jsonl`, from which everything here follows.
        chance_accuracy: expected accuracy of guessing among each sample's choices; a free answer is never guessed.
        arms: the arms, in the order in which they are shown; `full`, `router`, `static` and `oracle` always.
        groups: samples by task (of a mixture), difficulty and subject.
        router_against: the router against every arm but full depth, itself and those that saw answers, by the arm's
            name.
        worst_kind: the task on which the router loses the most against full depth, the first of equals; its group has
            the loss; null: there is one task only.
        router_collapse: how far the router has fallen back to few chains.
        layer_use: layer use by the arm's name.
        oracle: the search oracle, which has seen the answers.
        static: the best static chain and how it was chosen: content of `static.json`.
        baselines: how each further baseline was chosen.
        comparisons: how p-values are corrected.
        controls: what controls say of the oracle's gain; null: none were run.
        latency: times of the arms; null: nothing was timed.
        caveats: what a reader must know with every figure.
    """

    results_sha256: Sha256
    chance_accuracy: Share
    arms: tuple[ReportArm, ...]
    groups: tuple[Group, ...]
    router_against: dict[ArmName, Paired]
    router_collapse: Collapse
    layer_use: dict[ArmName, LayerUse]
    oracle: Oracle
    static: StaticChoice
    baselines: Baselines
    comparisons: Comparisons
    controls: Controls | None
    latency: Latency | None
    caveats: tuple[str, ...]
    worst_kind: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Label of each arm, by name."""
        return {arm.name: arm.label for arm in self.arms}

    @property
    def kinds(self) -> list[Group]:
        """The groups that are tasks; none of a single task."""
        return [group for group in self.groups if group.kind == "task"]

    def arm(self, name: str) -> ReportArm:
        """Return an arm that every report has."""
        return next(arm for arm in self.arms if arm.name == name)


def write_report(out: Path, by_arm: Mapping[str, Sequence[ArmResult]] | None = None) -> Report:
    """Rebuild `report.json` from `run.json`, what was chosen, controls, times and the per-sample results.

    Args:
        out: the run's folder.
        by_arm: what `read_arms` gave for it, where that was read already.

    Raises:
        InputError: where a file is missing or corrupt, or an arm's results are not complete.
    """
    run = read_run(out)
    layers = run.model.num_layers
    by_arm = read_arms(out) if by_arm is None else by_arm
    hashed = sha256_file(out / RESULTS_FILE)

    measures, against, comparisons = compared(by_arm, run.seed)
    costs = {name: cost_of(of_arm, run.flops, run.router_flops) for name, of_arm in by_arm.items()}
    controls = controls_of(out, [result for of_arm in by_arm.values() for result in of_arm], layers)
    latency = _read_latency(out / LATENCY_FILE, hashed)
    groups = groups_of(by_arm, run.seed)
    report = Report(
        **fields_of(run, Evaluated),
        results_sha256=hashed,
        chance_accuracy=chance_accuracy(by_arm[FULL]),
        arms=tuple(
            ReportArm(
                **vars(measures[arm.name]),
                label=arm.label,
                saw_answers=arm.name in SAW_ANSWERS,
                flops_ratio=costs[arm.name] / costs[FULL],
            )
            for arm in run.arms
        ),
        groups=groups,
        worst_kind=worst_kind(groups),
        router_against=against,
        router_collapse=collapse_of(by_arm[ROUTER]),
        layer_use={name: layer_use([one.chain for one in of_arm]) for name, of_arm in by_arm.items()},
        oracle=Oracle(LABELS[ORACLE], run.oracle_found, sum(result.correct for result in by_arm[ORACLE])),
        static=read_choice(out, StaticChoice, layers),
        baselines=Baselines(
            mixture=read_choice(out, MixtureChoice, layers) if MIXTURE in by_arm else None,
            early_exit=read_choice(out, EarlyExitChoice, layers) if EARLY_EXIT in by_arm else None,
            pruned=read_choice(out, PrunedChoice, layers) if PRUNED in by_arm else None,
            static_by_kind=read_choice(out, StaticByKind, layers) if STATIC_BY_KIND in by_arm else None,
        ),
        comparisons=comparisons,
        controls=controls,
        latency=latency,
        caveats=caveats_of(run, controls, latency is not None),
    )
    write_json(out / REPORT_FILE, to_plain(report))
    return report


def _read_latency(path: Path, results_sha256: str) -> Latency | None:
    value = read_latency(path)
    if value is None:
        return None
    latency = from_plain(Latency, value, str(path))
    if latency.results_sha256 != results_sha256:
        raise InputError(
            f"{path}: expected times of these results, got those of others; remove it, or run "
            "python -m eval latency again"
        )
    return latency


def compared(
    by_arm: Mapping[str, Sequence[ArmResult]], seed: int
) -> tuple[dict[str, ArmMeasures], dict[str, Paired], Comparisons]:
    """Measure every arm, compare it with full depth and the router with it, and correct the p-values together.

    Arms that saw the answers are compared with full depth, but not tested: their p-values are not corrected and
    do not count.

    Returns:
        Measures of each arm, the router against each other arm, and what was corrected.
    """
    full = by_arm[FULL]
    measures = {name: arm_of(results, full, seed) for name, results in by_arm.items()}
    tested = [name for name in by_arm if name not in SAW_ANSWERS and name != FULL]
    others = [name for name in tested if name != ROUTER]
    with_full = [one for name in tested if (one := measures[name].against_full) is not None]
    p_values = corrected([*with_full, *(paired(by_arm[ROUTER], by_arm[name], seed) for name in others)])
    for name, one in zip(tested, p_values, strict=False):
        measures[name] = replace(measures[name], against_full=one)
    text = (
        f"{len(p_values)} McNemar tests: {len(with_full)} arms against full depth and the router against "
        f"{len(others)} others. mcnemar_p_holm is corrected for all of them, mcnemar_p and intervals for none."
    )
    against = dict(zip(others, p_values[len(with_full) :], strict=True))
    return measures, against, Comparisons("Holm", len(p_values), text)


def cost_of(results: Sequence[ArmResult], flops: ForwardFlops, router: float) -> float:
    """Return the operations of an arm, mean over samples: chain, output head for one token, and its router's."""
    passes = sum(flops.of(result.chain, result.tokens) for result in results) / len(results)
    return passes + (router if is_routed(results[0].arm) else 0.0)


def caveats_of(run: Run, controls: Controls | None, timed: bool) -> tuple[str, ...]:
    """Return the caveats of a report, a sentence or two each.

    Args:
        run: what was evaluated.
        controls: what controls say of the oracle's gain; None: none were run.
        timed: whether the arms were timed.
    """
    arms = {arm.name for arm in run.arms}
    unknown = [getattr(controls, name, None) is None for name in ("luck", "headroom")]
    caveats = [ORACLE_CAVEAT + (LUCK_UNKNOWN if unknown[0] else LUCK_KNOWN) + (HEADROOM_UNKNOWN if unknown[1] else "")]
    if not timed:
        caveats.append(DEPTH_CAVEAT)
    caveats += [*CAVEATS, *(text for name, text in BY_ARM.items() if name in arms)]
    if run.mode != run.judged_mode:
        caveats.append(JUDGED_CAVEAT.format(mode=run.mode, judged_mode=run.judged_mode))
    return tuple(caveats)
