"""How many chains a second the search tries, against two other ways of running the same chains.

    python benchmarks/search_throughput.py [--quick] [--json PATH]

SmolLM2-135M-Instruct in bfloat16, ARC-Easy scored as continuations, the small demo's search and batches. In one run:

published   one chain at a time, batch 1, from layer 0, a row for each choice: stock forwards of the chain's view
batched     16 whole chains at a time, a row for each choice, rows sorted by length, nothing reused
search      `search.run.BatchSearch`: packed rows, what chains share run once, bookkeeping of the trees included

The chains are those that the search asks for. After each of its rounds the others run a random share of that round's
chains, so that a machine that drifts favours none. Each repetition takes other samples. Bars: 16 times published,
3 times batched, 0.85 of the time in layers and head, less than 0.03 in bookkeeping.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from demo_samples import demo_samples
from torch import Tensor
from transformers import PreTrainedModel

from data.encoding import EncodedSample, batches_by_length
from data.records import ChainResult
from data.scoring import ChainScorer, SampleBlock
from router.chain import Chain
from router.engine.block import Block
from router.engine.executor import ChainExecutor, Job, Step
from router.engine.load import load_model
from router.engine.rows import Row, separate_rows
from router.engine.view import chain_view
from router.files import write_json
from search.algorithms import Searcher
from search.run import BatchSearch
from search.settings import SearchSettings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BARS = {"ratio_to_published": 16.0, "ratio_to_batched": 3.0, "share_in_forwards": 0.85, "bookkeeping_share": 0.03}
CHAINS_A_BATCH = 16

Tried = list[tuple[int, Chain]]
"""Chains of samples: (index of the sample, chain)."""
Run = Callable[[Sequence[EncodedSample], Tried], list[int]]
"""Runs chains on samples and returns the predictions."""


class TimedSearcher(Searcher):
    """A sample's search whose bookkeeping is timed.

    Attributes:
        seconds: seconds in `ask` and `tell`.
    """

    def __init__(self, searcher: Searcher) -> None:
        """Wrap a search."""
        super().__init__(searcher.settings)
        self._searcher, self.evaluated = searcher, searcher.evaluated
        self.seconds = 0.0

    def ask(self) -> list[Chain]:
        """Return chains to evaluate now."""
        start = time.perf_counter()
        chains = self._searcher.ask()
        self.seconds += time.perf_counter() - start
        return chains

    def tell(self, rewards: Sequence[float], stands: Sequence[bool] | None = None) -> None:
        """Add the rewards of the chains last asked."""
        start = time.perf_counter()
        self._searcher.tell(rewards, stands)
        self.seconds += time.perf_counter() - start

    def _propose(self) -> Chain | None:
        return self._searcher._propose()


class Meter:
    """Counts and times what an executor runs. Its forwards return when they are done: this runs on a CPU.

    Attributes:
        calls: calls of a layer, each with a batch.
        tokens: tokens handed to layers, padding included.
        useful_tokens: the same without padding.
        seconds: seconds in the forwards, of the layers (`run_layer`) and of the head (final norm and output embedding).
    """

    def __init__(self, executor: ChainExecutor) -> None:
        """Begin to measure an executor."""
        self.calls = self.tokens = self.useful_tokens = 0
        self.seconds = {"run_layer": 0.0, "head": 0.0}
        self._step, executor._step = executor._step, self._counted  # type: ignore[method-assign]
        for name in self.seconds:
            setattr(executor._capture, name, self._timed(name, getattr(executor._capture, name)))

    def clear(self) -> None:
        """Begin anew."""
        self.calls = self.tokens = self.useful_tokens = 0
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def _counted(self, block: Block, layer: int, batch: list[Step]) -> None:
        lengths = [block.parts[step.part].length for step in batch]
        self._step(block, layer, batch)
        self.calls += 1
        self.tokens += len(lengths) * max(lengths)
        self.useful_tokens += sum(lengths)

    def _timed(self, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: object) -> Tensor:
            start = time.perf_counter()
            output = forward(*arguments)
            self.seconds[name] += time.perf_counter() - start
            return output

        return run


@dataclass
class Compared:
    """One batch of samples, searched, a share of its chains run in the other ways too.

    Attributes:
        rates: chains a second, by way.
        agreeing: for each chain that another way ran, whether its prediction is the search's.
        figures: executions, shares and counts of the search.
    """

    rates: dict[str, float]
    agreeing: dict[str, list[bool]]
    figures: dict[str, float]


def compare(
    search: BatchSearch,
    samples: Sequence[EncodedSample],
    others: dict[str, tuple[Run, int]],
    rng: random.Random,
    meter: Meter,
) -> Compared:
    """Search samples as `BatchSearch.search` does before it verifies.

    Args:
        search: the search.
        samples: one batch.
        others: by name another way to run chains, and how many of each round's chains it runs.
        rng: draws these.
        meter: measures the search's executor.
    """
    meter.clear()
    seconds = dict.fromkeys(("search", *others), 0.0)
    ran = dict.fromkeys(("search", *others), 0)
    agreeing: dict[str, list[bool]] = {name: [] for name in others}
    results: list[dict[Chain, ChainResult]] = [{} for _ in samples]
    start = time.perf_counter()
    block: SampleBlock = search.scorer.load(samples)
    searchers = [TimedSearcher(search.searcher(encoded.sample.id)) for encoded in samples]
    while count := search.advance([block], searchers, results):
        seconds["search"] += time.perf_counter() - start
        ran["search"] += count
        latest = [(i, chain) for i, found in enumerate(results) for chain in list(found)[-search.settings.in_flight :]]
        for name, (run, some) in others.items():
            tried = rng.sample(latest, min(some, len(latest)))
            start = time.perf_counter()
            predictions = run(samples, tried)
            seconds[name] += time.perf_counter() - start
            ran[name] += len(tried)
            agreeing[name] += [
                prediction == results[i][chain].prediction
                for (i, chain), prediction in zip(tried, predictions, strict=True)
            ]
        start = time.perf_counter()
    seconds["search"] += time.perf_counter() - start
    chains = ran["search"]
    figures = {
        "chains": chains,
        "seconds": seconds["search"],
        "layers_executed": sum(map(block.executed, range(len(samples)))) / chains,
        "layers_nominal": sum(chain.depth for found in results for chain in found) / chains,
        "useful_tokens": meter.useful_tokens / meter.tokens,
        "tokens_a_call": meter.tokens / meter.calls,
        "share_in_layers": meter.seconds["run_layer"] / seconds["search"],
        "share_in_head": meter.seconds["head"] / seconds["search"],
        "bookkeeping_share": sum(searcher.seconds for searcher in searchers) / seconds["search"],
    }
    return Compared({name: ran[name] / seconds[name] for name in ran}, agreeing, figures)


def predicted(sample: EncodedSample, sums: Sequence[float]) -> int:
    """Return the choice with the highest score, given each continuation's log-probability."""
    scores = sample.query.choice_scores(list(sums), [len(tokens) for tokens in sample.continuations])
    return max(range(len(scores)), key=scores.__getitem__)


