"""What users do with a model, done with a routed one: right, or refused in one line before any layer runs."""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from router.__main__ import main
from router.chain import Chain
from router.command import run_command
from router.decision import Guarantee
from router.engine.copies import shallow_copy
from router.engine.decoder import cache_argument
from router.engine.view import chain_view
from router.routed import RoutedModel
from router.routed.pretrained import require_pair
from router.storage import load_router, save_router, weights_sha256, write_guarantee
from router.validation import InputError
from tests.conftest import Refusal
from tests.routed_folders import GREEDY, alone, in_threads, prompts, router_for, write_routed
from tests.tiny import NUM_LAYERS, tiny_model, tiny_tokenizer

EDITED = Chain((0, 1, 3, 3, 4), NUM_LAYERS)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", "eager")


@pytest.fixture(scope="module")
def routed(model: PreTrainedModel) -> RoutedModel:
    return RoutedModel.join(model, router_for(model), tokenizer=tiny_tokenizer(), budget=4.0)


@contextmanager
def calls(model: PreTrainedModel) -> Iterator[list[int]]:
    """Tokens that went through each feed-forward part; the views have its hooks too."""
    seen: list[int] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-2]))
        for layer in model.model.layers
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def chains_of(routed: RoutedModel, ids: Tensor, mask: Tensor) -> list[Chain]:
    return [one.chain for one in routed.route(ids, mask)]


def test_a_view_of_a_routed_model_is_one_of_its_base_model(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts(1)
    assert chains_of(routed, ids, mask) != [EDITED]
    view = chain_view(routed, EDITED)
    assert isinstance(view, type(model))
    assert not isinstance(view, RoutedModel)
    got = view.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    assert torch.equal(got, alone(model, EDITED, ids, mask))


def test_rows_with_every_option_are_those_of_their_views(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: each row alone, through the view of its chain. Six rows: settings of six entries are not taken apart.
    ids, mask = prompts()
    chains = chains_of(routed, ids, mask)
    assert len(set(chains)) > 1
    negative = ids.flip(0)
    for options in (
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"bad_words_ids": [[i] for i in range(3, 200)], "eos_token_id": 2, "repetition_penalty": 1.3},
        {"eos_token_id": torch.tensor([2, 7, 8, 9, 10, 11]), "min_new_tokens": 0},
        {"suppress_tokens": [*range(3, 200)]},
        {"generation_config": GenerationConfig(max_new_tokens=4, suppress_tokens=[*range(150, 300)])},
        {"guidance_scale": 1.9},
        {"guidance_scale": 1.9, "negative_prompt_ids": negative},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
        {"stop_strings": ["e", "\n"], "tokenizer": tiny_tokenizer(), "min_new_tokens": 0},
    ):
        got = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY | options)
        times = options.get("num_return_sequences", 1)
        for row, chain in enumerate(chains):
            own = dict(options)
            if "negative_prompt_ids" in own:
                own["negative_prompt_ids"] = negative[row : row + 1]
            wanted = alone(model, chain, ids[row : row + 1], mask[row : row + 1], **own)
            for one in range(times):
                assert torch.equal(got[times * row + one, : wanted.shape[1]], wanted[one]), (list(options), row)


def test_one_row_with_every_option_is_that_of_its_view(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts(1)
    (chain,) = chains_of(routed, ids, mask)
    for options in (
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": model},
        {"assistant_model": chain_view(model, EDITED)},
        {"token_healing": True, "tokenizer": tiny_tokenizer(), "pad_token_id": 0},
        {"negative_prompt_ids": ids + 1, "guidance_scale": 2.5},
        {"negative_prompt_ids": ids + 1, "guidance_scale": 2.5, "use_cache": False},
        {"custom_generate": replaced_prompt},
    ):
        got = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY | options)
        assert torch.equal(got, alone(model, chain, ids, mask, **options)), list(options)


def replaced_prompt(model: Any, input_ids: Tensor, generation_config: GenerationConfig, **kwargs: Any) -> Tensor:
    """A decoding of the caller's own, which reads another text of the same length."""
    logits = model(input_ids=input_ids + 1).logits[:, -1]
    return torch.cat([input_ids, logits.argmax(-1)[:, None]], dim=1)


