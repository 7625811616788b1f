"""The first layers of a model, run once over prompts: read by a router, then replayed where a chain begins with them.

A chain's view runs its first layers over the prompt like any model. Here they have run already, for the router: their
outputs, keys and values are given to the view's prefill, which computes the remaining layers only. Masks, positions and
caches stay the library's own.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from router.chain import Chain
from router.engine.capture import LayerCapture, extras_of, probe_tokens, with_extras
from router.engine.copies import NoHead, make_view, replace_head, shallow_copy, unrouted, with_contiguous_head
from router.engine.decoder import cache_argument, find_decoder
from router.engine.inputs import prefill
from router.engine.makeup import Makeup
from router.engine.sharing import REFUSALS
from router.engine.trial import require_chains

PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""What a cache has for a layer that keeps its keys and values, and nothing else."""
ENCODERS = ("get_image_features", "get_video_features")
"""What the library's `generate` calls of a model's inner one before a prompt with pictures, or films."""


@dataclass(frozen=True)
class PrefixRun:
    """What the first layers computed for a batch of prompts.

    Attributes:
        layers: how many layers ran.
        ids: the prompts' token ids, `[rows, tokens]`.
        states: output of the last of the layers, `[rows, tokens, d_model]`.
        keys: keys of each layer, `[rows, heads, tokens, width]`; empty where they cannot be replayed.
        values: its values, alike.
        mask: 1 for tokens, 0 for padding, `[rows, tokens]`.
        extras: how many things the layers return besides the hidden states; None where they return these alone.
        features: what pictures were made of, by `ENCODERS`: the arguments and the result; kept for all rows together.
    """

    layers: int
    ids: Int[Tensor, "rows tokens"]
    states: Float[Tensor, "rows tokens d_model"]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Int[Tensor, "rows tokens"]
    extras: int | None
    features: Mapping[str, tuple[Mapping[str, Any], Any]] = field(default_factory=dict)

    def rows(self) -> list[Float[Tensor, "_ d_model"]]:
        """Return each row's states without padding."""
        return [states[mask.bool()] for states, mask in zip(self.states, self.mask, strict=True)]

    def select(self, rows: Sequence[int]) -> PrefixRun:
        """Return the same of some rows."""
        if list(rows) == list(range(len(self.states))):
            return self
        index = torch.tensor(rows, dtype=torch.long, device=self.states.device)
        keys, values = (tuple(tensor[index] for tensor in tensors) for tensors in (self.keys, self.values))
        ids, states, mask = (tensor[index] for tensor in (self.ids, self.states, self.mask))
        return PrefixRun(self.layers, ids, states, keys, values, mask, self.extras)