@torch.inference_mode()
def published(model: PreTrainedModel, samples: Sequence[EncodedSample], tried: Tried) -> list[int]:
    """Run chains one at a time with stock forwards; returns the predictions."""
    predictions = []
    for i, chain in tried:
        view = chain_view(model, chain)
        sums = []
        for continuation in samples[i].continuations:
            tokens = torch.tensor([[*samples[i].prompt, *continuation]])
            logits = view(input_ids=tokens, use_cache=False).logits[0, len(samples[i].prompt) - 1 : -1]
            logprobs = logits.float().log_softmax(dim=-1)
            sums.append(sum(logprobs[j, token].item() for j, token in enumerate(continuation)))
        predictions.append(predicted(samples[i], sums))
    return predictions


def batched(executor: ChainExecutor, samples: Sequence[EncodedSample], tried: Tried) -> list[int]:
    """Run 16 chains at a time from layer 0, each in rows of its own; returns the predictions.

    The rows are merged where chains run the same layer next, which stock forwards could not do.
    """
    predictions = []
    for start in range(0, len(tried), CHAINS_A_BATCH):
        rows: list[Row] = []
        jobs: list[Job] = []
        for i, chain in tried[start : start + CHAINS_A_BATCH]:
            own = separate_rows(samples[i].prompt, samples[i].continuations)
            jobs += [Job(len(rows) + j, chain) for j in range(len(own))]
            rows += own
        sums = iter(float(values.sum()) for values in executor.target_logprobs(executor.load(rows, share=False), jobs))
        for i, _ in tried[start : start + CHAINS_A_BATCH]:
            predictions.append(predicted(samples[i], [next(sums) for _ in samples[i].continuations]))
    return predictions


