"""Full depth's own text, drafted by the router's chain: speculative decoding with the model as its own draft."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.view import chain_view


@dataclass(frozen=True)
class Lossless:
    """Full depth's greedy text, and what drafting it by a chain was worth.

    Attributes:
        sequences: token ids, the prompt included, `[1, tokens]`.
        chain: the chain that drafted.
        new_tokens: tokens generated.
        drafted: tokens that the chain proposed.
        passes: passes of full depth, each of which checks the tokens drafted before it.
        seconds: what it took, the reading of the prompt included.
    """

    sequences: Int[Tensor, "1 tokens"]
    chain: Chain
    new_tokens: int
    drafted: int
    passes: int
    seconds: float

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that full depth would have chosen too; each pass adds one of its own."""
        return max(0, self.new_tokens - self.passes) / self.drafted if self.drafted else 0.0

    @property
    def speed(self) -> float:
        """Layers that full depth alone would have run one after the other, by those that ran; above 1 it pays.

        A check of several tokens counts as one pass, as it does where weights are what takes time to read.
        """
        layers = self.chain.num_layers
        return self.new_tokens * layers / (self.drafted * self.chain.depth + self.passes * layers)

    @property
    def pays(self) -> bool:
        """Whether it was worth it, by `speed`."""
        return self.speed > 1

    def __str__(self) -> str:
        told = "it pays" if self.pays else "it does not pay: generate at full depth, or without lossless"
        return (
            f"{self.new_tokens} tokens in {self.seconds:.2f} s; {self.drafted} drafted by {self.chain}, "
            f"{self.acceptance:.2f} of them accepted, {self.passes} passes of full depth; "
            f"{self.speed:.2f} of full depth's speed by layers: {told}"
        )


def generate_lossless(model: PreTrainedModel, chain: Chain, ids: Int[Tensor, "1 tokens"], **options: Any) -> Lossless:
    """Generate what full depth alone would, the likeliest token each time, by the library's assisted generation.

    Args:
        model: the base model.
        chain: the chain that drafts; the full one drafts nothing.
        ids: one prompt.
        options: what the library's `generate` takes besides.
    """
    full, draft = (chain_view(model, one) for one in (Chain.full(chain.num_layers), chain))
    draft.generation_config = copy.deepcopy(draft.generation_config)  # the library writes down how it drafts
    assistant, began = {} if chain.is_full else {"assistant_model": draft}, time.perf_counter()
    with counted(full) as passes, counted(draft) as drafted, torch.no_grad():
        out = full.generate(input_ids=ids, **options, **assistant)
    return Lossless(out, chain, out.shape[1] - ids.shape[1], len(drafted), len(passes), time.perf_counter() - began)


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[None]]:
    """Give a list that grows by one with each forward pass of a model."""
    calls: list[None] = []
    handle = model.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()
