"""Choices scored by a routed model: the router's chain, and the log-probabilities that evaluation computes."""

from __future__ import annotations

import random
import string
import threading

import pytest
import torch
from transformers import PreTrainedModel

from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.engine.choices import question_of
from router.engine.view import chain_view
from router.routed import RoutedModel
from router.storage import Operation
from tests.test_router_routed import router_for
from tests.tiny import VARIANTS, tiny_model, tiny_samples, tiny_tokenizer

CHOICES = [" the moon", " a fox", " glass", " seven bees"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def routed(model: PreTrainedModel) -> RoutedModel:
    return RoutedModel.join(model, router_for(model), tokenizer=tiny_tokenizer(), budget=4.0)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
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


def test_several_prompts_are_scored_as_each_alone(routed: RoutedModel) -> None:
    prompts = [f"Number {i}:" + " so" * (i % 3) for i in range(5)]
    every = [CHOICES[: 1 + i % 4] for i in range(5)]
    together = routed.score(prompts, every)
    for prompt, choices, scored in zip(prompts, every, together, strict=True):
        alone = routed.score(prompt, choices)
        assert scored.routed.chain == alone.routed.chain
        assert scored.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_guarantee_of_full_depth_scores_as_the_stock_model(model: PreTrainedModel) -> None:
    full = RoutedModel.join(model, router_for(model), tokenizer=tiny_tokenizer(), guaranteed=True)
    scored = full.score("Which of these?", CHOICES)
    assert scored.routed.chain == Chain.full(5)


def test_two_threads_score_as_one(routed: RoutedModel) -> None:
    prompts = [f"Thread {i}?" for i in range(4)]
    alone = {prompt: routed.score(prompt, CHOICES).logprobs for prompt in prompts}
    found: dict[str, tuple[float, ...]] = {}

    def work(prompt: str) -> None:
        for _ in range(5):
            found[prompt] = routed.score(prompt, CHOICES).logprobs

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_a_prompt_is_opened_once() -> None:
    # Oracle: a tokenizer that puts BOS before a text; the choice follows the prompt's tokens.
    tokenizer = tiny_tokenizer()
    question = question_of(tokenizer, "Is it A", [" A", " B"])
    assert question.prompt == tuple(tokenizer("Is it A")["input_ids"])
    assert question.choices == tuple(
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (" A", " B")
    )


@pytest.mark.parametrize(
    ("choices", "told"),
    [([], "at least one text"), (" A", "list of at least one text"), ([""], "at least one token")],
)
def test_bad_choices_are_refused(routed: RoutedModel, choices: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        routed.score("Which?", choices)


def test_scoring_needs_a_tokenizer(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="expected a tokenizer"):
        RoutedModel.join(model, router_for(model)).score("Which?", CHOICES)
    with pytest.raises(ValueError, match="those of 2 prompts, got 1"):
        RoutedModel.join(model, router_for(model), tokenizer=tiny_tokenizer()).score(["a", "b"], [CHOICES])
