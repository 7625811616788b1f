"""What each search finds for what it costs: ours at half the cost against published settings and random search.

    python benchmarks/search_quality.py [--quick] [--json PATH] [--out DIR]

SmolLM2-135M-Instruct (bfloat16) on ARC-Easy test questions. Every search runs on every sample with every seed, told
the right answer and, as the control of luck, a wrong one. Cost is the nominal depth of the evaluated chains, summed;
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from demo_samples import demo_samples
from quality import Trace, found_by, mean_interval
from tqdm import tqdm

from data.answers import wrong_answers
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer, SampleBlock, batches_by_length
from router.chain import Chain
from router.command import run_command
from router.engine.load import load_model
from router.files import JsonLog, read_json_lines, sha256_json, writable_directory, write_json
from router.validation import InputError
from search.actions import ActionSpace
from search.algorithms import Searcher, TreeSearcher, make_searcher
from search.settings import SearchSettings

PRESETS = Path(__file__).parents[1] / "configs" / "search" / "presets"
OURS = "default"
PUBLISHED = ("cola", "drllm", "summary")
RANDOM = ("random", "random_balanced")
BATCH = 16
"""Samples whose searches advance together."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        budget: full cost of a sample, layers; ours has half of it.
        seeds: seeds of the searches told the right answer.
        luck_seeds: seeds of those told a wrong answer, the first ones.
        first_editable: layers that run in every chain.
        num_layers: layers of the model.
        ours: preset of our search.
        published: presets that it is compared with.
    """

    budget: int
    seeds: int
    luck_seeds: int
    first_editable: int
    num_layers: int
    ours: str
    published: tuple[str, ...]

    def settings(self, arm: str) -> SearchSettings:
        """Return an arm's settings; the budget in layers ends each search, not the number of simulations."""
        values = yaml.safe_load((PRESETS / f"{arm.removesuffix('_balanced')}.yaml").read_text())
        return replace(SearchSettings(**values), simulations=self.budget)

    def cost(self, arm: str) -> float:
        """Return the cost of a sample's search, layers."""
        return self.budget / 2 if arm == self.ours else self.budget


Key = tuple[str, str, int]
"""Arm, what it was told ("gold" or "wrong") and seed."""


class Comparison:
    """Runs all searches of a batch of samples together: a chain that several ask for is run once."""

    def __init__(self, scorer: ChainScorer, plan: Plan) -> None:
        """Compare searches of this plan on the scorer's model."""
        self._scorer, self._plan = scorer, plan

    def run(self, samples: Sequence[Sample], wrong: dict[str, int | str]) -> list[dict[str, Any]]:
        """Return for each sample its traces by arm, target and seed."""
        block = self._scorer.load([self._scorer.encode(sample) for sample in samples])
        known: dict[tuple[int, Chain], ChainResult] = {}
        plan = self._plan
        arms = {arm: plan.settings(arm) for arm in (plan.ours, *plan.published)}
        traces, edits = self._play(block, known, samples, wrong, arms)
        total = sum(edits.values())
        weights = tuple(edits[count] / total for count in range(1, max(edits) + 1))
        # The published action bounds; only the number of edits is ours.
        matched = replace(plan.settings("random"), edit_weights=weights, max_edits=len(weights))
        balanced = replace(
            arms[plan.ours], algorithm="random", simulations=plan.budget, edit_weights=weights, max_edits=len(weights)
        )
        more, _ = self._play(block, known, samples, wrong, dict(zip(RANDOM, (matched, balanced), strict=True)))
        return [
            {"sample": sample.id, "traces": {"/".join(map(str, key)): _packed(t) for key, t in (a | b).items()}}
            for sample, a, b in zip(samples, traces, more, strict=True)
        ]

    def _play(
        self,
        block: SampleBlock,
        known: dict[tuple[int, Chain], ChainResult],
        samples: Sequence[Sample],
        wrong: dict[str, int | str],
        arms: dict[str, SearchSettings],
    ) -> tuple[list[dict[Key, Trace]], Counter[int]]:
        """Play every search to the end of its budget; returns traces by sample, and the edits of our chains."""
        keys = [(arm, "gold", seed) for arm in arms for seed in range(self._plan.seeds)]
        keys += [(arm, "wrong", seed) for arm in arms for seed in range(self._plan.luck_seeds)]
        live: dict[tuple[int, Key], Searcher] = {}
        tried: dict[tuple[int, Key], list[Chain]] = {}
        for i, sample in enumerate(samples):
            for arm, told, seed in keys:
                settings = arms[arm]
                space = ActionSpace(settings, self._scorer.num_layers, self._plan.first_editable)
                rng = random.Random(f"{arm}/{told}/{seed}/{sample.id}")
                live[i, (arm, told, seed)] = make_searcher(space, rng)
                tried[i, (arm, told, seed)] = []
        edits: Counter[int] = Counter()
        while live:
            asked = {place: searcher.ask() for place, searcher in live.items()}
            new = list(dict.fromkeys((i, c) for (i, _), cs in asked.items() for c in cs if (i, c) not in known))
            known.update(zip(new, self._scorer.score(block, new), strict=True))
            for (i, key), chains in asked.items():
                target = samples[i].answer if key[1] == "gold" else wrong[samples[i].id]
                results = [_judged(known[i, chain], target) for chain in chains]
                settings = arms[key[0]]
                live[i, key].tell([settings.reward_for(r.correct, r.margin) for r in results])
                tried[i, key] += chains
            for place in list(live):
                spent = sum(chain.depth for chain in tried[place])
                if spent >= self._plan.cost(place[1][0]) or live[place].done:
                    searcher = live.pop(place)
                    if place[1][0] == self._plan.ours:
                        if not isinstance(searcher, TreeSearcher):
                            raise InputError(f"--ours: expected a tree search, got {place[1][0]}")
                        edits.update(searcher.tree.nodes[chain.layers].edits for chain in tried[place][1:])
        traces: list[dict[Key, Trace]] = [{} for _ in samples]
        for (i, key), chains in tried.items():
            target = samples[i].answer if key[1] == "gold" else wrong[samples[i].id]
            right = tuple(_judged(known[i, chain], target).correct for chain in chains)
            trace = Trace(self._scorer.num_layers, tuple(chain.depth for chain in chains), right)
            traces[i][key] = trace.within(self._plan.cost(key[0]))
        return traces, edits


