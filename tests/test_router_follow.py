"""Views, the executor and routed models are made of what the model is now, and never change it."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface, GenerationConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from router.chain import Chain
from router.engine.choices import ChoiceScorer, Question
from router.engine.decoder import find_decoder
from router.engine.executor import ChainExecutor, Job
from router.engine.makeup import Makeup
from router.engine.replay import Prefix
from router.engine.rows import pack_row, plain_row
from router.engine.view import chain_view
from router.heads.head import Decision
from router.routed.model import RoutedModel
from tests.routed_folders import in_threads, router_for
from tests.tiny import NUM_LAYERS, held, tiny_model

CHAIN = Chain.full(NUM_LAYERS).repeat(1, 2, 1).skip(0, 1)
IDS = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(1))
LORA = LoraConfig(target_modules=["q_proj", "v_proj", "up_proj"], r=4, init_lora_weights=False)


def stock(model: PreTrainedModel, chain: Chain = CHAIN) -> torch.Tensor:
    """Return a chain's logits from a stock model with deep copies of the layers: nothing of ours has a part in it."""
    whole = copy.deepcopy(model)
    decoder = find_decoder(whole)
    layers = [copy.deepcopy(decoder.layers[layer]) for layer in chain.layers]
    for position, layer in enumerate(layers):
        layer.self_attn.layer_idx = position
    decoder.owner._modules[decoder.name] = nn.ModuleList(layers)
    whole.config.num_hidden_layers = chain.depth
    return whole(IDS, use_cache=False).logits


def logits(model: PreTrainedModel, chain: Chain = CHAIN) -> torch.Tensor:
    return chain_view(model, chain)(IDS, use_cache=False).logits


def executed(executor: ChainExecutor) -> torch.Tensor:
    """Return the logits of the first row."""
    return executor.logits(executor.load([plain_row(IDS[0].tolist())]), [Job(0, CHAIN)])[0]


def add_adapter(model: PreTrainedModel) -> None:
    torch.manual_seed(3)
    try:
        model.add_adapter(LORA)
    except ValueError as error:
        if "PEFT" in str(error):
            pytest.skip(str(error))  # a release of transformers that wants a newer one than there is
        raise
    model.eval()


def replace_layer(model: PreTrainedModel) -> None:
    model.model.layers[2] = tiny_model("llama", seed=5).model.layers[2]


def set_hook(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda _module, _inputs, output: 2 * output)


def resize(model: PreTrainedModel) -> None:
    torch.manual_seed(4)
    model.resize_token_embeddings(320)


def halve_in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def quantise(model: PreTrainedModel) -> None:
    """Put another module in the place of each linear one, as quantisers do."""
    for layer in model.model.layers:
        linear = layer.mlp.down_proj
        rounded = nn.Linear(linear.in_features, linear.out_features, bias=False)
        rounded.weight = nn.Parameter((linear.weight * 8).round() / 8, requires_grad=False)
        layer.mlp.down_proj = rounded


@pytest.mark.parametrize("change", [add_adapter, replace_layer, set_hook, resize, halve_in_place, quantise])
def test_a_view_and_the_executor_follow_a_changed_model(change: Callable[[PreTrainedModel], None]) -> None:
    # Oracle: a stock model with deep copies of the layers, made after the change.
    model = tiny_model("llama")
    before, executor = logits(model), ChainExecutor(model)
    executed(executor)
    change(model)
    wanted = stock(model)
    assert wanted.shape != before.shape or not torch.allclose(wanted, before, atol=1e-3)
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=2e-5)
    found = executed(executor)
    torch.testing.assert_close(found, wanted[0], rtol=0, atol=5e-5)


def test_an_adapter_that_is_taken_off_leaves_the_views_too() -> None:
    model = tiny_model("llama")
    plain = logits(model)
    add_adapter(model)
    adapted = logits(model)
    model.disable_adapters()
    assert torch.equal(logits(model), plain)
    model.enable_adapters()
    assert torch.equal(logits(model), adapted)
    model.delete_adapter("default")
    torch.testing.assert_close(logits(model), plain)
    assert not torch.allclose(plain, adapted, atol=1e-2)


