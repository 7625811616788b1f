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

ALGORITHMS = ("uct", "random")
PLAIN = SearchSettings(
    simulations=100, exploration=0.05, random_share=0.1, depth_penalty=0.1, depth_in="selection", backup="mean",
    skip_share=None, root_leap=1, leap=1, shorter_first=False, widening_constant=2.0, max_edits=4,
)  # fmt: skip
"""A tree search without our additions, so that toys show one thing at a time."""


def plain(**changes) -> SearchSettings:
    """PLAIN with other values."""
    return replace(PLAIN, **changes)


SMALL = plain(max_block=2, max_times=2, max_edits=2, in_flight=1)


def space_of(num_layers: int, first_editable: int = 0, **changes) -> ActionSpace:
    """The space of PLAIN with other values."""
    return ActionSpace(plain(**changes), num_layers, first_editable)


class LastRandom(random.Random):
    """For sequences worked out by hand: of what is left, the last action by number is drawn."""

    def randrange(self, *args):
        assert len(args) == 1
        return args[0] - 1


def constant(_):
    return 0.5


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


def run_in(space: ActionSpace, reward: Reward, rng: random.Random) -> Searcher:
    """Search a space to the end."""
    searcher = make_searcher(space, rng)
    while chains := searcher.ask():
        searcher.tell([reward(chain) for chain in chains])
    return searcher


def run(
    reward: Reward,
    settings: SearchSettings,
    seed: int | random.Random,
    num_layers: int,
    first_editable: int = 0,
) -> Searcher:
    """Search to the end."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    return run_in(ActionSpace(settings, num_layers, first_editable), reward, rng)


def trials(*args, **kwargs) -> list[str]:
    """The chains of `run`, as text, in order."""
    return [str(chain) for chain in run(*args, **kwargs).evaluated]
