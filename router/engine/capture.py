"""What a model passes to each of its layers, captured from the model's own forward.

So that layers can be called one by one for any architecture: position embeddings, masks and whatever else a family
hands down, by position or by keyword, come from its own code. What was captured can be cut to some rows and tokens.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from router.engine.copies import NoHead, replace_head, shallow_copy, with_layers
from router.engine.decoder import Decoder
from router.engine.inputs import prefill
from router.validation import InputError

Axes = dict[int, str]
"""Which dimension of a tensor counts rows ("batch"; "batch*4": so many entries a row) or tokens ("tokens")."""
MOST_OFFSET = 4
"""Positions at which a text may begin at most."""


@dataclass(frozen=True)
class LayerCall:
    """Arguments of one layer besides the hidden states.

    Attributes:
        args: further positional arguments.
        kwargs: keyword arguments.
        hidden_keyword: whether the model passes the hidden states by keyword.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hidden_keyword: bool


@dataclass(frozen=True)
class Captured:
    """One batch as the model hands it to its layers.

    Attributes:
        hidden: input of the first layer, `[batch, tokens, d_model]`.
        calls: the arguments of each layer, in order.
        additions: what the model itself adds to the input of the layer at a place of the chain, by the place
            (Qwen3-VL: features of the pictures); mostly none.
    """

    hidden: Float[Tensor, "batch tokens ..."]
    calls: list[LayerCall]
    additions: dict[int, Float[Tensor, "batch tokens d_model"]] = field(default_factory=dict)


