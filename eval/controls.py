"""Controls of the oracle: what outlasts another order of the choices and real generation, beside luck.

`controls.json` says what is controlled; `reshuffled-<order>.jsonl` and `generated.jsonl` hold the results, each a
`data.store.Store`. The report's block is rebuilt from these and the run's own results.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.answers import folded, parse_letter
from data.records import ChainResult, SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, EncodedSample, SampleBlock
from data.statistics import Estimate, PairedShares, Proportion, estimate_of, mean_of, paired_shares, share_of
from data.tasks import Task, TaskSet
from eval.arms import FULL, ORACLE, KnownArm
from eval.luck import collect_luck, collect_random, measure_luck, measure_random
from eval.results import ArmResult, read_results, result_store
from eval.running import run_arms
from router.chain import Chain
from router.command import plain_values
from router.engine.load import context_of
from router.files import read_json, require_file, write_json
from router.validation import InputError

CONTROLLED = (FULL, ORACLE)
"""Arms whose chains are run again."""
Pair = tuple[Sequence[ArmResult], Sequence[ArmResult]]
"""Full depth's and the oracle's results on the same samples, in the same order."""
Plan = dict[str, Any]
"""The content of `controls.json`: what is controlled (drawn samples, orders, what searches found)."""
REMEDY = "run python -m eval again"


@dataclass(frozen=True)
class Found:
    """Results by policy and sample id.

    Attributes:
        path: the controls' results file.
        arms: the run's results.
        controls: the controls'.
    """

    path: Path
    arms: Mapping[tuple[str, str], ArmResult]
    controls: Mapping[tuple[str, str], ArmResult]

    @classmethod
    def of(cls, path: Path, arms: Sequence[ArmResult], controls: Sequence[ArmResult]) -> Found:
        """Index the run's results and those of its controls; `path` is the controls' file, for refusals."""
        by_name = [{(one.arm, one.sample_id): one for one in results} for results in (arms, controls)]
        return cls(path, *by_name)

    def usual(self, ids: Sequence[str]) -> Pair:
        """Return full depth's and the oracle's results on some samples, in their order."""
        full, oracle = ([self._one(self.arms, arm, key) for key in ids] for arm in CONTROLLED)
        return full, oracle

    def again(self, names: Mapping[str, str], ids: Sequence[str]) -> Pair:
        """Return their results in a control; `names`: the policy of each arm there."""
        pair = tuple([self._one(self.controls, names[arm], key) for key in ids] for arm in CONTROLLED)
        for arm, of_arm in zip(CONTROLLED, pair, strict=True):
            for one in of_arm:
                if one.chain != self._one(self.arms, arm, one.sample_id).chain:
                    raise InputError(
                        f"{self.path}: expected the chain that {arm} has run on sample {one.sample_id}, got {one.chain}"
                    )
        return pair[0], pair[1]

    def _one(self, results: Mapping[tuple[str, str], ArmResult], policy: str, key: str) -> ArmResult:
        if (policy, key) not in results:
            raise InputError(f"{self.path}: expected a result of {policy} on sample {key}, got none; {REMEDY}")
        return results[policy, key]


# Labels verified by real generation: do chains that score an answer as right also write it?
#
# For tasks that are not judged by generation anyway. Under each chain the model writes its answer after the
# same prompt. A task that asks for a letter, or for a free answer, is read as `data.scoring` reads it. One that
# scores the choices'
# texts asks for no form: the answer is the choice whose text is written, or whose letter where the prompt lists them.


@dataclass(frozen=True)
class GeneratedArm:
    """One arm's answers, judged and generated.

    Attributes:
        judged: accuracy in the mode of evaluation.
        generated: accuracy of what is generated; an answer that cannot be read counts as wrong.
        no_answer: samples in whose generated text no answer could be read.
        right: samples that are right in the mode of evaluation.
        confirmed: share of them that generation confirms.
        right_no_answer: how many of them have no answer that could be read.
        confirmed_of_read: share of the others that generation confirms.
        agreed: share of all samples in which both give the same verdict.
    """

    judged: Proportion | None
    generated: Proportion | None
    no_answer: int
    right: int
    confirmed: Proportion | None
    right_no_answer: int
    confirmed_of_read: Proportion | None
    agreed: Proportion | None


@dataclass(frozen=True)
class Generated:
    """What generation says of full depth and the oracle.

    Attributes:
        n: samples.
        modes: the modes of evaluation that generation is compared with.
        full: full depth.
        oracle: the oracle's chains.
        paired: generated answers, the oracle's accuracy against full depth's.
    """

    n: int
    modes: tuple[str, ...]
    full: GeneratedArm
    oracle: GeneratedArm
    paired: PairedShares | None


def generated_name(arm: str) -> str:
    """Return the name under which an arm's generated answers stand in the results."""
    return f"{arm}/generated"


