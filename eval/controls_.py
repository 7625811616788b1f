"""What a run and its controls answered, by policy and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from eval.arms import FULL, ORACLE
from eval.controls.statistics import Pair
from eval.results import PolicyResult
from router.validation import InputError
import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from transformers import PreTrainedModel
from data.answers import folded, parse_letter
from data.records import ChainResult
from data.scoring import ChainScorer, EncodedSample, SampleBlock
from data.tasks import Task
from eval.controls.statistics import Pair, PairedShares, Share, paired_shares, share_of
from router.chain import Chain
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from data.tasks import Task, TaskSet
from eval.controls.statistics import Pair, Share, Value, mean_of, share_of, value_of
from eval.running import run_policies
import hashlib
from collections.abc import Callable, Mapping, Sequence
from data.records import SearchRecord
from data.scoring import ChainScorer
from eval.luck import collect_luck, measure_luck
from eval.luck import collect_random, measure_random
from eval.results import PolicyResult, read_results
from router.command import plain_values
from router.files import JsonLog, read_json, require_file, write_json


CONTROLLED = (FULL, ORACLE)
"""Arms whose chains are run again."""
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
    arms: Mapping[tuple[str, str], PolicyResult]
    controls: Mapping[tuple[str, str], PolicyResult]

    @classmethod
    def of(cls, path: Path, arms: Sequence[PolicyResult], controls: Sequence[PolicyResult]) -> Found:
        """Index the run's results and those of its controls; `path` is the controls' file, for refusals."""
        by_name = [{(one.policy, one.sample_id): one for one in results} for results in (arms, controls)]
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

    def _one(self, results: Mapping[tuple[str, str], PolicyResult], policy: str, key: str) -> PolicyResult:
        if (policy, key) not in results:
            raise InputError(f"{self.path}: expected a result of {policy} on sample {key}, got none; {REMEDY}")
        return results[policy, key]


# Labels verified by real generation: do chains that score an answer as right also write it?
#
# For tasks that are not judged by generation anyway. Under each chain the model writes its answer after the same prompt.
# A task that asks for a letter, or for a free answer, is read as `data.scoring` reads it. One that scores the choices'
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

    judged: Share | None
    generated: Share | None
    no_answer: int
    right: int
    confirmed: Share | None
    right_no_answer: int
    confirmed_of_read: Share | None
    agreed: Share | None


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


def policy_name(arm: str) -> str:
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
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return cls(scorer, positions if isinstance(positions, int) else None)

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


def _arm(judged: Sequence[PolicyResult], written: Sequence[PolicyResult]) -> GeneratedArm:
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
# `Task.shuffle` lists them so: sample, id and indices of choices stay what they are, so predictions need no translation.
# The choices of worked examples in the prompt stand in another order too. With two choices every shuffle is the swap.


LARGEST_NUMBER = 999
"""Shuffles of one seed at most."""


@dataclass(frozen=True)
class KnownChains:
    """Chains that another arm has chosen, to be run again under other conditions.

    Attributes:
        by_sample: the chains, by sample id.
        name: the policy's name.
    """

    by_sample: Mapping[str, Chain]
    name: str

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return each sample's chain."""
        return [self.by_sample[encoded.sample.id] for encoded in samples.samples]


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
    oracle: Share | None
    full: Share | None
    difference: Value | None


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
    full_right: Share | None
    both_right: Share | None
    retained: Value | None
    usual: dict[str, Share | Value | None]
    reshuffled: dict[str, Share | Value | None]


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


def policy_name(arm: str, shuffle: int) -> str:
    """Return the name under which an arm's chains stand in the results of a shuffle."""
    return f"{arm}/reshuffled-{shuffle}"


def run_reshuffled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: ChainScorer,
    samples: Sequence[Sample],
    arms: Mapping[str, Mapping[str, Chain]],
    shuffle: int,
    path: Path,
    batch_samples: int,
) -> None:
    """Run arms' chains on samples whose choices are listed in another order; resumable.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        scorer: the scorer of the usual order.
        samples: samples of tasks that list choices.
        arms: chains by sample id, by the arm's name.
        shuffle: value of `Task.shuffle`.
        path: the results file; policies are named by `policy_name`.
        batch_samples: samples loaded at once.

    Raises:
        InputError: where the file is corrupt or a sample cannot be asked.
    """
    tasks = TaskSet.of([scorer.tasks[name] for name in sorted({sample.task for sample in samples})])
    reshuffled = ChainScorer(model, tokenizer, tasks.shuffled(shuffle), batch_tokens=scorer.batch_tokens)
    policies = [KnownChains(chains, policy_name(arm, shuffle)) for arm, chains in arms.items()]
    run_policies(policies, samples, reshuffled, reshuffled.judge, path, batch_samples, f"reshuffled {shuffle}")


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
        retained=value_of(retained, lambda sums: sums[:, 1] / sums[:, 0] - sums[:, 3] / sums[:, 2], seed),
        usual=_accuracies([(float(a), float(b)) for a, b, _, _ in rows], seed),
        reshuffled=_accuracies([(c, d) for _, _, c, d in rows], seed),
    )
    return asdict(measured)


def _accuracies(pairs: Sequence[tuple[float, float]], seed: int) -> dict[str, Share | Value | None]:
    full, oracle = [one for one, _ in pairs], [other for _, other in pairs]
    difference = mean_of([other - one for one, other in pairs], seed)
    return {"full": share_of(full), "oracle": share_of(oracle), "difference": difference}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Controls of the oracle: what of its gain is luck, and what outlasts another order of choices and real generation.
#
# Of a run's folder, `controls.json` says what is controlled (drawn samples, what searches found), `controls.jsonl` holds
# one `PolicyResult` for each (control, sample). The report's block is rebuilt from these and the run's own results.


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
