"""What each search finds for what it costs: ours at a quarter of the cost against published settings and random search.

    python benchmarks/search_quality.py [--quick] [--samples 300] [--seeds 3] [--variants 4] [--json PATH] [--out DIR]
    python benchmarks/search_quality.py --data runs/letters/data --model qwen2.5-coder-1.5b-instruct --variants 4

Every search runs on every sample with every seed, for the right answer and, as the control of luck, for a wrong one.
Without --data the samples are ARC-Easy questions and the model SmolLM2-135M-Instruct. With --variants a chain counts
stands as in `python -m search` (`search.variants`): right in all of them, or in --stand_share of them. They are asked
one after the other, and a chain that cannot stand any more is not asked on.

Cost is the nominal depth of the evaluated chains, summed, once for each variant asked; reuse of states does not count.
Every search spends the full cost; what less of it would have found are its first trials. Random search draws uniformly
over legal actions, with the edit counts of the default's chains; balanced random search draws skips as often as the
default and shares its bounds: what is left to ours against it is what the tree itself is good for.

Bar: ours at a quarter of the cost is no worse than each published search at full cost (hypervolume of (stands, depth),
paired over samples, lower end of the 95 % interval at least 0).

Finished samples are kept under --out: a run that was killed goes on, and a finished one is summarised again.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from demo_samples import demo_samples
from pydantic.dataclasses import dataclass as settings_dataclass
from quality import Trace, found_by

from data.answers import wrong_answers
from data.encoding import batches_by_length
from data.pool import Batch, Task, run_batches
from data.records import ChainResult, VariantResult
from data.sample import Sample, read_samples
from data.scoring import ChainScorer, SampleBlock
from data.statistics import Estimate, mean_of
from data.store import Store
from data.tasks import read_tasks
from router.chain import Chain
from router.command import plain_values, run_command
from router.engine.load import load_model
from router.files import sha256_json, write_json
from router.validation import STORED
from search.actions import ActionSpace
from search.algorithms import Searcher, TreeSearcher, make_searcher
from search.settings import SearchSettings
from search.variants import VariantSettings, load_variants

PRESETS = Path(__file__).parents[1] / "configs" / "search" / "presets"
OURS = ("default",)
PUBLISHED = ("cola", "drllm", "polar", "summary")
RANDOM = ("random", "random_balanced")
"""Both need the default's chains."""
FIRST_EDITABLE = 12
WRONG_SEEDS = 1
"""Of each search for a wrong answer, which measures luck."""
BATCH = 16
"""Samples whose searches advance together."""
SHARES = (1.0, 0.5, 0.25)
"""Of the full cost, at which each search is looked at."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        budget: full cost of a sample, layers.
        seeds: seeds of the searches for the right answer.
        num_layers: layers of the model.
        searches: "default", presets, and "random_balanced".
        variants: in how many variants a chain is asked.
        stand_share: share of them in which it must be right to count.
    """

    budget: int
    seeds: int
    num_layers: int
    searches: tuple[str, ...] = (*OURS, *PUBLISHED, *RANDOM)
    variants: int = 1
    stand_share: float = 1.0

    def settings(self, arm: str) -> SearchSettings:
        """Return an arm's settings; the budget in layers ends each search, not the number of simulations."""
        preset = arm.removesuffix("_balanced")
        values = {} if preset == "default" else yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
        return replace(SearchSettings(**values), simulations=self.budget)

    def arms(self, names: Sequence[str]) -> dict[str, SearchSettings]:
        """Return the settings of those of these arms that are compared."""
        return {arm: self.settings(arm) for arm in names if arm in self.searches}

    @property
    def asked(self) -> VariantSettings:
        """In how many variants a chain is asked, and must be right."""
        return VariantSettings(variants=self.variants, stand_share=self.stand_share)


Key = tuple[str, str, int]
"""Arm, answer that is looked for ("gold" or "wrong") and seed."""


