"""The chain view, against the stock model and against itself without a cache."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel

from router.chain import Chain
from router.engine.copies import with_contiguous_head
from router.engine.decoder import find_decoder
from router.engine.view import chain_view
from tests.families_survey import by_hand, recorded
from tests.families_table import PAGE, with_table
from tests.tiny import EACH, NUM_LAYERS, VARIANTS, held, model, tiny_model, variant  # noqa: F401

FULL = Chain.full(NUM_LAYERS)
CHAINS = {
    "full": FULL,
    "skip layer 0": FULL.skip(0, 1),
    "repeat block": FULL.repeat(1, 3, 2),
    "reorder": FULL.move(0, 2, 3),
    "longer than the model": FULL.skip(0, 1).repeat(0, 4, 4),
    "one layer": Chain((1,), NUM_LAYERS),
}


def tokens(rows: int = 3, length: int = 11) -> torch.Tensor:
    return torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(1))


def test_full_chain_is_the_stock_forward_bit_for_bit(model: PreTrainedModel) -> None:
    # Oracle: the stock model.
    assert torch.equal(chain_view(model, FULL)(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_hidden_states_are_counted_right_before_in_and_after_a_view(variant: tuple[str, str]) -> None:
    # Oracle: depth + 1 states, and values equal to the states of a second view. The library installs its hooks at the
    # first call that asks for states: here a view's, and the second time they are there.
    model, chain = tiny_model(*variant), FULL.repeat(1, 2, 1)

    def states(of: PreTrainedModel) -> tuple[torch.Tensor, ...]:
        return of(tokens(), output_hidden_states=True).hidden_states

    for _ in range(2):
        assert len(states(chain_view(model, chain))) == chain.depth + 1
        assert len(states(model)) == NUM_LAYERS + 1
    # Position 3 of 0,1,2,1,2,3,4 is layer 1 run on the output of layer 2.
    seen = states(chain_view(model, chain))
    assert torch.equal(seen[3], states(model)[3])
    assert not torch.equal(seen[4], states(model)[4])


def test_neither_a_cache_nor_padding_changes_anything(variant: tuple[str, str], model: PreTrainedModel) -> None:
    # Oracle: the same view without a cache; each row alone without padding, on the left and on the right. Two chains
    # for each variant; those of a family's other attention are the other two.
    prompt, mask = tokens(2), torch.ones(2, 11, dtype=torch.long)
    left, right = prompt.clone(), prompt.clone()
    left[1, :4], right[1, 7:] = 0, 0
    left_mask, right_mask = mask.clone(), mask.clone()
    left_mask[1, :4], right_mask[1, 7:] = 0, 0
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    names = ("skip layer 0", "reorder", "longer than the model", "one layer")
    for name in names[VARIANTS.index(variant) % 2 :: 2]:
        chain = CHAINS[name]
        view = chain_view(model, chain)
        cached = view.generate(left, attention_mask=left_mask, use_cache=True, **options)
        assert torch.equal(cached, view.generate(left, attention_mask=left_mask, use_cache=False, **options))
        alone = view.generate(prompt[1:, 4:], attention_mask=mask[1:, 4:], **options)
        assert torch.equal(cached[1, 4:], alone[0])
        padded = view(right, attention_mask=right_mask, use_cache=False).logits[1, :7]
        torch.testing.assert_close(padded, view(prompt[1:, :7], use_cache=False).logits[0], rtol=0, atol=2e-5)


def test_each_chain_position_has_its_own_cache_slot(model: PreTrainedModel) -> None:
    # Oracle: one slot a position, each as long as the prompt; a shared slot would hold the tokens of two layers.
    chain = CHAINS["longer than the model"]
    cache = chain_view(model, chain)(tokens(), use_cache=True).past_key_values
    assert len(cache.layers) == chain.depth
    # Convolution layers keep a state of fixed size instead of a length.
    assert {slot.get_seq_length() for slot in cache.layers if hasattr(slot, "get_seq_length")} == {11}


def test_a_view_computes_what_the_chain_says(model: PreTrainedModel) -> None:
    # Oracle: the layers called by hand in the chain's order, with the arguments of the stock forward.
    chain = CHAINS["reorder"]
    wanted = by_hand(model, chain, tokens(), recorded(model, tokens()))
    torch.testing.assert_close(chain_view(model, chain)(tokens(), use_cache=False).logits, wanted)


def test_the_original_is_untouched_also_when_an_exception_passes(model: PreTrainedModel) -> None:
    # Oracle: all that the model holds; every parameter of the view is one of its own.
    logits, before = model(tokens()).logits, held(model)
    view = chain_view(model, CHAINS["longer than the model"])
    assert {id(parameter) for parameter in view.parameters()} <= {id(parameter) for parameter in model.parameters()}
    view.generate(tokens(1), max_new_tokens=3, do_sample=False, pad_token_id=0)
    view.config.num_hidden_layers = 99
    with pytest.raises(IndexError):
        view(torch.full((1, 3), 10_000))
    assert held(model) == before
    assert torch.equal(model(tokens()).logits, logits)


def test_a_view_is_the_callers_own_and_made_of_what_the_model_is_now() -> None:
    # Oracle: object identity; and equality with the model after it changed.
    model, chain = tiny_model("llama"), CHAINS["skip layer 0"]
    assert chain_view(model, chain) is not chain_view(model, chain)
    model.to(torch.bfloat16)
    assert chain_view(model, FULL)(tokens()).logits.dtype == torch.bfloat16
    model.set_attn_implementation("eager")
    assert torch.equal(chain_view(model, FULL)(tokens()).logits, model(tokens()).logits)
    # What is known of its trial keeps no model alive, also where hooks hold it.
    model.model.layers[0].register_forward_hook(lambda *_, held=model: held and None)
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    chain_view(model, chain)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_what_cannot_be_run_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="expected num_layers=5 as in the model, got 6"):
        chain_view(model, Chain.full(6))
    with pytest.raises(ValueError, match=r"chain 0,2: expected at least one attention layer \(of \[1, 3\]\)"):
        chain_view(tiny_model("lfm2"), Chain((0, 2), NUM_LAYERS))
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"one ModuleList with num_hidden_layers=7 entries, found model\.layers \(5\)"):
        find_decoder(model)


def test_the_table_of_architectures_is_the_tested_one() -> None:
    # Oracle: the table made from the parametrisation; `python -m tests.families_table` writes it.
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text


@pytest.mark.parametrize("rows", [1, 3])
def test_a_contiguous_head_gets_a_matrix_and_says_the_same(rows: int) -> None:
    # Oracle: the stock model's logits; strides as torch gives a fresh tensor, also where one row has none to show.
    model = tiny_model("llama")
    ids = torch.randint(3, 90, (rows, 7), generator=torch.Generator().manual_seed(0))
    view = with_contiguous_head(chain_view(model, Chain.full(NUM_LAYERS)))
    seen: list[tuple[int, ...]] = []
    view.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride()))
    got = view(input_ids=ids, logits_to_keep=1).logits
    torch.testing.assert_close(got, model(input_ids=ids, logits_to_keep=1).logits)
    width = model.config.hidden_size
    assert seen == [(width, width, 1)]
    assert not model.lm_head._forward_pre_hooks


def test_a_view_with_repeats_is_not_saved_and_one_without_is(tmp_path: Path) -> None:
    # Oracle: the folder; the view's own logits.
    model = tiny_model("llama")
    repeats = chain_view(model, Chain((0, 1, 1, 4), 5))
    for view in (repeats, chain_view(model, Chain((0, 0), 5)), chain_view(repeats, Chain.full(4))):
        for save in (view.save_pretrained, view.push_to_hub):
            with pytest.raises(ValueError, match=r"^save_pretrained: expected [^\n]*python -m router export") as caught:
                save(str(tmp_path / "repeats"))
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "repeats").exists()
    ids = torch.arange(3, 12)[None]
    shallow = chain_view(model, Chain((0, 2, 4), 5))
    shallow.save_pretrained(tmp_path / "shallow")
    again = type(model).from_pretrained(tmp_path / "shallow")
    assert torch.equal(again(input_ids=ids).logits, shallow(input_ids=ids).logits)
    assert type(model).save_pretrained is PreTrainedModel.save_pretrained
