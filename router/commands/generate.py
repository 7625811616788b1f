"""Generate text for prompts, each under the chain that the router picks for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import set_seed

from router.command import InputError, first_word, parse_settings
from router.commands.prompts import PromptSettings, encode_prompts, read_prompts
from router.commands.route import as_json
from router.head import ScoredChain
from router.routed import RoutedModel
from router.routed.grouping import by_chain
from router.routed.settings import load_routed


@dataclass(frozen=True)
class GenerateSettings(PromptSettings):
    """Settings of `python -m router generate`.

    Attributes:
        max_new_tokens: tokens generated for each prompt at most.
        temperature: of sampling; 0: the most probable token each time.
        top_p: share of probability that sampling draws from.
        seed: seed of sampling.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of their bounds."""
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")


def main(argv: Sequence[str]) -> None:
    """Generate, and print each text as soon as its batch is done; what chain it took goes to stderr.

    Raises:
        InputError: at bad input.
    """
    description = "Generate text, each prompt under the chain of layers that the router picks for it."
    settings, _ = parse_settings(GenerateSettings, first_word(argv, "router"), "router generate", description)
    prompts = read_prompts(settings)
    routed = load_routed(settings)
    set_seed(settings.seed)
    for texts, ids, mask in encode_prompts(routed, prompts, settings, settings.max_new_tokens):
        for text, (answer, one) in zip(texts, _answers(routed, ids, mask, settings), strict=True):
            if settings.json:
                print(as_json(text, one, text=answer), flush=True)
            else:
                print(f"[{one.chain.depth} of {one.chain.num_layers} layers: {one.chain}]", file=sys.stderr)
                print(answer, flush=True)


def _answers(
    routed: RoutedModel, ids: torch.Tensor, mask: torch.Tensor, settings: GenerateSettings
) -> list[tuple[str, ScoredChain]]:
    """Return the text that follows each prompt of a batch, and its chain."""
    assert routed.tokenizer is not None
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        options |= {"temperature": settings.temperature, "top_p": settings.top_p}
    if routed.generation_config.pad_token_id is None:
        options["pad_token_id"] = _padding(routed)
    reading = routed.read(ids, mask)
    chosen = routed.decide(reading)
    texts = [""] * len(chosen)
    for chain, rows in by_chain([one.chain for one in chosen]).items():
        out = routed.generate_as(chain, reading.select(rows), **options)
        for row, tokens in zip(rows, out[:, ids.shape[1] :], strict=True):
            texts[row] = str(routed.tokenizer.decode(tokens, skip_special_tokens=True))
    return list(zip(texts, chosen, strict=True))


def _padding(routed: RoutedModel) -> int:
    """Return a token that fills rows up which ended early; the library warns where none is given."""
    ends = routed.generation_config.eos_token_id
    found = ends[0] if isinstance(ends, list) else ends
    if found is None and routed.tokenizer is not None:
        found = routed.tokenizer.pad_token_id
    if found is None:
        raise InputError("model: expected a padding or an end-of-sequence token, got none")
    return int(found)
