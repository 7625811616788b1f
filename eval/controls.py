"""Controls of the oracle: what of its gain is luck, and what outlasts another order of choices and real generation.

`controls.json` (`Plan`) says what is controlled (drawn samples, orders of choices), and what records alone say.
`reshuffled-<order>.jsonl` and `generated.jsonl` hold the answers of full depth's and the oracle's chains when they are
run again, each a `data.store.Store`. The report's `Controls` are rebuilt from these and the run's own results.

- Luck and a random search need records only: `eval.luck`; the oracle judged anew needs their variants: `data.headroom`.
- Reshuffled choices: does a sample that a chain sets right stay right when its choices are listed in another order?
  `Task.shuffle` lists them so; sample, id and indices of choices stay what they are, so predictions need no
  translation. The choices of worked examples in the prompt stand in another order too. With two choices every shuffle
  is the swap.
- Real generation: do chains that score an answer as right also write it? Under each chain the model writes its answer
  after the same prompt. A task that asks for a letter, or for a free answer, is read as `data.scoring` reads it. One
  that scores the choices' texts asks for no form: the answer is the choice whose text is written, or whose letter where
  the prompt lists them. Tasks that are judged by generation anyway have no such control.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from pydantic.dataclasses import dataclass

from data.answers import folded, parse_letter
from data.encoding import EncodedSample
from data.headroom import Headroom
from data.pool import Pool
from data.records import ChainResult, SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from data.statistics import Estimate, PairedShares, Proportion, estimate_of, mean_of, paired_shares, share_of
from data.tasks import Task, TaskSet
from eval.arms import FULL, ORACLE, known_arm
from eval.luck import Luck, RandomSearch
from eval.results import ArmResult, read_results, result_store, run_arms
from router.chain import Chain
from router.engine.load import context_of
from router.files import read_json, require_file, write_json
from router.validation import STORED, Count, InputError, Positive, Share, from_plain, to_plain

SCHEMA: Literal[3] = 3
"""Version of `controls.json`."""
PLAN_FILE, GENERATED_FILE = "controls.json", "generated.jsonl"
CONTROLLED = (FULL, ORACLE)
"""Arms whose chains are run again."""
LARGEST_NUMBER = 999
"""Shuffles of one seed at most."""
Pair = tuple[Sequence[ArmResult], Sequence[ArmResult]]
"""Full depth's and the oracle's results on the same samples, in the same order."""


@dataclass(frozen=True, config=STORED, kw_only=True)
class Plan:
    """What is controlled: the content of `controls.json`.

    Attributes:
        schema: version of the format.
        seed: draws samples and orders, and the bootstrap.
        shuffles: values of `Task.shuffle`.
        reshuffled: ids of the samples that are run again with reshuffled choices.
        generated: ids of the samples that are run again by generation.
        modes: modes of evaluation that generation is compared with.
        luck: as of `Controls`; null: luck is not measured.
        random_search: as of `Controls`; null: not compared.
        headroom: as of `Controls`; null: the records have no variants.
    """

    schema: Literal[3]
    seed: Count
    shuffles: tuple[Positive, ...]
    reshuffled: tuple[str, ...]
    generated: tuple[str, ...]
    modes: tuple[str, ...]
    luck: Luck | None
    random_search: RandomSearch | None
    headroom: Headroom | None


@dataclass(frozen=True, config=STORED)
class Rescued:
    """Samples that full depth gets wrong and the oracle's chain gets right.

    Attributes:
        n: samples.
        chance: accuracy of guessing; null: there are no samples.
        oracle: share that the oracle's chain gets right when the choices are reshuffled, mean over shuffles.
        full: share that full depth gets right then.
        difference: the first minus the second.
    """

    n: Count
    chance: Share | None
    oracle: Proportion | None
    full: Proportion | None
    difference: Estimate | None


@dataclass(frozen=True, config=STORED)
class Accuracies:
    """Accuracies in one order of choices, or a mean over several.

    Attributes:
        full: full depth's.
        oracle: the oracle's.
        difference: the oracle's minus full depth's.
    """

    full: Proportion | None
    oracle: Proportion | None
    difference: Estimate | None


@dataclass(frozen=True, config=STORED)
class Reshuffled:
    """What is left of the oracle when the choices are listed in another order.

    Attributes:
        n: samples whose choices are listed.
        reshuffles: other orders; a sample's value is its mean over them.
        rescued: of samples that the oracle's chain sets right.
        full_right: of samples that full depth gets right, the share that it still gets right: how stable answers are.
        both_right: of samples that both get right, the share that the oracle's chain still gets right.
        retained: share of `rescued.oracle` minus `full_right`: 0 where a rescued answer is as stable as full depth's.
        usual: accuracies in the usual order.
        reshuffled: the same in other orders.
    """

    n: Positive
    reshuffles: Positive
    rescued: Rescued
    full_right: Proportion | None
    both_right: Proportion | None
    retained: Estimate | None
    usual: Accuracies
    reshuffled: Accuracies


@dataclass(frozen=True, config=STORED)
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
    no_answer: Count
    right: Count
    confirmed: Proportion | None
    right_no_answer: Count
    confirmed_of_read: Proportion | None
    agreed: Proportion | None


@dataclass(frozen=True, config=STORED)
class Generated:
    """What generation says of full depth and the oracle.

    Attributes:
        n: samples.
        modes: the modes of evaluation that generation is compared with.
        full: full depth.
        oracle: the oracle's chains.
        paired: generated answers, the oracle's accuracy against full depth's.
    """

    n: Positive
    modes: tuple[str, ...]
    full: GeneratedArm
    oracle: GeneratedArm
    paired: PairedShares | None


@dataclass(frozen=True, config=STORED)
class Controls:
    """What controls say of the oracle's gain; each one null: not run.

    Attributes:
        luck: a search for a wrong answer: how often a chain gives any wanted answer.
        reshuffled: the choices in another order: whether rescued samples stay rescued.
        generated: labels verified by real generation.
        random_search: random chains at the oracle's cost.
        headroom: the oracle judged anew, on variants of the questions that it was not chosen on.
    """

    luck: Luck | None
    reshuffled: Reshuffled | None
    generated: Generated | None
    random_search: RandomSearch | None
    headroom: Headroom | None = None


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
    """Return what is to be controlled, and measure what needs records only; needs no model.

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
    listing = _drawn(samples, attrgetter("lists_choices"), count, seed, tasks)
    judged = _drawn(samples, _can_be_generated, count, seed, tasks)
    return Plan(
        schema=SCHEMA,
        seed=seed,
        shuffles=shuffles(reshuffles, seed) if listing else (),
        reshuffled=tuple(sample.id for sample in listing),
        generated=tuple(sample.id for sample in judged),
        modes=tuple(sorted({tasks[sample.task].judged_mode for sample in judged})),
        luck=None if wrong is None else Luck.of(oracle, wrong, seed),
        random_search=None if random is None else RandomSearch.of(oracle, random, seed),
        headroom=Headroom.of(oracle, seed),
    )