@dataclass(frozen=True)
class GenerationJudge:
    """Runs chains by generation and reads their answers, whatever mode the samples' tasks are in.

    Attributes:
        scorer: runs the chains.
        positions: tokens that the model has positions for; None: any number.
    """

    scorer: ChainScorer
    positions: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, scorer: ChainScorer) -> GenerationJudge:
        """Return the judge of a model and its scorer."""
        return cls(scorer, context_of(model))

    def __call__(self, block: SampleBlock, jobs: Sequence[tuple[int, Chain]]) -> list[ChainResult]:
        """Generate and grade an answer for each (index of a sample in the block, chain), in order."""
        samples = tuple(self._writing(encoded) for encoded in block.samples)
        results = self.scorer.generate_answers(dataclasses.replace(block, samples=samples), jobs)
        return [
            _of_choices(block.samples[index], result) if block.samples[index].task.mode == "continuation" else result
            for (index, _), result in zip(jobs, results, strict=True)
        ]

    def _writing(self, encoded: EncodedSample) -> EncodedSample:
        """Return a sample whose answer can be written: within the model's positions, a choice as free text."""
        task, target, longest = encoded.task, encoded.target, encoded.task.max_new_tokens
        if task.mode == "continuation":
            task, target = _free_text(task), encoded.sample.gold
            longest = max(longest, 1 + max(map(len, encoded.continuations)))  # and its end
        if self.positions is not None:
            longest = min(longest, self.positions - len(encoded.prompt))
        return dataclasses.replace(encoded, task=dataclasses.replace(task, max_new_tokens=longest), target=target)


def _free_text(task: Task) -> Task:
    """Return a task of the same prompt whose answer is all the text up to its end."""
    return dataclasses.replace(
        task,
        columns=dataclasses.replace(task.columns, choices=None, labels=None),
        fixed_choices=(),
        answer_kind="text",
        mode="generate",
        real_mode=None,
        normalise="none",
        shuffle=0,
        grading="text",
    )


def _of_choices(encoded: EncodedSample, written: ChainResult) -> ChainResult:
    """Return the choice that a written text names, None where it names none."""
    choice = None if written.prediction is None else choice_of(str(written.prediction), encoded)
    return ChainResult.from_answer(written.chain, choice, choice == encoded.target)


def choice_of(text: str, encoded: EncodedSample) -> int | None:
    """Return the index of the choice that a text names: by its own text, or by its letter in the list; None: of none.

    Raises:
        ValueError: where more choices are listed than there are letters.
    """
    choices = encoded.sample.choices
    same = [i for i, choice in enumerate(choices) if folded(choice) == folded(text)]
    if len(same) == 1:
        return same[0]
    letter = parse_letter(text, len(choices)) if encoded.task.list_choices else None
    return None if letter is None else encoded.query.order[letter]


def measure_generated(judged: Pair, written: Pair, modes: Sequence[str], seed: int) -> dict[str, Any]:
    """Compare answers with generated ones; JSON data of `Generated`.

    Args:
        judged: results in the mode of evaluation.
        written: results by generation, of the same samples in the same order.
        modes: the modes of evaluation.
        seed: seed of the bootstrap.
    """
    full, oracle = ([one.correct for one in of_arm] for of_arm in written)
    arms = [_arm(one, other) for one, other in zip(judged, written, strict=True)]
    return asdict(Generated(len(full), tuple(modes), arms[0], arms[1], paired_shares(oracle, full, seed)))


