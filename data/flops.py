"""Floating-point operations of a model's forward pass, counted by the library on the model itself."""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.decoder import find_decoder
from router.validation import STORED

LENGTHS = (16, 32)
"""Tokens of the two passes that are counted."""


@dataclass(frozen=True, config=STORED)
class ForwardFlops:
    """What a forward pass of one row costs.

    Attributes:
        layers: for each layer the operations a token, and those a squared token (attention, which counts masked pairs).
        head: operations of the output embedding for one token.
    """

    layers: tuple[tuple[float, float], ...]
    head: float

    def of(self, chain: Chain, tokens: int) -> float:
        """Return the operations of a chain over so many tokens, and of the head for one of them."""
        runs = (self.layers[layer] for layer in chain.layers)
        return sum(linear * tokens + square * tokens**2 for linear, square in runs) + self.head


@torch.inference_mode()
def count_forward(model: PreTrainedModel) -> ForwardFlops:
    """Count matrix products (a multiply-add is two operations) in two passes of different length.

    Raises:
        ValueError: where the layers are not found, or operations of a layer are not counted.
    """
    decoder = find_decoder(model)
    names = [".".join([*decoder.path, decoder.name, str(i)]) for i in range(decoder.num_layers)]
    (short, head), (long, _) = (_counted(model, names, tokens) for tokens in LENGTHS)
    layers = []
    for name, first, second in zip(names, short, long, strict=True):
        # cost = linear * tokens + square * tokens^2, through both counts
        square = (second / LENGTHS[1] - first / LENGTHS[0]) / (LENGTHS[1] - LENGTHS[0])
        linear = first / LENGTHS[0] - square * LENGTHS[0]
        if linear <= 0:
            raise ValueError(f"model: expected operations that can be counted in {name}, got none")
        layers.append((linear, square))
    return ForwardFlops(tuple(layers), head)


def _counted(model: PreTrainedModel, names: list[str], tokens: int) -> tuple[list[float], float]:
    """Return the operations of each layer, and of the output embedding (and what else there is) for one token."""
    device = model.get_input_embeddings().weight.device
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    # Only the plain kernel's products are known to the counter on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = [float(sum(counts[f"{root}.{name}"].values())) for name in names]
    return layers, (float(sum(counts["Global"].values())) - sum(layers)) / tokens
