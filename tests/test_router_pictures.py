"""A routed model of an image-text family: read, routed and generated with each row's own pictures."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from router.chain import Chain
from router.engine.decoder import CACHE_ARGUMENTS, find_decoder
from router.engine.executor import ChainExecutor, Job
from router.engine.rows import Row, pack_row, plain_row, separate_rows
from router.engine.trial import nasty_chain
from router.engine.view import chain_view
from router.routed import RoutedModel
from tests.pictures import PICTURED, pictured_prompts, row_of
from tests.routed_folders import GREEDY, PREFIX, prompts, router_for
from tests.tiny import NUM_LAYERS, tiny_model

FULL = Chain.full(NUM_LAYERS)
SEVERAL = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3_vision", "internvl")
"""Families whose processors hand over any number of pictures a row in the same way."""
ATTENTION = {"paligemma": "eager"}
"""Where the usual one is refused: PaliGemma's own answers to text alone hang on whether a mask is built under SDPA."""


def routed_of(family: str) -> tuple[PreTrainedModel, RoutedModel]:
    model = tiny_model(family, ATTENTION.get(family))
    return model, RoutedModel.join(model, router_for(model), budget=4.0)


def each_as_alone(family: str, pictures: tuple[int, ...]) -> None:
    """Oracle: the view of the row's chain, the row alone with its own pictures and without padding."""
    model, routed = routed_of(family)
    batch = pictured_prompts(model, family, pictures)
    chains = [one.chain for one in routed.route(**batch)]
    got = routed.generate(**batch, **GREEDY)
    for row, chain in enumerate(chains):
        alone = row_of(batch, row, pictures)
        assert routed.route(**alone)[0].chain == chain
        start = int((batch["attention_mask"][row] == 0).sum())
        assert torch.equal(got[row][start:], chain_view(model, chain).generate(**alone, **GREEDY)[0])


@pytest.mark.parametrize("family", ["llava", "gemma3_vision"])
def test_a_view_is_the_text_decoders_and_leaves_the_vision_tower(family: str) -> None:
    # Oracle: the stock model, another picture's logits, and for an edited chain the view without a cache.
    model = tiny_model(family)
    given, view = pictured_prompts(model, family, (1,)), chain_view(model, FULL)
    other = given | {"pixel_values": -given["pixel_values"]}
    for one in (given, other):
        assert torch.equal(view(**one).logits, model(**one).logits)
    assert not torch.equal(view(**other).logits, view(**given).logits)
    tower = model.config.vision_config.num_hidden_layers
    edited = chain_view(model, FULL.repeat(1, 2, 1).skip(0, 1))
    assert torch.equal(edited.generate(**given, **GREEDY), edited.generate(**given, use_cache=False, **GREEDY))
    assert (edited.config.text_config.num_hidden_layers, edited.config.vision_config.num_hidden_layers) == (6, tower)
    assert model.config.text_config.num_hidden_layers == NUM_LAYERS


@pytest.mark.parametrize("family", PICTURED)
def test_each_row_is_what_its_chains_view_generates_with_its_picture(family: str) -> None:
    each_as_alone(family, (1, 1, 1, 1))


@pytest.mark.parametrize("family", SEVERAL)
def test_rows_may_have_several_pictures_or_none(family: str) -> None:
    each_as_alone(family, (2, 0, 1, 0))


@pytest.mark.parametrize("family", PICTURED)
def test_the_router_reads_the_stock_models_states_and_another_picture_changes_them(family: str) -> None:
    # Oracle: the stock model's hidden states.
    model, routed = routed_of(family)
    batch, other = (pictured_prompts(model, family, seed=seed) for seed in (2, 5))
    hidden = model(**batch, output_hidden_states=True).hidden_states[PREFIX]
    read, changed = routed.read(**batch).run.rows(), routed.read(**other).run.rows()
    for row, mask in enumerate(batch["attention_mask"].bool()):
        torch.testing.assert_close(read[row], hidden[row][mask], atol=1e-4, rtol=1e-4)
        assert float((read[row] - changed[row]).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3"])
def test_sequences_and_beams_of_a_prompt_have_its_picture(family: str) -> None:
    # Oracle: the view of the chain with the same options.
    model, routed = routed_of(family)
    batch = pictured_prompts(model, family, (1,))
    (chosen,) = routed.route(**batch)
    for more in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"output_hidden_states": True}):
        options = GREEDY | more
        want = chain_view(model, chosen.chain).generate(**batch, **options)
        assert torch.equal(routed.generate(**batch, **options), want)


