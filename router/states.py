"""Computed states of one row as a tree over chain prefixes, and the cache that bounds their memory."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor


class StateNode:
    """The state of a row after a prefix of a chain.

    Attributes:
        parent: the node of the prefix that is one layer shorter, None at the root.
        layer: the last layer of the prefix, -1 at the root.
        state: output of that layer `[tokens, d_model]`, or None where it is not (or no longer) held.
        children: nodes one layer longer, by layer.
    """

    __slots__ = ("children", "layer", "parent", "state")

    def __init__(self, parent: StateNode | None, layer: int, state: Float[Tensor, "tokens d_model"] | None) -> None:
        """Make a node without children."""
        self.parent = parent
        self.layer = layer
        self.state = state
        self.children: dict[int, StateNode] = {}

    def child(self, layer: int) -> StateNode:
        """Return the node of the prefix extended by `layer`, made on first use."""
        node = self.children.get(layer)
        if node is None:
            node = self.children[layer] = StateNode(self, layer, None)
        return node


class StateCache:
    """Keeps the most recently used states under a budget in bytes; root states are not counted and never dropped."""

    def __init__(self, budget: int) -> None:
        """Make an empty cache.

        Args:
            budget: bytes of states to keep at most.

        Raises:
            ValueError: where the budget is negative.
        """
        if budget < 0:
            raise ValueError(f"state_bytes: expected at least 0, got {budget}")
        self.budget = budget
        self.bytes = 0
        self._used: OrderedDict[StateNode, int] = OrderedDict()

    def keep(self, node: StateNode) -> None:
        """Hold a node's state (or mark it as just used), and drop the least recently used ones over the budget."""
        if node.parent is None or node.state is None:
            return
        if node in self._used:
            self._used.move_to_end(node)
            return
        size = node.state.nbytes
        self._used[node] = size
        self.bytes += size
        while self.bytes > self.budget:
            oldest, freed = self._used.popitem(last=False)
            oldest.state = None
            self.bytes -= freed

    def release(self, node: StateNode) -> None:
        """Take a node out of the cache without dropping its state, while a run needs it."""
        self.bytes -= self._used.pop(node, 0)

    def clear(self) -> None:
        """Drop all states."""
        for node in self._used:
            node.state = None
        self._used.clear()
        self.bytes = 0
