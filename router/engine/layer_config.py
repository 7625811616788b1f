"""The configuration of a chain as a model of its own: what a family keeps for each layer follows the chain.

Stock transformers builds each layer from the configuration and the layer's place. In a checkpoint the places are those
of the chain, so lists with an entry a layer, lists of layer numbers and counts of leading layers are written anew.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from router.chain import Chain
from router.validation import InputError

ENTRY_A_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "attention_layers",  # GPT-Neo; it reads attention_types, which is written anew as well
    "no_rope_layers",  # SmolLM3, Llama 4: 1 for a layer with rotary embeddings
    "layer_rope_theta",  # Granite with a sliding window
    "indexer_types",  # sparse attention of GLM and others
    "num_attention_heads_per_layer",  # Laguna
    "num_experts",  # Hunyuan, where it is a list
    "moe_topk",
    "swiglu_limits",  # Step
    "swiglu_limits_shared",
)
"""Settings with one entry a layer, wherever they are lists."""
LAYER_NUMBERS = (
    "mlp_only_layers",  # Qwen's mixtures of experts: layers without experts
    "moe_layers",  # Llama 4: layers with experts
    "attn_layer_indices",  # Bamba
    "full_attn_idxs",  # LFM2
    "cross_attention_layers",  # Mllama
)
"""Settings that list layers by number."""
LEADING_DENSE = ("first_k_dense_replace", "num_dense_layers")
"""Settings that say how many of the first layers have no experts (DeepSeek, GLM, LFM2, AFMoE)."""

_NO_SETTINGS = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""What a configuration says of its file, not of the layers."""


def chain_config(config: PreTrainedConfig, chain: Chain) -> PreTrainedConfig:
    """Return a copy of a model's configuration for a model whose layers are the chain's, each with its own place.

    Args:
        config: the base model's, with a text configuration inside where it takes images as well.
        chain: the chain.

    Raises:
        InputError: where the family's configuration has no words for it.
    """
    edited = copy.deepcopy(config)
    text = edited.get_text_config(decoder=True)
    _write_window_layers(text, chain)
    _write_sparse_step(text, chain)
    _write_leading_dense(text, chain)
    _write_sparse_range(text, chain)
    for name, value in write_entries(text, chain).items():
        raise InputError(
            f"chain {chain}: expected a family that lists its {name}, got {text.model_type}, which computes them from "
            f"other settings ({getattr(text, name)!r} in place of {value!r})"
        )
    return edited


def write_entries(text: PreTrainedConfig, chain: Chain) -> dict[str, Any]:
    """Reorder in a text configuration, in place, whatever has an entry a layer or names layers by number.

    Args:
        text: the base model's text configuration.
        chain: the chain.

    Returns:
        What settings with an entry a layer ought to be now and are not, for the class computes them from others.
    """
    overrides = text.to_dict().get("per_layer_config") if text.is_heterogeneous else None
    text.per_layer_config = None  # with it, settings that differ between layers cannot be read
    found = {name: getattr(text, name, None) for name in ENTRY_A_LAYER}
    wanted: dict[str, Any] = {
        name: [values[layer] for layer in chain.layers]
        for name, values in found.items()
        if isinstance(values, (list, tuple)) and len(values) == chain.num_layers
    }
    wanted["num_hidden_layers"] = chain.depth
    for name in LAYER_NUMBERS:
        if isinstance(listed := _get(text, name), (list, tuple)):
            _set(text, name, [place for place, layer in enumerate(chain.layers) if layer in listed])
    if "attention_layers" in wanted:
        _set(text, "attention_types", [[[kind], 1] for kind in wanted["attention_layers"]])
    for name, value in wanted.items():
        _set(text, name, value)
    _set(text, "decoder_layers", chain.depth)  # BART and its kin, whose num_hidden_layers is the encoder's
    if overrides is not None:
        by_layer = {int(layer): values for layer, values in overrides.items()}
        text.per_layer_config = {i: by_layer[layer] for i, layer in enumerate(chain.layers) if layer in by_layer}
    now = {name: getattr(text, name) for name in wanted}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in now.items()}
    return {name: value for name, value in wanted.items() if plain[name] != value}


