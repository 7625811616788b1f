"""Controls of the oracle: what of its gain is luck, and what outlasts another order of choices and real generation.

Of a run's folder, `controls.json` says what is controlled (drawn samples, what searches found), `controls.jsonl` holds
one `PolicyResult` for each (control, sample). The report's block is rebuilt from these and the run's own results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer
from data.tasks import Task, TaskSet
from eval.controls.found import CONTROLLED, Found
from eval.controls.generation import GenerationJudge, measure_generated
from eval.controls.generation import policy_name as generated_name
from eval.controls.luck import collect_luck, measure_luck
from eval.controls.random_search import collect_random, measure_random
from eval.controls.reshuffle import KnownChains, lists_choices, measure_reshuffled, run_reshuffled, shuffles
from eval.controls.reshuffle import policy_name as reshuffled_name
from eval.results import PolicyResult, read_results
from eval.running import run_policies
from router.command import plain_values
from router.files import JsonLog, read_json, require_file, write_json
from router.validation import InputError

SCHEMA = 1
"""Version of `controls.json`."""
PLAN_FILE, CONTROL_RESULTS_FILE = "controls.json", "controls.jsonl"
MEASURES: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "luck": measure_luck,
    "random_search": measure_random,
}
"""Controls that need records only."""


@dataclass(frozen=True)
class ControlSettings:
    """What the controls may cost.

    Attributes:
        samples: test samples that are run again with reshuffled choices, and by generation, at most; 0: none.
        reshuffles: other orders of the choices.
        seed: draws samples and orders, and the bootstrap; at least 0.
        batch_samples: samples loaded at once.
    """

    samples: int = 100
    reshuffles: int = 3
    seed: int = 0
    batch_samples: int = 32


@dataclass(frozen=True)
class ControlRecords:
    """Records of searches of the test split.

    Attributes:
        oracle: the oracle's.
        wrong: of the same search told a wrong answer; None: luck is not measured.
        random: of a random search of the same cost; None: it is not compared.
    """

    oracle: Sequence[SearchRecord]
    wrong: Sequence[SearchRecord] | None = None
    random: Sequence[SearchRecord] | None = None


def run_controls(
    out: Path,
    settings: ControlSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: ChainScorer,
    samples: Sequence[Sample],
    results: Sequence[PolicyResult],
    records: ControlRecords,
) -> None:
    """Run the controls, or go on where an earlier run was stopped.

    Args:
        out: folder of the run.
        settings: what they may cost.
        model: the base model.
        tokenizer: its tokenizer.
        scorer: the run's scorer.
        samples: the test samples.
        results: the run's results, with those of full depth and the oracle for every sample.
        records: the searches' records.

    Raises:
        InputError: where records do not fit each other, a file is corrupt, or the folder holds other controls.
    """
    plan = write_plan(out, settings, scorer.tasks, samples, records)
    chains = {arm: {one.sample_id: one.chain for one in results if one.policy == arm} for arm in CONTROLLED}
    path = out / CONTROL_RESULTS_FILE
    drawn = {
        name: [sample for sample in samples if sample.id in set(plan[name])] for name in ("reshuffled", "generated")
    }
    for shuffle in plan["shuffles"]:
        run_reshuffled(model, tokenizer, scorer, drawn["reshuffled"], chains, shuffle, path, settings.batch_samples)
    if drawn["generated"]:
        run_policies(
            [KnownChains(chains[arm], generated_name(arm)) for arm in CONTROLLED],
            drawn["generated"],
            scorer,
            GenerationJudge.of(model, scorer),
            path,
            settings.batch_samples,
            "generated",
        )


def make_plan(
    settings: ControlSettings, tasks: TaskSet, samples: Sequence[Sample], records: ControlRecords
) -> dict[str, Any]:
    """Return the content of `controls.json`; needs no model.

    Raises:
        InputError: where records do not fit each other.
    """
    listing = _drawn(samples, lists_choices, settings, tasks) if settings.reshuffles else []
    judged = _drawn(samples, _can_be_generated, settings, tasks)
    plan: dict[str, Any] = plain_values(
        {
            "schema": SCHEMA,
            "seed": settings.seed,
            "shuffles": shuffles(settings.reshuffles, settings.seed) if listing else [],
            "reshuffled": [sample.id for sample in listing],
            "generated": [sample.id for sample in judged],
            "modes": sorted({tasks[sample.task].judged_mode for sample in judged}),
            "luck": None if records.wrong is None else collect_luck(records.oracle, records.wrong),
            "random_search": None if records.random is None else collect_random(records.oracle, records.random),
        }
    )
    return plan


def write_plan(
    out: Path, settings: ControlSettings, tasks: TaskSet, samples: Sequence[Sample], records: ControlRecords
) -> dict[str, Any]:
    """Write `controls.json`, or check that the one that is there says the same; needs no model.

    Returns:
        Its content.

    Raises:
        InputError: where records do not fit each other, or the folder holds other controls.
    """
    plan = make_plan(settings, tasks, samples, records)
    path = out / PLAN_FILE
    if not path.exists():
        write_json(path, plan)
    elif (stored := read_plan(out)) != plan:
        differing = [name for name in plan if stored.get(name) != plan[name]]
        raise InputError(
            f"out: expected controls of the same settings and records, got {path} with another "
            f"{', '.join(differing)}; choose another out, or remove {PLAN_FILE} and {CONTROL_RESULTS_FILE}"
        )
    return plan


def read_plan(out: Path) -> dict[str, Any]:
    """Read `controls.json`.

    Raises:
        InputError: where it is missing, corrupt or of another schema.
    """
    path = require_file(out / PLAN_FILE, "out")
    plan = read_json(path)
    if plan.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected schema {SCHEMA}, got {plan.get('schema')!r}")
    lists = {name: plan.get(name) for name in ("shuffles", "reshuffled", "generated", "modes")}
    wrong = [name for name, value in lists.items() if not isinstance(value, list)]
    if wrong or type(plan.get("seed")) is not int:
        raise InputError(f"{path}: expected the plan of controls, got one without {', '.join(wrong) or 'a seed'}")
    return plan


def controls_finished(out: Path, num_layers: int) -> bool:
    """Whether every control that `controls.json` names has its results, so that no model is needed.

    Raises:
        InputError: where a file is corrupt.
    """
    if not (out / PLAN_FILE).exists():
        return False
    path, wanted = out / CONTROL_RESULTS_FILE, _wanted(read_plan(out))
    if not wanted or not path.exists():
        return not wanted
    with JsonLog(path):  # cuts a line off that a killed run left torn
        return wanted <= {(one.policy, one.sample_id) for one in read_results(path, num_layers)}


def controls_block(out: Path, results: Sequence[PolicyResult], num_layers: int) -> dict[str, Any] | None:
    """Return the report's block `controls` from a run's files alone; None: the run has no controls.

    Args:
        out: folder of the run.
        results: the run's results, with those of full depth and the oracle.
        num_layers: layers of the model.

    Returns:
        `luck`, `reshuffled`, `generated` and `random_search` (`Luck`, `Reshuffled`, `Generated` and `RandomSearch` of
        the modules beside this one) as JSON data; None for a control that was not made.

    Raises:
        InputError: where a file is corrupt or a result is missing.
    """
    if not (out / PLAN_FILE).exists():
        return None
    plan, path = read_plan(out), out / CONTROL_RESULTS_FILE
    seed, shuffled, generated = plan["seed"], plan["reshuffled"], plan["generated"]
    found = Found.of(path, results, read_results(path, num_layers) if _wanted(plan) and path.exists() else [])
    block: dict[str, Any] = dict.fromkeys(("luck", "reshuffled", "generated", "random_search"))
    for name, measure in MEASURES.items():
        if plan.get(name) is not None:
            try:
                block[name] = measure(plan[name], seed)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{out / PLAN_FILE}: expected what two searches found ({name}), got {error}"
                ) from error
    if plan["shuffles"]:
        names = [{arm: reshuffled_name(arm, shuffle) for arm in CONTROLLED} for shuffle in plan["shuffles"]]
        again = [found.again(of_arm, shuffled) for of_arm in names]
        block["reshuffled"] = measure_reshuffled(found.usual(shuffled), again, seed)
    if generated:
        written = found.again({arm: generated_name(arm) for arm in CONTROLLED}, generated)
        block["generated"] = measure_generated(found.usual(generated), written, plan["modes"], seed)
    plain: dict[str, Any] = plain_values(block)  # tuples as lists: the same as what is read back
    return plain


def _wanted(plan: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the (policy, sample id) of all results that a plan asks for."""
    names = [(reshuffled_name(arm, shuffle), "reshuffled") for arm in CONTROLLED for shuffle in plan["shuffles"]]
    names += [(generated_name(arm), "generated") for arm in CONTROLLED]
    return {(policy, key) for policy, drawn in names for key in plan[drawn]}


def _can_be_generated(task: Task) -> bool:
    """Whether real generation says more than evaluation does; a choice that the prompt does not list cannot be read."""
    return task.judged_mode != "generate" and (task.list_choices or not task.has_choices)


def _drawn(
    samples: Sequence[Sample], wanted: Callable[[Task], bool], settings: ControlSettings, tasks: TaskSet
) -> list[Sample]:
    """Draw samples of tasks of a kind; more of them hold those that fewer do."""
    fit = [sample for sample in samples if wanted(tasks[sample.task])]
    order = sorted(fit, key=lambda sample: hashlib.sha256(f"controls/{settings.seed}/{sample.id}".encode()).digest())
    taken = {sample.id for sample in order[: settings.samples]}
    return [sample for sample in fit if sample.id in taken]
