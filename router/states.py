"""Computed states of one part of a row as a tree over chain prefixes, and the cache that bounds their memory."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor

from router.partial import KeyValues


class StateNode:
    """What was computed of a part of a row after a prefix of a chain.

    Attributes:
        parent: the node of the prefix that is one layer shorter, None at the root.
        layer: the last layer of the prefix, -1 at the root.
        shared: the same prefix of the shared tokens that stand before this part, None where none do.
        state: output of that layer `[tokens, d_model]`, or None where it is not (or no longer) held.
        readout: its output at the tokens that the head needs `[readouts, d_model]`, or None.
        memory: keys and values that the layer made of the part's tokens (no batch dimension), or None; only those of
            shared tokens are held.
        children: nodes one layer longer, by layer.
    """

    __slots__ = ("children", "layer", "memory", "parent", "readout", "shared", "state")

    def __init__(
        self,
        parent: StateNode | None,
        layer: int,
        state: Float[Tensor, "tokens d_model"] | None,
        shared: StateNode | None = None,
    ) -> None:
        """Make a node without children."""
        self.parent = parent
        self.layer = layer
        self.shared = shared
        self.state = state
        self.readout: Float[Tensor, "readouts d_model"] | None = None
        self.memory: KeyValues | None = None
        self.children: dict[int, StateNode] = {}

    def child(self, layer: int) -> StateNode:
        """Return the node of the prefix extended by `layer`, made on first use."""
        node = self.children.get(layer)
        if node is None:
            shared = None if self.shared is None else self.shared.child(layer)
            node = self.children[layer] = StateNode(self, layer, None, shared)
        return node

    @property
    def nbytes(self) -> int:
        """Bytes of everything held; no tensor is a view of a larger one."""
        held = [self.state, self.readout]
        if self.memory is not None:
            held += [self.memory.keys, self.memory.values]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def drop(self) -> None:
        """Hold nothing any more."""
        self.state = self.readout = self.memory = None


class StateCache:
    """Keeps the most recently used nodes' tensors under a budget in bytes; roots are not counted and never dropped."""

    def __init__(self, budget: int) -> None:
        """Make an empty cache.

        Args:
            budget: bytes of states, keys and values to keep at most.

        Raises:
            ValueError: where the budget is negative.
        """
        if budget < 0:
            raise ValueError(f"state_bytes: expected at least 0, got {budget}")
        self.budget = budget
        self.bytes = 0
        self._used: OrderedDict[StateNode, int] = OrderedDict()

    def keep(self, node: StateNode) -> None:
        """Hold a node's tensors (or mark them as just used), and drop the least recently used ones over the budget."""
        if node.parent is None:
            return
        size = node.nbytes
        self.bytes += size - self._used.pop(node, 0)
        if size:
            self._used[node] = size
        while self.bytes > self.budget:
            oldest, freed = self._used.popitem(last=False)
            oldest.drop()
            self.bytes -= freed

    def release(self, node: StateNode) -> None:
        """Take a node out of the cache without dropping its tensors, while a run needs them."""
        self.bytes -= self._used.pop(node, 0)

    def clear(self) -> None:
        """Drop all."""
        for node in self._used:
            node.drop()
        self._used.clear()
        self.bytes = 0