class Prefix:
    """The first layers of a model, and views of chains that begin with them.

    Attributes:
        layers: how many.
        num_layers: layers of the model.
        late: how many have run where some prompts are run on to be read once more; None: none are.
        can_replay: whether their keys and values can be given to a chain's prefill; otherwise they run again there
            (models with recurrent or convolutional layers, or with a cache of their own kind).
        made: what the model was made of when this was prepared; `follow` prepares it anew where it was changed.
    """

    def __init__(self, model: PreTrainedModel, layers: int, *, late: int | None = None) -> None:
        """Prepare a model, which is not changed.

        Args:
            model: a decoder-only model.
            layers: how many of its layers.
            late: how many have run where some prompts are run on (`run_on`); None: none are.

        Raises:
            ValueError: where the layers are not found, or the model cannot run edited chains.
        """
        self.layers, self.late, self._model = layers, late, unrouted(model)
        self._local, self._lock = threading.local(), threading.Lock()
        self._prepare(Makeup(self._model))

    def follow(self) -> None:
        """Prepare the model anew where it was changed since; of several threads one does, and the others wait."""
        with self._lock:
            if (now := Makeup(self._model)) != self.made:
                self._prepare(now)

    def _prepare(self, now: Makeup) -> None:
        """Make what hangs on what the model is now."""
        self.made: Makeup | None = None  # until all is made, which can fail
        require_chains(self._model, now)
        decoder = find_decoder(self._model)
        kinds = getattr(decoder.config, "layer_types", None) or []
        attentions = all(str(kind).endswith("attention") and kind != "linear_attention" for kind in kinds)
        self.num_layers = decoder.num_layers
        positions = "position_ids" in inspect.signature(type(self._model).forward).parameters
        self._offset = LayerCapture(self._model, decoder).position_offset if positions else None
        self._first = self._reader(self.layers, cached=attentions)
        self.can_replay = attentions and self._suits_a_plain_cache()
        self._further = None if self.late is None else self._reader(self.late, cached=attentions)
        if self._further is not None:
            self._take_what_is_given(self._further, self.layers)
        self.made = now

    def _reader(self, layers: int, *, cached: bool) -> PreTrainedModel:
        """Return a view of the first layers alone, whose last one's output is kept."""
        first = Chain(tuple(range(layers)), self.num_layers)
        view = self._remembering(replace_head(make_view(self._model, first, cached=cached), NoHead))
        find_decoder(view).layers[-1].register_forward_hook(self._keep)
        return view

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._local.output = output

    @torch.no_grad()
    def _suits_a_plain_cache(self) -> bool:
        """Whether the layers put keys and values alone into a cache, those that they put into their own."""
        device = self._first.get_input_embeddings().weight.device
        ids = probe_tokens(6, self._first.config.get_text_config(decoder=True).vocab_size, device)
        mask = torch.ones_like(ids)
        try:
            own = self._first(input_ids=ids, attention_mask=mask, use_cache=True, return_dict=True).past_key_values
            states = self._local.output
            run = self._read(self._first, ids, mask, DynamicCache(), {})
        except torch.OutOfMemoryError:
            raise
        except REFUSALS:
            return False
        if not all(type(layer) in PLAIN_LAYERS for layer in getattr(own, "layers", [own])):
            return False
        states = states if run.extras is None else states[0]
        kept = [(layer.keys, layer.values) for layer in own.layers]
        return (
            len(kept) == len(run.keys)
            and all(
                _agree(one, other[..., -one.shape[-2] :, :])  # a window keeps the last tokens
                for pair, given in zip(kept, zip(run.keys, run.values, strict=True), strict=True)
                for one, other in zip(pair, given, strict=True)
            )
            and _agree(states, run.states)
        )

    @torch.no_grad()
    def run(
        self,
        ids: Int[Tensor, "rows tokens"],
        mask: Int[Tensor, "rows tokens"],
        inputs: Mapping[str, Any] | None = None,
    ) -> PrefixRun:
        """Run the layers over a batch of prompts.

        Args:
            ids: token ids.
            mask: 1 for tokens, 0 for padding.
            inputs: what the model takes besides, such as `pixel_values`, prepared as its `generate` prepares it.
        """
        return self._read(self._first, ids, mask, self._cache(), inputs or {})

    @torch.no_grad()
    def run_on(self, run: PrefixRun, inputs: Mapping[str, Any] | None = None) -> PrefixRun:
        """Run prompts on, from what `run` has computed of them, to the layer where they are read once more.

        Where keys and values cannot be replayed the layers before run again.

        Args:
            run: what the first layers computed.
            inputs: as of `run`.
        """
        assert self._further is not None
        with self.given(run):
            return self._read(self._further, run.ids, run.mask, self._cache(), inputs or {})

    def _cache(self) -> DynamicCache | None:
        # Without a configuration the cache keeps all tokens of every layer, whatever its window.
        return DynamicCache() if self.can_replay else None

    def _read(
        self,
        view: PreTrainedModel,
        ids: Tensor,
        mask: Tensor,
        cache: DynamicCache | None,
        inputs: Mapping[str, Any],
    ) -> PrefixRun:
        features: dict[str, tuple[Mapping[str, Any], Any]] = {}
        if inputs:
            self._local.features = features
            try:
                prefill(view, ids, mask, inputs, cache)
            finally:
                self._local.features = None
        else:
            options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True}
            options[cache_argument(self._model)] = cache
            if self._offset is not None:
                options["position_ids"] = self._offset + (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
            view(input_ids=ids, attention_mask=mask, **options)
        output, self._local.output = self._local.output, None
        keys, values = [], []
        for layer in [] if cache is None else cache.layers:
            keys.append(layer.keys)
            values.append(layer.values)
        extras = extras_of(output)
        states = output if extras is None else output[0]
        layers = self.layers if view is self._first else self.late
        assert layers is not None
        return PrefixRun(layers, ids, states, tuple(keys), tuple(values), mask, extras, features)

    def _remembering(self, view: PreTrainedModel) -> PreTrainedModel:
        """Let a view of one's own keep what it makes of pictures, and take it where the very same were read before."""
        inner = view.base_model
        for name in ENCODERS if inner is not self._model.base_model else ():
            if (encode := getattr(inner, name, None)) is not None:
                inner.__dict__[name] = self._recalling(name, encode)
        return view

    def _recalling(self, name: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        local = self._local

        @functools.wraps(encode)
        def features(*args: Any, **given: Any) -> Any:
            run, kept = getattr(local, "run", None), getattr(local, "features", None)
            known, made = ({}, None) if run is None else run.features.get(name, ({}, None))
            same = not args and known.keys() == given.keys() and all(known[key] is given[key] for key in given)
            if made is None or not same:
                made = encode(*args, **given)
            if kept is not None and not args:
                kept[name] = given, made
            return copy.copy(made)

        return features

    def view(self, chain: Chain) -> PreTrainedModel:
        """Return a view of a chain that begins with these layers; its prefill takes what `given` gives.

        Where the chain begins with all that have run at the late reading, it takes what that computed too.

        Raises:
            ValueError: where the chain begins otherwise.
        """
        if chain.layers[: self.layers] != tuple(range(self.layers)):
            raise ValueError(f"chain: expected one that begins with the first {self.layers} layers, got {chain}")
        view = self._remembering(with_contiguous_head(make_view(self._model, chain)))
        shared = self.layers if self.late is None or chain.unedited_prefix < self.late else self.late
        self._take_what_is_given(view, shared)
        return view

    def _take_what_is_given(self, view: PreTrainedModel, shared: int) -> None:
        """Let the first layers of a view of one's own take their part of a prefill from what `given` gives."""
        layers = find_decoder(view).layers
        for position in range(shared if self.can_replay else 0):
            layers[position] = self._replaying(layers[position], position)
        view.register_forward_pre_hook(functools.partial(self._recognise, shared), with_kwargs=True)

    def _recognise(self, shared: int, _view: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Replay what was given to the prompts that were read alone: others may be as long (a negative prompt)."""
        run: PrefixRun | None = getattr(self._local, "run", None)
        ids = kwargs.get("input_ids", args[0] if args else None)
        same = run is not None and run.layers <= shared and ids is not None and _is_repeated(ids, run.ids)
        self._local.replayed = run if same else None

    @contextmanager
    def given(self, run: PrefixRun) -> Iterator[None]:
        """Give what was computed for the prompts that this thread's views run next."""
        self._local.run = run
        try:
            yield
        finally:
            self._local.run = self._local.replayed = None

    def _replaying(self, layer: nn.Module, position: int) -> nn.Module:
        """Return a copy of a layer that takes its part of a prefill from what was given."""
        clone, forward, local = shallow_copy(layer), layer.forward, self._local

        def replay(*args: Any, **kwargs: Any) -> Any:
            run: PrefixRun | None = getattr(local, "replayed", None)
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = next((one for one in (*args, *kwargs.values()) if isinstance(one, Cache)), None)
            if run is None or position >= run.layers or not _is_prefill(run, hidden, cache, position):
                return forward(*args, **kwargs)
            times = len(hidden) // len(run.states)  # beams and several sequences of one prompt stand side by side
            if cache is not None:
                cache.update(_times(run.keys[position], times), _times(run.values[position], times), position)
            output = _times(run.states, times) if position == run.layers - 1 else hidden
            return with_extras(output, run.extras)

        clone.__dict__["forward"] = replay
        return clone


def _is_prefill(run: PrefixRun, hidden: Tensor, cache: Cache | None, position: int) -> bool:
    """Whether a layer is called for the whole prompts that were given, and for nothing before them."""
    fits = hidden.shape[1] == run.states.shape[1] and len(hidden) % len(run.states) == 0
    return fits and (cache is None or int(cache.get_seq_length(position)) == 0)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    bound = 1e-3 if one.dtype == torch.float32 else 0.05
    return one.shape == other.shape and bool((one - other).norm() <= bound * other.norm())


def _is_repeated(ids: Tensor, own: Tensor) -> bool:
    """Whether token ids are those that were read, each row once or several times."""
    times, more = divmod(len(ids), len(own))
    return not more and ids.shape[1] == own.shape[1] and torch.equal(ids.to(own.device), _times(own, times))


def _times(tensor: Tensor, times: int) -> Tensor:
    return tensor if times == 1 else tensor.repeat_interleave(times, 0)
