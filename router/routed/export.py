"""One chain for good: written as a standard checkpoint, which stock transformers loads without this package.

    export_chain(model, tokenizer, Chain.parse("0-24,28-29", 30), Path("runs/short"))
    AutoModelForCausalLM.from_pretrained("runs/short")

Repeated layers become layers of their own, so the checkpoint has as many layers as the chain is deep, and everything
that takes the base model takes it: inference servers, converters, quantisers. It is checked before it gets its name
(`router.routed.export`); what a family's configuration cannot say is refused (`router.engine.layer_config`).
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from router.assets.wheels import TOKENIZER_PLACES, forget_quantisation
from router.chain import Chain
from router.command import one_line
from router.engine.copies import PLACES
from router.engine.decoder import find_decoder
from router.engine.layer_config import chain_config, changed_on_loading
from router.engine.load import DTYPES, context_of, padding_token
from router.engine.view import chain_view
from router.files import fsync, read_json, settle, writable_directory, write_json, write_text
from router.fingerprint import model_fingerprint
from router.routed import RoutedModel
from router.routed.card import place_of, plain_text
from router.routed.pretrained import quantisation_of
from router.strip import MEANING, draw_lines
from router.validation import InputError

CHAIN_FILE, CARD_FILE, TEMPLATE = "chain.json", "README.md", Path(__file__).with_name("export.md")
SCHEMA = 1
"""Version of `chain.json`."""
TOKENS, PADDING, NEW_TOKENS = 64, 19, 8
"""Tokens of a row, how many of them are padding on the left in the padded one, and tokens generated after that."""
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
_OF_THE_PLACE = ("training", "num_hidden_layers", "layer_number", *PLACES)
"""Attributes of layers that a checkpoint has of its own depth and places."""


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


def export_chain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None,
    chain: Chain,
    folder: Path,
    *,
    base_model: str | None = None,
    revision: str | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a chain as a checkpoint of its own, in the model's dtype, and check that it is the chain to the bit.

    The checkpoint is written and checked beside `folder` and then renamed, so it is complete or absent. The disk needs
    room for it, the memory for the model, its repeated layers once more, and then the checkpoint that is checked.

    Args:
        model: the base model, or a routed one, in evaluation mode, its weights whole on one device.
        tokenizer: goes along, with its chat template; a processor does as well; None: nothing does.
        chain: any chain over the model's layers.
        folder: where the checkpoint goes; absent or empty.
        base_model: name of the base model for the model card; None: what it was loaded from.
        revision: its hub revision.
        max_shard_size: size of a file of weights at most, as `save_pretrained` takes it.

    Returns:
        The folder.

    Raises:
        InputError: where the folder holds something, the model is quantised, split or no stock model, the family
            cannot say the chain in its configuration, or the checkpoint differs from the chain. Nothing is left then.
    """
    folder = free_folder(folder)
    auto, kind = _stock_classes(model)
    check_weights(model)
    exported = _exported(model, chain, kind)
    with _aside(folder) as aside:
        try:
            weights = _separate_weights(exported)
            # The class's own: a view with repeats refuses, for without `weights` it could not be written.
            kind.save_pretrained(exported.written, aside, state_dict=weights, max_shard_size=max_shard_size)
            del weights
            if tokenizer is not None:
                _save_tokenizer(tokenizer, aside)
        except LIBRARY_ERRORS as error:
            raise InputError(f"chain {chain}: expected a model that can be saved, got {one_line(error)}") from error
        verified = check_checkpoint(exported, auto, aside)
        about = describe_export(
            chain,
            exported.written,
            base_model=base_model or model.name_or_path or None,
            revision=revision,
            fingerprint=model_fingerprint(model),
            verified=verified,
        )
        card = export_card(chain, about, auto.__name__, has_tokenizer=tokenizer is not None)
        write_json(aside / CHAIN_FILE, about)
        write_text(aside / CARD_FILE, card)
    return folder


def free_folder(folder: Path) -> Path:
    """Return the folder, which must be absent or empty, in a directory that can be written.

    Raises:
        InputError: where it is not.
    """
    folder = Path(os.path.abspath(folder.expanduser()))  # not resolved: what the folder's name stands for stays
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InputError(f"out: expected a folder that is absent or empty, got {str(folder)!r}")
    writable_directory(folder.parent, "out")
    return folder


def _stock_classes(model: PreTrainedModel) -> tuple[Any, type[PreTrainedModel]]:
    """Return the library's class whose `from_pretrained` loads a model, and the model's own class there.

    Raises:
        InputError: where it has no such model, or this one runs code of its own.
    """
    for auto, mapping in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        kind = mapping.get(type(model.config), None)
        if kind is not None and (type(model) is kind or (isinstance(model, RoutedModel) and isinstance(model, kind))):
            return auto, kind
    raise InputError(
        "model: expected a class that transformers' AutoModelForCausalLM or AutoModelForImageTextToText loads, "
        f"got {type(model).__name__}"
    )


