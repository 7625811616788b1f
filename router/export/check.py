"""The check of an exported checkpoint: stock transformers loads it, and it is the chain to the bit.

All weights are compared, the settings of every layer, the logits of random rows (padded ones and a long one), and a
generation with its cache, on the model's device, in its dtype and attention. There is no tolerance: once all weights
are found equal, the checkpoint runs on the very same tensors (`_share_weights`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from router.chain import Chain
from router.command import InputError, one_line
from router.layer_config import changed_on_loading
from router.view import PLACES

TOKENS, PADDING, NEW_TOKENS = 64, (0, 19, 60), 8
"""Tokens of a row, how many of them are padding on the left in each, and tokens generated after it."""
LONGEST = 1024
"""Tokens of the row that is longer than the sliding window, at most; wider windows are compared as settings alone."""
LIBRARY_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    StrictDataclassError,
    SafetensorError,
)
"""What transformers raises at a model that it cannot save, load or run."""
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size")
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Batch:
    """Random token rows that the chain and the checkpoint both read.

    Attributes:
        ids: `[rows, tokens]`, padded on the left.
        mask: 1 for tokens, 0 for padding.
        long: one row without padding, `[1, tokens]`, longer than the sliding window; None: the rows above are.
        padding: padding token.
    """

    ids: Tensor
    mask: Tensor
    long: Tensor | None
    padding: int

    @property
    def rows(self) -> list[int]:
        """Tokens of each row, padding not counted."""
        return [*self.mask.sum(1).tolist(), *([] if self.long is None else [self.long.shape[1]])]


@dataclass(frozen=True)
class Exported:
    """A chain on its way to the disk.

    Attributes:
        chain: the chain.
        view: the base model's view of it, which the checkpoint must equal.
        written: another view, with the configuration that is written.
        layers: name of their list of layers, for example `model.layers`.
    """

    chain: Chain
    view: PreTrainedModel
    written: PreTrainedModel
    layers: str


@torch.no_grad()
def check_checkpoint(exported: Exported, auto: Any, folder: Path) -> dict[str, Any]:
    """Load a checkpoint with stock transformers and compare it with the chain.

    Args:
        exported: the chain.
        auto: the library's class that loads the checkpoint, for example `AutoModelForCausalLM`.
        folder: the checkpoint.

    Returns:
        What was compared, for `chain.json`.

    Raises:
        InputError: where it does not load or run, or differs; names the first difference and the logits' largest one.
    """
    chain, view = exported.chain, exported.view
    attention = getattr(view.config.get_text_config(decoder=True), "_attn_implementation", None)
    batch = random_batch(view)
    try:
        loaded = auto.from_pretrained(
            folder, dtype=view.dtype, attn_implementation=attention, use_safetensors=True, local_files_only=True
        ).to(view.device)
        difference = next(_modules_that_differ(exported, loaded), None)
        if difference is not None:  # they compute something else, or not at all
            raise InputError(f"chain {chain}: expected a checkpoint with the layers of the chain, got {difference}")
        difference = next(_unequal_tensors(view.state_dict(), loaded.state_dict(), ""), None)
        if difference is None:
            _share_weights(view, loaded)
            difference = next(_settings_that_differ(exported, loaded), None)
        gap = largest_gap(view, loaded, batch)
    except InputError:
        raise
    except LIBRARY_ERRORS as error:
        raise InputError(
            f"chain {chain}: expected a chain that runs, also from a checkpoint, got {one_line(error)}"
        ) from error
    if difference is not None or gap != 0:
        reason = f" ({difference})" if difference is not None else ""
        raise InputError(
            f"chain {chain}: expected a checkpoint equal to the chain, got a largest difference of {gap:.3g} "
            f"between their logits{reason}"
        )
    return {
        "logits": "equal to the bit",
        "row_tokens": batch.rows,
        "generated_tokens": NEW_TOKENS,
        "device": view.device.type,
        "attention": attention,
    }


def _share_weights(view: PreTrainedModel, loaded: PreTrainedModel) -> None:
    """Let the checkpoint compute with the chain's own tensors, which are equal, and drop what was read.

    Kernels round the last bit by where a weight lies in memory, and by whether gradients of it are wanted. With both
    the same, any difference that is left is one of the layers or the configuration.
    """
    weights = dict(view.named_parameters(remove_duplicate=False))
    for name, parameter in loaded.named_parameters():
        parameter.requires_grad_(weights[name].requires_grad)
        parameter.data = weights[name].data


def random_batch(model: PreTrainedModel) -> Batch:
    """Return rows of random tokens, always the same for a model; none of its special tokens is among them."""
    text = model.config.get_text_config(decoder=True)
    values = text.to_dict()
    special = _special_tokens(model.config.to_dict()) | _special_tokens(values)
    usable = torch.tensor([token for token in range(text.vocab_size) if token not in special])
    room = values.get("max_position_embeddings") or LONGEST
    tokens = min(TOKENS, room - NEW_TOKENS)
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, count: int) -> Tensor:
        return usable[torch.randint(len(usable), (rows, count), generator=generator)].to(model.device)

    ids = draw(len(PADDING), tokens)
    mask = torch.ones_like(ids)
    padding = _padding_token(model)
    for row, count in enumerate(PADDING):
        mask[row, : min(count, tokens - 1)] = 0
    windows = [width for name in _WINDOWS if isinstance(width := values.get(name), int)]
    longest = min(max([0, *windows]) + NEW_TOKENS, LONGEST, room)
    return Batch(ids.masked_fill(mask == 0, padding), mask, draw(1, longest) if longest > tokens else None, padding)


def largest_gap(view: PreTrainedModel, loaded: PreTrainedModel, batch: Batch) -> float:
    """Return the largest difference between two models' logits, in the dtype's own unit; 0 only where all are equal.

    Compared are all tokens of the rows, the last tokens of the long row, and each step of a greedy generation.
    """
    gaps = [
        _gap(_logits(view, batch), _logits(loaded, batch)),
        _gap(_generated_logits(view, batch), _generated_logits(loaded, batch)),
    ]
    if batch.long is not None:
        gaps.append(_gap(_last_logits(view, batch.long), _last_logits(loaded, batch.long)))
    return float(torch.tensor(gaps).max())  # unlike Python's own, it keeps a nan


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits of all tokens that are no padding, `[tokens, vocabulary]`."""
    logits: Tensor = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return logits[batch.mask.bool()]