def shuffles(number: int, seed: int) -> tuple[int, ...]:
    """Return so many values of `Task.shuffle`, others for every seed."""
    return tuple((LARGEST_NUMBER + 1) * seed + i + 1 for i in range(number))


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


def controls_finished(out: Path, plan: Plan, identity: Mapping[str, Any], num_layers: int) -> bool:
    """Whether every control has its results, so that no model is needed.

    Raises:
        InputError: where a file is corrupt or of another run.
    """
    if not (out / PLAN_FILE).exists() or _read_plan(out) != plan:
        return False
    stores = [result_store(path, identity, num_layers) for path in _files(out, plan)]
    return all(store.finished for store in stores)


def _files(out: Path, plan: Plan) -> list[Path]:
    """Return the results files of a plan."""
    shuffled = [out / f"reshuffled-{shuffle}.jsonl" for shuffle in plan.shuffles]
    return [*shuffled, *([out / GENERATED_FILE] if plan.generated else [])]


def _read_plan(out: Path) -> Plan:
    """Read `controls.json`.

    Raises:
        InputError: where it is missing, corrupt or of another schema.
    """
    path = require_file(out / PLAN_FILE, "out")
    return from_plain(Plan, read_json(path), str(path))


def run_controls(
    out: Path,
    plan: Plan,
    identity: Mapping[str, Any],
    scorer: ChainScorer,
    samples: Sequence[Sample],
    results: Sequence[ArmResult],
    batch_samples: int,
    pool: Pool | None = None,
) -> None:
    """Run the controls, or go on where an earlier run was stopped.

    Args:
        out: folder of the run.
        plan: what is controlled.
        identity: what the run's results are of.
        scorer: the run's scorer.
        samples: the test samples.
        results: the run's results, with those of full depth and the oracle for every sample.
        batch_samples: samples loaded at once.
        pool: where the chains run; None: in this process.

    Raises:
        InputError: where a file is corrupt, or the folder holds other controls.
    """
    write_json(out / PLAN_FILE, to_plain(plan))
    chains = {arm: {one.sample_id: one.chain for one in results if one.arm == arm} for arm in CONTROLLED}
    again = [one for one in samples if one.id in set(plan.reshuffled)]
    written = [one for one in samples if one.id in set(plan.generated)]
    for shuffle in plan.shuffles:
        reshuffled = scorer.with_tasks(scorer.tasks.shuffled(shuffle))
        run_arms(
            [known_arm(of_arm, reshuffled_name(arm, shuffle)) for arm, of_arm in chains.items()],
            again,
            reshuffled,
            reshuffled.judge,
            result_store(out / f"reshuffled-{shuffle}.jsonl", identity, scorer.num_layers),
            batch_samples,
            f"reshuffled {shuffle}",
            pool,
        )
    if written:
        run_arms(
            [known_arm(of_arm, generated_name(arm)) for arm, of_arm in chains.items()],
            written,
            scorer,
            GenerationJudge.of(scorer),
            result_store(out / GENERATED_FILE, identity, scorer.num_layers),
            batch_samples,
            "generated",
            pool,
        )