def _arm(judged: Sequence[ArmResult], written: Sequence[ArmResult]) -> GeneratedArm:
    pairs = [*zip(judged, written, strict=True)]
    right = [other for one, other in pairs if one.correct]
    read = [other for other in right if other.prediction is not None]
    return GeneratedArm(
        judged=share_of([one.correct for one in judged]),
        generated=share_of([one.correct for one in written]),
        no_answer=sum(one.prediction is None for one in written),
        right=len(right),
        confirmed=share_of([one.correct for one in right]),
        right_no_answer=len(right) - len(read),
        confirmed_of_read=share_of([one.correct for one in read]),
        agreed=share_of([one.correct == other.correct for one, other in pairs]),
    )


# Reshuffled choices: does a sample that a chain sets right stay right when its choices are listed in another order?
#
# `Task.shuffle` lists them so: sample, id and indices of choices stay what they are, so predictions need no
# translation. The choices of worked examples in the prompt stand in another order too. With two choices every
# shuffle is the swap.


LARGEST_NUMBER = 999
"""Shuffles of one seed at most."""


@dataclass(frozen=True)
class Rescued:
    """Samples that full depth gets wrong and the oracle's chain gets right.

    Attributes:
        n: samples.
        chance: accuracy of guessing; None: there are no samples.
        oracle: share that the oracle's chain gets right when the choices are reshuffled, mean over shuffles.
        full: share that full depth gets right then.
        difference: the first minus the second.
    """

    n: int
    chance: float | None
    oracle: Proportion | None
    full: Proportion | None
    difference: Estimate | None


@dataclass(frozen=True)
class Reshuffled:
    """What is left of the oracle when the choices are listed in another order.

    Attributes:
        n: samples whose choices are listed.
        reshuffles: other orders; a sample's value is its mean over them.
        rescued: of samples that the oracle's chain sets right.
        full_right: of samples that full depth gets right, the share that it still gets right: how stable answers are.
        both_right: of samples that both get right, the share that the oracle's chain still gets right.
        retained: share of `rescued.oracle` minus `full_right`: 0 where a rescued answer is as stable as full depth's.
        usual: accuracy in the usual order of "full" and "oracle", and the oracle's "difference" to full depth.
        reshuffled: the same in other orders.
    """

    n: int
    reshuffles: int
    rescued: Rescued
    full_right: Proportion | None
    both_right: Proportion | None
    retained: Estimate | None
    usual: dict[str, Proportion | Estimate | None]
    reshuffled: dict[str, Proportion | Estimate | None]


def lists_choices(task: Task) -> bool:
    """Whether a task's prompt lists choices, so that they can be reshuffled."""
    return task.has_choices and task.list_choices


def shuffles(number: int, seed: int) -> list[int]:
    """Return the values of `Task.shuffle`, others for every seed.

    Raises:
        InputError: where the number is not in 0..`LARGEST_NUMBER`, or the seed below 0.
    """
    if not 0 <= number <= LARGEST_NUMBER or seed < 0:
        raise InputError(
            f"reshuffles: expected 0..{LARGEST_NUMBER} and a seed of at least 0, got {number} and the seed {seed}"
        )
    return [(LARGEST_NUMBER + 1) * seed + i + 1 for i in range(number)]


def reshuffled_name(arm: str, shuffle: int) -> str:
    """Return the name under which an arm's chains stand in the results of a shuffle."""
    return f"{arm}/reshuffled-{shuffle}"


