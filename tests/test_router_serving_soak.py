"""Ten minutes of mixed traffic against `python -m router serve`: all answers right, memory and open files as before.

The length is set by the environment: COLA_SOAK_SECONDS=600.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from router.engine.view import chain_view
from router.routed import RoutedModel
from router.serving.rows import Sampling
from tests.hostile import leaves, meet, no_json, wrong_types
from tests.serving import Alone, Oracle, write_served
from tests.target import NAME, PROMPT, Target, judge, served

SECONDS = float(os.environ.get("COLA_SOAK_SECONDS", "600"))
WARM_UP = min(60.0, SECONDS / 4)
CLIENTS = 8
PAUSE = 0.5
"""Seconds that a client waits between two requests, in the mean."""
GROWTH = 16 * 2**20
"""Most bytes of memory by which the end may be above the time after the warm-up."""
NEAR = 1e-5
"""Draws that near to another token's are left out."""
PATHS = ("/metrics", "/status", "/health", "/", "/v1/models", "/none")


@dataclass(frozen=True)
class Known:
    """A request and its answer: text and chain as the oracle has them."""

    request: dict[str, Any]
    text: str
    chain: str


def nearest(oracle: Oracle, prompt: str, alone: Alone, asked: dict[str, Any]) -> float:
    """How near a draw is to where another token begins; other batches round otherwise, which may then show."""
    ids, sampling = oracle.tokens(prompt), Sampling.of(asked["temperature"], asked["top_p"], asked["seed"], 0)
    with torch.no_grad():
        logits = chain_view(oracle.routed, alone.chain)(input_ids=torch.tensor([[*ids, *alone.ids]])).logits[0].double()
    shares = (logits[len(ids) - 1 : -1] / sampling.temperature).softmax(1)
    draws = torch.tensor([sampling.uniform(step) for step in range(len(alone.ids))])
    return float((shares.cumsum(1) - draws[:, None]).abs().min())


def known(oracle: Oracle) -> list[Known]:
    """Requests that differ in all that a request can say."""
    draw, made = random.Random(0), []
    budgets = [None, oracle.least, (oracle.least + oracle.most) / 2, oracle.most]
    for i in range(80):
        asked = {
            "temperature": draw.choice([0.0, 1.0, 1.5]),
            "top_p": draw.choice([0.7, 1.0]),
            "seed": i,
            "stop": draw.choice([[], ["e"]]),
            "budget": draw.choice(budgets),
        }
        prompt, tokens = f"{i}: " + "".join(draw.choices("abcdefgh é€", k=draw.randint(0, 60))), draw.choice([1, 8, 24])
        alone = oracle.alone(oracle.tokens(prompt), tokens, **asked)
        request = {"model": NAME, "prompt": prompt, "max_tokens": tokens, **asked}
        if asked["temperature"] and nearest(oracle, prompt, alone, asked) < NEAR:
            continue
        made.append(Known(request, alone.text, str(alone.chain)))
    assert len({one.chain for one in made}) > 3
    return made


async def compare(client: httpx.AsyncClient, asked: Known, *, stream: bool, scored: bool) -> None:
    """Ask for a text, and compare it."""
    request = asked.request | ({"logprobs": 2} if scored else {}) | {"stream": stream}
    if not stream:
        choice = (await client.post("/v1/completions", json=request)).json()["choices"][0]
        assert (choice["text"], choice["chain"]) == (asked.text, asked.chain)
        return
    text = ""
    async with client.stream("POST", "/v1/completions", json=request) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                text, chain = text + choice["text"], choice["chain"]
    assert (text, chain) == (asked.text, asked.chain)


async def traffic(server: Target, asked: list[Known], end: float, draw: random.Random) -> int:
    """Be one client after the other; returns how many answers were compared."""
    rough = [client for kind in (leaves, wrong_types, no_json) for client in kind(NAME)]
    compared = 0
    while time.monotonic() < end:
        kind = draw.random()
        if kind < 0.3:
            bad = draw.choice(rough)
            judge([bad], [await meet(server.address, bad, server.unit)], server.limit)
        else:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                if kind < 0.4:
                    assert (await client.get(draw.choice(PATHS))).status_code in (200, 404)
                else:
                    await compare(client, draw.choice(asked), stream=draw.random() < 0.5, scored=draw.random() < 0.3)
                    compared += 1
        await asyncio.sleep(2 * PAUSE * draw.random())
    return compared


async def soak(server: Target, asked: list[Known]) -> tuple[int, list[int], list[int]]:
    """Return how many answers were compared; memory, bytes, and open files once a second."""
    begin = time.monotonic()
    clients = [asyncio.ensure_future(traffic(server, asked, begin + SECONDS, random.Random(i))) for i in range(CLIENTS)]
    memory, files = [], []
    while not all(client.done() for client in clients):
        await asyncio.sleep(1)
        memory.append(server.process.memory_info().rss)
        files.append(server.process.num_fds())
    return sum(await asyncio.gather(*clients)), memory, files


@pytest.mark.slow
def test_nothing_grows_under_mixed_traffic(tmp_path: Path) -> None:
    router = write_served(tmp_path)
    oracle = Oracle(RoutedModel.from_pretrained(router, budget=4.0))
    text = oracle.alone(oracle.tokens(PROMPT), 6).text
    with served(router, text, 5.0) as server:
        compared, memory, files = asyncio.run(soak(server, known(oracle)))
        server.check()
        tenth = len(memory) // 10
        warm = memory[int(WARM_UP) :][:tenth]
        first, last = (statistics.median(part) / 2**20 for part in (warm, memory[-tenth:]))
        print(f"{SECONDS:g} s, {compared} answers compared: {first:.1f} MiB after the warm-up, {last:.1f} at the end")
        print(f"open files: {server.files} idle, {max(files)} at most, {server.process.num_fds()} at the end")
        assert compared > SECONDS
        assert last - first < GROWTH / 2**20
        assert max(files) < server.files + 4 * CLIENTS
