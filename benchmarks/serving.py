"""The server under load: tokens a second and waiting times, of this tree against another, in turns in one run.

    python benchmarks/serving.py --baseline DIR [--quick] [--rounds 5] [--at_once 1 4 16 64] [--json PATH]
    python benchmarks/serving.py --router runs/demo/router --at_once 1 16

DIR is a checkout of another commit whose packages run in this environment; without it this tree is measured alone.
Without --router an untrained router for --model (SmolLM2-135M-Instruct) is made, whose budget spreads prompts over
four chains.

Each round sends so many streamed requests (10 to 60 prompt tokens, 8 to 48 new ones, the likeliest token each time),
which arrive by a Poisson process within about two seconds; one at once means one after the other. Tokens a second count
from the first request to the last token. Trees take turns within a round, on a server process of their own that has
been warmed up. Servers run by default settings.

Bar: at 16 at once 1.5 times the other tree's tokens a second, or no fewer at half the p99 of the first token; at one at
once no slower (0.97).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import torch

from router.chain import Chain
from router.command import run_command
from router.decision import HeadSettings, Router, RouterConfig
from router.engine.load import DEFAULT_MODEL, load_model
from router.files import write_json
from router.fingerprint import Fingerprints
from router.heads.head import pad_states
from router.heads.menu import MenuHead
from router.storage import save_router

ROOT = Path(__file__).parents[1]
SKIPPED = ((3, 1), (5, 2), (9, 3))
"""The untrained router's chains beside full depth: how far before the end a skip begins, and its layers."""
WINDOW = 2.0
"""Seconds in which the requests of a round arrive, about."""
WORDS = ("time", "river", "stone", "house", "green", "light", "seven", "music", "winter", "paper", "cloud", "garden")


@dataclass(frozen=True)
class Load:
    """What one round of one tree showed.

    Attributes:
        tokens_a_second: generated tokens by the time from the first request to the last token.
        first: seconds to the first token, of each request.
        between: seconds between pieces of text.
    """

    tokens_a_second: float
    first: list[float]
    between: list[float]


def make_router(folder: Path, name: str) -> tuple[Path, list[str]]:
    """Write an untrained menu router; return it, and options that spread the benchmark's prompts over its chains."""
    model, tokenizer = load_model(name, dtype=None, device="cpu")
    torch.manual_seed(0)
    width, layers = int(model.config.hidden_size), int(model.config.num_hidden_layers)
    full, read_layer = Chain.full(layers), 2 * layers // 5
    chains = [full, *(full.skip(layers - before, count) for before, count in SKIPPED)]
    settings: HeadSettings = {"chains": [str(chain) for chain in chains], "hidden": 64}
    head = MenuHead(layers, read_layer, width, **settings).eval()
    states = []
    with torch.inference_mode():
        for seed in range(64):
            ids = tokenizer(prompt_of(random.Random(seed)), return_tensors="pt")["input_ids"]
            states.append(model(ids, output_hidden_states=True).hidden_states[read_layer][0].float())
        head.calibrate(head(*pad_states(states)))
    config = RouterConfig(
        "menu",
        settings,
        layers,
        read_layer,
        width,
        "none",
        "generate",
        name,
        None,
        str(model.dtype).removeprefix("torch."),
        Fingerprints("", "", ""),
    )
    save_router(folder, Router(replace(config, budget_points=head.budget_points), head))
    return folder, ["--budget", str(layers - 2)]


def prompt_of(rng: random.Random) -> str:
    """Return a text of 10 to 60 words."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(10, 60)))


@contextmanager
def serving(tree: Path, router: Path, options: Sequence[str]) -> Iterator[str]:
    """Run a tree's server in a process of its own; give its address."""
    command = [sys.executable, "-m", "router", "serve", str(router), "--port", "0", "--verify", "false", *options]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server of {tree} ended before it was ready")
        yield line.split()[3]
    finally:
        process.terminate()
        process.wait(60)