def reshuffled_name(arm: str, shuffle: int) -> str:
    """Return the name under which an arm's chains stand in the results of a shuffle."""
    return f"{arm}/reshuffled-{shuffle}"


def generated_name(arm: str) -> str:
    """Return the name under which an arm's generated answers stand in the results."""
    return f"{arm}/generated"


@dataclasses.dataclass(frozen=True)
class GenerationJudge:
    """Runs chains by generation and reads their answers, whatever mode the samples' tasks are in.

    Attributes:
        scorer: runs the chains.
        positions: tokens that the model has positions for; None: any number.
    """

    scorer: ChainScorer
    positions: int | None

    @classmethod
    def of(cls, scorer: ChainScorer) -> GenerationJudge:
        """Return the judge of a scorer's model."""
        return cls(scorer, context_of(scorer.model))

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


def controls_of(out: Path, results: Sequence[ArmResult], num_layers: int) -> Controls | None:
    """Return what the controls say, from a run's files alone; None: the run has no controls.

    Args:
        out: folder of the run.
        results: the run's results, with those of full depth and the oracle.
        num_layers: layers of the model.

    Raises:
        InputError: where a file is corrupt or a result is missing.
    """
    if not (out / PLAN_FILE).exists():
        return None
    plan = _read_plan(out)
    again = [one for file in _files(out, plan) for one in read_results(file, num_layers)]
    known = {(one.arm, one.sample_id): one for one in (*results, *again)}

    def ran(ids: Sequence[str], name: Callable[[str], str] = str) -> Pair:
        """Return both arms' results on some samples in their order; `name`: an arm's name in a control."""
        full, oracle = ([_result(known, arm, name(arm), key, out) for key in ids] for arm in CONTROLLED)
        return full, oracle

    reshuffled = generated = None
    if plan.shuffles:
        others = [ran(plan.reshuffled, partial(reshuffled_name, shuffle=shuffle)) for shuffle in plan.shuffles]
        reshuffled = _measure_reshuffled(ran(plan.reshuffled), others, plan.seed)
    if plan.generated:
        written = ran(plan.generated, generated_name)
        generated = _measure_generated(ran(plan.generated), written, plan.modes, plan.seed)
    return Controls(
        luck=plan.luck,
        reshuffled=reshuffled,
        generated=generated,
        random_search=plan.random_search,
        headroom=plan.headroom,
    )


