"""Beam search: the best chains so far have children, level by level."""

from __future__ import annotations

import math
import random

from router.chain import Chain
from search.actions import ActionSpace
from search.base import AskTell
from search.prior import SamplePrior
from search.settings import SearchSettings
from search.tree import Node, Tree


class BeamSearcher(AskTell):
    """The beam search of one sample.

    A level evaluates ceil((simulations - 1) / max_edits) new chains, so the budget lasts for as many levels as a chain
    can have edits. Its parents are the `beam_width` best of all chains evaluated so far (the full chain at first) that
    can be edited further, by reward less the depth penalty, the earlier of equals first. They take turns; at its turn
    a parent draws an untried action, uniformly or by the prior, until one gives a new chain. A parent without one
    leaves; a level without parents ends. Levels follow until the simulations or the chains are used up, so a level
    that ended early leaves its share to later ones.
    """

    def __init__(
        self, space: ActionSpace, settings: SearchSettings, rng: random.Random, prior: SamplePrior | None = None
    ) -> None:
        """Start a search at the full chain; see `search.mcts.TreeSearcher`."""
        super().__init__(space, settings)
        self.tree = Tree(space, prior, settings.uniform_share, settings.skip_share)
        self._rng = rng
        self._told: list[Node] = []
        self._proposed: list[Node] = []
        self._parents: list[Node] = []
        self._levels = self._left = self._turn = 0

    def _propose(self) -> Chain | None:
        node = self._next() if self._started else self.tree.root
        if node is None:
            return None
        node.visits = 1
        self._proposed.append(node)
        return node.chain

    def _learn(self, rewards: list[float]) -> None:
        for node, reward in zip(self._proposed, rewards, strict=True):
            node.value = reward - self._penalty(node.chain)
        self._told += self._proposed
        self._proposed = []

    def _next(self) -> Node | None:
        """Return the next new chain of this level or the next, None where rewards are needed or nothing is left."""
        while True:
            if not self._left or not self._parents:
                if self._levels and self._proposed:
                    return None  # who is among the best depends on the rewards in flight
                self._begin_level()
                if not self._parents:
                    return None
            self._turn %= len(self._parents)
            node = self._child(self._parents[self._turn])
            if node is not None:
                self._turn += 1
                self._left -= 1
                return node
            del self._parents[self._turn]

    def _begin_level(self) -> None:
        able = [node for node in self._told if node.untried] if self._levels else [self.tree.root]
        self._parents = sorted(able, key=lambda node: -node.value)[: self.settings.beam_width]
        self._left = math.ceil((self.settings.simulations - 1) / max(1, self.settings.max_edits))
        self._levels += 1
        self._turn = 0

    def _child(self, parent: Node) -> Node | None:
        while (edge := self.tree.expand(parent, self._rng)) is not None:
            if not edge.child.visits:
                return edge.child
        return None
