"""Loading of the frozen base model, and texts as its token ids.

A model is named by a local directory, an offline asset or a hub id. A prompt's tokens come with what the tokenizer puts
before it; a continuation's are those that it adds to the prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import logging as transformers_logging

from router.assets.wheels import model_directory, read_catalogue
from router.command import one_line
from router.engine.decoder import find_decoder
from router.validation import SETTINGS, InputError

HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download", "subfolder", "gguf_file")
"""Options of `from_pretrained` that say where files come from: they count for the tokenizer too."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ModelSettings:
    """The base model of a command.

    Attributes:
        model: the base model: an offline asset, a local directory or a hub id; null: the one that the records or the
            router name.
        revision: its hub revision; null: the router's, where the base model is.
        dtype: its dtype; null: that of the records or the router which the command reads, else what the device
            multiplies fastest (`fast_dtype`).
        device: torch device; auto: CUDA where there is one, else CPU.
    """

    model: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # in full: a subclass may stand in another module
    device: str = "auto"

    @property
    def base(self) -> ModelSettings:
        """These settings alone, without the rest of a command's."""
        return ModelSettings(model=self.model, revision=self.revision, dtype=self.dtype, device=self.device)


DEFAULT_MODEL = "smollm2-135m-instruct"
"""The base model of commands that name none and have no records or router that do."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str, *, dtype: str | None = "float32", device: str = "auto", revision: str | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer in evaluation mode, with gradients off.

    Safetensors only, and no code from the model's repository runs, unless `options` say so.

    Args:
        name: a local directory, a model of router/assets/assets.json, or a hub id such as
            "HuggingFaceTB/SmolLM2-135M-Instruct". What begins with `.`, `/` or `~` is a directory; so is any other name
            where there is one, as in all of the library.
        dtype: one of `DTYPES`; None: `fast_dtype`.
        device: torch device, or "auto".
        revision: hub revision.
        options: passed on to `from_pretrained`, for example `attn_implementation` or `device_map`.

    Raises:
        InputError: where the model, the dtype or the device does not exist, or the name is both an offline asset's and
            a directory's.
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    device = resolve_device(device)
    dtype = dtype or fast_dtype(device)
    # Said outright: else the library asks on the terminal, and takes what is piped in for an answer.
    trusted = {"trust_remote_code": bool(options.get("trust_remote_code", False))}
    where = {option: options[option] for option in HUB_OPTIONS if option in options}
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # a log file keeps our own lines, not the library's bars
    with _reading(name, where) as source:
        config = options.get("config") or AutoConfig.from_pretrained(source, revision=revision, **where | trusted)
        model, report = auto_class(config).from_pretrained(
            source,
            dtype=DTYPES[dtype],
            revision=revision,
            **{"use_safetensors": True} | options | trusted | {"output_loading_info": True},
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"no weights for {len(missing)} of its parameters, such as {missing[0]}")
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, **where | trusted)
    if "device_map" not in options:
        model = model.to(device)
    return model.eval().requires_grad_(False), tokenizer


def auto_class(config: PreTrainedConfig) -> Any:
    """Return what loads a model: as an image-text model where the library has it as nothing else, as text elsewhere."""
    only_pictured = (
        type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return AutoModelForImageTextToText if only_pictured else AutoModelForCausalLM


def load_processor(name: str, *, revision: str | None = None, **options: Any) -> ProcessorMixin:
    """Load the processor that makes a model's inputs of pictures and text.

    Args:
        name: as in `load_model`.
        revision: hub revision.
        options: passed on to `from_pretrained`.

    Raises:
        InputError: where there is no such model, or it has none.
    """
    trusted = {"trust_remote_code": bool(options.get("trust_remote_code", False))}
    with _reading(name, options) as source:
        processor = AutoProcessor.from_pretrained(source, revision=revision, **options | trusted)
    if not isinstance(processor, ProcessorMixin) or getattr(processor, "image_processor", None) is None:
        raise InputError(f"model: expected one with a processor for pictures, got {name!r}, which has none")
    return processor


@dataclass(frozen=True)
class Outline:
    """What a model's configuration says of it.

    Attributes:
        num_layers: its layers.
        layer_parameters: parameters of all its layers together; embeddings do not count.
        dtype: the dtype that it is stored in, one of `DTYPES`; float32 where it names none of them.
    """

    num_layers: int
    layer_parameters: int
    dtype: str


def outline_of(name: str, revision: str | None = None) -> Outline:
    """Return what a model's configuration alone says of it; no weights are read.

    Args:
        name: as in `load_model`.
        revision: hub revision.

    Raises:
        InputError: where there is no such model.
    """
    with _reading(name) as source, torch.device("meta"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        model = auto_class(config).from_config(config, trust_remote_code=False)
        decoder = find_decoder(model)
    parameters = sum(part.numel() for layer in decoder.layers for part in layer.parameters())
    found = config.dtype or getattr(config.get_text_config(decoder=True), "dtype", None)
    dtype = next((word for word, dtype in DTYPES.items() if dtype == found), "float32")
    return Outline(decoder.num_layers, parameters, dtype)


def has_chat_template(name: str, revision: str | None = None) -> bool:
    """Return whether a model's tokenizer has a chat template; no weights are read. Arguments as `outline_of`.

    Raises:
        InputError: where there is no such tokenizer.
    """
    with _reading(name) as source:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    return tokenizer.chat_template is not None


@contextmanager
def _reading(name: str, where: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Give what the library loads a model from, and turn what it raises then into one line; `where`: of HUB_OPTIONS."""
    source = _source(name, where or {})
    try:
        yield source
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # at damaged files the library raises what comes, its own errors and bare ones too
        said = one_line(error)
        if not isinstance(error, (OSError, ValueError)):
            said = f"{type(error).__name__}: {said}"
        raise InputError(f"model: expected a local directory or a hub id that loads, got {name!r} ({said})") from error