def _judged(result: ChainResult, target: int | str | None) -> ChainResult:
    """Return the result as it counts where `target` is told to be the right choice."""
    assert isinstance(target, int)
    return ChainResult.from_scores(result.chain, result.scores, target)


def _packed(trace: Trace) -> list[list[int]]:
    return [list(trace.depths), [int(right) for right in trace.correct]]


def summarise(lines: Sequence[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """Print the tables and return the figures."""
    arms = (plan.ours, *plan.published, *RANDOM)
    traces: dict[str, dict[str, list[list[Trace]]]] = {arm: defaultdict(list) for arm in arms}
    for line in lines:
        of_sample: dict[tuple[str, str], list[Trace]] = defaultdict(list)
        for key, (depths, right) in line["traces"].items():
            arm, told, _ = key.split("/")
            of_sample[arm, told].append(Trace(plan.num_layers, tuple(depths), tuple(map(bool, right))))
        for (arm, told), by_seed in of_sample.items():
            traces[arm][told].append(by_seed)
    figures: dict[str, Any] = {"arms": {}, "samples": len(lines), "plan": asdict(plan)}
    print(
        f"{len(lines)} samples, {plan.seeds} seeds ({plan.luck_seeds} told a wrong answer: luck), first_editable "
        f"{plan.first_editable}, full cost {plan.budget} layers a sample; each figure: gold (luck)\n"
        f"{'search':>20} {'cost':>6} {'hypervolume':>15} "
        f"{'right':>13} {'depth':>13} {'shortened':>13} {'set right':>13}"
    )
    half = f"{RANDOM[1]}_half"
    for told, of_samples in traces[RANDOM[1]].items():
        cut = [[trace.within(plan.budget / 2) for trace in one] for one in of_samples]
        traces.setdefault(half, defaultdict(list))[told] = cut
    for arm in (*arms, half):
        found, lucky = (found_by([t for one in traces[arm][told] for t in one]) for told in ("gold", "wrong"))
        figures["arms"][arm] = {"gold": asdict(found), "luck": asdict(lucky)}
        columns = [
            f"{_number(getattr(found, name))} ({_number(getattr(lucky, name))})"
            for name in ("hypervolume", "right", "shortest", "shortened", "set_right")
        ]
        print(f"{arm:>20} {found.cost:6.0f} {columns[0]:>15} " + " ".join(f"{column:>13}" for column in columns[1:]))
    for baseline in (*arms[1:], half):
        gold = [_mean(a) - _mean(b) for a, b in zip(traces[plan.ours]["gold"], traces[baseline]["gold"], strict=True)]
        luck = [_mean(a) - _mean(b) for a, b in zip(traces[plan.ours]["wrong"], traces[baseline]["wrong"], strict=True)]
        net = [a - b for a, b in zip(gold, luck, strict=True)]
        (value, low, high), (net_value, net_low, net_high) = mean_interval(gold), mean_interval(net)
        figures[baseline] = {"difference": value, "ci_low": low, "ci_high": high}
        figures[baseline] |= {"net_difference": net_value, "net_ci_low": net_low, "net_ci_high": net_high}
        print(
            f"{plan.ours} at half the cost against {baseline}: {value:+.3f} ({low:+.3f}..{high:+.3f}) "
            f"{'no worse' if low >= 0 else 'NOT SHOWN to be no worse'}; "
            f"net of luck {net_value:+.3f} ({net_low:+.3f}..{net_high:+.3f})"
        )
    return figures


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value > 1 else f"{value:.3f}"


def _mean(traces: Sequence[Trace]) -> float:
    return sum(trace.hypervolume for trace in traces) / len(traces)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 samples, 1 seed, a quarter of the cost")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/search_quality"))
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--luck-seeds", type=int, default=1)
    parser.add_argument("--full-depths", type=int, default=30, help="full cost, in times the model's layers")
    parser.add_argument("--prefix-layers", type=int, default=12)
    parser.add_argument("--ours", default=OURS, help="preset that gets half the cost")
    parser.add_argument("--published", nargs="+", default=list(PUBLISHED), help="presets that it is compared with")
    options = parser.parse_args(argv)
    for name in ("samples", "seeds", "luck_seeds", "full_depths"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    if len({options.ours, *options.published, *RANDOM}) < 1 + len(options.published) + len(RANDOM):
        raise InputError(f"--published: expected other presets than {options.ours} and {RANDOM[0]}, each once")
    if options.quick:
        options.samples, options.seeds, options.full_depths = 16, 1, 12
        options.out = options.out.with_name(options.out.name + "_quick")
    model, tokenizer = load_model("smollm2-135m-instruct", dtype="bfloat16")
    samples, tasks = demo_samples("test", options.samples)
    scorer = ChainScorer(model, tokenizer, tasks)
    plan = Plan(
        budget=options.full_depths * scorer.num_layers,
        seeds=options.seeds,
        luck_seeds=min(options.luck_seeds, options.seeds),
        first_editable=options.first_editable,
        num_layers=scorer.num_layers,
        ours=options.ours,
        published=tuple(options.published),
    )
    arms = {arm: asdict(plan.settings(arm)) for arm in (plan.ours, *plan.published, "random")}
    identity = sha256_json([asdict(plan), arms, [sample.id for sample in samples], asdict(scorer.fingerprints)])
    lines = _run(Comparison(scorer, plan), samples, scorer, options.out, identity)
    figures = summarise(lines, plan)
    if options.json:
        write_json(options.json, figures)


def _run(
    comparison: Comparison, samples: Sequence[Sample], scorer: ChainScorer, out: Path, identity: str
) -> list[dict[str, Any]]:
    """Run what is not on the disk yet; returns all lines in the samples' order."""
    path = writable_directory(out, "--out") / "traces.jsonl"
    wrong = wrong_answers(samples, scorer.means_the_same)
    with JsonLog(path) as log:
        done = {line["sample"]: line for _, line in read_json_lines(path)}
        if any(line["identity"] != identity for line in done.values()):
            raise InputError(f"--out: expected nothing or results of the same comparison, got others in {path}")
        lengths = [scorer.encode(sample).length for sample in samples]
        with tqdm(total=len(samples), initial=len(done), desc="searches", unit="sample") as progress:
            for batch in batches_by_length(lengths, BATCH):
                of_batch = [samples[i] for i in batch]
                missing = {sample.id for sample in of_batch} - set(done)
                if missing:
                    lines = [line | {"identity": identity} for line in comparison.run(of_batch, wrong)]
                    log.append(*(line for line in lines if line["sample"] in missing))
                    done |= {line["sample"]: line for line in lines}
                    progress.update(len(missing))
    return [done[sample.id] for sample in samples]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