def measure_reshuffled(usual: Pair, again: Sequence[Pair], seed: int) -> dict[str, Any]:
    """Measure what is left in other orders; JSON data of `Reshuffled`.

    Args:
        usual: results in the usual order.
        again: for each shuffle the results of the same samples, in the same order; at least one.
        seed: seed of the bootstrap.
    """
    right = [[one.correct for one in of_arm] for of_arm in usual]
    later = [
        [_mean([one.correct for one in of_sample]) for of_sample in zip(*shuffled, strict=True)]
        for shuffled in zip(*again, strict=True)
    ]
    rows = [*zip(*right, *later, strict=True)]
    set_right = [i for i, (one, other, _, _) in enumerate(rows) if other and not one]
    rescued = [rows[i] for i in set_right]
    retained = [(float(b and not a), d if b and not a else 0.0, float(a), c if a else 0.0) for a, b, c, d in rows]
    measured = Reshuffled(
        n=len(rows),
        reshuffles=len(again),
        rescued=Rescued(
            n=len(rescued),
            chance=_mean([1 / usual[0][i].choices for i in set_right]) if rescued else None,
            oracle=share_of([d for *_, d in rescued]),
            full=share_of([c for _, _, c, _ in rescued]),
            difference=mean_of([d - c for _, _, c, d in rescued], seed),
        ),
        full_right=share_of([c for a, _, c, _ in rows if a]),
        both_right=share_of([d for a, b, _, d in rows if a and b]),
        retained=estimate_of(retained, lambda sums: sums[:, 1] / sums[:, 0] - sums[:, 3] / sums[:, 2], seed),
        usual=_accuracies([(float(a), float(b)) for a, b, _, _ in rows], seed),
        reshuffled=_accuracies([(c, d) for _, _, c, d in rows], seed),
    )
    return asdict(measured)


def _accuracies(pairs: Sequence[tuple[float, float]], seed: int) -> dict[str, Proportion | Estimate | None]:
    full, oracle = [one for one, _ in pairs], [other for _, other in pairs]
    difference = mean_of([other - one for one, other in pairs], seed)
    return {"full": share_of(full), "oracle": share_of(oracle), "difference": difference}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Controls of the oracle: what of its gain is luck, and what outlasts another order of choices and real generation.
#
# Of a run's folder, `controls.json` says what is controlled (drawn samples, what searches found), the results files
# hold
# one `ArmResult` for each (control, sample). The report's block is rebuilt from these and the run's own results.


SCHEMA = 2
"""Version of `controls.json`."""
PLAN_FILE, GENERATED_FILE = "controls.json", "generated.jsonl"
MEASURES: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "luck": measure_luck,
    "random_search": measure_random,
}
"""Controls that need records only."""


