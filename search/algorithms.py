"""The searches of one sample, as ask and tell: tree search, random chains, and every chain of a menu.

The caller evaluates, so many samples share a batch. What a search asks depends on space, settings, generator and
rewards told, on nothing else: not on how its asks are batched with those of other samples.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

from router.chain import Chain
from search.actions import ActionSpace
from search.settings import SearchSettings
from search.tree import Edge, Node, Tree, select_uct, widening_limit


class Searcher(ABC):
    """The search of one sample: gives chains out, takes rewards in.

    Attributes:
        settings: settings of the search.
        evaluated: reward of every chain told, as it was told, in order of trial; the full chain is the first.
    """

    def __init__(self, settings: SearchSettings) -> None:
        """Start a search."""
        self.settings = settings
        self.evaluated: dict[Chain, float] = {}
        self._started = 0
        self._pending: list[Chain] = []
        self._ended = False

    @property
    def simulations(self) -> int:
        """Simulations finished: chains proposed and told, the full chain included."""
        return len(self.evaluated)

    @property
    def done(self) -> bool:
        """Whether nothing is in flight, and the simulations are used up or nothing was left when last asked."""
        return not self._pending and (self._started >= self.settings.simulations or self._ended)

    def ask(self) -> list[Chain]:
        """Return chains to evaluate now: 1 to `in_flight` chains never returned before, or none when done.

        Raises:
            RuntimeError: where the rewards of the last chains have not been told.
        """
        if self._pending:
            raise RuntimeError(f"ask: expected the rewards of {len(self._pending)} chains to be told first, got none")
        most = min(self.settings.in_flight, self.settings.simulations - self._started)
        while len(self._pending) < most:
            chain = self._propose()
            if chain is None:
                self._ended = not self._pending
                break
            self._pending.append(chain)
            self._started += 1
        return list(self._pending)

    def tell(self, rewards: Sequence[float], stands: Sequence[bool] | None = None) -> None:
        """Add the rewards of the chains last asked, in their order.

        Args:
            rewards: one reward in 0..1 for each chain.
            stands: whether each chain is right; None: where its reward is above 0.5.

        Raises:
            ValueError: where their number or a reward is wrong; then nothing is added.
        """
        values = [float(reward) for reward in rewards]
        for i, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"rewards[{i}]: expected a number in 0..1, got {value!r}")
        right = [value > RIGHT for value in values] if stands is None else list(stands)
        told = list(zip(self._pending, values, right, strict=True))
        self.evaluated.update(zip(self._pending, values, strict=True))
        self._pending = []
        self._learn(told)

    @abstractmethod
    def _propose(self) -> Chain | None:
        """Return a chain never proposed before, the full chain first.

        None: nothing can be proposed before the rewards in flight are told; where none is, nothing is left.
        """

    def _learn(self, told: list[Told]) -> None:  # noqa: B027 (random chains need nothing)
        """Take in what was told of the chains proposed since the last call, in their order."""


Told = tuple[Chain, float, bool]
"""A chain, its reward, and whether it is right."""
RIGHT = 0.5
"""A chain whose reward is above this is right (`SearchSettings.reward_for`), where nothing else is said."""


class TreeSearcher(Searcher):
    """Monte-Carlo tree search over chains.

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

    Attributes:
        tree: the search tree; read it, do not change it.
    """

    def __init__(self, space: ActionSpace, rng: random.Random) -> None:
        """Start a search at the full chain; `rng` is its own: drawing from it elsewhere changes the result."""
        super().__init__(space.settings)
        self.tree = Tree(space)
        self._shortest: int | None = None
        self._rng = rng
        self._paths: list[list[Node]] = []

    def _propose(self) -> Chain | None:
        path = self._walk()
        if path is None:
            return None
        self._paths.append(path)
        return path[-1].chain

    def _learn(self, told: list[Told]) -> None:
        for path, (chain, reward, right) in zip(self._paths, told, strict=True):
            value = reward - self._charge(path[-1])
            if right and (self._shortest is None or chain.depth < self._shortest):
                self._shortest = chain.depth
            for node in path:
                self._back_up(node, reward, value)
        self._paths = []

    def _charge(self, node: Node) -> float:
        """Return lambda * depth / n (CoLa, arXiv 2507.07996), in units of reward, where the reward bears it; else 0."""
        if self.settings.depth_in != "reward":
            return 0.0
        return self.settings.depth_penalty * node.chain.depth / node.chain.num_layers

    def _back_up(self, node: Node, gain: float, value: float) -> None:
        """Add to a node's total, and what is now known of the value of a simulation through it."""
        node.total += gain
        node.best = max(node.best, value)
        node.value = node.best if self.settings.backup == "max" else node.total / node.visits

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
            self._back_up(node, -charge, -charge)
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


LISTED = 20_000
"""Chains of one number of edits that are listed at most."""
TRIES = 1000
"""Chains drawn in vain in a row, because they were proposed before, before those left are listed."""


class RandomSearcher(Searcher):
    """Random chains: the baseline that every other search must beat at equal cost.

    For each chain a number of edits is drawn by `edit_weights`, and then as many actions among the legal ones of the
    chain so far (uniformly, or by `skip_share`); a chain that was proposed before, or that ends too early for want of
    an action, is drawn again with the same number of edits. A number of edits that has no new chain left is not drawn
    any more.
    """

    def __init__(self, space: ActionSpace, rng: random.Random) -> None:
        """Start a search at the full chain; `rng` is its own: drawing from it elsewhere changes the result."""
        super().__init__(space.settings)
        self._space, self._rng = space, rng
        self._full = Chain.full(space.num_layers)
        self._seen: set[Chain] = set()
        self._weights = list(self.settings.edit_weights or (1.0,) * self.settings.max_edits)
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
            while made < edits and self._space.count(chain):
                chain = self._space.sample(chain, self._rng).apply(chain)
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

        None of them where they are too many to list: then draws fail because chains run out of actions on the way, not
        because nothing is left, and this number of edits is given up.
        """
        chains = {self._full}
        for _ in range(edits):
            found: set[Chain] = set()
            for chain in chains:
                found.update(action.apply(chain) for action in self._space.legal(chain))
                if len(found) > LISTED:
                    return []
            chains = found
        rest = sorted(chains - self._seen, key=lambda chain: chain.layers)
        self._rng.shuffle(rest)
        return rest


class ListSearcher(Searcher):
    """Every chain of a menu, in its order."""

    def __init__(self, chains: Sequence[Chain], settings: SearchSettings) -> None:
        """Start with the first chain, which is the full one."""
        super().__init__(settings)
        self._chains = iter(chains)

    def _propose(self) -> Chain | None:
        return next(self._chains, None)


def make_searcher(space: ActionSpace, rng: random.Random) -> Searcher:
    """Return a new search of one sample, with the algorithm that the settings name.

    Args:
        space: the legal actions.
        rng: this search's own generator; drawing from it elsewhere changes the result.
    """
    if space.settings.algorithm == "random":
        return RandomSearcher(space, rng)
    return TreeSearcher(space, rng)
