"""Gumbel search: sequential halving over actions sampled at the root, a tree search below each.

After the full chain, `considered` actions of the root are sampled without replacement by the prior (the Gumbel-top-k
trick) and share the simulations that are left, B, in phases. A phase with k actions gives each of them
max(1, floor(B / (ceil(log2 m) * k))) simulations, m being the number sampled; then the better half goes on, never
fewer than two, and two go on until B is used (Karnin et al. 2013, sequential halving; Danihelka et al., ICLR 2022,
"Policy improvement by planning with Gumbel", algorithm 1). The better half is that of

    g + log P + (c_visit + most visits of an action) * c_scale * q

with g the action's Gumbel variate, P its prior probability and q its value, less the depth penalty of its own chain
where `depth_in` is "selection". An action whose chains are used up leaves, and its simulations go to the others; when
none goes on any more, the next actions by g + log P begin anew with the simulations left, and after the last of those
the ones that were not among the better half.

Below the root a simulation goes as in `search.mcts`, by PUCT with a prior and by UCT without. Of the paper's search
this keeps the root alone: the improved policy and the deterministic selection below it serve training.
"""

from __future__ import annotations

import math
import random
import sys

from search.actions import ActionSpace
from search.mcts import TreeSearcher
from search.prior import SamplePrior
from search.selection import penalty_weight, select_puct, select_uct
from search.settings import SearchSettings
from search.tree import Edge, Node


class GumbelSearcher(TreeSearcher):
    """The Gumbel search of one sample.

    A phase of halving begins when the rewards of the one before are told, so an ask holds chains of one phase.

    Attributes:
        tree: the search tree; read it, do not change it.
    """

    def __init__(
        self, space: ActionSpace, settings: SearchSettings, rng: random.Random, prior: SamplePrior | None = None
    ) -> None:
        """Start a search at the full chain; see `TreeSearcher`."""
        super().__init__(space, settings, rng, select_uct if prior is None else select_puct, prior)
        self._order: list[tuple[float, int]] = []
        """g + log P and number of the root's actions that were not sampled yet, the greatest last."""
        self._shares: list[float] = []
        """P of the root's actions by number."""
        if self.tree.root.untried:
            weights = self.tree.weights(self.tree.root)
            total = math.fsum(weights)
            self._shares = [weight / total for weight in weights]
            self._order = sorted((gumbel(rng) + math.log(share), i) for i, share in enumerate(self._shares))
        self._considered: list[tuple[Edge, float]] = []
        self._halved: list[tuple[Edge, float]] = []
        """Actions that a halving left out."""
        self._size = self._phases = self._budget = self._left = 0

    @property
    def _exhausted(self) -> bool:
        # A sampled action may be at the bound of edits: nothing leads on from it, but it was not tried itself yet.
        return super()._exhausted and (self._ended or not self._alive())

    def _alive(self) -> list[tuple[Edge, float]]:
        return [item for item in self._considered if _leads_on(item[0])]

    def _walk(self) -> list[Node] | None:
        path = super()._walk()
        if path is not None and len(path) > 1:
            self._left -= 1
        return path

    def _step(self, node: Node) -> Edge | None:
        if node is not self.tree.root:
            return super()._step(node)
        alive = self._alive() if self._left else []
        if not alive:
            if self._paths and self._alive():
                return None  # who goes on depends on the rewards in flight
            self._begin_phase()
            alive = self._alive()
        return min(alive, key=lambda item: item[0].visits)[0] if alive else None

    def _begin_phase(self) -> None:
        self._considered = self._alive()
        if self._considered:
            self._size = max(2, self._size // 2)
            ranked = sorted(self._considered, key=self._score, reverse=True)
            self._considered = ranked[: self._size]
            self._halved += ranked[self._size :]
        else:
            self._budget = self.settings.simulations - self._started
            self._considered = self._sample(min(self.settings.considered, self._budget))
            self._size = len(self._considered)
            self._phases = max(1, (self._size - 1).bit_length())  # ceil(log2(size))
        if self._considered:
            self._left = self._size * max(1, self._budget // (self._phases * self._size))

    def _sample(self, most: int) -> list[tuple[Edge, float]]:
        """Take the next actions by g + log P, at most `most` and each to another chain, or those left out earlier."""
        root, sampled = self.tree.root, dict[Node, tuple[Edge, float]]()
        while self._order and len(sampled) < most:
            score, number = self._order.pop()
            root.untried -= 1
            edge = self.tree.link(root, number, self._shares[number])
            if edge is not None and edge.child not in sampled:
                sampled[edge.child] = (edge, score)
        self.tree.close(root)
        if sampled:
            return list(sampled.values())
        again = sorted((item for item in self._halved if _leads_on(item[0])), key=self._score, reverse=True)
        self._halved = again[most:]
        return again[:most]

    def _score(self, item: tuple[Edge, float]) -> float:
        edge, score = item
        settings, child = self.settings, edge.child
        most = max(other.visits for other in self.tree.root.edges)
        q = child.value - penalty_weight(settings) * child.relative_depth
        return score + (settings.value_visits + most) * settings.value_scale * q


def _leads_on(edge: Edge) -> bool:
    """Return whether a chain is left to be proposed at an action: its own or one behind it."""
    return not (edge.child.closed and edge.child.visits)


def gumbel(rng: random.Random) -> float:
    """Draw a standard Gumbel variate."""
    return -math.log(-math.log(max(rng.random(), sys.float_info.min)))