def test_states_and_attentions_of_the_prompt_are_those_of_the_view(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts(1)
    (chain,) = chains_of(routed, ids, mask)
    options = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}
    got = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY | options)
    wanted = alone(model, chain, ids, mask, **options)
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(getattr(got, name), getattr(wanted, name), strict=True):
            assert len(ours) == len(theirs) == chain.depth + (name == "hidden_states")
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("given", [False, True], ids=["returned", "given"])
def test_a_second_turn_with_the_cache_is_one_without(routed: RoutedModel, given: bool) -> None:
    # Oracle: generation of the whole text without a cache. Chains stay the same in some conversations only.
    kept, tokens = 0, torch.Generator().manual_seed(0)
    for _ in range(12):
        ids = torch.randint(3, 90, (1, 9), generator=tokens)
        cache = DynamicCache() if given else None
        first = routed.generate(ids, past_key_values=cache, return_dict_in_generate=True, **GREEDY)
        longer = torch.cat([first.sequences, torch.randint(3, 90, (1, 4), generator=tokens)], dim=1)
        chains = [chains_of(routed, text, torch.ones_like(text)) for text in (ids, longer)]
        kept += chains[0] == chains[1]
        second = routed.generate(longer, past_key_values=copy.deepcopy(cache or first.past_key_values), **GREEDY)
        assert torch.equal(second, routed.generate(longer, **GREEDY))
    assert 0 < kept < 12


def test_a_cache_of_the_same_chain_is_used(model: PreTrainedModel) -> None:
    # Oracle: the tokens that each layer computes.
    full = RoutedModel.join(model, router_for(model), guaranteed=True)
    ids, _ = prompts(1)
    first = full.generate(ids, return_dict_in_generate=True, **GREEDY)
    read = full.router.config.read_layer
    with calls(model) as seen:
        full.route(ids)  # whatever is done to the model, here hooks, it is tried anew
        seen.clear()
        full.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=1, pad_token_id=0)
    assert sum(seen) == read * first.sequences.shape[1] + NUM_LAYERS


