"""What the output head says of tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from router.engine.capture import LayerCapture

HEAD_LOGITS = 16 * 2**20
"""Logits computed at once, which bounds the head's memory (64 MiB in float32)."""
CACHED_LOGITS = 2**19
"""Logits normalised at once on a CPU: in float32 they stay in its cache, which makes it four times as fast."""


class HeadReader:
    """Runs the head on states, in pieces that fit the memory."""

    def __init__(self, capture: LayerCapture) -> None:
        """Prepare a model's head."""
        self._capture = capture
        self._logits = HEAD_LOGITS

    def read(
        self, hidden: Float[Tensor, "states ..."], pairs: Int[Tensor, "pairs 2"], *, compare: bool
    ) -> Float[Tensor, "pairs 3"]:
        """Return what `ChainExecutor.target_readings` says of token `pairs[i, 1]` after state `pairs[i, 0]`.

        Token ids below 2**24 are exact in float32.

        Args:
            hidden: outputs of the last layer.
            pairs: ascending by state.
            compare: whether the second and third column are wanted; else they are 0.
        """
        values = torch.zeros(len(pairs), 3, dtype=torch.float32, device=hidden.device)
        start = 0
        while start < len(hidden):
            stop = min(len(hidden), start + max(1, self._logits // self._capture.vocabulary))
            inside = (pairs[:, 0] >= start) & (pairs[:, 0] < stop)
            try:
                logits = self._capture.head(hidden[start:stop])
                values[inside] = _read(logits, pairs[inside, 0] - start, pairs[inside, 1], compare)
                start = stop
                continue
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
            self._logits = (stop - start) // 2 * self._capture.vocabulary
            free_accelerator_memory()
        return values


def _read(logits: Tensor, rows: Tensor, tokens: Tensor, compare: bool) -> Tensor:
    values = torch.zeros(len(rows), 3, dtype=torch.float32, device=logits.device)
    chosen = logits[rows, tokens].float()
    count = max(1, CACHED_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    normalisers = torch.cat([piece.float().logsumexp(dim=-1) for piece in torch.split(logits, count)])
    values[:, 0] = chosen - normalisers[rows]
    if compare:
        best, second = logits.topk(2, dim=-1).values[rows].float().unbind(dim=-1)
        # Where the token is the only one with the highest logit, the best other one is the second.
        values[:, 1] = chosen - torch.where(chosen == best, second, best)
        values[:, 2] = logits.argmax(dim=-1)[rows].float()
    return values


def free_accelerator_memory() -> None:
    """Give cached blocks back, so that a smaller batch finds room."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
