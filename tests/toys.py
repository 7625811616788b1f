"""Toy problems of the search: rewards that are functions of the chain alone, and brute force over small spaces."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from router.chain import Chain
from search.actions import ActionSpace
from search.algorithms import Searcher, make_searcher
from search.settings import SearchSettings

Reward = Callable[[Chain], float]

ALGORITHMS = ("uct", "random", "exhaustive")
PLAIN = SearchSettings(
    simulations=100, exploration=0.05, random_share=0.1, depth_penalty=0.1, depth_in="selection", backup="mean",
    skip_share=None, root_leap=1, leap=1, shorter_first=False, widening_constant=2.0, max_edits=4,
)  # fmt: skip
"""A tree search without our additions, so that toys show one thing at a time."""


def plain(**changes) -> SearchSettings:
    """PLAIN with other values."""
    return replace(PLAIN, **changes)


SMALL = plain(max_block=2, max_times=2, max_edits=2, in_flight=1)


class LastRandom(random.Random):
    """For sequences worked out by hand: of what is left, the last action by number is drawn."""

    def randrange(self, *args):
        assert len(args) == 1
        return args[0] - 1


class ScriptedRandom(random.Random):
    """For sequences worked out by hand: `random` returns the given numbers in turn."""

    def __new__(cls, *_):
        return super().__new__(cls, 0)

    def __init__(self, *numbers):
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def constant(chains):
    return [0.5] * len(chains)


def noisy(chain):
    """A reward that differs from chain to chain and depends on nothing else."""
    return random.Random(str(chain)).random()


def counts(chain):
    return [chain.layers.count(layer) for layer in range(chain.num_layers)]


def smooth(target):
    """1 for a chain with the target's counts, less for each layer that runs too often or too rarely."""
    wanted = counts(target)
    return lambda chain: 1 / (1 + sum(abs(a - b) for a, b in zip(counts(chain), wanted, strict=True)))


def brute_force(space: ActionSpace, edits: int) -> set[Chain]:
    """Every chain that at most `edits` legal actions lead to."""
    known = frontier = {Chain.full(space.num_layers)}
    for _ in range(edits):
        frontier = {action.apply(chain) for chain in frontier for action in space.legal(chain)} - known
        known = known | frontier
    return known


def ordered(chains) -> list[Chain]:
    return sorted(chains, key=lambda chain: chain.layers)


def run(
    reward: Reward,
    settings: SearchSettings,
    seed: int | random.Random,
    num_layers: int,
    first_editable: int = 0,
) -> Searcher:
    """Search to the end."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    searcher = make_searcher(ActionSpace(settings, num_layers, first_editable), rng)
    while chains := searcher.ask():
        searcher.tell([reward(chain) for chain in chains])
    return searcher


def trials(*args, **kwargs) -> list[str]:
    """The chains of `run`, as text, in order."""
    return [str(chain) for chain in run(*args, **kwargs).evaluated]
