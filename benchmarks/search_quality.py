"""What each search finds for what it costs: ours at half the cost against published settings and random search.

    python benchmarks/search_quality.py [--quick] [--json PATH] [--out DIR]

SmolLM2-135M-Instruct (bfloat16) on ARC-Easy test questions. Every search runs on every sample with every seed, for the
right answer and, as the control of luck, for a wrong one. Cost is the nominal depth of the evaluated chains, summed;
reuse of states does not count. Random search draws uniformly over legal actions, with the edit counts of our chains;
balanced random search draws skips as often as ours and shares its bounds: what is left to ours against it, at half the
cost as well, is what the tree itself is good for.

Bar: our default at half the cost is no worse than each baseline at full cost (hypervolume of (correct, depth), paired
over samples, lower end of the 95 % interval at least 0).

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
from data.pool import Batch, run_batches
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock, batches_by_length
from data.statistics import Estimate, mean_of
from data.store import Store
from router.chain import Chain
from router.command import plain_values, run_command
from router.engine.load import load_model
from router.files import sha256_json, write_json
from router.validation import STORED
from search.actions import ActionSpace
from search.algorithms import Searcher, TreeSearcher, make_searcher
from search.settings import SearchSettings

PRESETS = Path(__file__).parents[1] / "configs" / "search" / "presets"
OURS = "default"
PUBLISHED = ("cola", "drllm", "summary")
RANDOM = ("random", "random_balanced")
FIRST_EDITABLE = 12
WRONG_SEEDS = 1
"""Of each search for a wrong answer, which measures luck."""
BATCH = 16
"""Samples whose searches advance together."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        budget: full cost of a sample, layers; ours has half of it.
        seeds: seeds of the searches for the right answer.
        num_layers: layers of the model.
    """

    budget: int
    seeds: int
    num_layers: int

    def settings(self, arm: str) -> SearchSettings:
        """Return an arm's settings; the budget in layers ends each search, not the number of simulations."""
        values = yaml.safe_load((PRESETS / f"{arm.removesuffix('_balanced')}.yaml").read_text())
        return replace(SearchSettings(**values), simulations=self.budget)

    def cost(self, arm: str) -> float:
        """Return the cost of a sample's search, layers."""
        return self.budget / 2 if arm == OURS else self.budget


Key = tuple[str, str, int]
"""Arm, answer that is looked for ("gold" or "wrong") and seed."""


