"""The arms of an evaluation: who chooses the chain of each sample. Siblings, so that evaluation is one loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from data.records import SearchRecord
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock, confidences
from router.chain import Chain
from router.decision import OWN_CHOICE, Operation, Router
from router.heads.head import Decision

FULL, ROUTER, STATIC, ORACLE = "full", "router", "static", "oracle"
GUARANTEE, RANDOM_SEARCH = "guarantee", "random_search"
Baseline = Literal["static_by_kind", "mixture", "permuted", "random", "early_exit", "pruned"]
"""Arms that a run may leave out."""
STATIC_BY_KIND: Baseline = "static_by_kind"
MIXTURE: Baseline = "mixture"
PERMUTED: Baseline = "permuted"
RANDOM: Baseline = "random"
EARLY_EXIT: Baseline = "early_exit"
PRUNED: Baseline = "pruned"

ALWAYS = (FULL, ROUTER, STATIC, ORACLE)
"""Arms of every run."""
SAW_ANSWERS = frozenset({ORACLE, RANDOM_SEARCH})
"""Arms whose chains were found with the test answers in hand: upper bounds."""
LABELS = {
    FULL: "full depth",
    ROUTER: "router",
    GUARANTEE: "router with guarantee",
    STATIC: "best static chain",
    STATIC_BY_KIND: "best static chain of each kind: knows the kind",
    MIXTURE: "best mixture of static chains",
    PERMUTED: "router's chains permuted within kinds",
    RANDOM: "random chain of the router's depth",
    EARLY_EXIT: "early exit",
    PRUNED: "redundant layers pruned",
    RANDOM_SEARCH: "random search: upper bound, has seen the answer",
    ORACLE: "oracle: upper bound, has seen the answer",
}
"""What each arm is, for readers, in the order of a report; further budgets of the router follow the router."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm that a run is to have.

    Attributes:
        name: its name in results files.
        label: its name for readers.
        budget: of a router arm, the mean depth that it is asked for, layers; None: the router's own choice.
    """

    name: str
    label: str
    budget: float | None = None


def budget_name(budget: float) -> str:
    """Return the name of the router's arm at a further budget, layers: six digits of it."""
    return f"{ROUTER}@{budget:g}"


def is_routed(name: str) -> bool:
    """Whether an arm's chains are the router's, so that what the router costs counts."""
    return name in (ROUTER, GUARANTEE) or name.startswith(f"{ROUTER}@")


def plan_arms(
    budget: float | None,
    budgets: Sequence[float],
    baselines: Sequence[Baseline],
    guarantee: str | None,
    random_search: bool,
) -> list[ArmPlan]:
    """Return the arms of a run, in the order of its report.

    Args:
        budget: the router's mean depth, layers; None: its own choice.
        budgets: further ones.
        baselines: those of the arms that may be left out.
        guarantee: what the router was certified for, in words; None: nothing.
        random_search: whether there are records of a random search.
    """
    wanted = {*ALWAYS, *baselines}
    wanted |= {GUARANTEE} if guarantee is not None else set()
    wanted |= {RANDOM_SEARCH} if random_search else set()
    plans = []
    for name, label in LABELS.items():
        if name not in wanted:
            continue
        if name == GUARANTEE:
            label = f"{label} ({guarantee})"
        plans.append(ArmPlan(name, label))
        if name == ROUTER:
            if budget is not None:
                plans[-1] = ArmPlan(name, f"{label}, budget {budget:g} layers", budget)
            plans += [ArmPlan(budget_name(one), f"{label}, budget {one:g} layers", one) for one in budgets]
    return plans


class Arm(Protocol):
    """Chooses one chain for each sample."""

    @property
    def name(self) -> str:
        """The arm's name in results files."""

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return one chain for each sample of a loaded block, in order; the samples' batch does not matter."""


@dataclass(frozen=True)
class SampleArm:
    """A chain of each sample that hangs on the sample alone; the model is not asked.

    Attributes:
        name: the arm's name.
        chain_of: a sample's chain.
    """

    name: str
    chain_of: Callable[[Sample], Chain]

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return each sample's chain."""
        return [self.chain_of(encoded.sample) for encoded in samples.samples]


def static_arm(chain: Chain, name: str = STATIC) -> SampleArm:
    """Return the arm of the same chain for every sample; full depth is one."""
    return SampleArm(name, lambda _: chain)


def kind_arm(by_kind: Mapping[str, Chain], other: Chain, name: str = STATIC_BY_KIND) -> SampleArm:
    """Return the arm of the same chain for every sample of a kind (a task of a mixture).

    Args:
        by_kind: the chains, by task.
        other: chain of the samples of all other tasks.
        name: the arm's name.
    """
    return SampleArm(name, lambda sample: by_kind.get(sample.task, other))


def known_arm(by_sample: Mapping[str, Chain], name: str) -> SampleArm:
    """Return the arm of chains that are known beforehand, by sample id."""
    return SampleArm(name, lambda sample: by_sample[sample.id])


def mixture_arm(first: Chain, second: Chain, share: float, seed: int) -> SampleArm:
    """Return the arm of two static chains: each sample draws one of them from its own generator of (seed, sample id).

    Args:
        first: the shallower chain.
        second: the deeper one.
        share: probability of the first.
        seed: seed of the draws.
    """
    return SampleArm(
        MIXTURE,
        lambda sample: first if random.Random(f"{seed}/mixture/{sample.id}").random() < share else second,
    )