@pytest.mark.parametrize("family", PICTURED)
def test_pictures_are_looked_at_once(family: str) -> None:
    # Oracle: calls of the first module that sees pixels, counted; rows of several chains are looked at once more.
    model, routed = routed_of(family)
    calls: list[int] = []
    tower = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d))
    tower.register_forward_hook(lambda *_: calls.append(1))
    batch, other = (pictured_prompts(model, family, (1,), seed=seed) for seed in (2, 5))
    routed.generate(**batch, **GREEDY)  # the hook makes it another model, which is tried
    calls.clear()
    first, second = routed.generate(**batch, **GREEDY), routed.generate(**other, **GREEDY)
    assert len(calls) == 2
    for given, out in ((batch, first), (other, second)):
        (chosen,) = routed.route(**given)
        assert torch.equal(out, chain_view(model, chosen.chain).generate(**given, **GREEDY))
    calls.clear()
    routed.generate(**pictured_prompts(model, family), **GREEDY)
    chains = {one.chain for one in routed.route(**pictured_prompts(model, family))}
    assert len(calls) == (2 if len(chains) == 1 else 2 + len(chains))


def test_a_callers_positions_count() -> None:
    # Oracle: the view of the row's chain, the row alone with its own positions.
    model, routed = routed_of("llama")
    ids, mask = prompts()
    positions = (mask.cumsum(-1) - 1).clamp_min(0) * 3 + 5 * torch.arange(len(ids))[:, None]
    chains = [one.chain for one in routed.route(ids, mask, position_ids=positions)]
    assert len(set(chains)) > 1
    got = routed.generate(ids, attention_mask=mask, position_ids=positions, **GREEDY)
    assert not torch.equal(got, routed.generate(ids, attention_mask=mask, **GREEDY))
    for row, chain in enumerate(chains):
        own = mask[row].bool()
        alone = {"input_ids": ids[row][own][None], "position_ids": positions[row][own][None]}
        want = chain_view(model, chain).generate(**alone, attention_mask=mask[row][own][None], **GREEDY)
        assert torch.equal(got[row][own.logical_not().sum() :], want[0])


@pytest.mark.parametrize(
    ("family", "pictures"), [("idefics3", (1, 0)), ("mistral3", (2, 0)), ("llava", (1, 1)), ("qwen2_vl", (2, 1))]
)
def test_pictures_that_cannot_be_told_apart_are_refused(family: str, pictures: tuple[int, ...]) -> None:
    model, routed = routed_of(family)
    batch = pictured_prompts(model, family, pictures)
    if family == "idefics3":  # pictures of no row in particular
        batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1, 1)
    if family == "llava":
        batch["vision_inputs_of_its_own"] = torch.zeros(2)
    if family == "qwen2_vl":
        batch["image_grid_thw"][0, 1] = 2
    with pytest.raises(ValueError, match=re.escape("expected rows one by one")):
        routed.generate(**batch, **GREEDY)


def test_a_cache_of_an_earlier_turn_is_refused_with_pictures() -> None:
    model, routed = routed_of("llava")
    batch, cache = pictured_prompts(model, "llava", (1,)), DynamicCache()
    out = routed.generate(**batch, past_key_values=cache, **GREEDY)
    assert torch.equal(out, routed.generate(**batch, **GREEDY))
    pixels = batch["pixel_values"]
    for name in CACHE_ARGUMENTS:
        for more in ({"pixel_values": pixels}, {}):  # without them the text's pictures would be read as tokens
            with pytest.raises(ValueError, match="past_key_values: expected none, or an empty cache, with pictures"):
                routed.generate(out, **{name: cache}, **more, **GREEDY)


CHAINS = [FULL, nasty_chain(NUM_LAYERS), FULL.skip(1, 2), Chain((0,), NUM_LAYERS), Chain((1, 1), NUM_LAYERS)]