def check_weights(model: PreTrainedModel) -> None:
    """Refuse weights that cannot be written as they are.

    Raises:
        InputError: where they are quantised, adapters, on several devices, not loaded, or the model is in training.
    """
    method = quantisation_of(model)
    if method not in (None, "gguf"):
        raise InputError(f"model: expected weights that are not quantised, got quantisation by {method}")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("model: expected adapters merged into the weights, got a model with adapters beside them")
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise InputError(f"model: expected all weights on one device, got {', '.join(devices)}")
    if model.dtype not in DTYPES.values():
        raise InputError(f"model: expected weights in {', '.join(DTYPES)}, got {model.dtype}")
    if model.training:
        raise InputError("model: expected it in evaluation mode, got training mode; call model.eval()")


def _exported(model: PreTrainedModel, chain: Chain, kind: type[PreTrainedModel]) -> Exported:
    """Return views of the chain, of the library's class even where the model is a routed one.

    Raises:
        InputError: where `chain_view` or `chain_config` refuses the chain.
    """
    try:
        decoder = find_decoder(model)
        view, written = (chain_view(model, chain) for _ in range(2))
    except ValueError as error:
        raise InputError(str(error)) from error
    for one in (view, written):
        one.__class__ = kind
    written.config = chain_config(model.config, chain)
    forget_quantisation(written)
    forget_quantisation(written.config)
    return Exported(chain, view, written, ".".join([*decoder.path, decoder.name]))