def _result(known: Mapping[tuple[str, str], ArmResult], arm: str, name: str, key: str, out: Path) -> ArmResult:
    """Return an arm's result on a sample under its name in a control, where its own chain must have run."""
    for wanted in (arm, name):
        if (wanted, key) not in known:
            raise InputError(
                f"{out / PLAN_FILE}: expected a result of {wanted} on sample {key}, got none; run python -m eval again"
            )
    found = known[name, key]
    if found.chain != known[arm, key].chain:
        raise InputError(f"{out / PLAN_FILE}: expected the chain that {arm} has run on sample {key}, got {found.chain}")
    return found


def _measure_reshuffled(usual: Pair, again: Sequence[Pair], seed: int) -> Reshuffled:
    """Measure what is left in other orders.

    Args:
        usual: results in the usual order.
        again: for each shuffle the results of the same samples, in the same order; at least one.
        seed: seed of the bootstrap.
    """
    full, oracle = (np.array([one.correct for one in of_arm]) for of_arm in usual)
    full_again, oracle_again = (
        np.mean([[one.correct for one in shuffled] for shuffled in of_arm], axis=0)
        for of_arm in zip(*again, strict=True)
    )
    rescued = oracle & ~full
    retained = np.stack([rescued, rescued * oracle_again, full, full * full_again], axis=1)
    guesses = [1 / one.choices for one, of_sample in zip(usual[0], rescued, strict=True) if of_sample]
    return Reshuffled(
        n=len(full),
        reshuffles=len(again),
        rescued=Rescued(
            n=len(guesses),
            chance=sum(guesses) / len(guesses) if guesses else None,
            oracle=share_of(oracle_again[rescued]),
            full=share_of(full_again[rescued]),
            difference=mean_of((oracle_again - full_again)[rescued], seed),
        ),
        full_right=share_of(full_again[full]),
        both_right=share_of(oracle_again[full & oracle]),
        retained=estimate_of(retained, lambda sums: sums[:, 1] / sums[:, 0] - sums[:, 3] / sums[:, 2], seed),
        usual=_accuracies(full.astype(float), oracle.astype(float), seed),
        reshuffled=_accuracies(full_again, oracle_again, seed),
    )


def _accuracies(full: Float[np.ndarray, " samples"], oracle: Float[np.ndarray, " samples"], seed: int) -> Accuracies:
    return Accuracies(share_of(full), share_of(oracle), mean_of(oracle - full, seed))


def _measure_generated(judged: Pair, written: Pair, modes: Sequence[str], seed: int) -> Generated:
    """Compare answers with generated ones.

    Args:
        judged: results in the mode of evaluation.
        written: results by generation, of the same samples in the same order.
        modes: the modes of evaluation.
        seed: seed of the bootstrap.
    """
    full, oracle = ([one.correct for one in of_arm] for of_arm in written)
    arms = [_generated_arm(one, other) for one, other in zip(judged, written, strict=True)]
    return Generated(len(full), tuple(modes), arms[0], arms[1], paired_shares(oracle, full, seed))


def _generated_arm(judged: Sequence[ArmResult], written: Sequence[ArmResult]) -> GeneratedArm:
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
