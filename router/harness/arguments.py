"""What `--model_args` may say of a routed model in lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from router.base_model import DTYPES
from router.command import InputError, parse_settings
from router.routed.settings import RoutedSettings

HARNESS = (
    "batch_size",
    "max_batch_size",
    "max_length",
    "truncation",
    "logits_cache",
    "softmax_dtype",
    "mixed_precision_dtype",
    "add_bos_token",
    "prefix_token_id",
    "think_end_token",
    "enable_thinking",
    "chat_template_args",
)
"""Arguments that go on to lm-eval's own class, where they mean what they mean for `--model hf`."""


@dataclass(frozen=True)
class ModelArguments(RoutedSettings):
    """What `--model_args` may say of a routed model.

    Attributes:
        batch_size: requests in one call of the model, or `auto` (lm-eval's --batch_size).
        max_batch_size: the most that `auto` tries.
        max_length: tokens in one row at most; unset: what the base model takes.
        truncation: whether prompts are cut to the tokenizer's own greatest length.
        logits_cache: whether requests that differ in their last token alone run once.
        softmax_dtype: dtype of the log-probabilities; unset: the model's.
        mixed_precision_dtype: dtype of autocast; unset: none.
        add_bos_token: whether texts begin with the tokenizer's first token; unset: as the tokenizer does.
        prefix_token_id: the token before a continuation without a context; unset: the tokenizer's first.
        think_end_token: text or id of the token after which an answer begins.
        enable_thinking: passed to the chat template.
        chat_template_args: further arguments of the chat template.
        trust_remote_code: lm-eval's flag for data sets; no code from the model's repositories runs.
    """

    batch_size: int | str = 1
    max_batch_size: int = 64
    max_length: int | None = None
    truncation: bool = False
    logits_cache: bool = True
    softmax_dtype: str | None = None
    mixed_precision_dtype: str | None = None
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    think_end_token: int | str | None = None
    enable_thinking: bool | None = None
    chat_template_args: dict[str, Any] | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Refuse what lm-eval would stumble over later."""
        super().__post_init__()
        counts = isinstance(self.batch_size, int) and self.batch_size >= 1
        if not (counts or str(self.batch_size).partition(":")[0] == "auto"):
            raise ValueError(f"batch_size: expected a number of at least 1, or auto, got {self.batch_size!r}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length: expected at least 2 tokens, got {self.max_length}")
        for name in ("softmax_dtype", "mixed_precision_dtype"):
            if getattr(self, name) not in (None, *DTYPES):
                raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {getattr(self, name)!r}")
        if self.enable_thinking and self.think_end_token is None:
            raise ValueError("think_end_token: expected a token with enable_thinking, got none")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> ModelArguments:
        """Read arguments as lm-eval's command line gives them.

        Raises:
            InputError: at an unknown argument, or a value that does not fit.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(f"model_args: expected some of {', '.join(known)}, got {name!r}")
        if not values.get("router"):
            raise InputError("router: expected a router's folder or hub id (--model_args router=DIR), got none")
        # Back to words: the parser of all other commands knows the types, and lm-eval has taken "7" for a number.
        words = [f"--{name}={_word(value)}" for name, value in values.items() if value is not None]
        return parse_settings(cls, words, "router lm-eval", "A routed model in lm-evaluation-harness.")[0]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def device_for(name: Any) -> str:
    """Return the device to load on: lm-eval's command line says cuda:0 where the user said nothing.

    Without CUDA that means whatever there is, as for lm-eval's own models.
    """
    if name is None or (str(name).startswith("cuda") and not torch.cuda.is_available()):
        return "auto"
    return str(name)