def oracle_arm(records: Sequence[SearchRecord], name: str = ORACLE) -> SampleArm:
    """Return the arm of the shortest chain that stands in each record, full depth where none does.

    It has seen the answer. Its chains are run again like all others, so a chain that was right only in the search's
    batch, or only in the cheap mode, counts as wrong.
    """
    return known_arm({record.sample_id: (record.shortest or record.full).chain for record in records}, name)


def permuted_arm(chains: Sequence[Chain], samples: Sequence[Sample], seed: int) -> SampleArm:
    """Return the arm that permutes chains, one a sample, among the samples of each kind (task).

    What it lacks against the chains in their own places is what their chooser read of a sample beyond its kind.
    """
    drawn: dict[str, Chain] = {}
    for kind in sorted({sample.task for sample in samples}):
        own = [(sample.id, chain) for sample, chain in zip(samples, chains, strict=True) if sample.task == kind]
        shuffled = [chain for _, chain in own]
        random.Random(f"{seed}/permuted/{kind}").shuffle(shuffled)
        drawn |= {key: chain for (key, _), chain in zip(own, shuffled, strict=True)}
    return known_arm(drawn, PERMUTED)


class StatesReader:
    """Reads what a router reads of a loaded block, once for all arms that ask."""

    def __init__(self, scorer: ChainScorer) -> None:
        """Read `hidden_states` of prompt and choices; a free answer is never among what is read."""
        self._scorer = scorer
        self._block: SampleBlock | None = None
        self._states: dict[int, list[Float[Tensor, "_ d_model"]]] = {}

    def read(self, samples: SampleBlock, layer: int) -> list[Float[Tensor, "_ d_model"]]:
        """Return `hidden_states[layer]` of each sample, on the CPU."""
        if samples is not self._block:
            self._states, self._block = {}, samples
        if layer not in self._states:
            self._states[layer] = [state.cpu() for state in self._scorer.states(samples, layer)]
        return self._states[layer]

    def __reduce__(self) -> tuple[type[StatesReader], tuple[ChainScorer]]:
        """Travel to another process without the block that was read here."""
        return StatesReader, (self._scorer,)


@dataclass(frozen=True)
class RouterArm:
    """The trained router at one operation.

    Attributes:
        reader: reads what it reads.
        router: the router.
        operation: how much depth it is to spend.
        name: the arm's name.
    """

    reader: StatesReader
    router: Router
    operation: Operation = OWN_CHOICE
    name: str = ROUTER

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return the router's chain for each sample."""
        return [one.chain for one in self.decide(samples)]

    def decide(self, samples: SampleBlock) -> list[Decision]:
        """Return the router's chain for each sample, and whether it is in the router's scope."""
        first, *late = self.router.config.read_layers

        def read_on(rows: Sequence[int]) -> list[Tensor]:
            states = self.reader.read(samples, late[0])
            return [states[row] for row in rows]

        return self.router.decide(self.reader.read(samples, first), self.operation, read_on)


@dataclass(frozen=True)
class RandomArm:
    """For each sample a random chain as deep as the router's: what depth alone is worth.

    Each sample draws from its own generator of (seed, sample id). With n layers of which those from `read_layer` on may
    be edited, and a router chain of depth d: d < n drops a uniformly random subset of n - d editable layers; d > n runs
    d - n editable layers, drawn uniformly with replacement, once more each, right after themselves; d = n is the full
    chain, also where the router's chain of that depth is an edited one.

    Attributes:
        router: the arm whose depth is matched.
        num_layers: n.
        read_layer: layers that are never edited.
        seed: seed of the draws.
        name: the arm's name.
    """

    router: Arm
    num_layers: int
    read_layer: int
    seed: int
    name: str = RANDOM

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return a random chain for each sample, of the router's depth."""
        return [
            random_chain(
                chain.depth, self.num_layers, self.read_layer, random.Random(f"{self.seed}/{encoded.sample.id}")
            )
            for chain, encoded in zip(self.router.chains(samples), samples.samples, strict=True)
        ]


def random_chain(depth: int, num_layers: int, read_layer: int, rng: random.Random) -> Chain:
    """Return a random chain of exactly `depth` layers, at least `read_layer`, drawn as `RandomArm` says."""
    editable = range(read_layer, num_layers)
    counts = [1] * num_layers
    if depth < num_layers:
        for layer in rng.sample(editable, num_layers - depth):
            counts[layer] = 0
    else:
        for layer in rng.choices(editable, k=depth - num_layers):
            counts[layer] += 1
    return Chain.from_counts(counts)


@dataclass(frozen=True)
class EarlyExitArm:
    """Stop after a layer where the model is sure already (logit lens: final norm and head on its output).

    Attributes:
        scorer: runs the first layers.
        layer: layers that run for every sample.
        threshold: confidence from which a sample stops there, 0..1; the others run at full depth.
        name: the arm's name.
    """

    scorer: ChainScorer
    layer: int
    threshold: float
    name: str = EARLY_EXIT

    def chains(self, samples: SampleBlock) -> list[Chain]:
        """Return for each sample the first layers alone, or the full chain."""
        n = self.scorer.num_layers
        early = exit_chain(self.layer, n)
        sure = confidences(self.scorer, samples, early)
        return [early if one >= self.threshold else Chain.full(n) for one in sure]


def exit_chain(layer: int, num_layers: int) -> Chain:
    """Return the first `layer` layers."""
    return Chain(tuple(range(layer)), num_layers)
