"""Fingerprints: what a record, a feature cache or a router is valid for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from router.validation import STORED, InputError

VALUES_PER_TENSOR = 4096
"""Weights of each parameter that enter the fingerprint, evenly spaced: a fine-tuned copy differs, a giant is fast."""

_VOLATILE = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_internal",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "quantization_config",
}
_SWITCHES = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""What a caller may want to be returned: it changes no result, and counts as the library has it at first."""


@dataclass(frozen=True, config=STORED)
class Fingerprints:
    """What a record, a feature cache or a router is valid for; each is a SHA-256 in hex.

    Attributes:
        model: the base model's configuration and weights.
        tokenizer: the tokenizer's vocabulary, merges and chat template.
        prompt: the task's prompt, choices, scoring mode and their version.
    """

    model: str
    tokenizer: str
    prompt: str

    def require(self, expected: Fingerprints, what: str) -> None:
        """Check that `what` was made for the expected model, tokenizer and prompt.

        Raises:
            InputError: at the first that differs; the message names it and both values.
        """
        for name in (one.name for one in fields(self)):
            got, wanted = getattr(self, name), getattr(expected, name)
            if got != wanted:
                raise InputError(f"{what}: expected it to be made for the {name} {wanted[:12]}, got {got[:12]}")


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 of a model's configuration and weights, the same in float32 and bfloat16.

    Values are rounded to bfloat16 before hashing, and dtype, device, attention backend and place do not count.
    """
    digest = hashlib.sha256(json.dumps(_stable(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().reshape(-1)
        step = max(1, values.numel() // VALUES_PER_TENSOR)
        sampled = values[::step].to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _SWITCHES.get(key, _stable(item)) for key, item in value.items() if key not in _VOLATILE}
    return value


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what decides token ids: vocabulary, merges, added tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # Padding and truncation are switched per call and belong to no vocabulary.
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = tokenizer.get_vocab()
    value = [content, tokenizer.chat_template, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
