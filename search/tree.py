"""The search tree: one node for each chain met, edges for the actions taken.

A chain that two paths reach is one node (a transposition), so the structure is a directed graph without
cycles: every edge leads from a node to one that was first reached with more edits. `select_uct` and `widening_limit`
say which way a simulation goes through it, by the settings and the statistics in the tree alone.
"""

from __future__ import annotations

import math
import random

from router.chain import Chain
from search.actions import Action, ActionSpace, UniformDraw, WeightedDraw
from search.settings import SearchSettings

LEAPS = 10
"""Leaps drawn in vain before a single action is taken instead."""


class Edge:
    """An action taken at a node.

    Attributes:
        action: the edit; None: a leap of several.
        parent: node at which it is taken.
        child: node of the edited chain.
        visits: simulations that went through this edge, those in flight included.
    """

    __slots__ = ("action", "child", "parent", "visits")

    def __init__(self, action: Action | None, parent: Node, child: Node) -> None:
        self.action = action
        self.parent = parent
        self.child = child
        self.visits = 0


class Node:
    """A chain of the tree.

    Attributes:
        chain: the state.
        edits: actions between the root and this chain on the path by which it was first reached (see
            `Tree.expand`).
        relative_depth: the chain's depth over the model's layers (1.0 for full depth).
        visits: simulations through this node by any path, its own evaluation and those in flight included.
        total: sum of the values of those simulations; one in flight has the value of reward 0.
        best: greatest value of those simulations; minus infinity without any.
        value: value of the node: `total / visits`, or `best`, as the search backs up; 0 without visits.
        untried: legal actions that were not drawn yet.
        edges: actions taken, in the order in which they were drawn.
        open: those of `edges` whose child still leads to a chain not yet proposed.
        incoming: edges that lead here and are open at their parent.
        closed: whether no chain is left to be proposed from here on.
    """

    __slots__ = (
        "best", "chain", "closed", "draws", "edges", "edits",
        "incoming", "open", "relative_depth", "total", "untried", "value", "visits",
    )  # fmt: skip

    def __init__(self, chain: Chain, edits: int, untried: int) -> None:
        self.chain = chain
        self.edits = edits
        self.relative_depth = len(chain.layers) / chain.num_layers
        self.visits = 0
        self.total = 0.0
        self.best = -math.inf
        self.value = 0.0
        self.untried = untried
        self.edges: list[Edge] = []
        self.open: list[Edge] = []
        self.incoming: list[Edge] = []
        self.closed = untried == 0
        self.draws: UniformDraw | WeightedDraw | None = None


