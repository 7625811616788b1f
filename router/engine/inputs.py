"""What a model is given besides tokens (pictures, token types, positions), and which of it belongs to which row.

The library's own preparation of inputs is used: it merges pictures into the embedded prompt and counts positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation.utils import GenerationMixin

from router.engine.decoder import CACHE_ARGUMENTS, cache_argument

OF_GENERATE = frozenset(inspect.signature(GenerationMixin.generate).parameters) | {
    "input_ids",
    "attention_mask",
    *CACHE_ARGUMENTS,
    "tokenizer",
    "assistant_tokenizer",
    "assistant_early_exit",
    "trust_remote_code",
    "use_model_defaults",
}
"""What `generate` itself takes, besides settings; it hands everything else to the model."""
OF_TOKENS = ("position_ids", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Inputs with an entry for each token: their last two dimensions are rows and tokens."""


def prefill(
    model: PreTrainedModel,
    ids: Int[Tensor, "rows tokens"],
    mask: Int[Tensor, "rows tokens"],
    inputs: Mapping[str, Any],
    cache: Cache | None = None,
) -> Float[Tensor, "rows vocabulary"]:
    """Run prompts through a model once, with all inputs prepared as the library's `generate` prepares them.

    Args:
        model: a view of one's own; its generation settings are replaced by none, and what it would generate is dropped.
        ids: token ids.
        mask: 1 for tokens, 0 for padding.
        inputs: what the model takes besides.
        cache: an empty cache that the model fills; None: it runs without.

    Returns:
        The logits after each prompt's last token.
    """
    model.generation_config = GenerationConfig()
    settings = GenerationConfig(
        max_new_tokens=1,
        do_sample=False,
        use_cache=cache is not None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    kept = {} if cache is None else {cache_argument(model): cache}
    done = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, **inputs, **kept)
    logits: Tensor = done.logits[0]
    return logits


def widened(inputs: Mapping[str, Any], tokens: int, *, left: bool = False) -> dict[str, Any]:
    """Return a row's inputs for more tokens than its prompt has: zeros follow, or stand before (`left`)."""

    def padded(value: Tensor) -> Tensor:
        more = tokens - value.shape[-1]
        return functional.pad(value, (more, 0) if left else (0, more))

    return {name: padded(value) if name in OF_TOKENS else value for name, value in inputs.items()}


@dataclass(frozen=True)
class ModelInputs:
    """Inputs of a batch of prompts besides their tokens.

    Attributes:
        values: the inputs, by the names that the model has for them; empty: there are none.
        places: for each input the entries of each row, and the dimension that they stand in; an input that is not among
            them is the same for all rows.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, tuple[int, tuple[tuple[int, ...], ...]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Int[Tensor, "rows tokens"], values: Mapping[str, Any]) -> ModelInputs:
        """Find out which entries of the inputs belong to which row.

        Raises:
            ValueError: where there are several rows, and it cannot be told.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if len(ids) == 1:
            return cls(given)
        places = {name: _places(model.config, ids, given, name) for name in given}
        return cls(given, {name: place for name, place in places.items() if place is not None})

    def select(self, rows: Sequence[int]) -> ModelInputs:
        """Return the inputs of some rows; those without an entry for any of them are left out."""
        if all(list(rows) == list(range(len(entries))) for _, entries in self.places.values()):
            return self
        values, places = dict(self.values), dict[str, tuple[int, tuple[tuple[int, ...], ...]]]()
        for name, (axis, entries) in self.places.items():
            index = [entry for row in rows for entry in entries[row]]
            if not index:
                del values[name]
                continue
            value = self.values[name]
            values[name] = value.index_select(axis, torch.tensor(index, device=value.device))
            counts = [len(entries[row]) for row in rows]
            places[name] = (
                axis,
                tuple(tuple(range(sum(counts[:place]), sum(counts[: place + 1]))) for place in range(len(rows))),
            )
        return ModelInputs(values, places)


def has_placeholders(model: PreTrainedModel, ids: Tensor) -> bool:
    """Whether tokens stand for pictures or films."""
    tokens = [_placeholder(model.config, kind) for kind in ("image", "video")]
    return any(token is not None and bool((ids == token).any()) for token in tokens)


def _placeholder(config: Any, kind: str) -> int | None:
    """Return the token that stands for pictures ("image") or films ("video") in a text; None: the model has none."""
    named = (getattr(config, f"{kind}_token_{end}", None) for end in ("id", "index"))
    return next((token for token in named if isinstance(token, int)), None)


def _places(
    config: Any, ids: Tensor, given: Mapping[str, Any], name: str
) -> tuple[int, tuple[tuple[int, ...], ...]] | None:
    """Return the dimension of an input that rows share out, and each row's entries in it; None: it is for all rows.

    Raises:
        ValueError: where that cannot be told.
    """
    value, rows = given[name], len(ids)
    if isinstance(value, bool | int | float | str):
        return None
    if isinstance(value, Tensor) and name in OF_TOKENS and value.ndim > 1 and value.shape[-2] in (1, rows):
        return None if value.shape[-2] == 1 else (value.ndim - 2, tuple((row,) for row in range(rows)))
    kind = "video" if "video" in name else "image"
    counts = None
    if isinstance(value, Tensor) and name.startswith(("pixel", "image", "video")):
        counts = _counts(config, ids, given, kind, len(value))
    if counts is None:
        raise ValueError(
            f"{name}: expected rows one by one, for it cannot be told which of its entries belong to which row, "
            f"got {rows} rows"
        )
    ends = torch.tensor(counts).cumsum(0).tolist()
    return 0, tuple(tuple(range(end - count, end)) for end, count in zip(ends, counts, strict=True))


def _counts(config: Any, ids: Tensor, given: Mapping[str, Any], kind: str, entries: int) -> list[int] | None:
    """Return how many of an input's entries each row has; None: it cannot be told.

    Told by the tokens that stand for pictures: from the pictures' sizes, or where all take as many of them.
    """
    token = _placeholder(config, kind)
    if token is None:
        return None
    tokens = (ids == token).sum(1).tolist()
    grid = given.get(f"{kind}_grid_thw")
    if isinstance(grid, Tensor):
        return _by_grid(grid.prod(-1).tolist(), tokens, entries)
    if entries == len(ids) and all(tokens):
        return [1] * len(ids)  # no row has none, so each has one
    main = given.get("pixel_values_videos" if kind == "video" else "pixel_values")
    alike = isinstance(main, Tensor) and main.ndim == 4 and not any("size" in name for name in given)
    if not alike or sum(tokens) % entries:
        return None
    each = sum(tokens) // entries
    return [count // each for count in tokens] if each and not any(count % each for count in tokens) else None


def _by_grid(sizes: Sequence[int], tokens: Sequence[int], entries: int) -> list[int] | None:
    """Return each row's entries of an input with one for each picture, or one for each patch.

    Args:
        sizes: patches of each picture.
        tokens: tokens that stand for pictures, by row.
        entries: entries of the input.
    """
    if not sum(tokens) or sum(sizes) % sum(tokens) or entries not in (len(sizes), sum(sizes)):
        return None
    merged, counts, left = sum(sizes) // sum(tokens), list[int](), list(sizes)
    for count in tokens:
        wanted, own = count * merged, list[int]()
        while left and sum(own) < wanted:
            own.append(left.pop(0))
        if sum(own) != wanted:
            return None
        counts.append(len(own) if entries == len(sizes) else sum(own))
    return counts