@dataclass
class Play:
    """One search of one sample.

    Attributes:
        searcher: the search.
        target: the choice that it looks for.
        budget: its cost, layers.
        results: of the chains that it tried, in order, judged by `target`.
    """

    searcher: Searcher
    target: int
    budget: float
    results: list[ChainResult] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the budget is spent, or nothing is left to try."""
        return sum(one.chain.depth for one in self.results) >= self.budget or self.searcher.done

    @property
    def trace(self) -> Trace:
        """What the budget pays for."""
        depths, right = zip(*((one.chain.depth, one.correct) for one in self.results), strict=True)
        return Trace(depths[0], depths, right).within(self.budget)

    def take(self, results: Sequence[ChainResult]) -> None:
        """Take in the results of the chains last asked."""
        judged = [ChainResult.from_scores(one.chain, one.scores, self.target) for one in results]
        settings = self.searcher.settings
        self.searcher.tell([settings.reward_for(one.correct, one.margin) for one in judged])
        self.results += judged


@settings_dataclass(frozen=True, config=STORED)
class Played:
    """What all searches tried on one sample.

    Attributes:
        sample: its id.
        traces: depths and whether they were right of the chains tried, by `arm/target/seed`.
    """

    sample: str
    traces: dict[str, tuple[tuple[int, ...], tuple[bool, ...]]]


class Comparison:
    """Runs all searches of a batch of samples together: a chain that several ask for is run once."""

    def __init__(self, scorer: ChainScorer, plan: Plan) -> None:
        """Compare searches of this plan on the scorer's model."""
        self._scorer, self.plan = scorer, plan

    def identity(self, sample_ids: Sequence[str]) -> dict[str, Any]:
        """Return what decides the results."""
        arms = {arm: asdict(self.plan.settings(arm)) for arm in (OURS, *PUBLISHED, RANDOM[0])}
        fixed = {"first_editable": FIRST_EDITABLE, "wrong_seeds": WRONG_SEEDS, "batch": BATCH}
        made_for = {"samples": sha256_json(list(sample_ids)), "fingerprints": asdict(self._scorer.fingerprints)}
        return plain_values({**asdict(self.plan), **fixed, "arms": arms, **made_for})

    def run(self, samples: Sequence[Sample], wrong: dict[str, int | str]) -> list[Played]:
        """Return each sample's traces."""
        block = self._scorer.load([self._scorer.encode(sample) for sample in samples])
        known: dict[tuple[int, Chain], ChainResult] = {}
        plan = self.plan
        arms = {arm: plan.settings(arm) for arm in (OURS, *PUBLISHED)}
        plays = self._play(block, known, wrong, arms)
        edits: Counter[int] = Counter()
        for (_, (arm, _, _)), play in plays.items():
            if arm == OURS:
                assert isinstance(play.searcher, TreeSearcher)
                nodes = play.searcher.tree.nodes
                edits.update(nodes[one.chain.layers].edits for one in play.results[1:])
        weights = tuple(edits[count] / edits.total() for count in range(1, max(edits) + 1))
        # The published action bounds; only the number of edits is ours.
        matched = replace(plan.settings("random"), edit_weights=weights, max_edits=len(weights))
        balanced = replace(
            arms[OURS], algorithm="random", simulations=plan.budget, edit_weights=weights, max_edits=len(weights)
        )
        plays |= self._play(block, known, wrong, dict(zip(RANDOM, (matched, balanced), strict=True)))
        return [
            Played(
                sample.id,
                {
                    "/".join(map(str, key)): (play.trace.depths, play.trace.correct)
                    for (place, key), play in plays.items()
                    if place == i
                },
            )
            for i, sample in enumerate(samples)
        ]

    def _play(
        self,
        block: SampleBlock,
        known: dict[tuple[int, Chain], ChainResult],
        wrong: dict[str, int | str],
        arms: dict[str, SearchSettings],
    ) -> dict[tuple[int, Key], Play]:
        """Play every search of every sample to the end of its budget; `known` grows by what had to be run."""
        plan = self.plan
        keys = [(arm, "gold", seed) for arm in arms for seed in range(plan.seeds)]
        keys += [(arm, "wrong", seed) for arm in arms for seed in range(WRONG_SEEDS)]
        plays: dict[tuple[int, Key], Play] = {}
        for i, encoded in enumerate(block.samples):
            sample = encoded.sample
            for arm, target, seed in keys:
                answer = sample.answer if target == "gold" else wrong[sample.id]
                assert isinstance(answer, int)
                space = ActionSpace(arms[arm], plan.num_layers, FIRST_EDITABLE)
                rng = random.Random(f"{arm}/{target}/{seed}/{sample.id}")
                plays[i, (arm, target, seed)] = Play(make_searcher(space, rng), answer, plan.cost(arm))
        while live := {place: play for place, play in plays.items() if not play.over}:
            asked = {place: play.searcher.ask() for place, play in live.items()}
            new = list(dict.fromkeys((i, c) for (i, _), cs in asked.items() for c in cs if (i, c) not in known))
            known.update(zip(new, self._scorer.score(block, new), strict=True))
            for (i, key), chains in asked.items():
                plays[i, key].take([known[i, chain] for chain in chains])
        return plays