def run_controls(
    out: Path,
    plan: Plan,
    identity: Mapping[str, Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: ChainScorer,
    samples: Sequence[Sample],
    results: Sequence[ArmResult],
    batch_samples: int,
) -> None:
    """Run the controls, or go on where an earlier run was stopped.

    Args:
        out: folder of the run.
        plan: what is controlled.
        identity: what the run's results are of.
        model: the base model.
        tokenizer: its tokenizer.
        scorer: the run's scorer.
        samples: the test samples.
        results: the run's results, with those of full depth and the oracle for every sample.
        batch_samples: samples loaded at once.

    Raises:
        InputError: where a file is corrupt, or the folder holds other controls.
    """
    write_json(out / PLAN_FILE, plan)
    chains = {arm: {one.sample_id: one.chain for one in results if one.arm == arm} for arm in CONTROLLED}
    drawn = {name: [one for one in samples if one.id in set(plan[name])] for name in ("reshuffled", "generated")}
    for shuffle in plan["shuffles"]:
        tasks = TaskSet.of([scorer.tasks[name] for name in sorted({one.task for one in drawn["reshuffled"]})])
        reshuffled = ChainScorer(model, tokenizer, tasks.shuffled(shuffle), batch_tokens=scorer.batch_tokens)
        run_arms(
            [KnownArm(of_arm, reshuffled_name(arm, shuffle)) for arm, of_arm in chains.items()],
            drawn["reshuffled"],
            reshuffled,
            reshuffled.judge,
            result_store(out / f"reshuffled-{shuffle}.jsonl", identity, scorer.num_layers),
            batch_samples,
            f"reshuffled {shuffle}",
        )
    if drawn["generated"]:
        run_arms(
            [KnownArm(of_arm, generated_name(arm)) for arm, of_arm in chains.items()],
            drawn["generated"],
            scorer,
            GenerationJudge.of(model, scorer),
            result_store(out / GENERATED_FILE, identity, scorer.num_layers),
            batch_samples,
            "generated",
        )


def plan_controls(
    count: int,
    reshuffles: int,
    seed: int,
    tasks: TaskSet,
    samples: Sequence[Sample],
    oracle: Sequence[SearchRecord],
    wrong: Sequence[SearchRecord] | None = None,
    random: Sequence[SearchRecord] | None = None,
) -> Plan:
    """Return the content of `controls.json`; needs no model.

    Args:
        count: samples that are run again with reshuffled choices, and by generation, at most; 0: none.
        reshuffles: other orders of the choices.
        seed: draws samples and orders, and the bootstrap.
        tasks: the samples' tasks.
        samples: the test samples.
        oracle: records of the oracle.
        wrong: of the same search for a wrong answer; None: luck is not measured.
        random: of a random search of the same cost; None: it is not compared.

    Raises:
        InputError: where records do not fit each other.
    """
    listing = _drawn(samples, lists_choices, count, seed, tasks) if reshuffles else []
    judged = _drawn(samples, _can_be_generated, count, seed, tasks)
    plan: Plan = plain_values(
        {
            "schema": SCHEMA,
            "seed": seed,
            "shuffles": shuffles(reshuffles, seed) if listing else [],
            "reshuffled": [sample.id for sample in listing],
            "generated": [sample.id for sample in judged],
            "modes": sorted({tasks[sample.task].judged_mode for sample in judged}),
            "luck": None if wrong is None else collect_luck(oracle, wrong),
            "random_search": None if random is None else collect_random(oracle, random),
        }
    )
    return plan


def controls_finished(out: Path, plan: Plan, identity: Mapping[str, Any], num_layers: int) -> bool:
    """Whether every control has its results, so that no model is needed.

    Raises:
        InputError: where a file is corrupt or of another run.
    """
    if not (out / PLAN_FILE).exists() or read_plan(out) != plan:
        return False
    stores = [result_store(path, identity, num_layers) for path in _files(out, plan)]
    return all(store.finished for store in stores)


def _files(out: Path, plan: Plan) -> list[Path]:
    """Return the results files of a plan."""
    shuffled = [out / f"reshuffled-{shuffle}.jsonl" for shuffle in plan["shuffles"]]
    return [*shuffled, *([out / GENERATED_FILE] if plan["generated"] else [])]


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


def controls_block(out: Path, results: Sequence[ArmResult], num_layers: int) -> dict[str, Any] | None:
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
    plan, path = read_plan(out), out / PLAN_FILE
    seed, shuffled, generated = plan["seed"], plan["reshuffled"], plan["generated"]
    again = [one for file in _files(out, plan) for one in read_results(file, num_layers)]
    found = Found.of(path, results, again)
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
        other = [found.again(of_arm, shuffled) for of_arm in names]
        block["reshuffled"] = measure_reshuffled(found.usual(shuffled), other, seed)
    if generated:
        written = found.again({arm: generated_name(arm) for arm in CONTROLLED}, generated)
        block["generated"] = measure_generated(found.usual(generated), written, plan["modes"], seed)
    plain: dict[str, Any] = plain_values(block)  # tuples as lists: the same as what is read back
    return plain


def _can_be_generated(task: Task) -> bool:
    """Whether real generation says more than evaluation does; a choice that the prompt does not list cannot be read."""
    return task.judged_mode != "generate" and (task.list_choices or not task.has_choices)


def _drawn(
    samples: Sequence[Sample], wanted: Callable[[Task], bool], count: int, seed: int, tasks: TaskSet
) -> list[Sample]:
    """Draw samples of tasks of a kind; more of them hold those that fewer do."""
    fit = [sample for sample in samples if wanted(tasks[sample.task])]
    order = sorted(fit, key=lambda sample: hashlib.sha256(f"controls/{seed}/{sample.id}".encode()).digest())
    taken = {sample.id for sample in order[:count]}
    return [sample for sample in fit if sample.id in taken]
