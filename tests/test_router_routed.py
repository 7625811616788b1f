"""A routed model generates, row by row, what the view of each row's chain generates."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, TextIteratorStreamer, pipeline
from transformers.utils import logging as transformers_logging

from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.engine.view import chain_view
from router.heads.head import pad_states
from router.routed import RoutedModel
from router.storage import Guarantee, Router
from tests.tiny import NUM_LAYERS, VARIANTS, random_router, tiny_model, tiny_tokenizer

PREFIX = 2
PADDING = 0
FULL = Chain.full(NUM_LAYERS)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": PADDING}


def prompts(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    lengths = [5 + 2 * (i % 4) for i in range(rows)]
    ids, mask = torch.full((rows, max(lengths)), PADDING), torch.zeros(rows, max(lengths), dtype=torch.long)
    for i, length in enumerate(lengths):
        ids[i, -length:] = torch.randint(3, 90, (length,), generator=generator)
        mask[i, -length:] = 1
    return ids, mask


def router_for(model: PreTrainedModel) -> Router:
    """A random router with a measured budget, and a guarantee that certifies full depth alone."""
    router = random_router(ChainScorer(model, tiny_tokenizer(), load_task("arc_easy")), PREFIX)
    ids, mask = prompts(24)
    hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[PREFIX]
    states = [row[kept.bool()] for row, kept in zip(hidden, mask, strict=True)]
    with torch.inference_mode():
        router.head.calibrate(router.head(*pad_states(states)))
    return Router(router.config, router.head, Guarantee(0.1, 0.1, "accuracy", None, None, 10, 0.0, 5.0, None))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def routed(model: PreTrainedModel) -> RoutedModel:
    return RoutedModel.join(model, router_for(model), budget=4.0)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_each_row_is_what_its_chains_view_generates(variant: tuple[str, str]) -> None:
    # Oracle: the view of the row's chain, the row alone and without padding; all families and attentions.
    model = tiny_model(*variant)
    routed = RoutedModel.join(model, router_for(model), budget=4.0)
    ids, mask = prompts()
    chains = [one.chain for one in routed.route(ids, mask)]
    assert len(set(chains)) > 1
    got = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for row, chain in enumerate(chains):
        own = ids[row][mask[row].bool()][None]
        (routed_alone,) = routed.route(own, torch.ones_like(own))
        assert routed_alone.chain == chain
        alone = chain_view(model, chain).generate(input_ids=own, attention_mask=torch.ones_like(own), **GREEDY)
        assert torch.equal(got[row][mask[row].logical_not().sum() :], alone[0])
        assert torch.equal(routed.generate(own, **GREEDY), alone)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_full_depth_for_all_is_the_stock_model(variant: tuple[str, str]) -> None:
    # Oracle: the base model's own generate, greedy and sampled from the same seed, with scores.
    model = tiny_model(*variant)
    routed = RoutedModel.join(model, router_for(model), guaranteed=True)
    ids, mask = prompts()
    assert {one.chain for one in routed.route(ids, mask)} == {FULL}
    for more in ({}, {"do_sample": True, "temperature": 0.8, "top_k": 20}, {"num_beams": 3}):
        options = GREEDY | more | {"return_dict_in_generate": True, "output_scores": True}
        outputs = []
        for one in (model, routed):
            torch.manual_seed(0)
            outputs.append(one.generate(input_ids=ids, attention_mask=mask, **options))
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)
        for stock, ours in zip(outputs[0].scores, outputs[1].scores, strict=True):
            torch.testing.assert_close(ours, stock)


def test_the_first_layers_run_once_over_the_prompt(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: tokens that go through each layer's feed-forward part, which all views share.
    ids, mask = prompts(1)
    tokens = [0] * NUM_LAYERS
    (chosen,) = routed.route(ids, mask)
    hooks = [
        layer.mlp.register_forward_hook(
            lambda _module, inputs, _output, i=i: tokens.__setitem__(i, tokens[i] + inputs[0].shape[-2])
        )
        for i, layer in enumerate(model.model.layers)
    ]
    routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for hook in hooks:
        hook.remove()
    length = ids.shape[1] + GREEDY["max_new_tokens"] - 1
    assert tokens == [length * chosen.chain.layers.count(layer) for layer in range(NUM_LAYERS)]


def test_several_sequences_of_a_prompt_stay_together(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts()
    chains = [one.chain for one in routed.route(ids, mask)]
    out = routed.generate(
        input_ids=ids, attention_mask=mask, **GREEDY | {"do_sample": True, "num_return_sequences": 3, "top_k": 1}
    )
    assert len(out) == 18
    for row, chain in enumerate(chains):
        alone = chain_view(model, chain).generate(
            input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], **GREEDY
        )
        assert all(torch.equal(one, alone[0]) for one in out[3 * row : 3 * row + 3])


def test_rows_that_end_early_are_padded_at_the_end(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: each row's view alone, with the token that ends the first row's answer as the end.
    ids, mask = prompts()
    options = GREEDY | {"min_new_tokens": 0}
    first = routed.generate(input_ids=ids, attention_mask=mask, **options)
    options |= {"eos_token_id": int(first[0, ids.shape[1] + 1])}
    got = routed.generate(input_ids=ids, attention_mask=mask, **options)
    for row, routed_to in enumerate(routed.route(ids, mask)):
        alone = chain_view(model, routed_to.chain).generate(
            input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], **options
        )
        assert torch.equal(got[row, : alone.shape[1]], alone[0])
        assert (got[row, alone.shape[1] :] == PADDING).all()


def test_padding_is_told_from_tokens_as_the_library_does(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts()
    settings = model.generation_config
    old, settings.pad_token_id = settings.pad_token_id, PADDING
    try:
        assert torch.equal(
            routed.generate(ids, **GREEDY), routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
        )
    finally:
        settings.pad_token_id = old


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_beams": 2}, "num_beams: expected rows that share a chain, got . chains"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate: expected rows that share a chain"),
        ({"streamer": object()}, "streamer: expected rows that share a chain"),
    ],
)
def test_what_belongs_to_a_whole_batch_needs_one_chain(routed: RoutedModel, more: dict[str, Any], message: str) -> None:
    ids, mask = prompts()
    with pytest.raises(ValueError, match=message):
        routed.generate(input_ids=ids, attention_mask=mask, **GREEDY | more)


def test_one_row_can_stream(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts(1)
    tokenizer = tiny_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    options = {"input_ids": ids, "attention_mask": mask, "streamer": streamer, **GREEDY}
    thread = threading.Thread(target=routed.generate, kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    whole = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    assert text == tokenizer.decode(whole[0, ids.shape[1] :])


def test_two_threads_do_not_mix(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts()
    halves = [(ids[:3], mask[:3]), (ids[3:], mask[3:])]
    expected = [routed.generate(input_ids=i, attention_mask=m, **GREEDY) for i, m in halves]
    got: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(half: int) -> None:
        own_ids, own_mask = halves[half]
        for _ in range(5):
            got[half].append(routed.generate(input_ids=own_ids, attention_mask=own_mask, **GREEDY))

    threads = [threading.Thread(target=work, args=(half,)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for half in (0, 1):
        assert len(got[half]) == 5
        assert all(torch.equal(one, expected[half]) for one in got[half])


def test_the_library_takes_it_for_the_base_model(
    model: PreTrainedModel, routed: RoutedModel, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(routed, type(model))
    assert type(routed).__name__ == type(model).__name__
    before = dict(model.__dict__)
    transformers_logging.enable_propagation()
    try:
        generator = pipeline("text-generation", model=routed, tokenizer=tiny_tokenizer())
        (answer,) = generator("Which is number 3?", max_new_tokens=5, do_sample=False, return_full_text=False)
    finally:
        transformers_logging.disable_propagation()
    assert isinstance(answer["generated_text"], str)
    assert "not supported" not in caplog.text
    assert model.__dict__.keys() == before.keys()
    assert "generate" not in model.__dict__


def test_the_budget_is_a_knob_of_one_model(model: PreTrainedModel) -> None:
    routed = RoutedModel.join(model, router_for(model))
    ids, mask = prompts(24)
    depths = []
    points = sorted(point.mean_depth for point in routed.router.config.budget_points) or [
        point.mean_depth for point in routed.router.head.budget_points
    ]
    for budget in (min(points) + 0.1, max(points) - 0.1):
        routed.budget = budget
        depths.append(sum(one.chain.depth for one in routed.route(ids, mask)) / 24)
    assert depths[0] < depths[1]
    routed.budget = 99.0
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        routed.route(ids, mask)


def test_what_does_not_fit_is_refused(model: PreTrainedModel, routed: RoutedModel) -> None:
    router = router_for(model)
    with pytest.raises(ValueError, match="guaranteed: expected a router with a guarantee"):
        RoutedModel.join(model, Router(router.config, router.head), guaranteed=True)
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        RoutedModel.join(model, router, budget=0.5)
    with pytest.raises(ValueError, match="generate: expected input_ids"):
        routed.generate(inputs_embeds=torch.zeros(1, 3, model.config.hidden_size))
