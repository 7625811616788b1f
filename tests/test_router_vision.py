"""The chain view over the text decoder of an image-text model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)

from router.chain import Chain
from router.engine.decoder import find_decoder
from router.engine.view import chain_view
from tests.tiny import FAMILIES, NUM_LAYERS, tiny_model

IMAGE_TOKEN = 299
FULL = Chain.full(NUM_LAYERS)
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}
MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llava": lambda: LlavaConfig(
        text_config=FAMILIES["llama"].config(),
        vision_config=CLIPVisionConfig(**_VISION, patch_size=8, projection_dim=16),
        image_token_index=IMAGE_TOKEN,
    ),
    "gemma3": lambda: Gemma3Config(
        text_config=FAMILIES["gemma3"].config(),
        vision_config=SiglipVisionConfig(**_VISION, patch_size=4),
        mm_tokens_per_image=4, boi_token_index=297, eoi_token_index=298, image_token_index=IMAGE_TOKEN,
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(MODELS[request.param]()).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2)
    return model.requires_grad_(False)


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 5] + [IMAGE_TOKEN] * 4 + [7, 8, 9, 10]])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    values = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "gemma3":
        values["token_type_ids"] = (ids == IMAGE_TOKEN).long()
    return values


def test_the_full_chain_is_the_stock_model_and_the_image_counts(model: PreTrainedModel) -> None:
    # Oracle: the stock model; another image gives other logits, in both.
    given = inputs(model)
    view = chain_view(model, FULL)
    assert torch.equal(view(**given).logits, model(**given).logits)
    other = given | {"pixel_values": -given["pixel_values"]}
    assert not torch.equal(view(**other).logits, view(**given).logits)
    assert torch.equal(view(**other).logits, model(**other).logits)


@pytest.mark.parametrize("chain", [FULL.skip(0, 1), FULL.skip(2, 2), FULL.repeat(1, 2, 1), FULL.move(0, 1, 3)], ids=str)
def test_chains_of_the_text_decoder_generate_the_same_with_and_without_a_cache(
    model: PreTrainedModel, chain: Chain
) -> None:
    # Oracle: the same view without a cache; the vision tower and the original are left alone.
    view = chain_view(model, chain)
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    cached = view.generate(**inputs(model), **options)
    assert torch.equal(cached, view.generate(**inputs(model), use_cache=False, **options))
    assert view.config.text_config.num_hidden_layers == chain.depth
    assert model.config.text_config.num_hidden_layers == NUM_LAYERS
    assert view.config.vision_config.num_hidden_layers == 2


def test_a_chain_as_deep_as_the_vision_tower_is_found_in_the_text_decoder() -> None:
    # Oracle: the same chain without a cache; Llama4's two vision layers are as many as the chain's.
    view = chain_view(tiny_model("llama4"), Chain((0, 3), NUM_LAYERS))
    assert find_decoder(view).path[0] == "language_model"
    ids = torch.tensor([[1, 5, 7, 8, 9, 10]])
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
    assert torch.equal(view.generate(ids, **options), view.generate(ids, use_cache=False, **options))