def summarise(rows: Sequence[Played], plan: Plan) -> dict[str, Any]:
    """Print the tables and return the figures."""
    arms = (OURS, *PUBLISHED, *RANDOM)
    traces: dict[str, dict[str, list[list[Trace]]]] = {arm: defaultdict(list) for arm in arms}
    for row in rows:
        of_sample: dict[tuple[str, str], list[Trace]] = defaultdict(list)
        for key, (depths, right) in row.traces.items():
            arm, target, _ = key.split("/")
            of_sample[arm, target].append(Trace(plan.num_layers, depths, right))
        for (arm, target), by_seed in of_sample.items():
            traces[arm][target].append(by_seed)
    figures: dict[str, Any] = {"arms": {}, "samples": len(rows), "plan": asdict(plan)}
    print(
        f"{len(rows)} samples, {plan.seeds} seeds ({WRONG_SEEDS} for a wrong answer), first_editable "
        f"{FIRST_EDITABLE}, full cost {plan.budget} layers a sample; each figure: right answer (wrong answer)\n"
        f"{'search':>20} {'cost':>6} {'hypervolume':>15} "
        f"{'right':>13} {'depth':>13} {'shortened':>13} {'set right':>13}"
    )
    half = f"{RANDOM[1]}_half"
    for target, of_samples in traces[RANDOM[1]].items():
        cut = [[trace.within(plan.budget / 2) for trace in one] for one in of_samples]
        traces.setdefault(half, defaultdict(list))[target] = cut
    for arm in (*arms, half):
        found, lucky = (found_by([t for one in traces[arm][target] for t in one]) for target in ("gold", "wrong"))
        figures["arms"][arm] = {"gold": asdict(found), "wrong": asdict(lucky)}
        columns = [
            f"{_number(getattr(found, name))} ({_number(getattr(lucky, name))})"
            for name in ("hypervolume", "right", "shortest", "shortened", "set_right")
        ]
        print(f"{arm:>20} {found.cost:6.0f} {columns[0]:>15} " + " ".join(f"{column:>13}" for column in columns[1:]))
    for baseline in (*arms[1:], half):
        right, wrong = (
            [_mean(a) - _mean(b) for a, b in zip(traces[OURS][target], traces[baseline][target], strict=True)]
            for target in ("gold", "wrong")
        )
        difference = mean_of(right, 0)
        rest = mean_of([a - b for a, b in zip(right, wrong, strict=True)], 0)
        assert difference is not None
        assert rest is not None
        figures[baseline] = {"difference": asdict(difference), "minus_wrong": asdict(rest)}
        print(
            f"{OURS} at half the cost against {baseline}: {_signed(difference)} "
            f"{'no worse' if difference.interval[0] >= 0 else 'NOT SHOWN to be no worse'}; "
            f"minus what the searches for a wrong answer find {_signed(rest)}"
        )
    return figures


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value > 1 else f"{value:.3f}"


def _signed(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:+.3f} ({low:+.3f}..{high:+.3f})"


def _mean(traces: Sequence[Trace]) -> float:
    return sum(trace.hypervolume for trace in traces) / len(traces)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 samples, 1 seed, a quarter of the cost")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/search_quality"))
    options = parser.parse_args(argv)
    count, seeds, full_depths = (16, 1, 12) if options.quick else (300, 3, 30)
    if options.quick:
        options.out = options.out.with_name(options.out.name + "_quick")
    model, tokenizer = load_model("smollm2-135m-instruct", dtype="bfloat16")
    samples, tasks = demo_samples("test", count)
    scorer = ChainScorer(model, tokenizer, tasks)
    comparison = Comparison(scorer, Plan(full_depths * scorer.num_layers, seeds, scorer.num_layers))
    wrong = wrong_answers(samples, scorer.means_the_same)
    ids = [sample.id for sample in samples]
    store = Store(options.out / "traces.jsonl", Played, comparison.identity(ids), lambda row: row.sample)
    batches = [
        Batch(str(number), items, tuple(sample.id for sample in items), len(items))
        for number, batch in enumerate(batches_by_length([one.length for one in scorer.encode_all(samples)], BATCH))
        for items in [tuple(samples[i] for i in batch)]
    ]
    run_batches(
        store, batches, lambda batch, _: comparison.run(batch.items, wrong), lambda row: row.sample,
        label="searches", unit="sample",
    )  # fmt: skip
    figures = summarise(list(store.rows(ids)), comparison.plan)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
