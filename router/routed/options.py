"""Options of a `generate` whose rows run under several chains: which have a meaning, and what a group of rows gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from packaging.version import Version
from torch import Tensor
from torch.nn import functional
from transformers import Cache, GenerationConfig
from transformers import __version__ as transformers_version

from router.chain import Chain
from router.engine.decoder import CACHE_ARGUMENTS

Key = TypeVar("Key")

CHAIN_OF_CACHE = "cola_chain"
"""Attribute of a key/value cache: the chain that filled it. Copies of the cache have it too."""
COUNTS_PROMPTS = Version(transformers_version) >= Version("5.24")
"""Whether `prefix_allowed_tokens_fn` is told the number of the prompt, also where a prompt has several sequences."""


def grouped(keys: Sequence[Key]) -> dict[Key, list[int]]:
    """Return the rows of each key, keys in order of their first row."""
    groups: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return groups


def require_lossless(
    settings: GenerationConfig, options: Mapping[str, Any], ids: Tensor, inputs: Mapping[str, Any]
) -> None:
    """Refuse what lossless generation cannot do.

    Raises:
        ValueError: where there are several rows, inputs besides tokens, sampling or beams, a cache, a dictionary,
            guidance by another prompt, or another way of drafting.
    """
    if len(ids) != 1 or (settings.num_return_sequences or 1) > 1:
        raise ValueError(f"lossless: expected one row and one text of it, got {len(ids)} rows")
    if settings.do_sample or (settings.num_beams or 1) > 1:
        raise ValueError("lossless: expected do_sample=False without beams, got sampling or beams")
    if inputs:
        raise ValueError(f"lossless: expected token ids alone, got {', '.join(inputs)}")
    asked = _of_one_chain(settings, options) | {"guidance_scale": (settings.guidance_scale or 1) != 1}
    able = ("streamer", "logits_processor", "stopping_criteria")
    if wrong := [name for name, given in asked.items() if given and name not in able]:
        raise ValueError(f"lossless: expected the router's chain alone to draft, and no cache, got {wrong[0]}")


def check_routable(settings: GenerationConfig, options: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning where each prompt takes a chain of its own.

    Raises:
        ValueError: at the first such option.
    """
    if settings.is_assistant:
        raise ValueError(
            "assistant_model: expected a model of one chain, such as view(chain), got a routed one, whose chain may "
            "change from draft to draft"
        )
    if settings.cache_implementation == "paged":
        raise ValueError("cache_implementation: expected a cache of generate's own, got 'paged' (continuous batching)")
    if options.get("synced_gpus"):
        raise ValueError("synced_gpus: expected one process, got several, whose rows would run different layers")


def check_one_chain(settings: GenerationConfig, options: Mapping[str, Any], chains: int) -> None:
    """Refuse what belongs to a whole batch where its rows have several chains.

    Raises:
        ValueError: where a streamer, beams, a dictionary, a given cache, an assistant, or logits processors, stopping
            criteria or a decoding of the caller's own are asked for; those of the settings do alike to every row.
    """
    if wrong := [name for name, given in _of_one_chain(settings, options).items() if given]:
        raise ValueError(
            f"{wrong[0]}: expected rows that share a chain, got {chains} chains; give rows one by one, or group "
            "them by what route() returns, chain and one_token"
        )


def _of_one_chain(settings: GenerationConfig, options: Mapping[str, Any]) -> dict[str, bool]:
    """Return of each option that belongs to rows of one chain whether it is asked for."""
    return {
        "streamer": options.get("streamer") is not None,
        "num_beams": (settings.num_beams or 1) > 1,
        "return_dict_in_generate": bool(settings.return_dict_in_generate),
        "past_key_values": given_cache(options) is not None,
        "assistant_model": options.get("assistant_model") is not None,
        "prompt_lookup_num_tokens": settings.prompt_lookup_num_tokens is not None,
        "custom_generate": options.get("custom_generate") is not None,
        "logits_processor": bool(options.get("logits_processor")),
        "stopping_criteria": bool(options.get("stopping_criteria")),
    }


def numbered(
    allowed: Callable[[int, Tensor], list[int]], rows: Sequence[int], settings: GenerationConfig
) -> Callable[[int, Tensor], list[int]]:
    """Return `prefix_allowed_tokens_fn` of a group, called with each row's number in the whole batch.

    The library counts prompts; without beams, before its release 5.24, sequences, of which a prompt may have several.
    """
    by_prompt = COUNTS_PROMPTS or (settings.num_beams or 1) > 1
    times = 1 if by_prompt else settings.num_return_sequences or 1
    return lambda place, ids: allowed(rows[place // times] * times + place % times, ids)


def given_cache(options: Mapping[str, Any]) -> Any:
    """Return the cache among a call's options, by either of its names; None: none is given."""
    return next((options[name] for name in CACHE_ARGUMENTS if options.get(name) is not None), None)


def check_no_turn_before(cache: object) -> None:
    """Refuse the cache of an earlier turn beside inputs other than tokens.

    Raises:
        ValueError: where there is one: the router reads the whole text with all its pictures, and the library's
            `generate` then wants the new ones alone.
    """
    if isinstance(cache, Cache) and cache.get_seq_length():
        raise ValueError(
            "past_key_values: expected none, or an empty cache, with pictures or other inputs besides tokens, got "
            f"{int(cache.get_seq_length())} tokens; give the whole text with all its inputs"
        )


def usable_cache(cache: object, chain: Chain, tokens: int) -> Cache | None:
    """Return a cache that the caller gave where it is new or holds what the same chain computed; None: another chain's.

    Args:
        cache: what was given as `past_key_values`.
        chain: the chain that the whole text takes now.
        tokens: tokens of the whole text.

    Raises:
        ValueError: where it is no such cache, or holds the whole text already.
    """
    made_by = getattr(cache, CHAIN_OF_CACHE, None)
    if not isinstance(cache, Cache) or (made_by is None and cache.layers):
        raise ValueError(
            "past_key_values: expected a new DynamicCache(), or one that this model's generate has filled, got "
            f"another {type(cache).__name__}; cache_implementation names other kinds"
        )
    if made_by is not None and int(cache.get_seq_length()) >= tokens:
        raise ValueError(
            f"input_ids: expected the whole text, longer than the {int(cache.get_seq_length())} tokens in "
            f"past_key_values, got {tokens} tokens"
        )
    return cache if made_by in (None, chain) else None


def mask_of(ids: Tensor, settings: GenerationConfig) -> Tensor:
    """Tell padding from tokens as the library does: padding tokens that are no end of sequence."""
    padding, ends = settings.pad_token_id, settings.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if padding is None or padding in ends or not bool((ids == padding).any()):
        return torch.ones_like(ids)
    mask: Tensor = (ids != padding).long()
    return mask


def rows_of_option(value: Any, index: Tensor, rows: int) -> Any:
    """Return a tensor's part for some rows; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows:
        return value[index.to(value.device)]
    return value


def joined(parts: Sequence[tuple[list[int], Tensor]], padding: int) -> Tensor:
    """Put groups' sequences back into the order of the rows, padded at the end; a row may have several."""
    rows = {row: own for group, out in parts for row, own in zip(group, out.chunk(len(group)), strict=True)}
    width = max(own.shape[1] for own in rows.values())
    padded = [functional.pad(rows[row], (0, width - rows[row].shape[1]), value=padding) for row in sorted(rows)]
    return torch.cat(padded)