def _separate_weights(exported: Exported) -> dict[str, Tensor]:
    """Return the weights by name; a layer that runs again gets a copy, in main memory, for files know no aliases."""
    layers = exported.chain.layers
    again = tuple(f"{exported.layers}.{i}." for i, layer in enumerate(layers) if layer in layers[:i])
    weights: dict[str, Tensor] = exported.written.state_dict()
    for name in weights if again else ():
        if name.startswith(again):
            weights[name] = weights[name].to("cpu", copy=True)
    return weights


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, folder: Path) -> None:
    """Write a tokenizer without what it remembers of the place that it was loaded from."""
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*_config.json"):
        content = read_json(path)
        kept = {name: value for name, value in content.items() if name not in TOKENIZER_PLACES}
        if kept != content:
            write_json(path, kept)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder`; on success flush it to the disk and give it the name, else remove it."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        yield aside
        settle(aside)
        aside.rename(folder)  # refused by the system where something has come into the folder since
        fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@torch.no_grad()
def check_checkpoint(exported: Exported, auto: Any, folder: Path) -> dict[str, Any]:
    """Load a checkpoint with stock transformers and compare it with the chain, to the bit.

    All weights are compared, the settings of every layer, the logits of three fixed rows (a plain one, a padded one and
    one longer than the sliding window), and a generation with its cache, on the model's device, in its dtype and
    attention. There is no tolerance: once all weights are found equal, the checkpoint runs on the very same tensors
    (`_share_weights`).

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
    try:
        rows = fixed_rows(view)
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
        gap = largest_gap(view, loaded, rows)
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
        "row_tokens": [int(row["attention_mask"].sum()) for row in rows],
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


def fixed_rows(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Return what the chain and the checkpoint both read, as arguments of the model, each one row.

    The first row is plain, the second is padded on the left. Where the model has a sliding window, a third is longer
    than it. Tokens are spread over the vocabulary; none that the configuration names is among them, for those of images
    would stand for something that is not there.
    """
    text = model.config.get_text_config(decoder=True)
    values = text.to_dict()
    named = _token_ids(model.config.to_dict()) | _token_ids(values)
    padding_id = padding_token(model.generation_config.pad_token_id, model.generation_config.eos_token_id)
    usable = [token for token in range(text.vocab_size) if token not in named]
    room = context_of(model) or LONGEST
    short = min(TOKENS, room - NEW_TOKENS)
    windows = [width for name in _WINDOWS if isinstance(width := values.get(name), int)]
    long = min(max([0, *windows]) + NEW_TOKENS, LONGEST, room)

    def row(count: int, padding: int = 0) -> dict[str, Tensor]:
        # Steps of the golden section reach all parts of the vocabulary early, and repeat nothing.
        ids = torch.tensor(
            [[usable[int(0.618034 * len(usable) * place) % len(usable)] for place in range(1, count + 1)]]
        )
        mask = torch.ones_like(ids)
        mask[:, :padding] = 0
        ids[:, :padding] = padding_id
        return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}

    return [row(short), row(short, min(PADDING, short - 1)), *([row(long)] if long > short else [])]


def _token_ids(values: Mapping[str, Any]) -> set[int]:
    """Return the tokens that a configuration names."""
    found: set[int] = set()
    for name, value in values.items():
        if name.endswith(("_token_id", "_token_ids", "_token_index")):
            found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    return found


def largest_gap(view: PreTrainedModel, loaded: PreTrainedModel, rows: Sequence[dict[str, Tensor]]) -> float:
    """Return the largest difference between two models' logits, in the dtype's own unit; 0 only where all are equal."""
    pairs = zip(_logits(view, rows), _logits(loaded, rows), strict=True)
    gaps = [
        0.0 if torch.equal(one, other) else float((one.float() - other.float()).abs().max()) for one, other in pairs
    ]
    return float(torch.tensor(gaps).max())  # unlike Python's own, it keeps a nan


def _logits(model: PreTrainedModel, rows: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Return the logits of all tokens of the first two rows, of the third's last, and of a greedy generation.

    The last token of a long row is one from which a window keeps the first ones. Where the model can, the other tokens
    are spared (a gigabyte in a large vocabulary). The generation goes on from the padded row, with a cache.
    """
    plain, padded, *longer = rows
    found = [model(**row, use_cache=False).logits[row["attention_mask"].bool()] for row in (plain, padded)]
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    found += [model(**row, use_cache=False, **keep).logits[:, -1] for row in longer]
    out = model.generate(
        **padded,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=padding_token(model.generation_config.pad_token_id, model.generation_config.eos_token_id),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return [*found, torch.cat(out.logits)]


def _modules_that_differ(exported: Exported, loaded: PreTrainedModel) -> Iterator[str]:
    """Yield what is of another kind or shape: modules of the layers, and tensors of the whole model."""
    kinds, shapes = [], []
    for model in (exported.view, loaded):
        modules = _modules(model, exported.layers)
        kinds.append({name: type(module).__name__ for name, module in modules.items()})
        shapes.append({name: list(tensor.shape) for name, tensor in model.state_dict().items()})
    yield from _unequal(kinds[0], kinds[1], exported.layers)
    yield from _unequal(shapes[0], shapes[1], "")


def _modules(model: PreTrainedModel, layers: str) -> dict[str, nn.Module]:
    return dict(model.get_submodule(layers).named_modules(remove_duplicate=False))


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
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in own.items() if name not in _OF_THE_PLACE and isinstance(value, _PLAIN)}


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


def describe_export(
    chain: Chain,
    written: PreTrainedModel,
    *,
    base_model: str | None,
    revision: str | None,
    fingerprint: str,
    verified: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of `chain.json`; of a base model's local folder the last part alone goes in."""
    on_hub = base_model is not None and place_of(base_model) == "hub"
    kinds = getattr(written.config.get_text_config(decoder=True), "layer_types", None)
    return {
        "schema": SCHEMA,
        "note": "A plain checkpoint: the layers of one chain of the base model, each written out. It needs no router.",
        "chain": str(chain),
        "layers": chain.to_json(),
        "depth": chain.depth,
        "base_model": {
            "name": base_model if base_model is None or on_hub else Path(base_model).name,
            "on_hub": on_hub,
            "revision": revision,
            "num_layers": chain.num_layers,
            "fingerprint": fingerprint,
        },
        "layer_types": list(kinds) if kinds and len(set(kinds)) > 1 else None,
        "dtype": str(written.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "verified": verified,
    }


def export_card(chain: Chain, about: Mapping[str, Any], loader: str, *, has_tokenizer: bool) -> str:
    """Return the model card, Markdown with front matter, made of the template `export.md` and what `chain.json` holds.

    Args:
        chain: the chain.
        about: the content of `chain.json`.
        loader: the library's class that loads the checkpoint.
        has_tokenizer: whether a tokenizer lies beside it.
    """
    base = about["base_model"]
    data = ModelCardData(library_name="transformers", tags=["layer-skipping"])
    if base["on_hub"]:
        data["base_model"] = base["name"]
        # Layers of one model put together anew, nothing trained; without this the hub would say "finetuned".
        data["base_model_relation"] = "merge"
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        chain=chain,
        name="A model" if base["name"] is None else plain_text(base["name"]),
        drawing=[*draw_lines(chain), "", MEANING],
        about=about,
        loader=loader,
        imports=sorted([loader, *(["AutoTokenizer"] if has_tokenizer else [])]),
        has_tokenizer=has_tokenizer,
    )
    return f"{card}\n"
