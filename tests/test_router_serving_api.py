"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from router.latency import SCHEMA, LatencyProfile, Line
from router.serving.rows import Sampling
from tests.serving import BUDGET, NAME, Oracle, Running, running, tiny_routed

PROMPT = "Which of these is a fox?"
CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Which is ice?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


def test_a_completion_is_what_generate_gives(server: Running, client: openai.OpenAI) -> None:
    # Oracle: the prompt alone, without cache; and the routed model's own generate.
    got = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=12, temperature=0)
    prompt = server.oracle.tokens(PROMPT)
    alone = server.oracle.alone(prompt, 12)
    (choice,) = got.choices
    assert (choice.text, choice.finish_reason, choice.index) == (alone.text, alone.reason, 0)
    assert choice.model_extra == {"chain": str(alone.chain), "depth": alone.chain.depth}
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(prompt), alone.tokens)
    assert got.usage.total_tokens == len(prompt) + alone.tokens
    assert (got.object, got.model, got.id[:5]) == ("text_completion", NAME, "cmpl-")
    batch = server.oracle.tokenizer(PROMPT, return_tensors="pt")
    generated = server.oracle.routed.generate(**batch, max_new_tokens=12, do_sample=False)
    assert choice.text == server.oracle.text(generated[0, len(prompt) :].tolist())


def test_a_chat_goes_through_the_template(server: Running, client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model=NAME, messages=CHAT, max_completion_tokens=12, temperature=0)
    prompt = server.oracle.chat_tokens(CHAT)
    alone = server.oracle.alone(prompt, 12)
    (choice,) = got.choices
    assert (choice.message.content, choice.message.role) == (alone.text, "assistant")
    assert (choice.finish_reason, got.object, got.id[:9]) == (alone.reason, "chat.completion", "chatcmpl-")
    assert choice.model_extra is not None
    assert choice.model_extra["chain"] == str(alone.chain)
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(prompt), alone.tokens)


@pytest.mark.parametrize("seed", range(8))
def test_streamed_text_is_the_text_that_is_not_streamed(server: Running, client: openai.OpenAI, seed: int) -> None:
    # Oracle: the prompt alone. Half of the tiny model's tokens are parts of characters, most of them broken.
    options: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 40, "temperature": 1.5, "seed": seed}
    alone = server.oracle.alone(server.oracle.tokens(PROMPT), 40, temperature=1.5, seed=seed)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == alone.text
    assert len(chunks) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [alone.reason]
    assert all(chunk.choices[0].model_extra["chain"] == str(alone.chain) for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], alone.tokens)
    assert len({chunk.id for chunk in chunks}) == 1
    assert client.completions.create(**options).choices[0].text == alone.text


def test_a_streamed_chat(server: Running, client: openai.OpenAI) -> None:
    # Oracle: the prompt alone.
    alone = server.oracle.alone(server.oracle.chat_tokens(CHAT), 12)
    chunks = list(client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=12, temperature=0, stream=True))
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert (first.delta.role, first.delta.content, first.finish_reason) == ("assistant", "", None)
    assert (last.delta.content, last.finish_reason) == (None, alone.reason)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == alone.text
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_several_choices_of_several_prompts(server: Running, client: openai.OpenAI) -> None:
    # Oracle: each choice alone.
    prompts = [PROMPT, "The moon", PROMPT]
    options: dict[str, Any] = {"model": NAME, "prompt": prompts, "n": 2, "max_tokens": 7, "temperature": 1, "seed": 11}
    got = client.completions.create(**options)
    expected = [
        server.oracle.alone(server.oracle.tokens(prompt), 7, choice, temperature=1, seed=11)
        for prompt in prompts
        for choice in (0, 1)
    ]
    assert [(one.index, one.text) for one in got.choices] == [(i, one.text) for i, one in enumerate(expected)]
    assert got.choices[0].text != got.choices[1].text
    assert got.usage is not None
    assert got.usage.prompt_tokens == sum(len(server.oracle.tokens(prompt)) for prompt in prompts)
    assert got.usage.completion_tokens == sum(one.tokens for one in expected)
    texts = [""] * 6
    for chunk in client.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [one.text for one in expected]


def test_a_prompt_of_token_ids(server: Running, client: openai.OpenAI) -> None:
    ids = [[90, 91, 92], [93, 94]]
    got = client.completions.create(model=NAME, prompt=ids, max_tokens=5, temperature=0)
    assert [one.text for one in got.choices] == [server.oracle.alone(one, 5).text for one in ids]
    one = client.completions.create(model=NAME, prompt=ids[0], max_tokens=5, temperature=0)
    assert one.choices[0].text == got.choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_text_ends_before_a_stop_string(server: Running, client: openai.OpenAI, stream: bool) -> None:
    # Oracle: the text without it.
    options: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 30, "temperature": 1, "seed": 5}
    whole = client.completions.create(**options).choices[0].text
    stop = next(whole[i : i + 2] for i in range(4, 25) if "\ufffd" not in whole[i : i + 2])
    got = client.completions.create(**options, stop=["never that", stop], stream=stream)
    choices = [chunk.choices[0] for chunk in got] if stream else [got.choices[0]]
    assert "".join(one.text for one in choices) == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_a_seed_fixes_the_draws_and_no_seed_does_not(server: Running, client: openai.OpenAI) -> None:
    # Oracle: the definition in numpy, for the prompt alone.
    options: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 10, "temperature": 1.2, "top_p": 0.9}
    alone = server.oracle.alone(server.oracle.tokens(PROMPT), 10, temperature=1.2, top_p=0.9, seed=2**62)
    assert client.completions.create(**options, seed=2**62).choices[0].text == alone.text
    assert len({client.completions.create(**options).choices[0].text for _ in range(4)}) > 1
    assert Sampling.of(1, 1, 2**62, 0).uniform(0) == Sampling.of(1, 1, 2**62, 0).uniform(0)


