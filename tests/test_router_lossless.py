"""Lossless generation: full depth's own tokens, whatever the chain drafts."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from router.chain import Chain
from router.routed import RoutedModel
from router.routed.lossless import Lossless, generate_lossless
from tests.routed_folders import prompts, router_for
from tests.tiny import NUM_LAYERS, tiny_model

NEW_TOKENS = 24
CHAINS = [Chain.full(NUM_LAYERS), Chain(tuple(range(NUM_LAYERS - 1)), NUM_LAYERS), Chain((0, 1, 1, 3), NUM_LAYERS)]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_tokens_are_full_depths(family: str, chain: Chain) -> None:
    # Oracle: the stock model's own greedy text, float32.
    model = tiny_model(family)
    ids = prompts(1)[0]
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    got = generate_lossless(model, chain, ids, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(got.sequences, wanted)
    assert got.new_tokens == wanted.shape[1] - ids.shape[1]
    assert got.passes <= got.new_tokens
    assert 0 <= got.acceptance <= 1
    if chain.is_full:
        assert (got.drafted, got.passes, got.speed, got.pays) == (0, got.new_tokens, 1.0, False)
    assert not model._forward_hooks


def test_a_routed_model_says_what_its_drafts_were_worth() -> None:
    model = tiny_model("llama")
    routed = RoutedModel.join(model, router_for(model), budget=4.0)
    ids, mask = prompts(1)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    got = routed.generate(input_ids=ids, attention_mask=mask, lossless=True, **options)
    assert isinstance(got, Lossless)
    assert torch.equal(got.sequences, model.generate(input_ids=ids, attention_mask=mask, **options))
    assert got.chain == routed.route(ids, mask)[0].chain
    assert ("it pays" in str(got)) == got.pays


def test_what_drafting_is_worth() -> None:
    # Oracle: by hand, layers one after the other: 12 tokens of 10 layers, against 8 drafts of 5 and 4 passes of 10.
    chain = Chain(tuple(range(5)), 10)
    one = Lossless(torch.zeros(1, 20), chain, 12, 8, 4, 1.0)
    assert one.acceptance == 1.0
    assert one.speed == 120 / (40 + 40)
    assert not Lossless(torch.zeros(1, 20), chain, 12, 24, 10, 1.0).pays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": prompts(2)[0]}, "expected one row and one text of it, got 2 rows"),
        ({"input_ids": prompts(1)[0], "do_sample": True}, "got sampling or beams"),
        ({"input_ids": prompts(1)[0], "num_beams": 2}, "got sampling or beams"),
        ({"input_ids": prompts(1)[0], "return_dict_in_generate": True}, "got return_dict_in_generate"),
        ({"input_ids": prompts(1)[0], "past_key_values": DynamicCache()}, "got past_key_values"),
        ({"input_ids": prompts(1)[0], "assistant_model": tiny_model("llama")}, "got assistant_model"),
        ({"input_ids": prompts(1)[0], "prompt_lookup_num_tokens": 3}, "got prompt_lookup_num_tokens"),
        ({"input_ids": prompts(1)[0], "guidance_scale": 1.9}, "got guidance_scale"),
    ],
)
def test_what_lossless_cannot_do_is_refused(options: dict[str, object], message: str) -> None:
    model = tiny_model("llama")
    routed = RoutedModel.join(model, router_for(model), budget=4.0)
    with pytest.raises(ValueError, match=f"^lossless: .*{message}"):
        routed.generate(**{"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0} | options, lossless=True)