def _source(name: str, where: Mapping[str, Any]) -> str:
    """Return what the library loads a model from: the path of a directory or an asset, or the hub id as it is."""
    _, assets = read_catalogue()
    try:
        path = Path(name).expanduser()
        here = Path(name).exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, or the home of nobody
        raise InputError(f"model: expected a local directory or a hub id, got {name!r} ({one_line(error)})") from error
    if name in assets:
        if here:
            raise InputError(
                f"model: expected ./{name} for the directory here, or another folder for the asset, got both"
            )
        return str(model_directory(name))
    if not (here or name.startswith((".", "/", "~"))):
        return name
    file = Path(where.get("subfolder") or "", where.get("gguf_file") or "config.json")
    if not (path / file).is_file():
        raise InputError(f"model: expected a directory with {file}, got {name!r}")
    return str(path)


def resolve_device(name: str) -> str:
    """Return a torch device for "auto" (CUDA where there is one, else CPU) or the given name.

    Raises:
        InputError: where the device does not exist here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        holds = not torch.empty(0, device=name).is_meta
    except (RuntimeError, AssertionError, ImportError):
        holds = False
    if not holds:
        raise InputError(f"device: expected auto, cpu or a device of this machine, got {name!r}")
    return name


def fast_dtype(device: str) -> str:
    """Return bfloat16 where a device has instructions for it, else float32, in which the same product is faster there.

    A processor without them (x86 before AVX-512 BF16 or AMX, as most laptops' are) takes three to four times as long in
    bfloat16. Whatever is neither CPU nor CUDA is taken to have them.
    """
    if device.startswith("cpu"):
        can = torch.cpu.get_capabilities()
        has = any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's
    else:
        has = not device.startswith("cuda") or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has else "float32"


def context_of(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has; None where it does not say."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def padding_token(padding: int | None, ends: Sequence[int] | int | None) -> int:
    """Return the token that fills rows up: the padding, else the first end of sequence, else 0.

    What it fills is masked or follows a row's end, so any token will do; a negative one is none.

    Args:
        padding: the padding token that the settings or the tokenizer name.
        ends: the tokens that end a sequence.
    """
    ends = [ends] if isinstance(ends, int) else ends or []
    return next((int(token) for token in (padding, *ends) if token is not None and token >= 0), 0)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> tuple[int, ...]:
    """Return a text's tokens with what the tokenizer puts before it (BOS), but not what it puts after it (EOS).

    Args:
        tokenizer: the tokenizer.
        text: the text.
        special: whether anything is put before it; a chat template writes its special tokens itself.
    """
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not special:
        return tuple(plain)
    whole = tokenizer(text)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[: start + len(plain)])
    return tuple(whole)


def tokens_after(
    tokenizer: PreTrainedTokenizerBase, prompt: tuple[int, ...], joined: tuple[int, ...], added: str
) -> tuple[int, ...]:
    """Return the tokens of a continuation.

    They are those that it adds to the prompt; where the tokenizer would merge across the border, it is tokenised alone,
    so that all continuations follow the same prompt tokens.

    Args:
        tokenizer: the tokenizer.
        prompt: the prompt's tokens.
        joined: the tokens of prompt and continuation as one text.
        added: the continuation.
    """
    if joined[: len(prompt)] == prompt and len(joined) > len(prompt):
        return joined[len(prompt) :]
    return tuple(tokenizer(added, add_special_tokens=False)["input_ids"])


def chat_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    """Return the tokens of a chat that the model is to answer; the template writes its special tokens itself.

    Raises:
        jinja2.TemplateError, TypeError, ValueError: where the chat template refuses the messages, or there is none.
    """
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
    )
    return prompt_tokens(tokenizer, str(text), special=False)


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device, padding: int = 0
) -> tuple[Int[Tensor, "prompts tokens"], Int[Tensor, "prompts tokens"]]:
    """Return prompts as one batch, padded on the left as generation needs them, and the mask of real tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
