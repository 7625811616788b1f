"""The server as OpenAI's own client sees it, as many at once do, and as hostile, broken and impatient clients do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from router.chain import Chain
from router.engine.view import chain_view
from router.latency import SCHEMA, LatencyProfile, Line
from router.routed import RoutedModel
from router.serving import gate
from router.serving.batcher import LoadBudget
from tests.routed_folders import scoped
from tests.serving import (
    BUDGET,
    END,
    NAME,
    Alone,
    Brake,
    Oracle,
    Running,
    braked,
    running,
    scraped,
    tiny_oracle,
    tiny_routed,
    until,
)
from tests.tiny import NUM_LAYERS

PROMPT = "Which of these is a fox?"
CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Which is ice?"}]
COUNT = 200
LARGE = 2**16
OK: dict[str, Any] = {"model": NAME, "prompt": "x", "max_tokens": 1}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server that still answers after all of this module's tests."""
    with running(max_body_bytes=LARGE) as one:
        yield one
        one.check_answers()


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


def routed_fields(chain: Chain) -> dict[str, Any]:
    """What a choice says of its chain, where its router knows nothing of scopes and answers' lengths."""
    return {"chain": str(chain), "depth": chain.depth, "in_scope": True, "one_token": False}


def test_a_completion_is_what_generate_gives(server: Running, client: openai.OpenAI) -> None:
    # Oracle: the prompt alone, without cache; and the routed model's own generate.
    got = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=12, temperature=0)
    prompt = server.oracle.tokens(PROMPT)
    alone = server.oracle.alone(prompt, 12)
    (choice,) = got.choices
    assert (choice.text, choice.finish_reason, choice.index) == (alone.text, alone.reason, 0)
    assert choice.model_extra == routed_fields(alone.chain)
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


def test_streamed_text_is_the_text_that_is_not_streamed(server: Running, client: openai.OpenAI) -> None:
    # Oracle: the prompt alone. Half of the tiny model's tokens are parts of characters, most of them broken.
    options: dict[str, Any] = {"model": NAME, "prompt": PROMPT, "max_tokens": 40, "temperature": 1.5, "seed": 0}
    alone = server.oracle.alone(server.oracle.tokens(PROMPT), 40, temperature=1.5, seed=0)
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


def token_name(server: Running, token: int) -> str:
    """A token's text; of a part of a character the tokenizer's name."""
    text = server.oracle.tokenizer.decode([token])
    return server.oracle.tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text


def expected_scores(server: Running, prompt: list[int], alone: Alone) -> list[tuple[int, torch.Tensor]]:
    """Each token of an answer but the one that ends it, and all tokens' log-probabilities at its step.

    They come from the chain's view in one pass over prompt and answer.
    """
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *alone.ids]])
        logits = chain_view(server.oracle.routed, alone.chain)(input_ids=ids).logits[0]
    steps = zip(alone.ids, logits[len(prompt) - 1 : -1].float().log_softmax(1), strict=True)
    return [(token, scores) for token, scores in steps if token != END]


@pytest.mark.parametrize("asked", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}])
def test_log_probabilities_are_the_chains_own(server: Running, client: openai.OpenAI, asked: dict[str, Any]) -> None:
    # Oracle: the view of the prompt's chain.
    request = {"model": NAME, "prompt": PROMPT, "max_tokens": 9, "logprobs": 3, **asked}
    prompt = server.oracle.tokens(PROMPT)
    alone = server.oracle.alone(prompt, 9, **asked)
    got = client.completions.create(**request).choices[0]
    assert (got.text, got.finish_reason) == (alone.text, alone.reason)
    assert got.logprobs is not None
    wanted = expected_scores(server, prompt, alone)
    assert got.logprobs.tokens == [token_name(server, token) for token, _ in wanted]
    assert got.logprobs.token_logprobs == pytest.approx([float(one[token]) for token, one in wanted], abs=1e-4)
    for named, (_, scores) in zip(got.logprobs.top_logprobs, wanted, strict=True):
        best = scores.topk(3)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        assert named == pytest.approx({token_name(server, token): value for token, value in pairs}, abs=1e-4)
    assert got.logprobs.text_offset == [len("".join(got.logprobs.tokens[:i])) for i in range(len(wanted))]
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**request, stream=True)]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for part in streamed for one in getattr(part, field)] == getattr(got.logprobs, field)