def test_caches_of_another_origin_are_refused(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts(1)
    filled = DynamicCache()
    model(input_ids=ids, **{cache_argument(model): filled})
    for cache in (filled, DynamicCache(config=model.config), ((ids, ids),)):
        with pytest.raises(ValueError, match=r"past_key_values: expected a new DynamicCache\(\), or one that this"):
            routed.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    first = routed.generate(ids, return_dict_in_generate=True, **GREEDY)
    with pytest.raises(ValueError, match="input_ids: expected the whole text, longer than the"):
        routed.generate(ids[:, -2:], past_key_values=first.past_key_values, **GREEDY)


def test_what_has_no_meaning_is_refused_before_a_layer_runs(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts(1)
    plain = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    refused: list[tuple[str, Callable[[], Any]]] = [
        ("generate_batch", lambda: routed.generate_batch([[5, 6, 7]])),
        ("generate_batch", lambda: routed.init_continuous_batching()),
        ("cache_implementation", lambda: routed.generate(**plain, cache_implementation="paged")),
        ("synced_gpus", lambda: routed.generate(**plain, synced_gpus=True)),
        ("train", lambda: routed.train()),
        ("resize_token_embeddings", lambda: routed.resize_token_embeddings(310)),
        ("attention_mask", lambda: routed.generate(ids, attention_mask=mask[:, 1:])),
        ("attention_mask", lambda: routed.generate(ids[:, :0])),
        ("generate", lambda: routed.generate(ids[0])),
        ("generate", lambda: routed.generate(ids, **plain)),
        ("attention_mask", lambda: routed.route(ids[0])),
        ("generate", lambda: routed.generate([[1, 2, 3]])),  # type: ignore[arg-type]
        ("assistant_model", lambda: tiny_model("llama").generate(**plain, assistant_model=routed)),
    ]
    with calls(model) as seen:
        for name, action in refused:
            with pytest.raises(ValueError, match=f"^{name}: expected [^\n]*, got") as caught:
                action()
            assert "\n" not in str(caught.value)
    assert not seen
    assert not routed.eval().training


class FirstRowOnly(LogitsProcessor):  # type: ignore[misc]
    """Forbids most tokens in the first row of a batch."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        scores[0, 20:] = float("-inf")
        return scores


def test_what_sees_the_rows_needs_one_chain(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts()
    for more in (
        {"logits_processor": LogitsProcessorList([FirstRowOnly()])},
        {"stopping_criteria": StoppingCriteriaList([lambda ids, _scores: torch.arange(len(ids)) == 0])},
        {"custom_generate": replaced_prompt},
        {"assistant_model": model},
        {"prompt_lookup_num_tokens": 2},
        {"past_key_values": DynamicCache()},
        {"num_beams": 2},
        {"streamer": object()},
        {"generation_config": GenerationConfig(num_beams=2)},
        {"generation_config": GenerationConfig(return_dict_in_generate=True)},
    ):
        name = next(iter(more)) if "generation_config" not in more else ""
        with pytest.raises(ValueError, match=f"{name}.*: expected rows that share a chain, got . chains"):
            routed.generate(input_ids=ids, attention_mask=mask, **GREEDY | more)
    (chain,) = chains_of(routed, ids[:1], mask[:1])
    same = {"input_ids": ids[:1].repeat(2, 1), "attention_mask": mask[:1].repeat(2, 1), **GREEDY}
    got = routed.generate(**same, logits_processor=LogitsProcessorList([FirstRowOnly()]))
    wanted = chain_view(model, chain).generate(**same, logits_processor=LogitsProcessorList([FirstRowOnly()]))
    assert torch.equal(got, wanted)
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize("times", [1, 2])
def test_allowed_tokens_are_asked_for_with_the_rows_number(
    model: PreTrainedModel, routed: RoutedModel, times: int
) -> None:
    # Oracle: each row alone, allowed what is allowed for its number; the library counts prompts since its release 5.24,
    # before it counted sequences: seen on the stock model.
    ids, mask = prompts()
    options = {"do_sample": True, "top_k": 1, "num_return_sequences": times} if times > 1 else {}
    asked: set[int] = set()

    def every(row: int, _ids: Tensor) -> list[int]:
        asked.add(row)
        return list(range(300))

    model.generate(input_ids=ids, attention_mask=mask, prefix_allowed_tokens_fn=every, **GREEDY | options)
    by_prompt = len(asked) == len(ids)

    def allowed(row: int, _ids: Tensor) -> list[int]:
        return list(range(10 + 20 * row, 30 + 20 * row))

    got = routed.generate(input_ids=ids, attention_mask=mask, prefix_allowed_tokens_fn=allowed, **GREEDY | options)
    for row, chain in enumerate(chains_of(routed, ids, mask)):
        for one in range(times):
            number = row if by_prompt else times * row + one
            own = {"prefix_allowed_tokens_fn": lambda _, ids, n=number: allowed(n, ids)}
            (wanted,) = alone(model, chain, ids[row : row + 1], mask[row : row + 1], **own)
            assert torch.equal(got[times * row + one], wanted)


def test_the_time_is_shared_among_chains(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: the clock, with layers that take 5 ms; every row gets more than the token that each gets in any case.
    ids, mask = prompts()
    assert len(set(chains_of(routed, ids, mask))) > 1
    settings = GenerationConfig(max_time=1.0, max_new_tokens=400, pad_token_id=0, eos_token_id=299)
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: time.sleep(0.005))
    began = time.monotonic()
    got = routed.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    taken = time.monotonic() - began
    hook.remove()
    assert taken < 1.5
    assert min(int((row[ids.shape[1] :] != 0).sum()) for row in got) > 5


def test_copies_are_models_of_their_own(model: PreTrainedModel) -> None:
    # Oracle: the model that was copied, whose weights then change.
    own = copy.deepcopy(model)
    first = RoutedModel.join(own, router_for(own), tokenizer=tiny_tokenizer(), budget=4.0)
    first.generation_config.suppress_tokens = [*range(150, 290)]
    ids, mask = prompts()
    before = first.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    copies = [copy.deepcopy(first), copy.copy(first)]
    for one in copies:
        assert type(one) is type(first)
        assert one.budget == 4.0
        assert torch.equal(one.generate(input_ids=ids, attention_mask=mask, **GREEDY), before)
        assert one.score("Which?", [" A", " B"]) == first.score("Which?", [" A", " B"])
    own.lm_head.weight.data.neg_()
    after = first.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    assert not torch.equal(after, before)
    for one, wanted in zip(copies, (before, after), strict=True):
        assert torch.equal(one.generate(input_ids=ids, attention_mask=mask, **GREEDY), wanted)


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_a_cast_model_is_the_base_model_cast(family: str) -> None:
    # Oracle: a base model that was in that dtype before it was joined. GPT-Neo's layers have buffers.
    routed = RoutedModel.join(base := tiny_model(family), router_for(base), tokenizer=tiny_tokenizer(), budget=4.0)
    ids, mask = prompts()
    call = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    routed.generate(**call)
    routed.score("Which?", [" A", " B"])
    other = RoutedModel.join(tiny_model(family).bfloat16(), routed.router, tokenizer=tiny_tokenizer(), budget=4.0)
    assert routed.to(torch.bfloat16) is routed
    assert routed.dtype == base.dtype == torch.bfloat16
    assert torch.equal(routed.generate(**call), other.generate(**call))
    assert routed.score("Which?", [" A", " B"]) == other.score("Which?", [" A", " B"])


def test_settings_of_threads_do_not_meet(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: each alone. Two models share views, as the server's does with its caller's; threads change places often.
    ids, mask = prompts(1)
    both = [shallow_copy(routed) for _ in range(2)]
    for one, banned in zip(both, ([*range(3, 150)], [*range(150, 300)]), strict=True):
        one.generation_config = GenerationConfig(suppress_tokens=banned)
    call = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 1, "pad_token_id": 0}
    wanted = [one.generate(**call) for one in both]
    assert not torch.equal(*wanted)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(80):
            if not torch.equal(both[number].generate(**call), wanted[number]):
                wrong.append(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        in_threads(work)
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert chain_view(model, EDITED).generation_config.suppress_tokens is None


def test_a_pipeline_takes_it_for_the_base_model(
    model: PreTrainedModel, routed: RoutedModel, caplog: pytest.LogCaptureFixture
) -> None:
    # Oracle: the view of each prompt's chain, through a pipeline of its own.
    assert isinstance(routed, type(model))
    assert type(routed).__name__ == type(model).__name__
    before = dict(model.__dict__)
    texts = ["Which is number 3?", "Iron", "The moon is a fox, and glass", "Seven"]
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    transformers_logging.enable_propagation()
    try:
        got = pipeline("text-generation", model=routed, tokenizer=tokenizer)(texts, batch_size=4, **options)
    finally:
        transformers_logging.disable_propagation()
    assert "not supported" not in caplog.text
    assert model.__dict__.keys() == before.keys()
    for text, answers in zip(texts, got, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        view = chain_view(model, chains_of(routed, ids, torch.ones_like(ids))[0])
        assert answers == pipeline("text-generation", model=view, tokenizer=tokenizer)(text, **options)


class FewOperations(Tensor):
    """A tensor that can do next to nothing."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> FewOperations:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), _kwargs: Any = None) -> FewOperations:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f"unimplemented operation {func}")


def test_quantised_weights_are_refused_in_one_line_and_taken_without_verification(tmp_path: Path) -> None:
    # Oracle: tensors that know few operations, as torchao's; int8 weights under a configuration that says so.
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    router = load_router(write_routed(tmp_path))
    require_pair(model, tokenizer, router, "router")
    weight = model.model.layers[0].mlp.up_proj.weight
    few = FewOperations(weight.data)
    for tensor, config in ((few, None), (few, {"quant_method": "torchao"}), (weight.to(torch.int8), {"bits": 8})):
        model.config.quantization_config = config
        model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(tensor, requires_grad=False)
        with pytest.raises(InputError, match=r"^router: expected [^\n]*quantised by [^\n]*verify=False") as caught:
            require_pair(model, tokenizer, router, "router")
        assert "\n" not in str(caught.value)


def measured_router(folder: Path, figures: dict[str, float], accuracies: dict[float, float]) -> Path:
    """A router that was measured on validation: at its own choice, and at the points nearest to some depths."""
    made = load_router(path := write_routed(folder))
    points = list(made.config.budget_points)
    for depth, accuracy in accuracies.items():
        nearest = min(points, key=lambda point: abs(point.mean_depth - depth))
        points[points.index(nearest)] = dataclasses.replace(nearest, accuracy=accuracy)
    config = dataclasses.replace(made.config, budget_points=tuple(points), training={"validation": figures})
    save_router(path, dataclasses.replace(made, config=config))
    return path


FIGURES = {"mean_depth": 2.4, "accuracy": 0.31, "full_accuracy": 0.62, "chance_accuracy": 0.25, "samples": 100.0}
BY_DEPTH = {3.0: 0.61, 3.5: 0.2, 4.0: 0.60, 4.6: 0.63}
"""3.5 is bad, so 3.0, which looks good, is not taken; from 4.0 on all lose at most 0.02."""


def test_a_budget_that_lost_accuracy_is_refused_with_its_figures(tmp_path: Path, refusal: Refusal) -> None:
    router = str(measured_router(tmp_path, FIGURES, BY_DEPTH))
    prompt = ["--prompt", "Which?", "--max_new_tokens", "3"]
    refused = (
        r"error: budget: expected one that lost at most 0\.02 of full depth's accuracy in validation, got 3\.5, near "
        r"which \(3\.[0-9] of 5 layers\) the router was right on 0\.200 of 100 samples, full depth on 0\.620, guessing "
        r"on 0\.250; a budget in [34][.0-9]*?\.\.5 loses no more \(allow_loss=0\.42 takes this one\)$"
    )
    for words in (
        ["generate", router, *prompt, "--budget", "3.5"],
        ["route", router, "--prompt", "Which?", "--budget", "3.5"],
        ["serve", router, "--port", "0", "--budget", "3.5"],
        ["serve", router, "--port", "0", "--budget", "4.5", "--busy_budget", "3.5"],
    ):
        line = refusal(main, words)
        assert re.match(refused, line), line
    # No loss that is allowed makes it one that was measured.
    never = ["generate", router, *prompt, "--budget", "1", "--allow_loss", "0"]
    assert "budget: expected a mean depth in" in refusal(main, never)
    for more in (["4.4"], ["5"], ["3.5", "--allow_loss", "0.42"]):
        assert not run_command(main, ["generate", router, *prompt, "--budget", *more])
    with pytest.raises(ValueError, match="lost at most"):
        RoutedModel.from_pretrained(router, budget=3.5)
    assert RoutedModel.from_pretrained(router, budget=3.5, allow_loss=0.42).budget == 3.5


def test_without_a_budget_the_certified_or_a_safe_depth_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = measured_router(tmp_path, FIGURES, BY_DEPTH)
    plain = RoutedModel.from_pretrained(router)
    assert not plain.guaranteed
    assert plain.budget == pytest.approx(4.0, abs=0.3)
    everything = RoutedModel.from_pretrained(router, allow_loss=1.0)
    assert everything.budget == min(one.mean_depth for one in plain.router.config.budget_points if one.accuracy)
    assert RoutedModel.from_pretrained(router, allow_loss=0.0).budget == pytest.approx(4.6, abs=0.3)
    assert not run_command(main, ["info", str(router)])
    assert re.search(
        r"default +a mean depth of [34][.0-9]* of 5 layers; in validation right on", capsys.readouterr().out
    )
    assert not run_command(main, ["generate", str(router), "--prompt", "Which?", "--max_new_tokens", "3"])
    assert "of 5 layers; in validation right on 0.600, full depth on 0.620]" in capsys.readouterr().err
    made = load_router(router)
    guarantee = Guarantee(0.1, 0.1, "accuracy", 0.5, None, 10, 0.0, 4.25, None)
    write_guarantee(router, guarantee, weights_sha256(made), {})
    certified = RoutedModel.from_pretrained(router)
    assert (certified.guaranteed, certified.budget) == (True, None)
    assert RoutedModel.from_pretrained(router, budget=4.6).guaranteed is False
    assert not run_command(main, ["generate", str(router), "--prompt", "Which?", "--max_new_tokens", "3"])
    assert "[its guaranteed depth, about 4.2 of 5 layers]" in capsys.readouterr().err


def test_where_every_budget_loses_full_depth_is_taken(tmp_path: Path) -> None:
    router = measured_router(tmp_path, FIGURES, {3.0: 0.3, 4.6: 0.4})
    routed = RoutedModel.from_pretrained(router)
    assert routed.budget == routed.router.config.num_layers
    ids, mask = prompts()
    assert all(one.chain.is_full for one in routed.route(ids, mask))


def test_a_router_that_was_not_measured_takes_its_own_depth(tmp_path: Path) -> None:
    routed = RoutedModel.from_pretrained(measured_router(tmp_path, {}, {}))
    assert (routed.budget, routed.guaranteed) == (None, False)
    assert RoutedModel.from_pretrained(tmp_path / "router", budget=3.1).budget == 3.1