def test_a_request_has_a_budget_of_its_own(server: Running, client: openai.OpenAI) -> None:
    # Oracle: what the routed model decides at that budget.
    oracle, chains = server.oracle, set()
    for budget in (oracle.least, BUDGET, oracle.most):
        prompt = oracle.tokens("Which of these belongs?")
        got = client.completions.create(
            model=NAME, prompt=prompt, max_tokens=4, temperature=0, extra_body={"budget": budget}
        )
        alone = oracle.alone(prompt, 4, budget=budget)
        chains.add(alone.chain)
        assert got.choices[0].text == alone.text
        assert got.choices[0].model_extra == {"chain": str(alone.chain), "depth": alone.chain.depth}
    assert len(chains) > 1
    with pytest.raises(openai.BadRequestError, match=r"budget: expected a mean depth in \d.*, got 77.0") as caught:
        client.completions.create(model=NAME, prompt="x", extra_body={"budget": 77})
    assert caught.value.param == "budget"


def test_a_request_has_a_latency_of_its_own(tmp_path: Path) -> None:
    # Oracle: the profile's own line.
    profile = LatencyProfile(5, 1, 8, Line(0.1, 0.1, 0.0), Line(0.0, 0.01, 0.0), 0.0)
    routed = tiny_routed()
    prints = routed.router.config.fingerprints
    value = {"schema": SCHEMA, "model": prints.model, "device": "cpu", "dtype": "float32", "new_tokens": 0}
    (tmp_path / "latency.json").write_text(json.dumps(value | {"cells": [{"profile": dataclasses.asdict(profile)}]}))
    with running(routed, latency_profile=tmp_path / "latency.json") as server:
        oracle = server.oracle
        factor = profile.factor(oracle.most - 0.5)
        got = server.openai().completions.create(
            model=NAME, prompt=PROMPT, max_tokens=3, temperature=0, extra_body={"latency_factor": factor}
        )
        alone = oracle.alone(oracle.tokens(PROMPT), 3, budget=profile.depth_for(factor))
        assert (got.choices[0].text, got.choices[0].chain) == (alone.text, str(alone.chain))
        for wrong in (1e-3, 40.0):
            answer = server.post(prompt="x", latency_factor=wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "latency_factor")
        assert "latency_factor: expected more than 0.167" in server.post(prompt="x", latency_factor=1e-3).text


def test_a_longer_queue_makes_answers_shallower() -> None:
    # Oracle: the same prompts one by one, when nothing waits; and the router's decision at either end of the load.
    oracle = Oracle(tiny_routed())
    prompts = [f"Which is number {i}?" for i in range(12)]
    ends = {"budget": oracle.most, "busy_budget": oracle.least, "busy_queue": 4}
    with running(tiny_routed(budget=oracle.most), max_batch=4, **ends) as server:
        client, options = server.openai(), {"model": NAME, "max_tokens": 2, "temperature": 0}
        calm = [client.completions.create(prompt=one, **options).choices[0] for one in prompts]
        # A request's choices are rows like any others': twelve arrive at once, four run at a time, so 8, 4, 0 wait.
        busy = client.completions.create(prompt=prompts, **options).choices
    deep, shallow = (
        [oracle.chain(oracle.tokens(one), at).depth for one in prompts] for at in (oracle.most, oracle.least)
    )
    assert [one.depth for one in calm] == deep
    assert [one.depth for one in busy] == shallow[:8] + deep[8:]
    assert sum(shallow[:8]) < sum(deep[:8])


def test_models_are_listed(client: openai.OpenAI) -> None:
    (one,) = client.models.list().data
    assert (one.id, one.object) == (NAME, "model")
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'gpt-9'"):
        client.models.retrieve("gpt-9")


def test_names_with_slashes() -> None:
    with running(name="some/model") as server:
        assert server.openai().models.retrieve("some/model").id == "some/model"


def test_a_key_is_asked_for() -> None:
    with running(key="the-küy") as server:
        # Clients send a header's bytes; this one's library takes Latin-1 and ASCII only.
        right = {"Authorization": "Bearer the-küy".encode()}
        body = {"model": NAME, "prompt": "x", "max_tokens": 1}
        with server.http() as http:
            assert http.post("/v1/completions", headers=right, json=body).status_code == 200
            assert http.get("/health").status_code == 200
            for wrong in ({}, {"Authorization": "Bearer the-k"}, {"Authorization": "Basic the-küy".encode()}):
                answer = http.post("/v1/completions", headers=wrong, json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.openai(api_key="another").models.list()


def test_a_model_without_a_chat_template_says_so() -> None:
    routed = tiny_routed()
    assert routed.tokenizer is not None
    routed.tokenizer.chat_template = None
    with running(routed) as server:
        answer = server.post("/v1/chat/completions", messages=CHAT)
    assert answer.status_code == 400
    assert "messages: expected a model with a chat template" in answer.json()["error"]["message"]