def test_log_probabilities_of_a_chat(server: Running, client: openai.OpenAI) -> None:
    # Oracle: the view of the prompt's chain; the tokens' bytes, of parts of characters too, are those of the text.
    request = {"model": NAME, "messages": CHAT, "max_tokens": 7, "temperature": 0}
    got = client.chat.completions.create(**request, logprobs=True, top_logprobs=2).choices[0]
    assert got.logprobs is not None
    assert got.logprobs.content is not None
    prompt = server.oracle.chat_tokens(CHAT)
    wanted = expected_scores(server, prompt, server.oracle.alone(prompt, 7))
    for one, (token, scores) in zip(got.logprobs.content, wanted, strict=True):
        assert one.token == token_name(server, token)
        assert one.logprob == pytest.approx(float(scores.max()), abs=1e-4)
        assert (one.top_logprobs[0].token, len(one.top_logprobs)) == (one.token, 2)
    said = b"".join(bytes(one.bytes or []) for one in got.logprobs.content).decode(errors="replace")
    assert said == got.message.content
    assert "\ufffd" in said
    streamed = client.chat.completions.create(**request, logprobs=True, stream=True)
    told = [one for chunk in streamed for one in (chunk.choices[0].logprobs.content or [])]
    assert [one.token for one in told] == [one.token for one in got.logprobs.content]
    assert not any(one.top_logprobs for one in told)
    assert client.chat.completions.create(**request).choices[0].logprobs is None


def test_the_clients_own_message_is_taken_back(server: Running, client: openai.OpenAI) -> None:
    asked = {"model": NAME, "max_tokens": 6, "temperature": 0}
    first = client.chat.completions.create(messages=CHAT, **asked).choices[0].message
    turns: list[Any] = [*CHAT, first, {"role": "user", "content": "More?"}]
    second = client.chat.completions.create(messages=turns, store=False, metadata={}, **asked).choices[0]
    said = [*CHAT, {"role": "assistant", "content": first.content or ""}, {"role": "user", "content": "More?"}]
    assert second.message.content == server.oracle.alone(server.oracle.chat_tokens(said), 6).text


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
    assert client.completions.create(**options | {"seed": openai.omit}).choices[0].text != got.choices[0].text
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
        assert got.choices[0].model_extra == routed_fields(alone.chain)
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
    # Oracle: the load's own line, by the choices that are left behind, and the router's decision at each budget.
    oracle, routed = tiny_oracle(), tiny_routed(budget=tiny_oracle().most)
    brake, load = Brake(routed), LoadBudget(oracle.most, oracle.least, 8)
    asked: dict[str, Any] = {"prompt": [f"Which is number {i}?" for i in range(16)], "max_tokens": 2, "temperature": 0}
    with running(routed, max_batch=4, budget=load.calm, busy_budget=load.busy, busy_queue=8) as server:
        brake.hold()
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(server.post, **asked)
            # A request's choices are rows like any others': sixteen arrive at once, four run at a time.
            until(lambda: server.service.batcher.waiting == 12)
            assert server.health()["budget"] == load.busy
            brake.release()
            choices = asking.result().json()["choices"]
    budgets = [load.at(waiting) for waiting in (12, 8, 4, 0) for _ in range(4)]
    wanted = [oracle.chain(oracle.tokens(one), at) for one, at in zip(asked["prompt"], budgets, strict=True)]
    assert [one["chain"] for one in choices] == list(map(str, wanted))
    assert len({sum(chain.depth for chain in wanted[i : i + 4]) for i in (4, 8, 12)}) > 1


def test_models_are_listed(client: openai.OpenAI) -> None:
    (one,) = client.models.list().data
    assert (one.id, one.object) == (NAME, "model")
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'gpt-9'"):
        client.models.retrieve("gpt-9")


