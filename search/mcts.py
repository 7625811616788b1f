"""Monte-Carlo tree search over chains, as ask and tell: the caller evaluates, so many trees share a batch.

A simulation walks from the root, opens one new chain and proposes it for evaluation; its reward is added to
every node of that walk. At each node on the way:

1. *Widen*: if the node has untried actions, and has fewer children than progressive widening allows or no
   open child at all, an untried action is drawn uniformly. A new chain ends the walk; a known one (a
   transposition) is walked through as if it had been selected, so that a hit costs neither an evaluation nor
   a simulation.
2. *Select*: otherwise a selection rule picks one of the open children: those that still lead to a new chain.

So every simulation evaluates exactly one chain, none is ever proposed twice, and a space that runs out of
chains ends the search early. A transposition is one node: its value counts the simulations through it by any
path, but a simulation is added only to the nodes of the path that it took. A visit counts from the moment a
chain is proposed and its reward from the moment it is told (virtual visits), so simulations in flight spread
over the tree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from router.chain import Chain
from search.actions import ActionSpace
from search.selection import SelectionRule, select_uct, widening_limit
from search.settings import SearchSettings
from search.tree import Edge, Node, Tree


class Searcher:
    """The search of one sample.

    What it asks depends on space, settings, generator and rewards told, on nothing else: not on how its asks
    are batched with those of other samples.

    Attributes:
        tree: the search tree; read it, do not change it.
        settings: settings of the search.
        evaluated: reward of every chain told, in order of trial; the full chain is the first.
    """

    def __init__(
        self,
        space: ActionSpace,
        settings: SearchSettings,
        rng: random.Random,
        rule: SelectionRule = select_uct,
    ) -> None:
        """Start a search at the full chain.

        Args:
            space: legal actions, as `settings.action_space` gives them for the model.
            settings: settings of the search.
            rng: this search's own generator; drawing from it elsewhere changes the result.
            rule: chooses among a node's open children.

        Raises:
            ValueError: where the space has other bounds than the settings, whose record would then lie.
        """
        expected = settings.action_space(space.num_layers, space.prefix_layers)
        if space != expected:
            raise ValueError(f"space: expected the one of these settings, {expected}, got {space}")
        self.tree = Tree(space)
        self.settings = settings
        self.evaluated: dict[Chain, float] = {}
        self._rng = rng
        self._rule = rule
        self._started = 0
        self._pending: list[list[Node]] = []

    @property
    def simulations(self) -> int:
        """Simulations finished: chains proposed and told, the full chain included."""
        return len(self.evaluated)

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and the simulations, or the chains, are used up."""
        return not self._pending and self._exhausted

    @property
    def _exhausted(self) -> bool:
        return self._started >= self.settings.simulations or (self._started > 0 and self.tree.root.closed)

    def ask(self) -> list[Chain]:
        """Return chains to evaluate now: 1 to `in_flight` chains never returned before, or none when done.

        Raises:
            RuntimeError: where the rewards of the last chains have not been told.
        """
        if self._pending:
            raise RuntimeError(f"ask: expected the rewards of {len(self._pending)} chains to be told first, got none")
        while len(self._pending) < self.settings.in_flight and not self._exhausted:
            path = self._walk()
            if path is None:
                break
            self._pending.append(path)
            self._started += 1
        return [path[-1].chain for path in self._pending]

    def tell(self, rewards: Sequence[float]) -> None:
        """Add the rewards of the chains last asked, in their order.

        Args:
            rewards: one reward in 0..1 for each chain.

        Raises:
            ValueError: where their number or a reward is wrong; then nothing is added.
        """
        if len(rewards) != len(self._pending):
            raise ValueError(
                f"rewards: expected one for each of the {len(self._pending)} chains asked, got {len(rewards)}"
            )
        values = [float(reward) for reward in rewards]
        for i, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"rewards[{i}]: expected a number in 0..1, got {value!r}")
        for path, value in zip(self._pending, values, strict=True):
            for node in path:
                node.total += value
            self.evaluated[path[-1].chain] = value
        self._pending = []

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
        for node in path:
            node.visits += 1
        for edge in taken:
            edge.visits += 1
        return path

    def _step(self, node: Node) -> Edge | None:
        if node.untried and (not node.open or len(node.edges) < widening_limit(node.visits, self.settings)):
            edge = self.tree.expand(node, self._rng)
            if edge is not None:
                return edge
        return self._rule(node, self.settings, self._rng) if node.open else None


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
    searcher = Searcher(space, settings, rng)
    while chains := searcher.ask():
        searcher.tell(evaluate(chains))
    return searcher