def test_generation_settings_that_are_changed_later_count() -> None:
    model = tiny_model("llama")
    assert chain_view(model, CHAIN).generate(IDS, max_new_tokens=4, pad_token_id=0).shape[1] <= IDS.shape[1] + 4
    model.generation_config.max_new_tokens = 7
    model.generation_config.min_new_tokens = 7
    assert chain_view(model, CHAIN).generate(IDS, pad_token_id=0).shape[1] == IDS.shape[1] + 7


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_attention_that_is_switched_later_is_switched_in_masks_and_kernels(family: str) -> None:
    # Oracle: views of a model that had the attention from the start; eager attention alone gives attentions.
    model, eager = tiny_model(family, "sdpa"), tiny_model(family, "eager")
    chain_view(model, CHAIN)
    executor = ChainExecutor(model)
    left = torch.ones_like(IDS)
    left[0, :3] = 0
    options = {"attention_mask": left, "do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    wanted = chain_view(eager, CHAIN).generate(IDS, **options)
    view = chain_view(model, CHAIN)
    view.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"
    attentions = view(IDS, output_attentions=True).attentions
    assert [one.shape[-2:] for one in attentions] == [(9, 9)] * CHAIN.depth
    assert torch.equal(view.generate(IDS, **options), wanted)
    model.set_attn_implementation("eager")
    assert torch.equal(chain_view(model, CHAIN).generate(IDS, **options), wanted)
    assert chain_view(model, CHAIN)(IDS, output_attentions=True).attentions[0] is not None
    found = executed(executor)
    torch.testing.assert_close(found, chain_view(eager, CHAIN)(IDS).logits[0], rtol=0, atol=5e-5)


def test_what_fails_while_it_follows_is_prepared_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: what is made after the change. Memory ends once, in the middle of a preparation.
    model, row, mask = tiny_model("llama"), pack_row([5, 6, 7], [[8, 9], [10]]), torch.ones_like(IDS)
    executor, prefix = ChainExecutor(model), Prefix(model, 2)
    other = tiny_model("llama", seed=5)
    model.lm_head, model.model.layers[1] = other.lm_head, other.model.layers[1]

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("router.engine.executor.MaskRules", full)
        patch.setattr(Prefix, "_reader", full)
        for follow in (executor.follow, prefix.follow):
            with pytest.raises(torch.OutOfMemoryError):
                follow()
    prefix.follow()
    assert torch.equal(prefix.run(IDS, mask).states, Prefix(model, 2).run(IDS, mask).states)
    found, wanted = (one.target_logprobs(one.load([row]), [Job(0, CHAIN)]) for one in (executor, ChainExecutor(model)))
    torch.testing.assert_close(found, wanted)


def test_of_two_threads_one_prepares_a_changed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: preparations, counted; a second one would replace what the first thread reads with.
    model, prepare, prepared = tiny_model("llama"), Prefix._prepare, []
    prefix = Prefix(model, 2)
    replace_layer(model)

    def slowly(self: Prefix, now: Makeup) -> None:
        prepared.append(now)
        time.sleep(0.1)
        prepare(self, now)

    monkeypatch.setattr(Prefix, "_prepare", slowly)
    in_threads(lambda _: prefix.follow())
    assert len(prepared) == 1


def test_choices_follow_a_model_whose_rows_cannot_be_packed_any_more() -> None:
    # Oracle: a scorer that is made after the change. An attention for which the library builds no masks cannot pack.
    AttentionInterface.register("without_masks", sdpa_attention_forward)
    model, question = tiny_model("llama"), Question((5, 6, 7, 8), ((9, 10, 11), (12, 13)))

    def scores(scorer: ChoiceScorer) -> tuple[float, ...]:
        return scorer.score([question], lambda *_: [Decision(CHAIN, 0.0)])[0].logprobs

    scorer = ChoiceScorer(model, [2])
    scores(scorer)
    model.set_attn_implementation("without_masks")
    assert not ChainExecutor(model).can_pack
    assert scores(scorer) == pytest.approx(scores(ChoiceScorer(model, [2])))


def test_a_routed_model_counts_as_its_base_model() -> None:
    # Oracle: the base model's chains; the routed model itself would run chains of its own.
    model = tiny_model("llama")
    routed = RoutedModel.join(model, router_for(model), budget=4.0)
    assert torch.equal(executed(ChainExecutor(routed)), executed(ChainExecutor(model)))
    assert torch.equal(logits(routed), logits(model))
    again = RoutedModel.join(routed, routed.router, budget=4.0)
    assert again.plain_model() is model
    assert torch.equal(again.generate(IDS, max_new_tokens=3), routed.generate(IDS, max_new_tokens=3))


EAGERLY: dict[str, Any] = {"backend": "eager"}
COMPILED: dict[str, Callable[[PreTrainedModel], object]] = {
    "the whole": lambda model: model.compile(**EAGERLY),
    "forward": lambda model: setattr(model, "forward", torch.compile(model.forward, **EAGERLY)),
    "its decoder": lambda model: setattr(model.model, "forward", torch.compile(model.model.forward, **EAGERLY)),
    "a layer": lambda model: model.model.layers[1].compile(**EAGERLY),
    "a layer wrapped": lambda model: setattr(model.model.layers, "1", torch.compile(model.model.layers[1], **EAGERLY)),
}


@pytest.mark.parametrize("change", COMPILED.values(), ids=COMPILED)
def test_a_view_of_a_compiled_model_runs_its_chain(change: Callable[[PreTrainedModel], None]) -> None:
    # Oracle: the same views before the model was compiled.
    model = tiny_model("llama")
    wanted, executor = logits(model), ChainExecutor(model)
    change(model)
    model(IDS)
    torch.testing.assert_close(logits(model), wanted)
    found = executed(executor)
    torch.testing.assert_close(found, wanted[0], rtol=0, atol=5e-5)


def test_what_cannot_be_followed_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"^model: expected a transformers model, got OptimizedModule; pass the model"):
        chain_view(torch.compile(model, backend="eager"), CHAIN)
    inner = model.model.forward
    model.model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM: expected a model whose layers run in any order, got one"):
        chain_view(model, CHAIN)
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM: expected a model whose layers run in any order, got one"):
        ChainExecutor(model)