def changed_on_loading(written: PreTrainedConfig, loaded: PreTrainedConfig) -> str | None:
    """Return the first setting of the text configuration that came back different from what was written."""
    text = written.get_text_config(decoder=True)
    before, after = text.to_dict(), loaded.get_text_config(decoder=True).to_dict()
    inner = {name for name, value in vars(text).items() if isinstance(value, PreTrainedConfig)}
    for name in sorted({*before, *after} - {*_NO_SETTINGS, *inner}):
        if before.get(name) != after.get(name):
            return f"{name}: {before.get(name)!r} written, {after.get(name)!r} loaded"
    return None


def _get(text: PreTrainedConfig, name: str) -> Any:
    return vars(text).get(getattr(text, "attribute_map", {}).get(name, name))


def _set(text: PreTrainedConfig, name: str, value: Any) -> None:
    """Set past the configuration's own checks, which would compare one new value with another old one.

    What a class computes from other settings stays: whether that suits the chain is for the check of the checkpoint.
    """
    name = getattr(text, "attribute_map", {}).get(name, name)
    if name in vars(text):
        vars(text)[name] = value


def _write_sparse_step(text: PreTrainedConfig, chain: Chain) -> None:
    """Turn "experts in every n-th layer" (`decoder_sparse_step`) into the list of layers without experts."""
    step, without = _get(text, "decoder_sparse_step"), _get(text, "mlp_only_layers")
    if step in (None, 1) or without is None:
        return
    dense = [layer for layer in range(chain.num_layers) if layer in without or (layer + 1) % step]
    _set(text, "decoder_sparse_step", 1)
    _set(text, "mlp_only_layers", dense)


def _write_leading_dense(text: PreTrainedConfig, chain: Chain) -> None:
    """Count the leading layers without experts anew.

    Raises:
        InputError: where layers without experts come after some with experts, and there is no list that says so.
    """
    for name in LEADING_DENSE:
        count = _get(text, name)
        if not isinstance(count, int):
            continue
        dense = [layer < count for layer in chain.layers]
        if leading(dense) == sum(dense):
            _set(text, name, sum(dense))
        elif not isinstance(_get(text, "mlp_layer_types"), (list, tuple)):
            raise InputError(
                f"chain: expected layers 0..{count - 1}, which have no experts, before all others, "
                f"for {text.model_type} counts them ({name}={count}); got {chain}"
            )


def _write_sparse_range(text: PreTrainedConfig, chain: Chain) -> None:
    """Write first and last layer with experts anew (`moe_layer_start_index`, ERNIE).

    Raises:
        InputError: where layers with experts would not be one block.
    """
    start, end = _get(text, "moe_layer_start_index"), _get(text, "moe_layer_end_index")
    if start is None or end is None:
        return
    step = text.moe_layer_interval
    sparse = [(layer + 1) % step == 0 and start <= layer <= end for layer in chain.layers]
    first = sparse.index(True) if any(sparse) else chain.depth
    last = first + leading(sparse[first:]) - 1
    if sum(sparse) != last + 1 - first:
        raise InputError(
            f"chain: expected all layers with experts in one block, for {text.model_type} names the first and the last "
            f"one; got {chain}"
        )
    _set(text, "moe_layer_start_index", first)
    _set(text, "moe_layer_end_index", last)
    _set(text, "moe_layer_interval", 1)


def _write_window_layers(text: PreTrainedConfig, chain: Chain) -> None:
    """Keep `max_window_layers` (Qwen: layers before the first with a window) in step with `layer_types`.

    Transformers reads `layer_types`; other programs read this one. Where the layers with a window are not the last
    ones of the chain, it has no right value and stays.
    """
    kinds, first = _get(text, "layer_types"), _get(text, "max_window_layers")
    if not isinstance(kinds, (list, tuple)) or not isinstance(first, int):
        return
    has_window = [kind == "sliding_attention" for kind in kinds]
    if any(has_window) and has_window != [layer >= first for layer in range(chain.num_layers)]:
        return  # a family that counts in another way
    full = [not has_window[layer] for layer in chain.layers]
    if leading(full) == sum(full):
        _set(text, "max_window_layers", sum(full))


def leading(flags: Sequence[bool]) -> int:
    """Return how many flags are true before the first that is not."""
    return next((i for i, flag in enumerate(flags) if not flag), len(flags))
