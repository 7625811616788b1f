"""Reshuffled choices: does a sample that a chain sets right stay right when its choices are listed in another order?

`Task.shuffle` lists them so: sample, id and indices of choices stay what they are, so predictions need no translation.
The choices of worked examples in the prompt stand in another order too. With two choices every shuffle is the swap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock
from data.tasks import Task, TaskSet
from eval.controls.statistics import Pair, Share, Value, mean_of, share_of, value_of
from eval.running import run_policies
from router.chain import Chain
from router.validation import InputError

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