def test_a_key_is_asked_for() -> None:
    # A key of any bytes, also those of no text; and a name with a slash.
    key = "the-küy".encode() + b"\xff"
    with running(key=os.fsdecode(key), name="some/model") as server, server.http() as http:
        right = {"Authorization": b"Bearer " + key}
        body = {"model": "some/model", "prompt": "x", "max_tokens": 1}
        assert http.post("/v1/completions", headers=right, json=body).status_code == 200
        assert http.get("/v1/models/some/model", headers=right).json()["id"] == "some/model"
        for path, status in (("/health", 200), ("/", 200), ("/status", 401), ("/metrics", 401)):
            assert http.get(path).status_code == status
        for wrong in ({}, {"Authorization": "Bearer the-k"}, {"Authorization": b"Basic " + key}):
            answer = http.post("/v1/completions", headers=wrong, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            server.openai(api_key="another").models.list()
        figures = http.get("/metrics", headers=right).text
        assert 'cola_router_requests_total{path="/metrics",status="401"} 1.0' in figures


def many_requests(oracle: Oracle) -> list[dict[str, Any]]:
    """Requests that differ in all that a request can say; prompts are all different."""
    draw = random.Random(7)
    made = []
    for i in range(COUNT):
        text = f"{i}: " + "".join(draw.choices("abcdefgh é€😀", k=draw.randint(0, 40)))
        sampled = draw.random() < 0.6
        made.append(
            {
                "chat": draw.random() < 0.4,
                "text": text,
                "stream": draw.random() < 0.5,
                "max_tokens": draw.choice([1, 3, 8, 13]),
                "temperature": draw.choice([0.5, 1.0, 2.0]) if sampled else 0.0,
                "top_p": draw.choice([0.5, 0.9, 1.0]) if sampled else 1.0,
                "seed": draw.randrange(1000),
                "stop": draw.choice([[], [], ["e"], ["\n", "ab"]]),
                "budget": draw.choice([None, None, oracle.least, (oracle.least + oracle.most) / 2, oracle.most]),
                "alternatives": draw.choice([None, None, 0, 2]),
            }
        )
    return made


Told = tuple[str, str, str, list[float]]
"""Text, chain, the reason of the end, and the tokens' log-probabilities where they were asked for."""


def expected(server: Running, request: dict[str, Any]) -> Told:
    oracle = server.oracle
    if request["chat"]:
        prompt = oracle.chat_tokens([{"role": "user", "content": request["text"]}])
    else:
        prompt = oracle.tokens(request["text"])
    names = ("temperature", "top_p", "seed", "stop", "budget")
    alone = oracle.alone(prompt, request["max_tokens"], **{name: request[name] for name in names})
    scores = [] if request["alternatives"] is None else expected_scores(server, prompt, alone)
    return alone.text, str(alone.chain), alone.reason, [float(values[token]) for token, values in scores]


def told_scores(choice: Any) -> list[float]:
    """The log-probabilities of a choice, or of a part of one."""
    if choice.logprobs is None:
        return []
    if hasattr(choice.logprobs, "token_logprobs"):
        return list(choice.logprobs.token_logprobs)
    return [one.logprob for one in choice.logprobs.content or []]


async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> Told:
    """Return what a request is told."""
    options = {name: request[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "stream")}
    options |= {"model": NAME, "extra_body": {"budget": request["budget"]}}
    alternatives = request["alternatives"]
    if alternatives is not None:
        options |= {"logprobs": True, "top_logprobs": alternatives} if request["chat"] else {"logprobs": alternatives}
    if request["chat"]:
        messages = [{"role": "user", "content": request["text"]}]
        got: Any = await client.chat.completions.create(messages=messages, **options)
    else:
        got = await client.completions.create(prompt=request["text"], **options)
    if not request["stream"]:
        choice = got.choices[0]
        text = choice.message.content if request["chat"] else choice.text
        return text, choice.chain, choice.finish_reason, told_scores(choice)
    text, scores = "", list[float]()
    async for chunk in got:
        choice = chunk.choices[0]
        text += (choice.delta.content or "") if request["chat"] else choice.text
        scores += told_scores(choice)
    return text, choice.chain, choice.finish_reason, scores


async def ask_all(server: Running, asked: list[dict[str, Any]]) -> list[Told]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        return await asyncio.gather(*(ask(client, request) for request in asked))


def test_two_hundred_at_once_come_out_as_alone(server: Running) -> None:
    # Oracle: each request's prompt alone, without cache, batch or padding, and sampling as its definition says.
    asked = many_requests(server.oracle)
    got = asyncio.run(ask_all(server, asked))
    alone = [expected(server, request) for request in asked]
    assert [one[:3] for one in got] == [one[:3] for one in alone]
    for told, wanted in zip(got, alone, strict=True):
        assert told[3] == pytest.approx(wanted[3], abs=1e-4)
    assert sum(map(bool, (one[3] for one in alone))) > COUNT // 4
    assert any(one[2] == "stop" and request["stop"] for one, request in zip(alone, asked, strict=True))
    assert len({one[1] for one in alone}) > 5
    assert len({one[0] for one in alone}) > COUNT // 2  # were texts alike, mixing them up would not show


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's form and says nothing of the server's inside."""
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert "router/" not in answer.text
    return dict(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x", ""]}, "prompt"),
        ({"prompt": "x" * 513}, "prompt"),
        ({"prompt": "x" * 500, "max_tokens": 13}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [5, -1]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"max_tokens": 401}, "max_tokens"),
        ({"n": 129}, "n"),
        ({"prompt": ["x"] * 33, "n": 8}, "n"),
        ({"budget": 0.01}, "budget"),
        ({"budget": 1e300}, "budget"),
        ({"latency_factor": 0.5}, "latency_factor"),
        ({"system": "rm"}, "system"),
    ],
)
def test_a_bad_field_is_named(server: Running, fields: dict[str, Any], param: str) -> None:
    answer = server.post(**OK | fields)
    error = refusal(answer)
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert re.match(rf"{param}[^ ]*: expected", error["message"])


def test_strange_text_is_text(server: Running) -> None:
    # Oracle: the prompt alone.
    for prompt in ("\x00", "a\x00b", "\ufffe\uffff", "\u202e\u200b", "<s></s><pad>", "\r\n" * 9, "e\u0301" * 30):
        answer = server.post(**OK | {"prompt": prompt, "max_tokens": 3, "temperature": 0}).json()
        alone = server.oracle.alone(server.oracle.tokens(prompt), 3)
        assert answer["choices"][0]["text"] == alone.text


def test_routes_methods_and_models_that_are_not_there(server: Running) -> None:
    with server.http() as client:
        for method, path, status in (
            ("GET", "/status/", 404),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1/models/", 404),
            ("GET", "/v1/models/../../etc/passwd", 404),
            ("GET", "/docs", 404),
            ("GET", "/openapi.json", 404),
            ("GET", "/v1/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("PUT", "/v1/chat/completions", 405),
        ):
            answer = client.request(method, path)
            assert (answer.status_code, refusal(answer)["type"]) == (status, "invalid_request_error")
        assert client.get("/v1/completions").headers["allow"] == "POST"
        assert client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    answer = server.post(**OK | {"model": "other"})
    assert (answer.status_code, refusal(answer)["code"]) == (404, "model_not_found")


def test_what_fails_inside_is_told_without_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.service.batcher, "submit", lambda _: {}["inside"])
            answer = server.post(**OK)
        assert (answer.status_code, refusal(answer)["code"]) == (500, "internal_error")
        assert "inside" not in answer.text
        assert scraped(server.url)["requests_total//v1/completions/500"] == 1
        server.check_answers()


def test_a_template_that_refuses_a_chat_is_the_clients_matter(server: Running) -> None:
    answer = server.post("/v1/chat/completions", messages=[{"role": "assistant", "content": "x"}])
    assert answer.status_code == 400
    assert refusal(answer)["message"] == "messages: the chat template refuses them: a user begins"


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(server: Running) -> None:
    large = b"x" * 10_000_000

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 50_000):
            yield large[start : start + 50_000]

    for content in (large, chunks()):
        with server.http() as client:
            answer = client.post("/v1/completions", content=content, headers=JSON)
        assert (answer.status_code, refusal(answer)["code"]) == (413, "body_too_large")
    exact = json.dumps(OK).encode().ljust(LARGE)
    with server.http() as client:
        assert client.post("/v1/completions", content=exact, headers=JSON).status_code == 200
        assert client.post("/v1/completions", content=exact + b" ", headers=JSON).status_code == 413


def test_a_client_that_waits_to_be_told_is_told_at_once(server: Running) -> None:
    # As curl does with large bodies: it sends none before the server says that it may.
    with server.half({"Content-Length": str(10**9), "Expect": "100-continue"}) as one:
        assert read(one).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "DRAIN_BYTES", 2**20)
    with server.half({"Transfer-Encoding": "chunked"}) as one, pytest.raises(ConnectionError):
        send_for_ever(one)


def send_for_ever(one: socket.socket) -> None:
    while True:
        one.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def read(one: socket.socket) -> bytes:
    """All that a server sends before it closes."""
    got = b""
    while part := one.recv(2**16):
        got += part
    return got


@pytest.mark.parametrize("limit", ["client_timeout", "request_timeout"])
def test_a_body_that_does_not_come_is_not_waited_for(limit: str) -> None:
    with running(**{limit: 0.2}) as server, server.half({"Content-Length": "100"}) as one:
        one.sendall(b'{"model"')
        assert read(one).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(stream: bool) -> None:
    # Oracle: the model's passes; all four hundred tokens would take as many.
    with braked() as (server, brake):
        brake.step(20)
        # A seed by which no choice ends by itself: without one the first draws end some in every second run.
        with server.ask(prompt="x", max_tokens=400, temperature=1, stream=stream, n=3, seed=0) as one:
            until(lambda: brake.passes > 20)
            if stream:
                assert b"data: {" in one.recv(2**16)
        until(lambda: server.service.batcher.running == 0)
        brake.release()
        left = server.status()["recent"]
        assert [(one["error"], one["reason"], one["chain"] is None) for one in left] == [("abandoned", None, False)] * 3
        server.check_answers()
        assert brake.passes < 50


def test_a_request_that_takes_too_long_is_given_up() -> None:
    with braked(request_timeout=0.5) as (server, brake):
        answer = server.post(**OK)
        assert (answer.status_code, refusal(answer)["code"]) == (504, "timeout")
        brake.step(4)
        with pytest.raises(openai.APIError, match="took too long"):
            list(server.openai().completions.create(model=NAME, prompt="x", max_tokens=400, stream=True))
        brake.release()
        until(lambda: server.service.batcher.running == 0)
        begun, waited = server.status()["recent"]
        for one in (begun, waited):
            assert (one["error"], one["reason"]) == ("timeout", None)
            assert one["seconds"] >= 0.49
        assert (waited["chain"], waited["layers"], waited["depth"], waited["in_scope"]) == (None,) * 4
        assert (waited["tokens"], waited["first_token_seconds"]) == (0, None)
        assert begun["tokens"] > 0
        found = scraped(server.url)
        assert (found["choices_total/timeout"], found["requests_total//v1/completions/504"]) == (2, 1)
        server.check_answers()


def test_a_full_queue_says_so_and_when_to_come_back() -> None:
    with braked(max_batch=1, max_queue=3) as (server, brake):
        first = server.ask(**OK)
        until(lambda: server.service.batcher.running == 1)
        others = server.ask(**OK, n=3)
        until(lambda: server.service.batcher.waiting == 3)
        answer = server.post(**OK)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert refusal(answer)["code"] == "queue_full"
        health = server.health()
        assert (health["waiting"], health["running"]) == (3, 1)
        brake.release()
        for one in (first, others):
            assert one.recv(2**16).startswith(b"HTTP/1.1 200 ")
            one.close()
        server.check_answers()


def test_connections_that_would_take_the_last_files_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr("router.serving.connection.SPARE_FILES", files - 2)
    with running() as server:
        held = [server.half({"Content-Length": "9"}) for _ in range(2)]
        until(lambda: len(server.server.server_state.connections) == 2)
        with contextlib.suppress(ConnectionError), server.half({"Content-Length": "9"}) as third:
            assert not read(third)
        for one in held:
            one.close()
        until(lambda: not server.server.server_state.connections)
        server.check_answers()


@pytest.mark.parametrize("limits", [{"client_timeout": 1.0}, {"request_timeout": 1.0, "client_timeout": 5.0}])
def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]) -> None:
    # Each piece of the answer holds the model's name; together they are more than any buffer on the way.
    monkeypatch.setattr(gate, "SPARE_SECONDS", 0.5)
    name = "m" * 200_000
    with running(name=name, max_tokens=400, **limits) as server:
        with server.ask(model=name, prompt="x", max_tokens=400, n=8, temperature=1, stream=True) as one:
            until(lambda: bool(server.server.server_state.tasks))
            until(lambda: not server.server.server_state.connections)
            with contextlib.suppress(ConnectionResetError):
                got = read(one)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert not got.endswith(b"0\r\n\r\n")  # how a whole answer ends
        until(lambda: server.service.batcher.running == 0)


FORMS = [f"Which of these is number {i}?" for i in range(40)]


def knowing(plain: RoutedModel, *, one_token: bool = False) -> RoutedModel:
    """The model with a scope around prompts of one form."""
    read = [plain.read(torch.tensor([plain.tokenizer(one)["input_ids"]])).run.rows()[0] for one in FORMS]
    router = scoped(plain.router, read, one_token=one_token)
    return RoutedModel.join(plain.plain_model(), router, tokenizer=plain.tokenizer, budget=BUDGET)


def test_an_answer_says_whether_its_prompt_is_in_scope() -> None:
    # Oracle: a scope around prompts of one form; a prompt that is one of them, and one of another form.
    with running(knowing(tiny_routed())) as server:
        told = [server.post(prompt=one, max_tokens=2).json()["choices"][0] for one in (FORMS[3], "~" * 20)]
        assert [one["in_scope"] for one in told] == [True, False]
        assert told[1]["depth"] == NUM_LAYERS
        health = server.health()
    assert (health["routed"], health["out_of_scope"]) == (2, 1)


def test_a_text_ends_after_the_one_token_that_its_chain_was_judged_by() -> None:
    # Oracle: a router of answers of one token alone, against the one that knows nothing of answers' lengths.
    plain, asked = tiny_routed(), {"prompt": FORMS[:8], "max_tokens": 5, "temperature": 0}
    with running(plain) as server:
        whole = server.post(**asked).json()
    with running(knowing(plain, one_token=True)) as server:
        full = server.post(**asked, budget=NUM_LAYERS).json()
        cut = server.post(**asked).json()
        streamed = server.post(**asked | {"stream": True}).text
    ends = {False: ("length", 5), True: ("stop", 1)}
    tokens = 0
    for before, after in zip(whole["choices"], cut["choices"], strict=True):
        assert (after["chain"], after["one_token"]) == (before["chain"], after["depth"] != NUM_LAYERS)
        reason, count = ends[after["one_token"]]
        assert after["finish_reason"] == reason
        assert before["text"].startswith(after["text"])
        tokens += count
    assert {(one["one_token"], one["finish_reason"]) for one in full["choices"]} == {(False, "length")}
    assert True in {one["one_token"] for one in cut["choices"]}
    assert cut["usage"]["completion_tokens"] == tokens
    said = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n")[:-2]]
    texts = {i: "".join(one["choices"][0]["text"] for one in said if one["choices"][0]["index"] == i) for i in range(8)}
    assert list(texts.values()) == [one["text"] for one in cut["choices"]]
