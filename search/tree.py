"""The search tree: one node for each chain met, edges for the actions taken.

A chain that two paths reach is one node (a transposition), so the structure is a directed graph without
cycles: every edge leads from a node to one that was first reached with more edits. This module knows no
rewards' meaning and no selection rule.
"""

from __future__ import annotations

import random

from router.chain import Chain
from search.actions import Action, ActionSpace


class Edge:
    """An action taken at a node.

    Attributes:
        action: the edit.
        parent: node at which it is taken.
        child: node of the edited chain.
        visits: simulations that went through this edge, those in flight included.
    """

    __slots__ = ("action", "child", "parent", "visits")

    def __init__(self, action: Action, parent: Node, child: Node) -> None:
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
        total: sum of the rewards of those simulations that have come back; `total / visits` is the node's
            value.
        untried: legal actions that were not drawn yet.
        edges: actions taken, in the order in which they were drawn.
        open: those of `edges` whose child still leads to a chain not yet proposed.
        incoming: edges that lead here and are open at their parent.
        closed: whether no chain is left to be proposed from here on.
    """

    __slots__ = (
        "_moved", "chain", "closed", "edges", "edits",
        "incoming", "open", "relative_depth", "total", "untried", "visits",
    )  # fmt: skip

    def __init__(self, chain: Chain, edits: int, untried: int) -> None:
        self.chain = chain
        self.edits = edits
        self.relative_depth = len(chain.layers) / chain.num_layers
        self.visits = 0
        self.total = 0.0
        self.untried = untried
        self.edges: list[Edge] = []
        self.open: list[Edge] = []
        self.incoming: list[Edge] = []
        self.closed = untried == 0
        self._moved: dict[int, int] = {}

    def draw(self, rng: random.Random) -> int:
        """Draw the number of an untried action uniformly, in constant time (sparse Fisher-Yates shuffle)."""
        index = rng.randrange(self.untried)
        self.untried -= 1
        drawn = self._moved.get(index, index)
        if index != self.untried:
            self._moved[index] = self._moved.pop(self.untried, self.untried)
        return drawn


class Tree:
    """Every node of one search.

    Attributes:
        space: the legal actions.
        root: node of the full chain.
        nodes: every node by its chain's layers, in the order of discovery.
    """

    __slots__ = ("nodes", "root", "space")

    def __init__(self, space: ActionSpace) -> None:
        self.space = space
        self.nodes: dict[tuple[int, ...], Node] = {}
        self.root = self._add(Chain.full(space.num_layers), 0)

    def _add(self, chain: Chain, edits: int) -> Node:
        node = Node(chain, edits, self.space.count(chain) if edits < self.space.max_edits else 0)
        self.nodes[chain.layers] = node
        return node

    def expand(self, node: Node, rng: random.Random) -> Edge | None:
        """Draw untried actions of a node uniformly until one leads on, and add its edge.

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
            action = self.space.action(node.chain, node.draw(rng))
            chain = action.apply(node.chain)
            child = self.nodes.get(chain.layers)
            if child is None:
                child = self._add(chain, node.edits + 1)
            elif node.edits + 1 < child.edits == self.space.max_edits:
                child.edits = node.edits + 1
                child.untried = self.space.count(chain)
                child.closed = child.untried == 0
                if child.closed:
                    continue
            elif child.closed or child.edits <= node.edits:
                continue
            edge = Edge(action, node, child)
            node.edges.append(edge)
            if not child.closed:
                node.open.append(edge)
                child.incoming.append(edge)
            self._close(node)
            return edge
        self._close(node)
        return None

    def _close(self, node: Node) -> None:
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
