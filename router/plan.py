"""What one run of the executor must compute, and in which order."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from router.block import Block
from router.states import StateCache, StateNode


class Step(NamedTuple):
    """One layer for one part of a row.

    Attributes:
        part: index of the part in its block.
        node: what is computed.
    """

    part: int
    node: StateNode


class Plan:
    """The steps of a run: each as soon as what it reads is there, the lowest layer first.

    What is still to be read is kept out of the cache, so that nothing drops it.
    """

    def __init__(self, block: Block, cache: StateCache) -> None:
        """Make an empty plan."""
        self._block = block
        self._cache = cache
        self._parts: dict[StateNode, int] = {}
        self._whole: set[StateNode] = set()
        self._readers: dict[StateNode, int] = defaultdict(int)
        self._ends: dict[StateNode, None] = {}
        self._waiting: dict[StateNode, list[Step]] = defaultdict(list)
        self._ready: dict[int, list[Step]] = defaultdict(list)

    def want(self, part: int, node: StateNode, *, whole: bool) -> None:
        """Plan a node, and all before it that is not held; call `keep_ends` when it has been used.

        Args:
            part: the part that it belongs to.
            node: the node.
            whole: whether its state is wanted, else its readout.
        """
        self._ends[node] = None
        if node.state is not None or (node.readout is not None and not whole):
            self._cache.release(node)
            return
        if whole:
            self._whole.add(node)
        self._plan(part, node)

    def _plan(self, part: int, node: StateNode) -> None:
        prefix = self._block.parts[part].prefix
        while node not in self._parts:
            self._parts[node] = part
            self._cache.release(node)  # it may hold less than is wanted now
            parent, shared = node.parent, node.shared
            assert parent is not None
            self._readers[parent] += 1
            if shared is not None:
                assert prefix is not None
                self._readers[shared] += 1
                if shared.memory is None:
                    self._plan(prefix, shared)
                else:
                    self._cache.release(shared)
            if parent.state is not None:
                self._cache.release(parent)
                return
            self._whole.add(parent)
            node = parent

    def start(self) -> None:
        """Find the steps that can run at once; nothing more can be planned then."""
        for node, part in self._parts.items():
            step, missing = Step(part, node), _missing(node)
            for read in missing:
                self._waiting[read].append(step)
            if not missing:
                self._ready[node.layer].append(step)

    def is_whole(self, node: StateNode) -> bool:
        """Whether a planned node's state is wanted."""
        return node in self._whole

    def next_layer(self) -> tuple[int, list[Step]] | None:
        """Return the lowest layer that steps wait at, and these; None when all are done."""
        if not self._ready:
            return None
        layer = min(self._ready)
        return layer, self._ready.pop(layer)

    def finish(self, step: Step) -> None:
        """Let the steps that waited for this one run, and what it read be dropped once nothing else reads it."""
        for after in self._waiting.pop(step.node, ()):
            if not _missing(after.node):
                self._ready[after.node.layer].append(after)
        for read in (step.node.parent, step.node.shared):
            if read is None:
                continue
            self._readers[read] -= 1
            if not self._readers[read] and read not in self._ends:
                self._cache.keep(read)

    def keep_ends(self) -> None:
        """Give the wanted nodes to the cache."""
        for node in self._ends:
            self._cache.keep(node)

    def abandon(self) -> None:
        """Give all that is held to the cache, after an error."""
        for node in (*self._readers, *self._parts, *self._ends):
            self._cache.keep(node)


def _missing(node: StateNode) -> list[StateNode]:
    """Return what a node's step reads and is not there yet."""
    missing = []
    if node.parent is not None and node.parent.state is None:
        missing.append(node.parent)
    if node.shared is not None and node.shared.memory is None:
        missing.append(node.shared)
    return missing
