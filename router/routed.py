"""A router and its base model as one model that generates like any other, with one chain for each row.

    model = RoutedModel.join(base_model, router)
    model.budget = 23.5
    model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), max_new_tokens=32)

The first layers run once over the prompts; the router reads their output and picks a chain for each row; rows of one
chain generate together in the library's own `generate`, whose prefill goes on from what has run (`router.replay`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.utils import GenerationMixin

from router.chain import Chain
from router.head import ScoredChain
from router.replay import Prefix, PrefixRun
from router.storage import Router
from router.view import CACHED_VIEWS, shallow_copy


class RoutedModel(GenerationMixin):  # type: ignore[misc]
    """A base model that a router picks the layers of, row by row; made by `join`.

    An instance is of a class of its own that has the base model's class among its bases, and its name: whatever takes
    the base model takes it too. It shares all parameters with the base model, which is not changed. `forward` is the
    base model's; the router decides once for each prompt of a `generate`.

    Attributes:
        router: the router.
        budget: mean depth wanted, layers; None: the router's own choice.
        guaranteed: take the certified operating point instead of a budget (`python -m train.calibrate`).
    """

    router: Router
    budget: float | None
    guaranteed: bool

    @classmethod
    def join(
        cls, model: PreTrainedModel, router: Router, *, budget: float | None = None, guaranteed: bool = False
    ) -> RoutedModel:
        """Join a base model and its router.

        Args:
            model: the base model in evaluation mode.
            router: a router that was trained for it.
            budget: mean depth wanted, layers; None: the router's own choice.
            guaranteed: take the certified operating point.

        Raises:
            ValueError: where the model has another number of layers, the budget was not measured in training, or there
                is no guarantee.
        """
        router.head.offset_for(budget)
        if guaranteed and router.guarantee is None:
            raise ValueError("guaranteed: expected a router with a guarantee (python -m train.calibrate), got none")
        prefix = Prefix(model, router.config.prefix_layers)
        if prefix.num_layers != router.config.num_layers:
            raise ValueError(
                f"model: expected {router.config.num_layers} layers, as the router has it, got {prefix.num_layers}"
            )
        joined = shallow_copy(model)
        joined.__class__ = _routed_class(type(model))
        routed = cast(RoutedModel, joined)
        routed.router, routed.budget, routed.guaranteed = router, budget, guaranteed
        routed._prefix = prefix
        routed._views = OrderedDict()
        routed._views_lock = threading.Lock()
        return routed

    _prefix: Prefix
    _views: OrderedDict[Chain, PreTrainedModel]
    _views_lock: threading.Lock

    @torch.no_grad()
    def route(
        self, input_ids: Int[Tensor, "rows tokens"], attention_mask: Int[Tensor, "rows tokens"] | None = None
    ) -> list[ScoredChain]:
        """Return the chain of each row's prompt, with its score.

        Args:
            input_ids: token ids, padded on the left where rows differ in length.
            attention_mask: 1 for tokens, 0 for padding; None: told from padding tokens, as in `generate`.

        Raises:
            ValueError: where the budget lies outside what was measured in training.
        """
        mask = self._mask(input_ids, None) if attention_mask is None else attention_mask
        return self._decide(self._prefix.run(input_ids, mask))

    def _decide(self, run: PrefixRun) -> list[ScoredChain]:
        states = [row.cpu() for row in run.rows()]
        if self.guaranteed:
            return self.router.route_guaranteed(states)
        return self.router.route(states, self.budget)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as the library's `generate` does, each row under the chain that the router picks for its prompt.

        Rows of different chains run one group after another. Their sequences are padded at the end to the longest, as
        the library pads rows that end early. What belongs to a whole batch (a streamer, beams, a result as a
        dictionary) needs rows of one chain. Sampling draws group by group.

        Args:
            inputs: token ids, `[rows, tokens]`, padded on the left; or `input_ids` by name.
            generation_config: settings; None: the model's own.
            kwargs: what the library's `generate` takes.

        Returns:
            Token ids, prompts included, `[rows * sequences, tokens]`, or what the library returns for one group.

        Raises:
            ValueError: where there are no token ids, or rows of several chains were asked for what belongs to one.
        """
        ids = kwargs.pop("input_ids", inputs)
        if ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("generate: expected input_ids, which the router reads; got none, or inputs_embeds")
        settings = generation_config or self.generation_config
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        mask = kwargs.pop("attention_mask", None)
        mask = self._mask(ids, settings) if mask is None else mask
        run = self._prefix.run(ids, mask)
        groups: dict[Chain, list[int]] = {}
        for row, routed in enumerate(self._decide(run)):
            groups.setdefault(routed.chain, []).append(row)
        if len(groups) > 1:
            self._check_one_chain(settings, kwargs, len(groups))
        parts = []
        for chain, rows in groups.items():
            index = torch.tensor(rows, device=ids.device)
            options = {name: _rows_of(value, index, len(ids)) for name, value in kwargs.items()}
            view = self._view(chain)
            view.generation_config = self.generation_config  # what the caller has set on this model counts
            with self._prefix.given(run.select(rows)):
                out = view.generate(input_ids=ids[index], attention_mask=mask[index], **options)
            if len(groups) == 1:
                return out
            parts.append((rows, out))
        return _joined(parts, len(ids), self._padding(settings, kwargs))

    def _view(self, chain: Chain) -> PreTrainedModel:
        with self._views_lock:
            view = self._views.get(chain)
            if view is None:
                view = self._views[chain] = self._prefix.view(chain)
                if len(self._views) > CACHED_VIEWS:
                    self._views.popitem(last=False)
            self._views.move_to_end(chain)
            return view

    def _check_one_chain(self, settings: GenerationConfig, kwargs: dict[str, Any], chains: int) -> None:
        asked = {
            "streamer": kwargs.get("streamer") is not None,
            "num_beams": (kwargs.get("num_beams", settings.num_beams) or 1) > 1,
            "return_dict_in_generate": bool(kwargs.get("return_dict_in_generate", settings.return_dict_in_generate)),
            "past_key_values": kwargs.get("past_key_values") is not None,
        }
        if wrong := [name for name, given in asked.items() if given]:
            raise ValueError(
                f"{wrong[0]}: expected rows that share a chain, got {chains} chains; give rows one by one, or group "
                "them by what route() returns"
            )

    def _mask(self, ids: Tensor, settings: GenerationConfig | None) -> Tensor:
        """Tell padding from tokens as the library does: padding tokens that are no end of sequence."""
        settings = settings or self.generation_config
        padding, ends = settings.pad_token_id, settings.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        if padding is None or padding in ends or not bool((ids == padding).any()):
            return torch.ones_like(ids)
        mask: Tensor = (ids != padding).long()
        return mask

    def _padding(self, settings: GenerationConfig, kwargs: dict[str, Any]) -> int:
        ends = kwargs.get("eos_token_id", settings.eos_token_id)
        ends = ends if isinstance(ends, list) else [ends]
        found = kwargs.get("pad_token_id", settings.pad_token_id)
        return int(found if found is not None else ends[0] if ends[0] is not None else 0)


_classes: dict[type[Any], type[Any]] = {}


def _routed_class(base: type[Any]) -> type[Any]:
    """Return a class that routes, of the base model's own name: the library knows models by it."""
    if base not in _classes:
        _classes[base] = type(base.__name__, (RoutedModel, base), {"__module__": base.__module__})
    return _classes[base]


def _rows_of(value: Any, index: Tensor, rows: int) -> Any:
    """Return a tensor's part for some rows; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows:
        return value[index.to(value.device)]
    return value


def _joined(parts: Sequence[tuple[list[int], Tensor]], rows: int, padding: int) -> Tensor:
    """Put groups' sequences back into the order of the rows, padded at the end."""
    width = max(out.shape[1] for _, out in parts)
    first = parts[0][1]
    times = len(first) // len(parts[0][0])
    joined = first.new_full((rows * times, width), padding)
    for group, out in parts:
        for place, row in enumerate(group):
            joined[row * times : (row + 1) * times, : out.shape[1]] = out[place * times : (place + 1) * times]
    return joined
