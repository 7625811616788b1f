"""The chain view: a new, shallow model that runs a chain of another model's layers.

The original is never changed: the view has copies of all its modules, and shares every parameter with it. Every
position of the chain has its own layer object with its own cache slot, so `generate`, sampling, streaming and key/value
caches are the library's own and right for skipped, repeated and reordered layers.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.copies import make_view, unrouted
from router.engine.trial import require_chains


def chain_view(model: PreTrainedModel, chain: Chain) -> PreTrainedModel:
    """Return a model that runs `chain` and shares every parameter with `model`.

    The view's class is a subclass of the original's with its name, so all of `transformers` works on it. Each call
    makes a view of its own, of what the model is now; before the first edited chain the model is tried
    (`router.engine.trial`).

    Args:
        model: a decoder-only model (or one with a text decoder inside).
        chain: a chain over the model's layers.

    Raises:
        ValueError: where the chain is for another number of layers, the layers are not found, a hybrid model would be
            left without any attention layer, or the model cannot run edited chains.
    """
    model = unrouted(model)
    if chain != Chain.full(chain.num_layers):
        require_chains(model)
    return make_view(model, chain)
