"""The prompts of a command, and their batches of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from router.base_model import context_of
from router.command import InputError
from router.durable import read_json_lines
from router.routed import RoutedModel
from router.routed.settings import RoutedSettings
from router.tokens import chat_tokens, left_padded, prompt_tokens


@dataclass(frozen=True)
class PromptSettings(RoutedSettings):
    """A routed model and prompts for it.

    Attributes:
        prompt: the prompt.
        prompts: file of prompts in its place: `.jsonl` with a "prompt" in each object, else one a line.
        chat: whether a prompt is a user's message, put into the tokenizer's chat template.
        batch_size: prompts run together.
        json: whether the result is printed as JSON Lines.
    """

    prompt: str | None = None
    prompts: Path | None = None
    chat: bool = False
    batch_size: int = 8
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other or are out of their bounds."""
        super().__post_init__()
        if (self.prompt is None) == (self.prompts is None):
            got = "none" if self.prompt is None else "both"
            raise ValueError(f"prompt: expected one of prompt and prompts, got {got}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")


def read_prompts(settings: PromptSettings) -> list[str]:
    """Return the prompts.

    Raises:
        InputError: where the file is missing, or a line is no prompt.
    """
    if settings.prompts is None:
        return [settings.prompt or ""]
    path = settings.prompts
    if not path.is_file():
        raise InputError(f"prompts: expected an existing file, got {str(path)!r}")
    if path.suffix != ".jsonl":
        try:
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise InputError(f"prompts: expected text in UTF-8 in {path}, got {error.reason}") from error
    else:
        found = []
        for number, value in read_json_lines(path):
            if not isinstance(value.get("prompt"), str):
                raise InputError(f"prompts: expected a text as prompt in {path}:{number}, got {value.get('prompt')!r}")
            found.append(value["prompt"])
    if not found:
        raise InputError(f"prompts: expected at least one in {path}, got none")
    return found


def encode_prompts(
    routed: RoutedModel, prompts: Sequence[str], settings: PromptSettings, reserve: int = 0
) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Give prompts in batches: their texts, token ids padded on the left, and masks.

    Args:
        routed: the routed model.
        prompts: the prompts.
        settings: batch size, and whether there is a chat template.
        reserve: tokens that are to follow each prompt.

    Raises:
        InputError: at a prompt without tokens, one that is too long, or a tokenizer without a chat template.
    """
    tokenizer = routed.tokenizer
    assert tokenizer is not None
    rows = [_tokens(tokenizer, prompt, settings.chat) for prompt in prompts]
    context = context_of(routed)
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise InputError(f"prompt: expected at least one token, got {prompt!r}")
        if context is not None and len(row) + reserve > context:
            raise InputError(
                f"prompt: expected at most {context - reserve} tokens ({context} positions, {reserve} of them for the "
                f"answer), got {len(row)}"
            )
    for start in range(0, len(prompts), settings.batch_size):
        part = rows[start : start + settings.batch_size]
        yield list(prompts[start : start + settings.batch_size]), *left_padded(part, routed.device)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> tuple[int, ...]:
    if not chat:
        return prompt_tokens(tokenizer, prompt)
    if tokenizer.chat_template is None:
        raise InputError("chat: expected a tokenizer with a chat template, got one without")
    return chat_tokens(tokenizer, [{"role": "user", "content": prompt}])
