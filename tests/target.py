"""A server's process under attack: what every client must see, and what must be left after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.hostile import Client, Seen, meet
from tests.serving import started, until

NAME = "model"
PROMPT = "Which of these"


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

    def attack(self, clients: list[Client], at_once: int = 50) -> list[Seen]:
        """Let clients come, so many at a time."""

        async def all_of_them() -> list[Seen]:
            room = asyncio.Semaphore(at_once)

            async def come(client: Client) -> Seen:
                async with room:
                    return await asyncio.wait_for(meet(self.address, client, self.unit), 60)

            return await asyncio.gather(*map(come, clients))

        return asyncio.run(all_of_them())

    def survives(self, clients: list[Client], at_once: int = 50) -> None:
        """Clients come and see what they should, and leave nothing behind."""
        judge(clients, self.attack(clients, at_once), self.limit)
        self.check()

    def check(self) -> None:
        """Nothing waits, runs or is open, a good request gives the right text, and nothing has failed inside."""

        def idle() -> bool:
            health = httpx.get(f"{self.url}/health", timeout=20).json()
            return health["status"] == "ok" and not health["running"] and not health.get("waiting")

        def answers() -> bool:
            """A good request; with it a proxy gives up connections that its backend has closed, and keeps one."""
            body = {"model": NAME, "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
            answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=20).json()
            assert answer["choices"][0]["text"] == self.text
            return self.process.num_fds() <= self.files + 1

        until(idle)
        until(answers)
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


@contextmanager
def served(router: Path, text: str, unit: float) -> Iterator[Target]:
    """`python -m router serve`."""
    with target(router.parent, "serve", unit, text, str(router), "--budget=4") as one:
        yield one


def judge(clients: list[Client], seen: list[Seen], limit: float) -> None:
    """Each was answered as it should be, or cut off, in time, and told nothing of the inside."""
    for client, saw in zip(clients, seen, strict=True):
        what = client.parts[0][:200], saw.got[-300:], saw.seconds
        assert saw.seconds < limit, what
        assert client.statuses >= set(saw.statuses) if client.statuses else 500 not in saw.statuses, what
        assert client.end != "waits" or not client.statuses or saw.statuses or 0 in client.statuses, what
        assert client.most is None or len(saw.got) < client.most, what
        assert b"Traceback" not in saw.got, what
        assert b'.py"' not in saw.got, what