@dataclass
class Play:
    """One search of one sample.

    Attributes:
        searcher: the search.
        target: the choice that it looks for.
        plan: says what it may cost, and in how many variants chains are asked.
        tried: what the chains that it tried answer, in order, judged by what it looks for.
    """

    searcher: Searcher
    target: int
    plan: Plan
    tried: list[ChainResult] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the budget is spent, or nothing is left to try."""
        spent = sum(one.chain.depth * len(one.answers) for one in self.tried)
        return spent >= self.plan.budget or self.searcher.done

    @property
    def trace(self) -> Trace:
        """What the budget pays for."""
        columns = [(one.chain.depth, one.stands, len(one.answers)) for one in self.tried]
        return Trace(self.plan.num_layers, *zip(*columns, strict=True)).within(self.plan.budget)

    def take(self, tried: Sequence[ChainResult]) -> None:
        """Take in what the chains last asked answer."""
        settings = self.searcher.settings
        rewards = [self.plan.asked.reward(one, settings) for one in tried]
        self.searcher.tell(rewards, [one.stands for one in tried])
        self.tried += tried


@settings_dataclass(frozen=True, config=STORED)
class Played:
    """What all searches tried on one sample.

    Attributes:
        sample: its id.
        traces: of the chains tried depths, whether they stand, and in how many variants they were asked, by
            `arm/target/seed`.
    """

    sample: str
    traces: dict[str, tuple[tuple[int, ...], tuple[bool, ...], tuple[int, ...]]]


Known = dict[tuple[int, Chain], ChainResult]
"""What chains answer in one variant, by sample and chain."""
Plays = dict[tuple[int, Key], Play]
"""The searches of a batch, by sample and key."""


class Comparison:
    """Runs all searches of a batch of samples together: a chain that several ask for is run once."""

    def __init__(self, scorer: ChainScorer, plan: Plan) -> None:
        """Compare searches of this plan on the scorer's model."""
        self._scorer, self.plan = scorer, plan

    def identity(self, sample_ids: Sequence[str]) -> dict[str, Any]:
        """Return what decides the results."""
        arms = {arm: asdict(self.plan.settings(arm)) for arm in self.plan.searches}
        fixed = {"first_editable": FIRST_EDITABLE, "wrong_seeds": WRONG_SEEDS, "batch": BATCH}
        made_for = {"samples": sha256_json(list(sample_ids)), "fingerprints": asdict(self._scorer.fingerprints)}
        made_for |= self.plan.asked.decides(self._scorer.tasks)
        identity: dict[str, Any] = plain_values({**asdict(self.plan), **fixed, "arms": arms, **made_for})
        return identity

    def run(self, samples: Sequence[Sample], wrong: dict[str, int | str]) -> list[Played]:
        """Return each sample's traces."""
        blocks = load_variants(self._scorer, self._scorer.encode_all(samples), self.plan.asked)
        known: list[Known] = [{} for _ in blocks]
        plan = self.plan
        plays = self._play(blocks, known, wrong, plan.arms((*OURS, *PUBLISHED)))
        if any(arm in plan.searches for arm in RANDOM):
            weights = _edits(plays)
            # The published action bounds; only the number of edits is ours.
            fields: dict[str, Any] = {"algorithm": "random", "edit_weights": weights, "max_edits": len(weights)}
            bounds = {RANDOM[0]: plan.settings("random"), RANDOM[1]: plan.settings(OURS[0])}
            chosen = {arm: replace(one, **fields) for arm, one in bounds.items() if arm in plan.searches}
            plays |= self._play(blocks, known, wrong, chosen)
        traces: dict[int, dict[str, Any]] = defaultdict(dict)
        for (place, key), play in plays.items():
            traces[place]["/".join(map(str, key))] = (play.trace.depths, play.trace.correct, play.trace.asked)
        return [Played(sample.id, traces[place]) for place, sample in enumerate(samples)]

    def _play(
        self,
        blocks: Sequence[SampleBlock],
        known: Sequence[Known],
        wrong: dict[str, int | str],
        arms: dict[str, SearchSettings],
    ) -> Plays:
        """Play every search of every sample to the end of its budget; `known` grows by what had to be run."""
        plan = self.plan
        keys = [(arm, "gold", seed) for arm in arms for seed in range(plan.seeds)]
        keys += [(arm, "wrong", seed) for arm in arms for seed in range(WRONG_SEEDS)]
        plays: Plays = {}
        for i, encoded in enumerate(blocks[0].samples):
            sample = encoded.sample
            for arm, target, seed in keys:
                answer = sample.answer if target == "gold" else wrong[sample.id]
                assert isinstance(answer, int)
                space = ActionSpace(arms[arm], plan.num_layers, FIRST_EDITABLE)
                rng = random.Random(f"{arm}/{target}/{seed}/{sample.id}")
                plays[i, (arm, target, seed)] = Play(make_searcher(space, rng), answer, plan)
        while live := {place: play for place, play in plays.items() if not play.over}:
            asked = {place: play.searcher.ask() for place, play in live.items()}
            jobs = [(place, chain) for place, chains in asked.items() for chain in chains]
            usual: dict[tuple[tuple[int, Key], Chain], ChainResult] = {}
            further: dict[tuple[tuple[int, Key], Chain], list[VariantResult]] = {job: [] for job in jobs}
            for number, (block, seen) in enumerate(zip(blocks, known, strict=True)):
                going = [job for job in jobs if not number or plan.asked.goes_on(usual[job], further[job])]
                new = list(dict.fromkeys((i, chain) for (i, _), chain in going if (i, chain) not in seen))
                seen.update(zip(new, self._scorer.score(block, new), strict=True))
                for place, chain in going:
                    scores = seen[place[0], chain].scores
                    judged = ChainResult.from_scores(chain, scores, plays[place].target)
                    if number:
                        further[place, chain].append(VariantResult.of(judged))
                    else:
                        usual[place, chain] = judged
            for place, chains in asked.items():
                tried = [plan.asked.with_variants(usual[place, chain], further[place, chain]) for chain in chains]
                plays[place].take(tried)
        return plays