HARMLESS: dict[str, Callable[[PreTrainedModel], object]] = {
    "training mode": lambda view: view.train(),
    "an adapter": lambda view: get_peft_model(view, LORA),
    "states are recorded": lambda view: view(IDS, output_hidden_states=True),
    "it stays": lambda view: view.to("cpu").to(torch.float32),
    "another attention": lambda view: view.set_attn_implementation("eager"),
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:The PEFT config")  # peft's
@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_is_done_to_a_view_does_not_reach_the_model(change: Callable[[PreTrainedModel], None]) -> None:
    # Oracle: all that the model holds, and its logits, before and after.
    model = tiny_model("llama")
    wanted, before = model(IDS).logits, held(model)
    change(chain_view(model, CHAIN))
    assert held(model) == before
    assert torch.equal(model(IDS).logits, wanted)
    assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).logits, wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda view: view.to(torch.bfloat16),
        lambda view: view.half(),
        lambda view: view.to("meta"),
        lambda view: view.resize_token_embeddings(320),
    ],
    ids=["to", "half", "meta", "resize"],
)
def test_what_would_reach_the_model_through_its_weights_is_refused(change: Callable[[PreTrainedModel], object]) -> None:
    model = tiny_model("llama")
    before = held(model)
    with pytest.raises(ValueError, match=r"^view: expected its (weights|embeddings) to stay .* the original model's"):
        change(chain_view(model, CHAIN))
    assert held(model) == before


def switch_attention(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


def put_an_adapter_off(model: PreTrainedModel) -> None:
    add_adapter(model)
    model.disable_adapters()


@pytest.mark.parametrize(
    "change", [add_adapter, put_an_adapter_off, replace_layer, set_hook, halve_in_place, quantise, switch_attention]
)
def test_a_routed_model_follows_its_base_model(change: Callable[[PreTrainedModel], None]) -> None:
    # Oracle: one that is joined after the change.
    model = tiny_model("llama")
    router = router_for(model)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    routed = RoutedModel.join(model, router, budget=4.0)
    routed.generate(input_ids=IDS, attention_mask=mask, **options)
    change(model)
    wanted = RoutedModel.join(model, router, budget=4.0).generate(input_ids=IDS, attention_mask=mask, **options)
    assert torch.equal(routed.generate(input_ids=IDS, attention_mask=mask, **options), wanted)


@pytest.mark.parametrize("change", [add_adapter, replace_layer, set_hook, switch_attention])
def test_a_routed_models_views_follow_its_base_model(change: Callable[[PreTrainedModel], None]) -> None:
    # Oracle: the view of a routed model that is joined after the change; nothing is read in between.
    model, chain = tiny_model("llama"), Chain.full(NUM_LAYERS).skip(3, 1)
    router = router_for(model)
    routed = RoutedModel.join(model, router, budget=4.0)
    before = routed.view(chain)
    assert routed.view(chain) is before
    change(model)
    view, wanted = routed.view(chain), RoutedModel.join(model, router, budget=4.0).view(chain)
    assert view.config._attn_implementation == wanted.config._attn_implementation
    assert torch.equal(view(IDS).logits, wanted(IDS).logits)
    assert view is not before


@pytest.mark.slow
def test_continuous_batching_of_a_view_with_another_attention_is_its_generate() -> None:
    # Oracle: the view's own `generate`, each prompt alone. The library's manager switches the view's attention.
    model, prompts = tiny_model("llama", "eager"), [[5, 6, 7, 8, 9], [10, 11, 12]]
    view = chain_view(model, CHAIN)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    wanted = [
        view.generate(torch.tensor([one]), min_new_tokens=6, **options)[0, len(one) :].tolist() for one in prompts
    ]
    found = view.generate_batch(inputs=prompts, generation_config=GenerationConfig(eos_token_id=-1, **options))
    assert [one.generated_tokens for one in found.values()] == wanted
    assert model.config._attn_implementation == "eager"
