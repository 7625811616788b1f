"""The chain view over the text decoder of an image-text model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.decoder import find_decoder
from router.engine.view import chain_view
from tests.pictures import pictured_prompts
from tests.tiny import NUM_LAYERS, tiny_model

FULL = Chain.full(NUM_LAYERS)
Pictured = tuple[PreTrainedModel, dict[str, Any]]
"""A model, and a prompt for it with a picture."""


@pytest.fixture(params=["llava", "gemma3_vision"])
def pictured(request: pytest.FixtureRequest) -> Pictured:
    model = tiny_model(request.param)
    return model, pictured_prompts(model, request.param, (1,))


def test_the_full_chain_is_the_stock_model_and_the_image_counts(pictured: Pictured) -> None:
    # Oracle: the stock model; another image gives other logits, in both.
    model, given = pictured
    view = chain_view(model, FULL)
    assert torch.equal(view(**given).logits, model(**given).logits)
    other = given | {"pixel_values": -given["pixel_values"]}
    assert not torch.equal(view(**other).logits, view(**given).logits)
    assert torch.equal(view(**other).logits, model(**other).logits)


@pytest.mark.parametrize("chain", [FULL.skip(0, 1), FULL.skip(2, 2), FULL.repeat(1, 2, 1), FULL.move(0, 1, 3)], ids=str)
def test_chains_of_the_text_decoder_generate_the_same_with_and_without_a_cache(
    pictured: Pictured, chain: Chain
) -> None:
    # Oracle: the same view without a cache; the vision tower and the original are left alone.
    model, given = pictured
    layers = model.config.vision_config.num_hidden_layers
    view = chain_view(model, chain)
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    cached = view.generate(**given, **options)
    assert torch.equal(cached, view.generate(**given, use_cache=False, **options))
    assert view.config.text_config.num_hidden_layers == chain.depth
    assert model.config.text_config.num_hidden_layers == NUM_LAYERS
    assert view.config.vision_config.num_hidden_layers == layers


def test_a_chain_as_deep_as_the_vision_tower_is_found_in_the_text_decoder() -> None:
    # Oracle: the same chain without a cache; Llama4's two vision layers are as many as the chain's.
    model, ids = tiny_model("llama4"), torch.tensor([[1, 5, 7, 8, 9, 10]])
    try:
        model(input_ids=ids)
    except AttributeError as error:  # transformers 5.24.0: its outputs lack what its own forward reads
        with pytest.raises(
            ValueError, match="Llama4ForConditionalGeneration: expected a model whose layers run in any"
        ):
            chain_view(model, Chain((0, 3), NUM_LAYERS))
        pytest.skip(f"the stock model fails in this release, and is refused: {error}")
    view = chain_view(model, Chain((0, 3), NUM_LAYERS))
    assert find_decoder(view).path[0] == "language_model"
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    assert torch.equal(view.generate(ids, **options), view.generate(ids, use_cache=False, **options))
