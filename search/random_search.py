"""Random chains: the baseline that every other algorithm must beat at equal cost."""

from __future__ import annotations

import random

from router.chain import Chain
from search.actions import ActionSpace
from search.base import AskTell
from search.settings import SearchSettings

LISTED = 20_000
"""Chains of one number of edits that are listed at most."""
TRIES = 1000
"""Chains drawn in vain in a row, because they were proposed before, before those left are listed."""


class RandomSearcher(AskTell):
    """The random search of one sample.

    For each chain a number of edits is drawn by `edit_weights`, and then as many actions among the legal ones of the
    chain so far (uniformly, or by `skip_share`); a chain that was proposed before, or that ends too early for want of
    an action, is drawn again with the same number of edits. A number of edits that has no new chain left is not drawn
    any more.
    """

    def __init__(self, space: ActionSpace, settings: SearchSettings, rng: random.Random) -> None:
        """Start a search at the full chain; see `AskTell`."""
        super().__init__(space, settings)
        self._rng = rng
        self._full = Chain.full(space.num_layers)
        self._seen: set[Chain] = set()
        self._weights = list(settings.edit_weights or (1.0,) * settings.max_edits)
        self._rest: dict[int, list[Chain]] = {}

    def _propose(self) -> Chain | None:
        chain = self._draw() if self._seen else self._full
        if chain is not None:
            self._seen.add(chain)
        return chain

    def _draw(self) -> Chain | None:
        while any(self._weights):
            edits = self._rng.choices(range(1, len(self._weights) + 1), self._weights)[0]
            chain = self._draw_edited(edits)
            if chain is not None:
                return chain
            self._weights[edits - 1] = 0.0
        return None

    def _draw_edited(self, edits: int) -> Chain | None:
        for _ in range(0 if edits in self._rest else TRIES):
            chain = self._full
            made = 0
            while made < edits and self.space.count(chain):
                chain = self.space.sample(chain, self._rng, self.settings.skip_share).apply(chain)
                made += 1
            if made == edits and chain not in self._seen:
                return chain
        # Almost every chain of so many edits was proposed: list the others, and draw among them.
        if edits not in self._rest:
            self._rest[edits] = self._list(edits)
        rest = self._rest[edits]
        while rest:
            chain = rest.pop()
            if chain not in self._seen:
                return chain
        return None

    def _list(self, edits: int) -> list[Chain]:
        """Return the chains that exactly `edits` actions lead to and that were not proposed, in random order.

        None where they are too many to list: then draws fail because chains run out of actions on the way, not because
        nothing is left, and this number of edits is given up.
        """
        chains = {self._full}
        for _ in range(edits):
            found: set[Chain] = set()
            for chain in chains:
                found.update(action.apply(chain) for action in self.space.legal(chain))
                if len(found) > LISTED:
                    return []
            chains = found
        rest = sorted(chains - self._seen, key=lambda chain: chain.layers)
        self._rng.shuffle(rest)
        return rest