def _edits(plays: Plays) -> tuple[float, ...]:
    """Return the shares of chains of 1, 2, 3, ... edits among those of the default search."""
    edits: Counter[int] = Counter()
    for (_, (arm, _, _)), play in plays.items():
        if arm == OURS[0]:
            assert isinstance(play.searcher, TreeSearcher)
            nodes = play.searcher.tree.nodes
            edits.update(nodes[one.chain.layers].edits for one in play.tried[1:])
    return tuple(edits[count] / edits.total() for count in range(1, max(edits) + 1))


Traces = dict[str, dict[str, list[list[Trace]]]]
"""By search and target: of each sample the traces of all seeds."""


def traces_of(rows: Sequence[Played], plan: Plan) -> Traces:
    """Return what each search tried."""
    traces: Traces = {arm: defaultdict(list) for arm in plan.searches}
    for row in rows:
        of_sample: dict[tuple[str, str], list[Trace]] = defaultdict(list)
        for key, columns in row.traces.items():
            arm, target, _ = key.split("/")
            of_sample[arm, target].append(Trace(plan.num_layers, *columns))
        for (arm, target), by_seed in of_sample.items():
            traces[arm][target].append(by_seed)
    return traces


def summarise(rows: Sequence[Played], plan: Plan) -> dict[str, Any]:
    """Print the tables and return the figures."""
    traces = traces_of(rows, plan)
    figures: dict[str, Any] = {"arms": {}, "against": {}, "samples": len(rows), "plan": asdict(plan)}
    print(
        f"{len(rows)} samples, {plan.seeds} seeds ({WRONG_SEEDS} for a wrong answer), first_editable "
        f"{FIRST_EDITABLE}, full cost {plan.budget} layers a sample; a chain counts where it is right in "
        f"{plan.asked.needed} of {plan.variants} variants; each figure: right answer (wrong answer)\n"
        f"{'search':>20} {'cost':>6} {'hypervolume':>15} "
        f"{'right':>13} {'depth':>13} {'shortened':>13} {'set right':>13}"
    )
    for arm in plan.searches:
        for share in SHARES:
            found, lucky = (
                found_by([trace.within(plan.budget * share) for one in traces[arm][target] for trace in one])
                for target in ("gold", "wrong")
            )
            figures["arms"][f"{arm}, {share}"] = {"gold": asdict(found), "wrong": asdict(lucky)}
            columns = [
                f"{_number(getattr(found, name))} ({_number(getattr(lucky, name))})"
                for name in ("hypervolume", "right", "shortest", "shortened", "set_right")
            ]
            print(
                f"{arm:>20} {found.cost:6.0f} {columns[0]:>15} " + " ".join(f"{column:>13}" for column in columns[1:])
            )
    for ours in (arm for arm in OURS if arm in plan.searches):
        for baseline in (arm for arm in plan.searches if arm != ours):
            for share in (1.0, 0.25):
                budgets = (plan.budget * share, plan.budget)
                figures["against"][f"{ours}, {share}, {baseline}"] = _against(traces, ours, baseline, budgets)
    return figures


