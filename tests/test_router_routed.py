"""A routed model: loaded, generating and scoring row by row what the view of each row's chain does."""

from __future__ import annotations

import dataclasses
import random
import shutil
import string
import threading
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, TextIteratorStreamer

from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.decision import Operation, Router
from router.engine.view import chain_view
from router.routed import RoutedModel
from router.storage import load_router, save_router
from router.validation import InputError
from tests.routed_folders import CHOICES, GREEDY, PADDING, alone, in_threads, prompts, router_for, write_routed
from tests.tiny import EACH, FULL, save_tiny, tiny_model, tiny_samples, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def routed(model: PreTrainedModel) -> RoutedModel:
    return RoutedModel.join(model, router_for(model), tokenizer=tiny_tokenizer(), budget=4.0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in `model/` and a router for it in `router/`."""
    return write_routed(tmp_path_factory.mktemp("pretrained")).parent


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_full_depth_for_all_is_the_stock_model(variant: tuple[str, str]) -> None:
    # Oracle: the base model's own generate, sampled from the same seed and with beams, with scores.
    model = tiny_model(*variant)
    routed = RoutedModel.join(model, router_for(model), guaranteed=True)
    ids, mask = prompts()
    assert {one.chain for one in routed.route(ids, mask)} == {FULL}
    for more in ({"do_sample": True, "temperature": 0.8, "top_k": 20}, {"num_beams": 3}):
        options = GREEDY | more | {"return_dict_in_generate": True, "output_scores": True}
        outputs = []
        for one in (model, routed):
            torch.manual_seed(0)
            outputs.append(one.generate(input_ids=ids, attention_mask=mask, **options))
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)
        for stock, ours in zip(outputs[0].scores, outputs[1].scores, strict=True):
            torch.testing.assert_close(ours, stock)


def test_several_sequences_of_a_prompt_stay_together(model: PreTrainedModel, routed: RoutedModel) -> None:
    ids, mask = prompts()
    chains = [one.chain for one in routed.route(ids, mask)]
    out = routed.generate(
        input_ids=ids, attention_mask=mask, **GREEDY | {"do_sample": True, "num_return_sequences": 3, "top_k": 1}
    )
    assert len(out) == 18
    for row, chain in enumerate(chains):
        (wanted,) = alone(model, chain, ids[row : row + 1], mask[row : row + 1])
        assert all(torch.equal(one, wanted) for one in out[3 * row : 3 * row + 3])


def test_rows_that_end_early_are_padded_at_the_end(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: each row's view alone, with the token that ends the first row's answer as the end.
    ids, mask = prompts()
    options = GREEDY | {"min_new_tokens": 0}
    first = routed.generate(input_ids=ids, attention_mask=mask, **options)
    options |= {"eos_token_id": int(first[0, ids.shape[1] + 1])}
    got = routed.generate(input_ids=ids, attention_mask=mask, **options)
    for row, routed_to in enumerate(routed.route(ids, mask)):
        (wanted,) = alone(model, routed_to.chain, ids[row : row + 1], mask[row : row + 1], **options)
        assert torch.equal(got[row, : len(wanted)], wanted)
        assert (got[row, len(wanted) :] == PADDING).all()


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


def test_two_threads_do_not_mix(routed: RoutedModel) -> None:
    # Oracle: each half of the prompts alone, generated and scored.
    ids, mask = prompts()
    halves = [{"input_ids": ids[own], "attention_mask": mask[own], **GREEDY} for own in (slice(3), slice(3, 6))]
    texts = [routed.generate(**half) for half in halves]
    scores = [routed.score(f"Thread {i}?", CHOICES).logprobs for i in range(2)]
    same: list[bool] = []

    def work(half: int) -> None:
        for _ in range(4):
            same.append(torch.equal(routed.generate(**halves[half]), texts[half]))
            same.append(routed.score(f"Thread {half}?", CHOICES).logprobs == scores[half])

    in_threads(work)
    assert same == [True] * 16


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_scores_are_those_of_the_chains_view(variant: tuple[str, str]) -> None:
    # Oracle: each choice alone behind the prompt through the view of the chain, log-softmax by hand.
    model, tokenizer = tiny_model(*variant), tiny_tokenizer()
    routed = RoutedModel.join(model, router_for(model), tokenizer=tokenizer, budget=4.0)
    chains = set()
    rng = random.Random(0)
    for i in range(8):
        prompt = "".join(rng.choices(string.printable[:90], k=4 + 5 * i))
        scored = routed.score(prompt, CHOICES)
        chains.add(scored.routed.chain)
        view = chain_view(model, scored.routed.chain)
        start = len(tokenizer(prompt)["input_ids"])
        for choice, value, count in zip(CHOICES, scored.logprobs, scored.tokens, strict=True):
            ids = torch.tensor([tokenizer(prompt + choice)["input_ids"]])
            logprobs = view(input_ids=ids).logits[0].log_softmax(-1)
            own = [float(logprobs[at - 1, int(ids[0, at])]) for at in range(start, ids.shape[1])]
            assert count == len(own)
            assert value == pytest.approx(sum(own), abs=1e-4)
        assert scored.logprobs[scored.best] == max(scored.logprobs)
    assert chains != {Chain.full(5)}


def test_chains_and_scores_are_those_of_evaluation(model: PreTrainedModel, routed: RoutedModel) -> None:
    # Oracle: the scorer and the reading that search, training and evaluation share.
    tokenizer, task = tiny_tokenizer(), load_task("arc_easy")
    scorer = ChainScorer(model, tokenizer, task)
    for sample in tiny_samples("test", 5):
        encoded = scorer.encode(sample)
        block = scorer.load([encoded])
        (expected,) = routed.router.decide(scorer.states(block, routed.router.config.read_layer), Operation(budget=4.0))
        (result,) = scorer.score(block, [(0, expected.chain)])
        prompt = task.prompt.text(encoded.query, tokenizer)
        scored = routed.score(prompt, list(encoded.query.continuations))
        assert scored.routed.chain == expected.chain
        assert scored.logprobs == pytest.approx(result.scores, abs=1e-4)


def test_what_does_not_fit_is_refused(model: PreTrainedModel, routed: RoutedModel) -> None:
    router = router_for(model)
    with pytest.raises(ValueError, match="guaranteed: expected a router with a guarantee"):
        RoutedModel.join(model, Router(router.config, router.head), guaranteed=True)
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        RoutedModel.join(model, router, budget=0.5)
    with pytest.raises(ValueError, match="generate: expected input_ids"):
        routed.generate(inputs_embeds=torch.zeros(1, 3, model.config.hidden_size))
    with pytest.raises(ValueError, match="expected a tokenizer"):
        RoutedModel.join(model, router).score("Which?", CHOICES)
    for choices, told in (([], "at least one text"), (" A", "list of at least one text"), ([""], "at least one token")):
        with pytest.raises(ValueError, match=told):
            routed.score("Which?", choices)


def test_what_the_library_takes_passes_through(project: Path) -> None:
    routed = RoutedModel.from_pretrained(project / "router", dtype="bfloat16", attn_implementation="eager")
    assert routed.dtype == torch.bfloat16
    assert routed.config._attn_implementation == "eager"


def test_layers_placed_by_accelerate_run_the_same(project: Path, tmp_path: Path) -> None:
    # Oracle: the model in one place. One layer lies on the disk, so its weights cannot be compared.
    layers = [f"model.layers.{i}" for i in range(5)]
    names = ("lm_head", "model.embed_tokens", "model.norm", "model.rotary_emb", *layers)
    places = dict.fromkeys(names, "cpu") | {"model.layers.3": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path), "budget": 4.0}
    with pytest.raises(InputError, match="expected weights in memory to compare"):
        RoutedModel.from_pretrained(project / "router", **options)
    placed = RoutedModel.from_pretrained(project / "router", verify=False, **options)
    plain = RoutedModel.from_pretrained(project / "router", budget=4.0, device_map={"": "cpu"})
    ids, mask = prompts()
    assert any(3 in one.chain.layers for one in plain.route(ids, mask))
    call = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    assert torch.equal(placed.generate(**call), plain.generate(**call))
    assert placed.score("Which?", [" A", " B"]) == plain.score("Which?", [" A", " B"])


def test_what_a_router_was_not_made_for_is_refused(project: Path, tmp_path: Path) -> None:
    # Oracle: another model, another tokenizer, a model that is gone, depths that were not measured.
    router, other = project / "router", str(save_tiny(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match="expected it to be made for the model"):
        RoutedModel.from_pretrained(router, base_model=other)
    assert RoutedModel.from_pretrained(router, base_model=other, verify=False).router.config.num_layers == 5
    shutil.copytree(project / "model", tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="expected it to be made for the tokenizer"):
        RoutedModel.from_pretrained(router, base_model=str(tmp_path / "model"))
    made = load_router(router)
    gone = dataclasses.replace(made.config, base_model="./gone")
    save_router(tmp_path / "router", dataclasses.replace(made, config=gone))
    with pytest.raises(InputError, match=r"base_model: expected the model that the router names, '\./gone'"):
        RoutedModel.from_pretrained(tmp_path / "router")
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        RoutedModel.from_pretrained(router, budget=40.0)
    with pytest.raises(InputError, match=r"got float16, which cannot be compared with them \(verify=False"):
        RoutedModel.from_pretrained(router, dtype="float16")


def test_the_router_alone_is_saved(project: Path, tmp_path: Path) -> None:
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    routed.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "router.safetensors", "README.md"}
    again = RoutedModel.from_pretrained(tmp_path / "saved", base_model=str(project / "model"), budget=4.0)
    ids, mask = prompts()
    assert again.route(ids, mask) == routed.route(ids, mask)


def test_padding_stands_on_the_left(project: Path) -> None:
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    assert routed.tokenizer is not None
    batch = routed.tokenizer(["Which of these?", "A"], return_tensors="pt", padding=True)
    assert batch.attention_mask[1].tolist() == [0] * 14 + [1]
    assert len(routed.generate(**batch, **GREEDY)) == 2
    with pytest.raises(ValueError, match="expected padding on the left"):
        routed.generate(input_ids=batch.input_ids.flip(1), attention_mask=batch.attention_mask.flip(1))


def test_budgets_by_row(project: Path) -> None:
    # Oracle: the whole batch at each budget.
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    reading = routed.read(*prompts())
    low, high = (routed.decide(reading, [budget] * 6) for budget in (3.2, 4.8))
    own = routed.decide(reading)
    mixed = routed.decide(reading, [3.2, None, 4.8, 3.2, None, 4.8])
    assert mixed == [low[0], own[1], high[2], low[3], own[4], high[5]]
    assert routed.decide(reading.select([4, 0]), [None, 3.2]) == [own[4], low[0]]
    with pytest.raises(ValueError, match="budgets: expected 6 entries"):
        routed.decide(reading, [3.2])
    routed.budget = 3.2
    assert routed.decide(reading) == low
    routed.budget = 99.0
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        routed.decide(reading)