class LayerCapture:
    """Runs a model's own forward around its layers: `capture` before them, `head` after them.

    Attributes:
        device: device of the token embeddings.
        vocabulary: size of the vocabulary.
        attention: name of the attention implementation.
        position_offset: position of a text's first token as the model itself counts (PaliGemma: 1).
        has_own_masks: whether layers keep masks of their own, by place in the row (GPT-Neo).
        spans: lengths in the configuration at which attention may begin to do something else (windows, chunks), tokens.
    """

    def __init__(self, model: PreTrainedModel, decoder: Decoder) -> None:
        """Learn how the model calls its layers and what they return.

        Raises:
            ValueError: where the model is in training mode (dropout would make runs differ).
        """
        if model.training:
            raise ValueError("model: expected evaluation mode, got a model in training mode; call model.eval()")
        self._model = model
        self._decoder = decoder
        self.device = _input_device(model)
        self.attention = getattr(decoder.config, "_attn_implementation", None)
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        self.spans = _spans(decoder.config, model.config)
        self.has_own_masks = any(_is_mask(buffer) for layer in decoder.layers for buffer in layer.buffers())
        # While layers only record, logits are thrown away: none are made where the output embedding can be left out,
        # else one token's where the family offers that.
        offered = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        self._few_logits = {"logits_to_keep": 1} if offered else {}
        self._local = threading.local()
        self.position_offset = 0
        self._extras = self._learn_extras()
        recorders = [self._recorder(layer) for layer in decoder.layers]
        recording = with_layers(model, decoder, recorders, range(decoder.num_layers))
        self._recording = replace_head(recording, NoHead)
        self._tail = with_layers(model, decoder, [self._injector(decoder.layers[0])], [0])
        self.position_offset = self._learn_position_offset()
        self._axes = self._learn_axes(prepared=False)
        self._prepared_axes: list[list[Axes]] | None = None
        self._cache_slots = self._learn_cache_slots()

    def capture(
        self,
        tokens: Int[Tensor, "batch tokens"],
        positions: Int[Tensor, "batch tokens"] | None,
        mask: Int[Tensor, "batch tokens"],
        **options: Any,
    ) -> Captured:
        """Return the first layer's input and every layer's arguments for a batch; no layer runs.

        Args:
            tokens: token ids.
            positions: position of each token; None: the model counts them itself.
            mask: 1 for tokens, 0 for padding.
            options: further arguments of the model's forward.
        """
        self._local.hidden, self._local.calls, self._local.additions = None, [], None
        self._call(self._recording, tokens, positions, mask, **self._few_logits, **options)
        assert self._local.hidden is not None
        return Captured(self._local.hidden, self._local.calls)

    def capture_prepared(
        self, tokens: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"], inputs: Mapping[str, Any]
    ) -> Captured:
        """Do as `capture` does, with inputs besides tokens, prepared as the model's `generate` prepares them.

        Args:
            tokens: token ids.
            mask: 1 for tokens, 0 for padding.
            inputs: what the model takes besides, such as `pixel_values`.
        """
        self._local.hidden, self._local.calls, self._local.additions = None, [], {}
        prefill(self._recording, tokens, mask, inputs)
        assert self._local.hidden is not None
        additions, self._local.additions = self._local.additions, None
        return Captured(self._local.hidden, self._local.calls, additions)

    def head(self, hidden: Float[Tensor, "count ..."]) -> Float[Tensor, "count vocabulary"]:
        """Return the logits of the last layer's outputs: final norm, output embedding and whatever follows."""
        self._local.inject = hidden[:, None]
        # Each state stands alone in a row of its own, so masks and positions cannot matter.
        tokens = torch.zeros(len(hidden), 1, dtype=torch.long, device=self.device)
        logits = self._call(self._tail, tokens, torch.zeros_like(tokens), torch.ones_like(tokens)).logits
        self._local.inject = None
        result: Tensor = logits[:, 0]
        return result

    def run_layer(self, layer: int, hidden: Float[Tensor, "batch tokens ..."], call: LayerCall) -> Tensor:
        """Run one layer of the original model; returns its output `[batch, tokens, d_model]`."""
        module = self._decoder.layers[layer]
        if call.hidden_keyword:
            output = module(*call.args, hidden_states=hidden, **call.kwargs)
        else:
            output = module(hidden, *call.args, **call.kwargs)
        result: Tensor = output if isinstance(output, Tensor) else output[0]
        return result

    def axes(self, layer: int, *, prepared: bool = False) -> list[Axes]:
        """Return the axes of each tensor among a layer's arguments, in the order of `tensors_of`.

        They hold for batches with padding: without any, a model may leave its mask out, or not, as lengths fall.

        Args:
            layer: the layer.
            prepared: whether `capture_prepared` captured them.
        """
        if not prepared:
            return self._axes[layer]
        if self._prepared_axes is None:
            self._prepared_axes = self._learn_axes(prepared=True)
        return self._prepared_axes[layer]

    @property
    def has_placement_hooks(self) -> bool:
        """Whether accelerate's hooks move weights or inputs around each module's forward."""
        return any(hasattr(module, "_hf_hook") for module in self._model.modules())

    def cache_slot(self, layer: int) -> int | str | None:
        """Return where the model passes its key/value cache to a layer: an index of `args`, a keyword, or nowhere."""
        return self._cache_slots[layer]

    def with_cache(self, layer: int, call: LayerCall, cache: object) -> LayerCall:
        """Return a layer's arguments with an object in the cache's place."""
        slot = self._cache_slots[layer]
        if isinstance(slot, int):
            return LayerCall((*call.args[:slot], cache, *call.args[slot + 1 :]), call.kwargs, call.hidden_keyword)
        assert slot is not None
        return LayerCall(call.args, {**call.kwargs, slot: cache}, call.hidden_keyword)

    def _call(
        self, view: PreTrainedModel, tokens: Tensor, positions: Tensor | None, mask: Tensor, **options: Any
    ) -> Any:
        """Run a view; arguments as `capture`."""
        if positions is not None:
            options["position_ids"] = positions + self.position_offset
        return view(input_ids=tokens, attention_mask=mask, **{"use_cache": False, "return_dict": True} | options)

    def _recorder(self, layer: nn.Module) -> nn.Module:
        local, extras = self._local, self._extras

        def record(*args: Any, **kwargs: Any) -> Any:
            hidden_keyword = not args
            hidden = kwargs.pop("hidden_states") if hidden_keyword else args[0]
            if local.hidden is None:
                local.hidden = hidden
            local.calls.append(LayerCall(args[1:], kwargs, hidden_keyword))
            if getattr(local, "additions", None) is None:
                return with_extras(hidden, extras)
            # Zeros are handed on, so that what comes to the next layer is what the model added on the way.
            if len(local.calls) > 1 and bool(hidden.any()):
                local.additions[len(local.calls) - 1] = hidden
            return with_extras(torch.zeros_like(hidden), extras)

        return _with_forward(layer, record)

    def _injector(self, layer: nn.Module) -> nn.Module:
        local, extras = self._local, self._extras

        def inject(*args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
            return with_extras(local.inject, extras)

        return _with_forward(layer, inject)

    def _learn_extras(self) -> int | None:
        """Look what a layer returns besides hidden states.

        Raises:
            InputError: where the model hands that to the next layer: then layers cannot be run one by one.
        """
        seen: list[Any] = []
        probe = shallow_copy(self._decoder.layers[0])
        probe.register_forward_hook(lambda _module, _args, output: seen.append(output))

        def follow(*args: Any, **kwargs: Any) -> Any:
            extras = [] if isinstance(seen[0], Tensor) else seen[0][1:]
            given = tensors_of(LayerCall(args, kwargs, False))
            if any(extra is one for extra in extras for one in given):
                raise InputError("model: expected layers that hand each other hidden states alone, got more")
            return seen[0]

        following = _with_forward(self._decoder.layers[-1], follow)
        view = with_layers(self._model, self._decoder, [probe, following], [0, self._decoder.num_layers - 1])
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.inference_mode():
            self._call(view, tokens, torch.arange(2, device=self.device)[None], torch.ones_like(tokens))
        return extras_of(seen[0])

    def _learn_position_offset(self) -> int:
        """Compare what layers get where the model counts positions itself with what they get for given ones."""
        tokens = probe_tokens(4, self.vocabulary, self.device)
        mask = torch.ones_like(tokens)

        def handed(positions: Tensor | None) -> list[Tensor]:
            with torch.inference_mode():
                captured = self.capture(tokens, positions, mask)
            found = [captured.hidden, *(tensor for call in captured.calls for tensor in tensors_of(call))]
            return [tensor for tensor in found if tensor.ndim != 4]  # masks may be left out in one of the two

        own = handed(None)
        for offset in range(MOST_OFFSET + 1):
            given = handed(offset + torch.arange(4, device=self.device)[None])
            if len(own) == len(given) and all(map(torch.equal, own, given)):
                return offset
        return 0

    def _learn_axes(self, *, prepared: bool) -> list[list[Axes]]:
        """Compare the shapes of two batches that differ in rows and tokens."""
        shapes = []
        for rows, length in ((2, 5), (3, 7)):
            tokens = torch.zeros(rows, length, dtype=torch.long, device=self.device)
            positions = torch.arange(length, device=self.device).expand(rows, -1).contiguous()
            mask = torch.ones_like(tokens)
            mask[:, -1] = 0
            with torch.inference_mode():
                if prepared:
                    captured = self.capture_prepared(tokens, mask, {})
                else:
                    captured = self.capture(tokens, positions, mask)
            shapes.append([[tensor.shape for tensor in tensors_of(call)] for call in captured.calls])
        return [
            [_compare(a, b) for a, b in zip(first, second, strict=True)] for first, second in zip(*shapes, strict=True)
        ]

    def _learn_cache_slots(self) -> list[int | str | None]:
        """Look where the model passes the cache that it makes for itself."""
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        positions = torch.arange(2, device=self.device)[None]
        with torch.inference_mode():
            captured = self.capture(tokens, positions, torch.ones_like(tokens), use_cache=True)
        slots: list[int | str | None] = []
        for call in captured.calls:
            places: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
            slots.append(next((place for place, value in places if isinstance(value, Cache)), None))
        return slots


def _input_device(model: PreTrainedModel) -> torch.device:
    """Return the device on which the token embeddings run, also where their weights are offloaded until then."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    execution = getattr(hook, "execution_device", None)
    if execution is not None:
        return torch.device(execution)
    device = embeddings.weight.device
    assert isinstance(device, torch.device)
    return device


def _spans(*configs: Any) -> list[int]:
    """Return whole numbers above 1 that a configuration calls a window or chunk, ascending."""
    named = [item for config in configs for item in config.to_dict().items()]
    return sorted({v for k, v in named if ("window" in k or "chunk" in k) and type(v) is int and v > 1})


def _is_mask(buffer: Tensor) -> bool:
    """Whether a buffer says for each place in a row which others it sees."""
    return buffer.dtype == torch.bool and buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1


def _compare(first: torch.Size, second: torch.Size) -> Axes:
    kinds = {(2, 3): "batch", (5, 7): "tokens"}
    pairs = list(zip(first, second, strict=True))
    kinds |= {(one, other): f"batch*{one // 2}" for one, other in pairs if one > 2 and 3 * one == 2 * other}
    if any(one != other and (one, other) not in kinds for one, other in pairs):
        raise InputError(
            "model: expected layers whose arguments have rows and tokens as dimensions of their own, "
            f"got shapes {tuple(first)} for 2 rows of 5 tokens and {tuple(second)} for 3 rows of 7"
        )
    return {axis: kinds[pair] for axis, pair in enumerate(pairs) if pair in kinds}


def _with_forward(layer: nn.Module, forward: Any) -> nn.Module:
    """Return a copy of a layer that keeps its attributes but has no hooks and another forward."""
    clone = shallow_copy(layer)
    for name, registry in clone.__dict__.items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            registry.clear()
    clone.__dict__["forward"] = forward
    return clone


def probe_tokens(count: int, vocabulary: int, device: torch.device) -> Int[Tensor, "1 tokens"]:
    """Return a row of token ids, each another, to try a model with."""
    return (5 + 7 * torch.arange(count, device=device)[None]) % vocabulary


def extras_of(output: Any) -> int | None:
    """Return how many things a layer returns besides the hidden states; None where it returns these alone."""
    return None if isinstance(output, Tensor) else len(output) - 1


def with_extras(hidden: Tensor, extras: int | None) -> Any:
    """Return what a layer returns whose output is `hidden`, nothing besides."""
    return hidden if extras is None else (hidden, *[None] * extras)


def tensors_of(call: LayerCall) -> list[Tensor]:
    """Return the tensors among a layer's arguments, in a fixed order."""
    found: list[Tensor] = []
    map_tensors(call, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def map_tensors(call: LayerCall, function: Any) -> LayerCall:
    """Return the call with each tensor replaced by `function(tensor)`, in the order of `tensors_of`."""
    return LayerCall(_mapped(call.args, function), _mapped(call.kwargs, function), call.hidden_keyword)


def _mapped(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, function) for item in value)
    if isinstance(value, list):
        return [_mapped(item, function) for item in value]
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    return value


class Arguments:
    """Every layer's arguments for a block of rows.

    A dimension of tokens counts those that ask (queries); of two, as in a mask, the second counts those that are seen
    (keys).
    """

    def __init__(self, calls: Sequence[LayerCall], capture: LayerCapture, *, prepared: bool = False) -> None:
        """Take each layer's arguments for all rows, and what captured them (`capture_prepared`: prepared)."""
        self._calls = calls
        self._capture, self._prepared = capture, prepared

    def tokens(self, layer: int, rows: Sequence[int], start: int, stop: int) -> LayerCall:
        """Return a layer's arguments for tokens start..stop-1 of some rows, which see those before them too."""
        axes = iter(self._capture.axes(layer, prepared=self._prepared))
        index = torch.tensor(rows, device=self._capture.device)
        return map_tensors(self._calls[layer], lambda tensor: _cut(tensor, next(axes), index, start, stop))


def joined_captures(captured: Sequence[Captured], capture: LayerCapture) -> Captured:
    """Return what `capture_prepared` captured of single rows of one width as one batch.

    Raises:
        InputError: where a layer's arguments of several rows cannot stand in one batch.
    """
    made: dict[tuple[int, ...], Tensor] = {}

    def join(layer: int) -> LayerCall:
        axes = capture.axes(layer, prepared=True)
        rows = [tensors_of(one.calls[layer]) for one in captured]
        if any([tensor.ndim for tensor in row] != [tensor.ndim for tensor in rows[0]] for row in rows) or any(
            axis >= tensor.ndim for row in rows for tensor, own in zip(row, axes, strict=True) for axis in own
        ):
            raise InputError("model: expected layers that get pictures in their hidden states alone, got more")
        tensors = zip(*rows, strict=True)
        one = iter([_joined(made, list(parts), own) for parts, own in zip(tensors, axes, strict=True)])
        return map_tensors(captured[0].calls[layer], lambda _: next(one))

    calls = [join(layer) for layer in range(len(captured[0].calls))]
    places = sorted({place for one in captured for place in one.additions})
    none = [torch.zeros_like(one.hidden) for one in captured]
    additions = {
        place: torch.cat([one.additions.get(place, zero) for one, zero in zip(captured, none, strict=True)])
        for place in places
    }
    return Captured(torch.cat([one.hidden for one in captured]), calls, additions)


def _joined(made: dict[tuple[int, ...], Tensor], parts: list[Tensor], axes: Axes) -> Tensor:
    """Return one argument of several rows; layers that share it go on sharing it (`made`)."""
    key = tuple(map(id, parts))
    if key not in made:
        batch = next((axis for axis, kind in axes.items() if kind.startswith("batch")), None)
        if batch is None and any(not torch.equal(part, parts[0]) for part in parts):
            raise InputError("model: expected layers whose arguments tell rows apart, got some for all rows at once")
        made[key] = parts[0] if batch is None else torch.cat(parts, batch)
    return made[key]


def _cut(tensor: Tensor, axes: Axes, rows: Int[Tensor, " rows"], start: int, stop: int) -> Tensor:
    """Return an argument's entries for tokens start..stop-1 of some rows."""
    query, key = _token_axes(axes)
    if query is not None:
        tensor = tensor.narrow(query, start, stop - start)
    if key is not None:
        tensor = tensor.narrow(key, 0, stop)
    for axis, kind in axes.items():
        if kind == "batch":
            tensor = tensor.index_select(axis, rows)
        elif kind.startswith("batch*"):  # ALiBi of Bloom: a row's heads side by side
            split: Tensor = tensor.unflatten(axis, (-1, int(kind.removeprefix("batch*"))))  # type: ignore[no-untyped-call]
            tensor = split.index_select(axis, rows).flatten(axis, axis + 1)
    return tensor


def _token_axes(axes: Axes) -> tuple[int | None, int | None]:
    tokens = [axis for axis, kind in axes.items() if kind == "tokens"]
    if len(tokens) > 2:
        raise InputError(f"arguments: expected at most two dimensions of tokens, got {len(tokens)}")
    query, key = [*tokens, None, None][:2]
    return query, key