def _against(traces: Traces, ours: str, baseline: str, budgets: tuple[float, float]) -> dict[str, Any]:
    """Print and return by how much one search at the first budget finds more than another at the second."""
    right, wrong = (
        [
            _mean(one, budgets[0]) - _mean(other, budgets[1])
            for one, other in zip(traces[ours][target], traces[baseline][target], strict=True)
        ]
        for target in ("gold", "wrong")
    )
    difference = mean_of(right, 0)
    rest = mean_of([a - b for a, b in zip(right, wrong, strict=True)], 0)
    assert difference is not None
    assert rest is not None
    print(
        f"{ours} at {budgets[0] / budgets[1]:.2f} of the cost against {baseline}: {_signed(difference)} "
        f"{'no worse' if difference.interval[0] >= 0 else 'NOT SHOWN to be no worse'}; "
        f"minus what the searches for a wrong answer find {_signed(rest)}"
    )
    return {"difference": asdict(difference), "minus_wrong": asdict(rest)}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value > 1 else f"{value:.3f}"


def _signed(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:+.3f} ({low:+.3f}..{high:+.3f})"


def _mean(traces: Sequence[Trace], budget: float) -> float:
    return sum(trace.within(budget).hypervolume for trace in traces) / len(traces)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 samples, 1 seed, a quarter of the cost")
    parser.add_argument("--data", type=Path, help="folder of `python -m data prepare`; none: ARC-Easy as in the demo")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--depths", type=int, default=30, help="full cost of a sample, in full depths")
    parser.add_argument("--searches", nargs="+", default=Plan.searches, choices=Plan.searches)
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--stand_share", type=float, default=1.0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/search_quality"))
    options = parser.parse_args(argv)
    if options.quick:
        options.samples, options.seeds, options.depths = 16, 1, 12
        options.out = options.out.with_name(options.out.name + "_quick")
    if any(arm in options.searches for arm in RANDOM) and OURS[0] not in options.searches:
        parser.error(f"--searches: expected {OURS[0]} beside a random search, whose numbers of edits it has")
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    if options.data is None:
        samples, tasks = demo_samples(options.split, options.samples)
    else:
        samples = read_samples(options.data / f"{options.split}.jsonl", "data")[: options.samples]
        tasks = read_tasks(options.data)
    scorer = ChainScorer(model, tokenizer, tasks)
    n = scorer.num_layers
    plan = Plan(options.depths * n, options.seeds, n, tuple(options.searches), options.variants, options.stand_share)
    plan.asked.require(scorer.tasks, samples)
    comparison = Comparison(scorer, plan)
    wrong = wrong_answers(samples, scorer.means_the_same)
    ids = [sample.id for sample in samples]
    store = Store(options.out / "traces.jsonl", Played, comparison.identity(ids), lambda row: row.sample)
    lengths = [one.length for one in scorer.encode_all(samples)]
    batches = [
        Batch(str(number), items, tuple(sample.id for sample in items), len(items))
        for number, batch in enumerate(batches_by_length(lengths, BATCH))
        for items in [tuple(samples[i] for i in batch)]
    ]
    task: Task[Sample, Played] = Task(lambda batch, _: comparison.run(batch.items, wrong), lambda row: row.sample)
    run_batches(store, batches, task, label="searches", unit="sample")
    figures = summarise(list(store.rows(ids)), comparison.plan)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
