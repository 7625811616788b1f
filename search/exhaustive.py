"""Exhaustive search: every chain of a small space, for oracles and for tests."""

from __future__ import annotations

from functools import lru_cache

from router.chain import Chain
from search.actions import ActionSpace
from search.base import AskTell
from search.settings import SearchSettings


class ExhaustiveSearcher(AskTell):
    """Every distinct chain within `max_edits` actions of the full chain, breadth first, in the actions' order."""

    def __init__(self, space: ActionSpace, settings: SearchSettings) -> None:
        """Start a search at the full chain.

        Raises:
            ValueError: where the space holds more chains than `simulations`; nothing is left out silently.
        """
        super().__init__(space, settings)
        chains = chains_within(space, settings.simulations)
        if chains is None:
            raise ValueError(
                f"simulations: expected a space of at most {settings.simulations} chains for the exhaustive search, "
                "got more"
            )
        self._chains = chains

    @property
    def _exhausted(self) -> bool:
        return self._started == len(self._chains)

    def _propose(self) -> Chain | None:
        return self._chains[self._started]


@lru_cache(maxsize=4)
def chains_within(space: ActionSpace, most: int) -> tuple[Chain, ...] | None:
    """Return every distinct chain within `max_edits` actions, breadth first; None where there are more than `most`."""
    chains = [Chain.full(space.num_layers)]
    known = set(chains)
    start = 0
    for _ in range(space.max_edits):
        stop = len(chains)
        for chain in chains[start:stop]:
            for action in space.legal(chain):
                edited = action.apply(chain)
                if edited not in known:
                    if len(chains) == most:
                        return None
                    known.add(edited)
                    chains.append(edited)
        start = stop
    return tuple(chains)
