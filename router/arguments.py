"""The arguments that the model hands to its layers for a block's rows, cut to some rows and tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from router.capture import Axes, LayerCall, LayerCapture, map_tensors


class Arguments:
    """Every layer's arguments for a block of rows.

    A dimension of tokens counts those that ask (queries); of two, as in a mask, the second counts those that are seen
    (keys).
    """

    def __init__(self, calls: Sequence[LayerCall], capture: LayerCapture, readouts: Sequence[Sequence[int]]) -> None:
        """Take what was captured.

        Args:
            calls: each layer's arguments for all rows.
            capture: what captured them.
            readouts: for each row the indices of the tokens that the head needs, ascending.
        """
        self._calls = calls
        self._capture = capture
        most = max(1, *map(len, readouts))
        filled = [[*indices, *[indices[-1] if indices else 0] * (most - len(indices))] for indices in readouts]
        self._readouts = torch.tensor(filled, device=capture.device)
        self._at_readouts: dict[int, Tensor] = {}

    def tokens(self, layer: int, rows: Sequence[int], start: int, stop: int) -> LayerCall:
        """Return a layer's arguments for tokens start..stop-1 of some rows, which see those before them too."""

        def cut(tensor: Tensor, axes: Axes) -> Tensor:
            query, key = _token_axes(axes)
            if query is not None:
                tensor = tensor.narrow(query, start, stop - start)
            return tensor if key is None else tensor.narrow(key, 0, stop)

        return self._cut(layer, rows, cut)

    def readouts(self, layer: int, rows: Sequence[int], count: int, stop: int) -> LayerCall:
        """Return a layer's arguments for the first `count` readouts of some rows, which see tokens below `stop`.

        A row that has fewer repeats its last one.

        Raises:
            ValueError: where the arguments do not tell the tokens of one row from those of another.
        """

        def cut(tensor: Tensor, axes: Axes) -> Tensor:
            query, key = _token_axes(axes)
            if query is not None:
                # The captured tensors live as long as their block, so their ids stay theirs.
                if id(tensor) not in self._at_readouts:
                    self._at_readouts[id(tensor)] = self._pick(tensor, axes, query)
                tensor = self._at_readouts[id(tensor)].narrow(query, 0, count)
            return tensor if key is None else tensor.narrow(key, 0, stop)

        return self._cut(layer, rows, cut)

    def _cut(self, layer: int, rows: Sequence[int], cut: Callable[[Tensor, Axes], Tensor]) -> LayerCall:
        every_axes = iter(self._capture.axes(layer))
        index = torch.tensor(rows, device=self._capture.device)

        def part(tensor: Tensor) -> Tensor:
            axes = next(every_axes)
            tensor = cut(tensor, axes)
            for axis, kind in axes.items():
                if kind == "batch":
                    tensor = tensor.index_select(axis, index)
            return tensor

        return map_tensors(self._calls[layer], part)

    def _pick(self, tensor: Tensor, axes: Axes, query: int) -> Tensor:
        batch = [axis for axis, kind in axes.items() if kind == "batch"]
        if len(batch) != 1:
            raise ValueError(f"arguments: expected rows as a dimension beside tokens, got shape {tuple(tensor.shape)}")
        shape = [1] * tensor.ndim
        shape[batch[0]], shape[query] = self._readouts.shape
        index = self._readouts if batch[0] < query else self._readouts.T
        wanted = list(tensor.shape)
        wanted[query] = self._readouts.shape[1]
        return tensor.gather(query, index.reshape(shape).expand(wanted))


def _token_axes(axes: Axes) -> tuple[int | None, int | None]:
    tokens = [axis for axis, kind in axes.items() if kind == "tokens"]
    if len(tokens) > 2:
        raise ValueError(f"arguments: expected at most two dimensions of tokens, got {len(tokens)}")
    query, key = [*tokens, None, None][:2]
    return query, key
