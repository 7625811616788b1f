"""Counts and times of what an executor ran."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class ExecutorStatistics:
    """What an executor ran since it was made, or since `clear`.

    Times are until a call returns: an accelerator may still be at work then.

    Attributes:
        layer_calls: calls of a layer, each with a batch.
        tokens: tokens handed to layers, padding included; a last layer that runs on the readouts alone counts all
            tokens of its rows, whose keys and values it makes.
        useful_tokens: the same without padding.
        layer_seconds: seconds in layer forwards.
        head_seconds: seconds in the head's forward (final norm and output embedding).
    """

    layer_calls: int = 0
    tokens: int = 0
    useful_tokens: int = 0
    layer_seconds: float = 0.0
    head_seconds: float = 0.0

    def clear(self) -> None:
        """Begin anew."""
        vars(self).update(vars(ExecutorStatistics()))

    def count(self, tokens: int, useful: int) -> None:
        """Count one call of a layer."""
        self.layer_calls += 1
        self.tokens += tokens
        self.useful_tokens += useful

    @contextlib.contextmanager
    def layer(self) -> Iterator[None]:
        """Time a layer's forward."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.layer_seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def head(self) -> Iterator[None]:
        """Time the head's forward."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.head_seconds += time.perf_counter() - start
