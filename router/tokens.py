"""Texts as token ids: a prompt with what the tokenizer puts before it, and what a continuation adds to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


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
