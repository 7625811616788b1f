"""The algorithms of the search behind one interface: `make_searcher` gives the one that the settings name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from router.chain import Chain
from search.actions import ActionSpace
from search.exhaustive import ExhaustiveSearcher
from search.mcts import TreeSearcher
from search.random_search import RandomSearcher
from search.settings import SearchSettings


class Searcher(Protocol):
    """The search of one sample, as ask and tell: the caller evaluates, so many samples share a batch.

    What is asked depends on space, settings, generator and rewards told, on nothing else: not on how the asks are
    batched with those of other samples.
    """

    @property
    def settings(self) -> SearchSettings:
        """Settings of the search."""

    @property
    def evaluated(self) -> dict[Chain, float]:
        """Reward of every chain told, as it was told, in order of trial; the full chain is the first."""

    @property
    def simulations(self) -> int:
        """Simulations finished: chains proposed and told, the full chain included."""

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and the simulations, or the chains, are used up."""

    def ask(self) -> list[Chain]:
        """Return chains to evaluate now: 1 to `in_flight` chains never returned before, or none when done.

        Raises:
            RuntimeError: where the rewards of the last chains have not been told.
        """

    def tell(self, rewards: Sequence[float]) -> None:
        """Add the rewards of the chains last asked, in their order, each in 0..1.

        Raises:
            ValueError: where their number or a reward is wrong; then nothing is added.
        """


def make_searcher(space: ActionSpace, settings: SearchSettings, rng: random.Random) -> Searcher:
    """Return a new search of one sample.

    Args:
        space: legal actions, as `settings.action_space` gives them for the model.
        settings: settings of the search; `algorithm` names the algorithm.
        rng: this search's own generator; drawing from it elsewhere changes the result.

    Raises:
        ValueError: where the space has other bounds than the settings, or the algorithm cannot search such a space.
    """
    if settings.algorithm == "random":
        return RandomSearcher(space, settings, rng)
    if settings.algorithm == "exhaustive":
        return ExhaustiveSearcher(space, settings)
    return TreeSearcher(space, settings, rng)


def search(
    evaluate: Callable[[Sequence[Chain]], Sequence[float]],
    space: ActionSpace,
    settings: SearchSettings,
    rng: random.Random,
) -> Searcher:
    """Search one sample to the end and return its searcher.

    Args:
        evaluate: rewards in 0..1 of chains, in their order.
        space: legal actions, as `settings.action_space` gives them.
        settings: settings of the search.
        rng: this search's own generator.

    Raises:
        ValueError: where the space or a reward is refused.
    """
    searcher = make_searcher(space, settings, rng)
    while chains := searcher.ask():
        searcher.tell(evaluate(chains))
    return searcher
