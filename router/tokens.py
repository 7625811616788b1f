"""Texts as token ids: a prompt with what the tokenizer puts before it, and what a continuation adds to it."""

from __future__ import annotations

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