class Tree:
    """Every node of one search.

    Attributes:
        space: the legal actions.
        root: node of the full chain.
        nodes: every node by its chain's layers, in the order of discovery.
    """

    def __init__(self, space: ActionSpace) -> None:
        """Start a tree of the full chain alone."""
        self.space = space
        self._skip_share = space.settings.skip_share
        self.nodes: dict[tuple[int, ...], Node] = {}
        self.root = self._add(Chain.full(space.num_layers), 0)

    def _add(self, chain: Chain, edits: int) -> Node:
        node = Node(chain, edits, self.space.count(chain) if edits < self.space.settings.max_edits else 0)
        self.nodes[chain.layers] = node
        return node

    def weights(self, chain: Chain) -> list[float]:
        """Return the weight of each action of a chain by its number: its skips have `skip_share` of the whole weight.

        Among the skips, and among the other actions, all weigh the same. Where there is no skip, or nothing else, or
        no `skip_share`, every weight is 1.
        """
        count, skips = self.space.count(chain), self.space.skips(chain)
        others = count - skips
        if self._skip_share is None or not skips or not others:
            return [1.0] * count
        return [self._skip_share * count / skips] * skips + [(1 - self._skip_share) * count / others] * others

    def draw(self, node: Node, rng: random.Random) -> int:
        """Draw the number of an untried action of a node: uniformly, or by `skip_share`."""
        if node.draws is None:
            uniform = self._skip_share is None
            node.draws = UniformDraw(node.untried) if uniform else WeightedDraw(self.weights(node.chain))
        number = node.draws.draw(rng)
        node.untried = node.draws.left
        return number

    def expand(self, node: Node, rng: random.Random) -> Edge | None:
        """Draw untried actions of a node until one leads on, and add its edge.

        An action leads on where its chain is new, or is known, has more edits than this node and is still
        open (a transposition: the edge leads to that node). Any other is dropped for good: it would lead back
        or to nothing new. So no walk returns to a chain, and each legal action is drawn at most once per node.

        A known chain keeps the number of edits by which it was first reached. One exception: a chain that was
        not edited further for `max_edits` alone, and is now reached with fewer edits, is opened. So with
        `max_edits` up to 2 the tree can reach every chain of the space; with more it can miss chains that lie
        within the limit only behind another one that was first reached by a detour.

        Returns:
            The edge, or None where no action is left that leads on.
        """
        while node.untried:
            edge = self._link(node, self.draw(node, rng))
            if edge is not None:
                self.close(node)
                return edge
        self.close(node)
        return None

    def leap(self, node: Node, most: int, depth: int | None, rng: random.Random) -> Edge | None:
        """Add an edge to a new chain that several actions lead to at once; None where no draw gives one.

        The number of actions is drawn uniformly from 1 to `most` (or what `max_edits` leaves), then each action by
        `skip_share`.

        Args:
            node: where the edge starts; it must have an untried action.
            most: actions at most, at least 1.
            depth: a chain must be shorter than this, layers; None: any.
            rng: where to draw from.
        """
        most = min(most, self.space.settings.max_edits - node.edits)
        for _ in range(LEAPS if most > 0 else 0):
            chain = node.chain
            edits = rng.randint(1, most)
            for _ in range(edits):
                if self.space.count(chain):
                    chain = self.space.sample(chain, rng).apply(chain)
            if chain.layers in self.nodes or (depth is not None and chain.depth >= depth):
                continue
            return _attach(None, node, self._add(chain, node.edits + edits))
        return None

    def _link(self, node: Node, number: int) -> Edge | None:
        """Add the edge of action `number` of a node, which was drawn, if it leads on; see `expand`."""
        action = self.space.action(node.chain, number)
        chain = action.apply(node.chain)
        child = self.nodes.get(chain.layers)
        if child is None:
            child = self._add(chain, node.edits + 1)
        elif node.edits + 1 < child.edits == self.space.settings.max_edits:
            child.edits = node.edits + 1
            child.untried = self.space.count(chain)
            child.closed = child.untried == 0
            if child.closed:
                return None
        elif child.closed or child.edits <= node.edits:
            return None
        return _attach(action, node, child)

    def close(self, node: Node) -> None:
        """Close a node if nothing is left to propose, and every node of which that becomes true by it."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node.closed or node.untried or node.open:
                continue
            node.closed = True
            for edge in node.incoming:
                edge.parent.open.remove(edge)
                waiting.append(edge.parent)


def _attach(action: Action | None, node: Node, child: Node) -> Edge:
    """Add an edge; it is open where its child is."""
    edge = Edge(action, node, child)
    node.edges.append(edge)
    if not child.closed:
        node.open.append(edge)
        child.incoming.append(edge)
    return edge


def widening_limit(visits: int, settings: SearchSettings) -> int:
    """Return the children that a node with `visits` visits may have: ceil(C * visits**alpha).

    Progressive widening: Coulom 2007 ("Computing Elo ratings of move patterns"), Chaslot et al. 2008.
    """
    return math.ceil(settings.widening_constant * math.pow(visits, settings.widening_exponent))


def select_uct(node: Node, settings: SearchSettings, rng: random.Random) -> Edge:
    """Return the open edge that a simulation follows; there must be one.

    With probability `random_share` any of them, uniformly; else the one of the greatest
    Q + c * sqrt(ln V / v) - lambda * depth / n (CoLa, arXiv 2507.07996; Dr.LLM, 2510.12773). Of equal scores the edge
    drawn first wins; edges are drawn in random order, so that favours no action.

    Q is the child's value, V the parent's visits and depth that of the child's chain; lambda is 0 where `depth_in` is
    "reward", since the reward bears the penalty already. Where several paths lead to the child, its value is that of
    all of them, and the v of the exploration term counts the visits through this edge alone (UCT2: Childs, Brodeur and
    Kocsis 2008, "Transpositions and move groups in Monte Carlo tree search"). Visits in flight count, with the value of
    reward 0 (virtual visits: Chaslot, Winands and van den Herik 2008).
    """
    if settings.random_share > 0 and rng.random() < settings.random_share:
        return node.open[rng.randrange(len(node.open))]
    log_visits, c, sqrt = math.log(node.visits), settings.exploration, math.sqrt
    penalty = settings.depth_penalty if settings.depth_in == "selection" else 0.0
    best, best_score = node.open[0], -math.inf
    for edge in node.open:
        child = edge.child
        score = child.value + c * sqrt(log_visits / edge.visits) - penalty * child.relative_depth
        if score > best_score:
            best, best_score = edge, score
    return best