def spread(values: Sequence[float]) -> str:
    """Return median, least and greatest as text."""
    return f"{statistics.median(values):7.2f} ({min(values):.2f}..{max(values):.2f})"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples, chains and repetitions")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    repetitions, size, few, some = (3, 16, 1, 16) if options.quick else (5, 32, 2, 32)

    demo = yaml.safe_load((CONFIGS / "small" / "search.yaml").read_text(encoding="utf-8"))
    settings = SearchSettings(**demo["search"])
    if options.quick:
        settings = SearchSettings(**{**demo["search"], "simulations": 25})
    model, tokenizer = load_model(demo["model"], dtype="bfloat16", device="cpu")
    samples, tasks = demo_samples("test", 400)
    scorer = ChainScorer(model, tokenizer, tasks)
    meter = Meter(scorer._executor)
    search = BatchSearch(scorer, settings, demo["first_editable"], verify=False)
    encoded = scorer.encode_all(samples)
    batches = [batch for batch in batches_by_length([one.length for one in encoded], size) if len(batch) == size]
    plain = ChainExecutor(model, state_bytes=0)
    rng = random.Random(0)
    print(
        f"SmolLM2-135M-Instruct, bfloat16, {torch.get_num_threads()} threads; ARC-Easy test, {repetitions} batches of "
        f"{size} samples, {settings.simulations} simulations each, layers below {demo['first_editable']} unedited"
    )

    others: dict[str, tuple[Run, int]] = {
        "published": (functools.partial(published, model), few),
        "batched": (functools.partial(batched, plain), some),
    }
    warm = BatchSearch(scorer, SearchSettings(simulations=4), demo["first_editable"], verify=False)
    compare(warm, [encoded[i] for i in batches[0]], others, rng, meter)
    rates: dict[str, list[float]] = {"published": [], "batched": [], "search": []}
    figures: list[dict[str, float]] = []
    agreeing: dict[str, list[bool]] = {name: [] for name in others}
    for repetition in range(repetitions):
        batch = [encoded[i] for i in batches[(2 * repetition + 1) * len(batches) // (2 * repetitions)]]
        compared = compare(search, batch, others, rng, meter)
        for name, values in rates.items():
            values.append(compared.rates[name])
        for name, same in agreeing.items():
            same += compared.agreeing[name]
        figures.append(compared.figures)
        tokens = statistics.mean(one.length for one in batch)
        shown = ", ".join(f"{name} {values[-1]:.2f}/s" for name, values in rates.items())
        print(f"  repetition {repetition + 1}, {tokens:.0f} tokens a row: {shown}", flush=True)

    median = {name: statistics.median(one[name] for one in figures) for name in figures[0]}
    ratios = {
        name: [ours / other for ours, other in zip(rates["search"], rates[name], strict=True)] for name in agreeing
    }
    in_forwards = [one["share_in_layers"] + one["share_in_head"] for one in figures]
    result = {
        "ratio_to_published": statistics.median(ratios["published"]),
        "ratio_to_batched": statistics.median(ratios["batched"]),
        "share_in_forwards": statistics.median(in_forwards),
        "bookkeeping_share": median["bookkeeping_share"],
    }
    print(f"{'':>10}  chains a second           search is faster by      same prediction")
    for name, values in rates.items():
        cells = ""
        if name in agreeing:
            share = sum(agreeing[name]) / len(agreeing[name])
            cells = f"{spread(ratios[name])}   {share:.3f} of {len(agreeing[name])} chains"
        print(f"{name:>10}{spread(values)}   {cells}")
    print(
        f"search: {median['layers_executed']:.1f} layers run a chain of {median['layers_nominal']:.1f}, "
        f"{median['tokens_a_call']:.0f} tokens a call, {median['useful_tokens']:.3f} of them no padding; "
        f"time in layers {median['share_in_layers']:.3f}, head {median['share_in_head']:.3f}, "
        f"trees {median['bookkeeping_share']:.4f}"
    )
    kept = {
        name: value < BARS[name] if name == "bookkeeping_share" else value >= BARS[name]
        for name, value in result.items()
    }
    print(
        "; ".join(
            f"{name} {value:.3f} ({'bar kept' if kept[name] else 'BAR MISSED'})" for name, value in result.items()
        )
    )
    if options.json:
        details = {"rates": rates, "ratios": ratios, "search": figures, "bars": BARS, "quick": options.quick}
        agreement = {name: sum(same) / len(same) for name, same in agreeing.items()}
        write_json(options.json, {**result, "same_prediction": agreement, **details})


if __name__ == "__main__":
    main()