def _last_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits at a long row's last token, which a window keeps from the first ones."""
    logits: Tensor = model(input_ids=ids, use_cache=False, **_keep(model)).logits[:, -1]
    return logits


def _keep(model: PreTrainedModel) -> dict[str, int]:
    """Return the option that spares the logits of all tokens (a gigabyte in a large vocabulary), where there is one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}


def _generated_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the logits of each token that greedy decoding with a cache appends to a padded row.

    One row: of several, the library hands slices to the output embedding, which torch's CPU kernels copy for each.
    """
    out = model.generate(
        batch.ids[1:2],
        attention_mask=batch.mask[1:2],
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=batch.padding,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.cat(out.logits)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return 0.0 if torch.equal(ours, theirs) else float((ours.float() - theirs.float()).abs().max())


def _modules_that_differ(exported: Exported, loaded: PreTrainedModel) -> Iterator[str]:
    """Yield what is of another kind or shape: modules of the layers, and tensors of the whole model."""
    yield from _unequal(_kinds(exported.view, exported.layers), _kinds(loaded, exported.layers), exported.layers)
    yield from _unequal(_shapes(exported.view), _shapes(loaded), "")


def _kinds(model: PreTrainedModel, layers: str) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in _modules(model, layers).items()}


def _modules(model: PreTrainedModel, layers: str) -> dict[str, nn.Module]:
    return dict(model.get_submodule(layers).named_modules(remove_duplicate=False))


def _shapes(model: PreTrainedModel) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _settings_that_differ(exported: Exported, loaded: PreTrainedModel) -> Iterator[str]:
    """Yield what has another value: in the configuration, and in the layers plain attributes and unsaved buffers."""
    if (difference := changed_on_loading(exported.written.config, loaded.config)) is not None:
        yield difference
    others = _modules(loaded, exported.layers)
    for name, module in _modules(exported.view, exported.layers).items():
        other, place = others[name], f"{exported.layers}.{name}"
        yield from _unequal(_plain_values(module), _plain_values(other), place)
        yield from _unequal_tensors(dict(module.named_buffers(recurse=False)), dict(other.named_buffers()), f"{place}.")


def _plain_values(module: nn.Module) -> dict[str, Any]:
    """Return a module's own numbers, words and flags: how wide its window is, what it scales by."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in ("training", *PLACES) and isinstance(value, _PLAIN)
    }


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yield the entries of two mappings that differ, as words."""
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            name = ".".join(part for part in (place, key) if part)
            yield f"{name}: {ours.get(key, 'nothing')} in the chain, {theirs.get(key, 'nothing')} in the checkpoint"


def _unequal_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], place: str) -> Iterator[str]:
    for name, one in ours.items():
        other = theirs[name]
        if one.dtype != other.dtype:
            yield f"{place}{name}: {one.dtype} in the chain, {other.dtype} in the checkpoint"
        elif not torch.equal(one, other):
            yield f"{place}{name}: other values in the checkpoint"


def _special_tokens(values: Mapping[str, Any]) -> set[int]:
    """Return the tokens that a configuration names; those of images would stand for something that is not there."""
    found: set[int] = set()
    for name, value in values.items():
        if name.endswith(("_token_id", "_token_ids", "_token_index")):
            found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    return found


def _padding_token(model: PreTrainedModel) -> int:
    settings = model.generation_config
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    return next((token for token in (settings.pad_token_id, *ends) if token is not None and token >= 0), 0)
