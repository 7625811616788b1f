"""Hostile clients against `python -m router serve` and `proxy`: each is answered or cut off, and nothing leaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from router.routed import RoutedModel
from tests.hostile import KINDS, Client, Seen, good, head, meet, one, post
from tests.serving import Oracle, started, until, write_served

NAME = "model"
PROMPT = "Which of these"
AT_ONCE = 50
WAVE = 500
GROWTH = 48 * 2**20
"""Most bytes of memory that a server may have more than before, after it has met every client once already."""


@dataclass(frozen=True)
class Target:
    """A server's process.

    Attributes:
        url: where it answers.
        process: it.
        log: what it writes to stderr.
        unit: how long it waits for a client, seconds.
        text: of the answer to a good request.
        files: how many it has open with nobody connected.
    """

    url: str
    process: psutil.Process
    log: Path
    unit: float
    text: str
    files: int

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    @property
    def limit(self) -> float:
        """Most seconds of a connection: headers, body and reading, and two more for bodies that are too large."""
        return 3 * self.unit + 2 + 5  # five: this machine's own, since fifty clients share its two cores

    def attack(self, clients: list[Client], at_once: int = AT_ONCE) -> list[Seen]:
        """Let clients come, so many at a time."""

        async def all_of_them() -> list[Seen]:
            room = asyncio.Semaphore(at_once)

            async def come(client: Client) -> Seen:
                async with room:
                    return await asyncio.wait_for(meet(self.address, client, self.unit), 60)

            return await asyncio.gather(*map(come, clients))

        return asyncio.run(all_of_them())

    def check(self) -> None:
        """Nothing waits, runs or is open, a good request gives the right text, and nothing has failed inside."""

        def idle() -> bool:
            health = httpx.get(f"{self.url}/health", timeout=20).json()
            return health["status"] == "ok" and not health["running"] and not health.get("waiting")

        until(idle)
        body = {"model": NAME, "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
        assert httpx.post(f"{self.url}/v1/completions", json=body, timeout=20).json()["choices"][0]["text"] == self.text
        until(lambda: self.process.num_fds() <= self.files)
        assert "Traceback" not in self.log.read_text()


@contextmanager
def target(folder: Path, command: str, unit: float, text: str, *words: str) -> Iterator[Target]:
    """Start a server."""
    log = folder / f"{command}.log"
    with log.open("w") as file, started(command, *words, f"--client_timeout={unit}", log=file) as (process, line):
        url = line.split()[3].removesuffix("/v1")
        assert httpx.get(f"{url}/health", timeout=20).json()["status"] == "ok"
        running = psutil.Process(process.pid)
        made = Target(url, running, log, unit, text, running.num_fds())
        made.check()
        yield made
        made.check()


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def text(router: Path) -> str:
    """The oracle: the prompt alone."""
    oracle = Oracle(RoutedModel.from_pretrained(router, budget=4.0))
    return oracle.alone(oracle.tokens(PROMPT), 6).text


@contextmanager
def served(router: Path, text: str, unit: float) -> Iterator[Target]:
    """`python -m router serve`."""
    with target(router.parent, "serve", unit, text, str(router), "--budget=4") as one:
        yield one


@contextmanager
def proxied(router: Path, text: str, unit: float) -> Iterator[Target]:
    """`python -m router proxy` before it, which sends all to it."""
    with served(router, text, unit) as behind:
        (router.parent / "backends.yaml").write_text(f"- {{chain: 0-4, url: '{behind.url}/v1', model: {NAME}}}")
        words = (str(router), f"--backends={router.parent / 'backends.yaml'}", "--choose=static", "--chain=0-4")
        with target(router.parent, "proxy", unit, text, *words) as one:
            yield one


def judge(clients: list[Client], seen: list[Seen], limit: float) -> None:
    """Each was answered as it should be, or cut off, in time, and told nothing of the inside."""
    for client, saw in zip(clients, seen, strict=True):
        what = client.parts[0][:200], saw.got[-300:], saw.seconds
        assert saw.seconds < limit, what
        assert client.statuses >= set(saw.statuses) if client.statuses else 500 not in saw.statuses, what
        assert client.end != "waits" or not client.statuses or saw.statuses, what
        assert client.most is None or len(saw.got) < client.most, what
        assert b"Traceback" not in saw.got, what
        assert b'.py"' not in saw.got, what


@pytest.fixture(scope="module")
def server(router: Path, text: str) -> Iterator[Target]:
    with served(router, text, 0.5) as one:
        yield one


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_some_of_each_kind_are_answered_or_cut_off(server: Target, kind: Callable[[str], list[Client]]) -> None:
    clients = kind(NAME)
    some = random.Random(0).sample(clients, min(12, len(clients)))
    judge(some, server.attack(some), server.limit)
    server.check()


def wave(server: Target, count: int) -> None:
    """So many idle connections at once, then so many requests: whom the server has no room for, it tells so."""
    idle = [one(b"", statuses=())] * (count - count // 5) + [one(head()[:-2])] * (count // 5)
    seen = server.attack(idle, count)
    assert not any(saw.got for saw in seen)
    judge(idle, seen, server.limit)
    server.check()
    requests = [one(post(good(NAME), "Connection: close"), statuses={200, 429})] * count
    seen = server.attack(requests, count)
    judge(requests, seen, 60)
    assert sum(saw.statuses == [200] for saw in seen) >= min(count, 256)
    server.check()


def test_many_at_once(server: Target) -> None:
    wave(server, 60)


@pytest.mark.slow
@pytest.mark.parametrize("start", [served, proxied])
def test_more_than_a_thousand_leave_nothing_behind(
    router: Path, text: str, start: Callable[..., contextmanager[Target]]
) -> None:
    with start(router, text, 3.0) as server:
        memory = []
        for _ in range(2):
            count = 0
            for kind in KINDS:
                clients = kind(NAME)
                judge(clients, server.attack(clients), server.limit)
                server.check()
                count += len(clients)
            wave(server, WAVE)
            memory.append(server.process.memory_info().rss)
            print(f"{start.__name__}: {count} clients, {memory[-1] / 2**20:.0f} MiB")
        assert count > 1000
        assert memory[1] - memory[0] < GROWTH
