"""Hostile clients against `python -m router serve` and `proxy`: each is answered or cut off, and nothing leaks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from router.routed import RoutedModel
from tests.hostile import KINDS, Client, good, head, many_errors, one, post
from tests.serving import Oracle, write_served
from tests.target import NAME, PROMPT, Target, judge, served, target

WAVE = 500
GROWTH = 64 * 2**20
"""Most bytes of memory that a server may have more than before: freed, but scattered, after bodies of 1 MiB."""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def text(router: Path) -> str:
    """The oracle: the prompt alone."""
    oracle = Oracle(RoutedModel.from_pretrained(router, budget=4.0))
    return oracle.alone(oracle.tokens(PROMPT), 6).text


@contextmanager
def proxied(router: Path, text: str, unit: float) -> Iterator[Target]:
    """`python -m router proxy` before it, which sends all to it."""
    with served(router, text, 6.0) as behind:  # longer than the proxy keeps an unused connection
        (router.parent / "backends.yaml").write_text(f"- {{chain: 0-4, url: '{behind.url}/v1', model: {NAME}}}")
        words = (str(router), f"--backends={router.parent / 'backends.yaml'}", "--choose=static", "--chain=0-4")
        with target(router.parent, "proxy", unit, text, *words) as one:
            yield one


@pytest.fixture(scope="module")
def server(router: Path, text: str) -> Iterator[Target]:
    with served(router, text, 0.5) as one:
        yield one


def some_of(kind: Callable[[str], list[Client]]) -> list[Client]:
    clients = kind(NAME)
    return random.Random(0).sample(clients, min(12, len(clients)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_some_of_each_kind_are_answered_or_cut_off(server: Target, kind: Callable[[str], list[Client]]) -> None:
    server.survives(some_of(kind))


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
    with start(router, text, 1.5) as server:
        for kind in KINDS:  # what is loaded or made once is there after these
            server.survives(some_of(kind))
        for _ in range(2):
            server.survives(many_errors(NAME), 8)
        wave(server, WAVE)
        before, count = server.process.memory_info().rss, 0
        for kind in KINDS:
            clients, begin = kind(NAME), time.monotonic()
            server.survives(clients, 8 if kind is many_errors else 50)
            count += len(clients)
            print(f"{kind.__name__}: {len(clients)} clients in {time.monotonic() - begin:.0f} s")
        wave(server, WAVE)
        after = server.process.memory_info().rss
        print(f"{start.__name__}: {count} clients, from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
        assert count > 1000
        assert after - before < GROWTH