async def ask(client: httpx.AsyncClient, model: str, rng: random.Random, delay: float) -> tuple[int, list[float]]:
    """Send one request after a delay; return its tokens, and when it was sent and each piece of text came."""
    body = {
        "model": model,
        "prompt": prompt_of(rng),
        "max_tokens": rng.randint(8, 48),
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    await asyncio.sleep(delay)
    times, tokens = [time.perf_counter()], 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["choices"]:
                times.append(time.perf_counter())
            else:
                tokens = event["usage"]["completion_tokens"]
    return tokens, times


async def one_round(url: str, at_once: int, seed: int) -> Load:
    """Send a round's requests."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url.removesuffix("/v1"), timeout=600) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        own = [random.Random(f"{seed}/{i}") for i in range(max(at_once, 8))]
        if at_once == 1:
            answers = [await ask(client, model, one, 0.0) for one in own]
        else:
            delays, at = [], 0.0
            for _ in own:
                delays.append(at)
                at += rng.expovariate(at_once / WINDOW)
            answers = await asyncio.gather(
                *(ask(client, model, one, delay) for one, delay in zip(own, delays, strict=True))
            )
    spent = max(times[-1] for _, times in answers) - min(times[0] for _, times in answers)
    first = [times[1] - times[0] for _, times in answers]
    between = [after - before for _, times in answers for before, after in itertools.pairwise(times[1:])]
    return Load(sum(tokens for tokens, _ in answers) / spent, first, between)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile of a sample, the nearest rank."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--baseline", type=Path, help="checkout of another commit")
    parser.add_argument("--router", type=Path, help="a trained router; none: an untrained one for --model")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model of the untrained router")
    parser.add_argument("--at_once", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2 rounds, at 1 and 16")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/serving"))
    settings = parser.parse_args(argv)
    rounds, at_once = (2, [1, 16]) if settings.quick else (settings.rounds, settings.at_once)
    trees = {"this tree": ROOT} | ({"baseline": settings.baseline.resolve()} if settings.baseline else {})
    options: list[str] = []
    router = settings.router.resolve() if settings.router else None
    if router is None:
        settings.out.mkdir(parents=True, exist_ok=True)
        router, options = make_router((settings.out / "router").resolve(), settings.model)
    found: dict[int, dict[str, list[Load]]] = {count: {name: [] for name in trees} for count in at_once}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(serving(tree, router, options)) for name, tree in trees.items()}
        for url in urls.values():
            asyncio.run(one_round(url, 8, -1))
        for number in range(rounds):
            for count in at_once:
                names = list(urls) if number % 2 == 0 else list(urls)[::-1]
                for name in names:
                    found[count][name].append(asyncio.run(one_round(urls[name], count, number)))
    report(found)
    if settings.json:
        plain = {
            str(count): {name: [asdict(one) for one in loads] for name, loads in by.items()}
            for count, by in found.items()
        }
        write_json(settings.json, plain)


def report(found: dict[int, dict[str, list[Load]]]) -> None:
    """Print what was found, and the ratios between the trees."""
    print("at once  tree        tokens/s  first p50  first p99  between p50  between p99")
    for count, by in found.items():
        for name, loads in by.items():
            first = [one for load in loads for one in load.first]
            between = [one for load in loads for one in load.between]
            rate = statistics.median(load.tokens_a_second for load in loads)
            waits = (
                percentile(first, 0.5),
                percentile(first, 0.99),
                percentile(between, 0.5),
                percentile(between, 0.99),
            )
            print(f"{count:7}  {name:10}  {rate:8.1f}" + "".join(f"  {one:9.3f}" for one in waits))
        if len(by) == 2:
            this, other = by.values()
            pairs = [a.tokens_a_second / b.tokens_a_second for a, b in zip(this, other, strict=True)]
            late = [percentile([one for load in loads for one in load.first], 0.99) for loads in (this, other)]
            print(
                f"         tokens a second {statistics.median(pairs):.3f} of the baseline's ({min(pairs):.3f}.."
                f"{max(pairs):.3f}, {len(pairs)} rounds); p99 of the first token {late[0] / late[1]:.3f}"
            )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