def pictured_rows(model: PreTrainedModel, family: str, pictures: tuple[int, ...]) -> list[tuple[Row, dict[str, Any]]]:
    """Rows of a batch for the executor, each with what the model is given for it alone."""
    batch, found = pictured_prompts(model, family, pictures), []
    for place in range(len(pictures)):
        alone = row_of(batch, place, pictures)
        inputs = {name: alone[name] for name in set(alone) - {"input_ids", "attention_mask"} if "pixel_values" in alone}
        found.append((dataclasses.replace(plain_row(alone["input_ids"][0].tolist()), inputs=inputs), alone))
    return found


@pytest.mark.parametrize("family", PICTURED)
def test_the_executor_runs_rows_with_their_pictures(family: str) -> None:
    # Oracle: the chain's view, the row alone; what the router reads there is what the executor gives training.
    model, routed = routed_of(family)
    rows = pictured_rows(model, family, (1, 2, 0, 1) if family in SEVERAL else (1, 1, 1))
    executor = ChainExecutor(model)
    block = executor.load([row for row, _ in rows])
    for chain in CHAINS:
        jobs = [Job(i, chain) for i in range(len(rows))]
        for (_, alone), logits in zip(rows, executor.logits(block, jobs), strict=True):
            options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
            want = chain_view(model, chain).generate(**alone, **options).logits[0][0]
            torch.testing.assert_close(logits[-1], want, atol=2e-4, rtol=1e-4)
    prefix = Chain(tuple(range(PREFIX)), NUM_LAYERS)
    for (_, alone), states in zip(
        rows, executor.states(block, [Job(i, prefix) for i in range(len(rows))]), strict=True
    ):
        torch.testing.assert_close(states, routed.read(**alone).run.rows()[0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", PICTURED)
def test_answers_after_pictures_are_scored_or_refused(family: str) -> None:
    # Oracle: the chain's view generating token after token; PaliGemma's prompt would see the answer that follows it.
    model, chain = tiny_model(family, ATTENTION.get(family)), FULL.skip(1, 1).repeat(1, 2, 1)
    ((row, alone),) = pictured_rows(model, family, (1,))
    if family == "paligemma":
        alone["token_type_ids"] = torch.zeros_like(alone["input_ids"])
        row = dataclasses.replace(row, inputs={**row.inputs, "token_type_ids": alone["token_type_ids"]})
    answers = [(9, 8, 7), (20, 21), (33,)]
    rows = [dataclasses.replace(one, inputs=row.inputs) for one in separate_rows(row.tokens, answers)]
    executor = ChainExecutor(model)
    if family == "paligemma":
        executor.load([row])
        with pytest.raises(ValueError, match="expected a model whose layers get pictures in their hidden states"):
            executor.load(rows)
        return
    block = executor.load(rows)
    assert len(block.parts) == len(rows)  # nothing is shared: equal tokens may stand for other pictures
    for answer, logprobs in zip(
        answers, executor.target_logprobs(block, [Job(i, chain) for i in range(3)]), strict=True
    ):
        given, want = dict(alone), []
        out = chain_view(model, chain).generate(
            **given,
            max_new_tokens=len(answer),
            logits_processor=LogitsProcessorList([_Forced(answer, row)]),
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        want = [float(logits[0].log_softmax(-1)[token]) for logits, token in zip(out.logits, answer, strict=True)]
        assert logprobs.tolist() == pytest.approx(want, abs=1e-3)


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Lets nothing but an answer follow a prompt."""

    def __init__(self, answer: tuple[int, ...], row: Row) -> None:
        self._answer, self._length = answer, len(row.tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._answer[input_ids.shape[1] - self._length]] = 0.0
        return forced


def test_packed_rows_beside_pictures_are_refused() -> None:
    model = tiny_model("llava")
    ((row, _),) = pictured_rows(model, "llava", (1,))
    with pytest.raises(ValueError, match="rows: expected plain rows beside those with pictures, got packed ones"):
        ChainExecutor(model).load([row, pack_row([5, 6, 7], [[8, 9], [10]])])


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
