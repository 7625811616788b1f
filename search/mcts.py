"""Monte-Carlo tree search over chains, as ask and tell: the caller evaluates, so many trees share a batch.

A simulation walks from the root, opens one new chain and proposes it for evaluation; its reward is added to
every node of that walk. At each node on the way:

1. *Widen*: if the node has untried actions, and has fewer children than progressive widening allows or no
   open child at all, an untried action is drawn: uniformly, or by `skip_share`. A new
   chain ends the walk; a known one (a transposition) is walked through as if it had been selected, so that a
   hit costs neither an evaluation nor a simulation.
   With `root_leap` or `leap` above 1, several actions are drawn at once and lead to one new child.
2. *Select*: otherwise a selection rule picks one of the open children: those that still lead to a new chain.

So every simulation evaluates exactly one chain, none is ever proposed twice, and a space that runs out of
chains ends the search early. A transposition is one node: its value counts the simulations through it by any
path, but a simulation is added only to the nodes of the path that it took. A visit counts from the moment a
chain is proposed and its reward from the moment it is told (virtual visits), so simulations in flight spread
over the tree.

The value of a simulation is its reward; with `depth_in` "reward" it is the reward less the penalty of the
evaluated chain's depth, which is known, and counts, from the moment the chain is proposed.
"""

from __future__ import annotations

import random

from router.chain import Chain
from search.actions import ActionSpace
from search.base import AskTell
from search.selection import select_uct, widening_limit
from search.settings import SearchSettings
from search.tree import Edge, Node, Tree

RIGHT = 0.5
"""A chain whose reward is above this is right (`SearchSettings.reward_for`)."""


class TreeSearcher(AskTell):
    """The tree search of one sample.

    Attributes:
        tree: the search tree; read it, do not change it.
    """

    def __init__(self, space: ActionSpace, settings: SearchSettings, rng: random.Random) -> None:
        """Start a search at the full chain.

        Args:
            space: legal actions, as `settings.action_space` gives them for the model.
            settings: settings of the search.
            rng: this search's own generator; drawing from it elsewhere changes the result.

        Raises:
            ValueError: where the space has other bounds than the settings.
        """
        super().__init__(space, settings)
        self.tree = Tree(space, settings.skip_share)
        self._shortest: int | None = None
        self._rng = rng
        self._paths: list[list[Node]] = []
        self._charged = settings.depth_in == "reward"
        self._keep_best = settings.backup == "max"

    @property
    def _exhausted(self) -> bool:
        return self._ended or (self._started > 0 and self.tree.root.closed)

    def _propose(self) -> Chain | None:
        path = self._walk()
        if path is None:
            return None
        self._paths.append(path)
        return path[-1].chain

    def _learn(self, rewards: list[float]) -> None:
        for path, reward in zip(self._paths, rewards, strict=True):
            value = reward - self._charge(path[-1])
            depth = path[-1].chain.depth
            if reward > RIGHT and (self._shortest is None or depth < self._shortest):
                self._shortest = depth
            for node in path:
                node.total += reward
                node.best = max(node.best, value)
                node.value = node.best if self._keep_best else node.total / node.visits
        self._paths = []

    def _charge(self, node: Node) -> float:
        return self._penalty(node.chain) if self._charged else 0.0

    def _walk(self) -> list[Node] | None:
        """Walk from the root to a new chain, count visits, return its nodes, or None if no chain is left."""
        path, taken = [self.tree.root], list[Edge]()
        while path[-1].visits:
            edge = self._step(path[-1])
            if edge is not None:
                taken.append(edge)
                path.append(edge.child)
                continue
            # Every action left here led to a known chain: the node is closed now, choose again above it.
            path.pop()
            if not path:
                return None
            taken.pop()
        charge = self._charge(path[-1])
        for node in path:
            node.visits += 1
            node.total -= charge
            node.best = max(node.best, -charge)
            node.value = node.best if self._keep_best else node.total / node.visits
        for edge in taken:
            edge.visits += 1
        return path

    def _step(self, node: Node) -> Edge | None:
        """Return the edge that a walk takes from a visited node, or None if none leads on."""
        if node.untried and (not node.open or len(node.edges) < widening_limit(node.visits, self.settings)):
            edge = self._leap(node) or self.tree.expand(node, self._rng)
            if edge is not None:
                return edge
        return select_uct(node, self.settings, self._rng) if node.open else None

    def _leap(self, node: Node) -> Edge | None:
        """Return an edge to a chain several actions away, or a shorter one, where that is wanted and one is found."""
        most = self.settings.root_leap if node is self.tree.root else self.settings.leap
        depth = self._shortest if self.settings.shorter_first else None
        return self.tree.leap(node, most, depth, self._rng) if most > 1 or depth is not None else None
