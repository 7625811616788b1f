"""Rows of a `generate` call, taken apart by chain and put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from router.chain import Chain


def by_chain(chains: Sequence[Chain]) -> dict[Chain, list[int]]:
    """Return the rows of each chain, chains in order of their first row."""
    groups: dict[Chain, list[int]] = {}
    for row, chain in enumerate(chains):
        groups.setdefault(chain, []).append(row)
    return groups


def check_one_chain(settings: GenerationConfig, kwargs: Mapping[str, Any], chains: int) -> None:
    """Refuse what belongs to a whole batch where its rows have several chains.

    Raises:
        ValueError: where a streamer, beams, a dictionary or a given cache is asked for.
    """
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


def mask_of(ids: Tensor, settings: GenerationConfig) -> Tensor:
    """Tell padding from tokens as the library does: padding tokens that are no end of sequence."""
    padding, ends = settings.pad_token_id, settings.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if padding is None or padding in ends or not bool((ids == padding).any()):
        return torch.ones_like(ids)
    mask: Tensor = (ids != padding).long()
    return mask


def padding_of(settings: GenerationConfig, kwargs: Mapping[str, Any]) -> int:
    """Return the token that fills rows up which ended early: the padding, else the end of sequence."""
    ends = kwargs.get("eos_token_id", settings.eos_token_id)
    ends = ends if isinstance(ends, list) else [ends]
    found = kwargs.get("pad_token_id", settings.pad_token_id)
    return int(found if found is not None else ends[0] if ends[0] is not None else 0)


def rows_of_option(value: Any, index: Tensor, rows: int) -> Any:
    """Return a tensor's part for some rows; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows:
        return value[index.to(value.device)]
    return value


def joined(parts: Sequence[tuple[list[int], Tensor]], rows: int, padding: int) -> Tensor:
    """Put groups' sequences back into the order of the rows, padded at the end."""
    width = max(out.shape[1] for _, out in parts)
    first = parts[0][1]
    times = len(first) // len(parts[0][0])
    whole = first.new_full((rows * times, width), padding)
    for group, out in parts:
        for place, row in enumerate(group):
            whole[row * times : (row + 1) * times, : out.shape[1]] = out[place * times : (place + 1) * times]
    return whole
