"""The first layers of a model, run once over prompts: read by a router, then replayed where a chain begins with them.

A chain's view runs its first layers over the prompt like any model. Here they have run already, for the router: their
outputs, keys and values are given to the view's prefill, which computes the remaining layers only. Masks, positions and
caches stay the library's own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from router.chain import Chain
from router.engine.copies import NoHead, replace_head, shallow_copy, with_contiguous_head
from router.engine.decoder import find_decoder
from router.engine.view import chain_view


@dataclass(frozen=True)
class PrefixRun:
    """What the first layers computed for a batch of prompts.

    Attributes:
        ids: the prompts' token ids, `[rows, tokens]`.
        states: output of the last of the layers, `[rows, tokens, d_model]`.
        keys: keys of each layer, `[rows, heads, tokens, width]`; empty where they cannot be replayed.
        values: its values, alike.
        mask: 1 for tokens, 0 for padding, `[rows, tokens]`.
        tuples: whether the layers return tuples.
    """

    ids: Int[Tensor, "rows tokens"]
    states: Float[Tensor, "rows tokens d_model"]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Int[Tensor, "rows tokens"]
    tuples: bool

    def rows(self) -> list[Float[Tensor, "_ d_model"]]:
        """Return each row's states without padding."""
        return [states[mask.bool()] for states, mask in zip(self.states, self.mask, strict=True)]

    def select(self, rows: Sequence[int]) -> PrefixRun:
        """Return the same of some rows."""
        if list(rows) == list(range(len(self.states))):
            return self
        index = torch.tensor(rows, device=self.states.device)
        keys, values = (tuple(tensor[index] for tensor in tensors) for tensors in (self.keys, self.values))
        return PrefixRun(self.ids[index], self.states[index], keys, values, self.mask[index], self.tuples)


class Prefix:
    """The first layers of a model, and views of chains that begin with them.

    Attributes:
        layers: how many.
        num_layers: layers of the model.
        can_replay: whether their keys and values can be given to a chain's prefill; otherwise they run again there
            (models with recurrent or convolutional layers).
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        """Prepare a model, which is not changed."""
        decoder = find_decoder(model)
        kinds = getattr(decoder.config, "layer_types", None) or []
        self.layers, self.num_layers = layers, decoder.num_layers
        self.can_replay = all(str(kind).endswith("attention") and kind != "linear_attention" for kind in kinds)
        self._model = model
        self._positions = "position_ids" in inspect.signature(type(model).forward).parameters
        self._local = threading.local()
        first = Chain(tuple(range(layers)), decoder.num_layers)
        self._view = replace_head(chain_view(model, first, fresh=True), NoHead)
        find_decoder(self._view).layers[-1].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._local.output = output

    @torch.no_grad()
    def run(self, ids: Int[Tensor, "rows tokens"], mask: Int[Tensor, "rows tokens"]) -> PrefixRun:
        """Run the layers over a batch of prompts.

        Args:
            ids: token ids.
            mask: 1 for tokens, 0 for padding.
        """
        # Without a configuration the cache keeps all tokens of every layer, whatever its window.
        cache = DynamicCache() if self.can_replay else None
        options: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache, "return_dict": True}
        if self._positions:
            options["position_ids"] = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
        self._view(input_ids=ids, attention_mask=mask, **options)
        output, self._local.output = self._local.output, None
        keys, values = [], []
        for layer in [] if cache is None else cache.layers:
            keys.append(layer.keys)
            values.append(layer.values)
        tuples = isinstance(output, tuple)
        return PrefixRun(ids, output[0] if tuples else output, tuple(keys), tuple(values), mask, tuples)

    def view(self, chain: Chain) -> PreTrainedModel:
        """Return a view of a chain that begins with these layers; its prefill takes what `given` gives.

        Raises:
            ValueError: where the chain begins otherwise.
        """
        if chain.layers[: self.layers] != tuple(range(self.layers)):
            raise ValueError(f"chain: expected one that begins with the first {self.layers} layers, got {chain}")
        view = with_contiguous_head(chain_view(self._model, chain, fresh=True))
        layers = find_decoder(view).layers
        for position in range(self.layers if self.can_replay else 0):
            layers[position] = self._replaying(layers[position], position)
        return view

    @contextmanager
    def given(self, run: PrefixRun) -> Iterator[None]:
        """Give what was computed for the prompts that this thread's views run next."""
        self._local.run = run
        try:
            yield
        finally:
            self._local.run = None

    def _replaying(self, layer: nn.Module, position: int) -> nn.Module:
        """Return a copy of a layer that takes its part of a prefill from what was given."""
        clone, forward, local = shallow_copy(layer), layer.forward, self._local
        last = position == self.layers - 1

        def replay(*args: Any, **kwargs: Any) -> Any:
            run: PrefixRun | None = getattr(local, "run", None)
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = next((one for one in (*args, *kwargs.values()) if isinstance(one, Cache)), None)
            if run is None or not _is_prefill(run, hidden, cache, position):
                return forward(*args, **kwargs)
            times = len(hidden) // len(run.states)  # beams and several sequences of one prompt stand side by side
            if cache is not None:
                cache.update(_times(run.keys[position], times), _times(run.values[position], times), position)
            output = _times(run.states, times) if last else hidden
            return (output,) if run.tuples else output

        clone.__dict__["forward"] = replay
        return clone


def _is_prefill(run: PrefixRun, hidden: Tensor, cache: Cache | None, position: int) -> bool:
    """Whether a layer is called for the whole prompts that were given, and for nothing before them."""
    fits = hidden.shape[1] == run.states.shape[1] and len(hidden) % len(run.states) == 0
    return fits and (cache is None or int(cache.get_seq_length(position)) == 0)


def _times(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 else tensor.repeat_interleave(times, 0)
