"""`python -m router proxy` before real servers, each of which serves one exported chain of a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from router.__main__ import main
from router.chain import Chain
from router.decision import Guarantee
from router.routed import RoutedModel
from router.serving.backends import of_one_token
from router.serving.batcher import BatchLimits
from router.serving.choice import Picked, RouterChoice
from router.serving.protocol import Budgets
from router.serving.server import bind
from router.storage import load_router, save_router
from tests.conftest import Refusal
from tests.proxied import (
    ABSENT,
    CHUNK,
    FULL,
    HEAD,
    LAYERS,
    SERVED,
    SHORT,
    SHORTER,
    Proxied,
    Setting,
    at_full_depth,
    backend,
    peer,
    proxied,
    texts,
    write_setting,
)
from tests.routed_folders import scoped
from tests.serving import (
    NAME,
    Brake,
    Oracle,
    chat_tokenizer,
    running,
    scraped,
    tiny_routed,
    until,
)

COUNT = 200
Before = Callable[..., AbstractContextManager[Proxied]]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return write_setting(tmp_path_factory.mktemp("proxy"))


@pytest.fixture(scope="module")
def backends(setting: Setting) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {chain: stack.enter_context(backend(setting, chain)).url for chain in SERVED}


@pytest.fixture(scope="module")
def proxy(setting: Setting, backends: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(setting, tmp_path_factory.mktemp("all"), backends) as made:
        yield made


@pytest.fixture
def before(setting: Setting, backends: dict[str, str], tmp_path: Path) -> Before:
    """What starts a proxy before the backends, of which some stand elsewhere; `at`: another router's setting."""
    return lambda elsewhere={}, at=setting, **settings: proxied(at, tmp_path, backends | elsewhere, **settings)


@pytest.mark.parametrize("chain", SERVED)
def test_a_prompt_goes_to_the_backend_of_its_chain(proxy: Proxied, backends: dict[str, str], chain: str) -> None:
    # Oracle: the router asked alone says which chain, that backend asked directly says what comes back.
    prompt, depth = proxy.setting.prompt_of(chain), Chain.parse(chain, LAYERS).depth
    answer = proxy.post(prompt=prompt, n=2)
    assert answer.headers["x-cola-chain"] == chain
    assert answer.headers["x-cola-depth"] == str(depth)
    body = {"model": f"backend-{depth}", "prompt": prompt, "n": 2, "max_tokens": 6, "temperature": 0}
    direct = httpx.post(f"{backends[chain]}/v1/completions", json=body).json()
    got = answer.json()
    assert got.pop("model") == NAME
    assert direct.pop("model") == f"backend-{depth}"
    for value in (got, direct):
        del value["id"], value["created"]
    assert got == direct
    tokens = proxy.setting.oracle.tokens(prompt)
    assert got["choices"][1]["text"] == proxy.setting.text(tokens, chain, 6)


def test_a_chain_without_a_backend_gives_way_to_the_best_that_has_one(proxy: Proxied) -> None:
    # Oracle: the menu's ranking at the budget's price, from which the absent chain is left out.
    oracle = proxy.setting.oracle
    absent = [text for text in texts(200, 3) if str(oracle.chain(oracle.tokens(text))) == ABSENT][:12]
    assert len(absent) == 12
    wanted = [proxy.setting.alone(oracle.tokens(text)) for text in absent]
    assert [proxy.post(prompt=text, max_tokens=1).headers["x-cola-chain"] for text in absent] == wanted
    assert len(set(wanted)) > 1


def test_full_depth_takes_the_place_where_nothing_says_what_suits(setting: Setting) -> None:
    # Oracle: the router asked alone: its own chain where that is served, full depth where it is not.
    menu = setting.oracle.routed.router
    certified = Guarantee(0.1, 0.1, "accuracy", menu.head.offset_for(setting.budget), None, 10, 0.0, 4.0, None)
    base, tokenizer = setting.oracle.routed.plain_model(), chat_tokenizer()
    for routed in (
        RoutedModel.join(base, dataclasses.replace(menu, guarantee=certified), tokenizer=tokenizer, guaranteed=True),
        tiny_routed(),
    ):
        served = [Chain.parse(text, LAYERS) for text in SERVED]
        prompts = [tuple(tokenizer(text)["input_ids"]) for text in texts(100, 3)]
        alone = [Oracle(routed).chain(prompt) for prompt in prompts]
        choice = RouterChoice(routed, served, BatchLimits(), Budgets(routed.router, 0.02))
        got = [one for prompt in prompts for one in choice.read([prompt], [None])]
        for prompt, one, chain in zip(prompts, got, alone, strict=True):
            read = routed.router.config.read_layer * len(prompt)
            wanted = (chain, None) if chain in served else (served[0], "no_backend")
            assert one == Picked(*wanted, layers_read=read)
        assert not all(chain in served for chain in alone)
        if routed.guaranteed:  # but not where a request has a budget of its own
            own = choice.read(prompts, [setting.budget] * len(prompts))
            assert [str(one.chain) for one in own] == [setting.alone(list(prompt)) for prompt in prompts]


def test_prompts_that_cannot_be_read_for_a_fault_take_full_depth(
    proxy: Proxied, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = proxy.setting.prompt_of(SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(RouterChoice, "read", lambda *_: 1 / 0)
        assert proxy.post(prompt=prompt).headers["x-cola-chain"] == FULL
    assert "1 prompts could not be read and take full depth: ZeroDivisionError" in caplog.text
    assert prompt not in caplog.text
    assert proxy.post(prompt=prompt).headers["x-cola-chain"] == SHORT


@pytest.mark.parametrize("chat", [False, True])
def test_streams_are_those_of_the_backend(proxy: Proxied, backends: dict[str, str], chat: bool) -> None:
    # Oracle: the backend's own stream, event by event.
    text = proxy.setting.prompt_of(SHORT)
    path, asked = ("completions", {"prompt": text}) if not chat else ("chat/completions", {})
    if chat:
        asked = {"messages": [{"role": "user", "content": text}]}
    body = asked | {"max_tokens": 9, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    answer = proxy.post(f"/v1/{path}", **body)
    depth = int(answer.headers["x-cola-depth"])
    body["model"] = f"backend-{depth}"
    direct = httpx.post(f"{backends[answer.headers['x-cola-chain']]}/v1/{path}", json=body)
    assert answer.headers["content-type"] == direct.headers["content-type"]
    events, others = (events_of(one.text) for one in (answer, direct))
    assert events[-1] == others[-1] == "[DONE]"
    for event, other in zip(events[:-1], others[:-1], strict=True):
        assert event["model"] == NAME
        assert other["model"] == f"backend-{depth}"
        assert {**event, "id": 0, "created": 0, "model": 0} == {**other, "id": 0, "created": 0, "model": 0}
    assert len(events) > 4


def events_of(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def many_requests(setting: Setting) -> list[dict[str, Any]]:
    draw, made = random.Random(5), []
    for text in texts(COUNT, 5):
        chat = draw.random() < 0.4
        made.append({"chat": chat, "text": text, "stream": draw.random() < 0.5, "max_tokens": draw.choice([1, 4, 9])})
    return made


async def ask(client: httpx.AsyncClient, request: dict[str, Any]) -> tuple[str, str]:
    """Return chain and text."""
    chat, text = request["chat"], request["text"]
    asked = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    body = asked | {"model": NAME, "temperature": 0, "max_tokens": request["max_tokens"], "stream": request["stream"]}
    answer = await client.post("/v1/chat/completions" if chat else "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    if request["stream"]:
        choices = [event["choices"][0] for event in events_of(answer.text)[:-1]]
        said = "".join((one["delta"].get("content") or "") if chat else one["text"] for one in choices)
    else:
        choice = answer.json()["choices"][0]
        said = choice["message"]["content"] if chat else choice["text"]
    return answer.headers["x-cola-chain"], said


def test_two_hundred_at_once_are_not_mixed_up(proxy: Proxied) -> None:
    # Oracle: each prompt alone: the router's chain, and that chain's view without cache, batch or padding.
    setting, requests = proxy.setting, many_requests(proxy.setting)

    async def all_of_them() -> list[tuple[str, str]]:
        async with httpx.AsyncClient(base_url=proxy.url, timeout=300, limits=httpx.Limits()) as client:
            return await asyncio.gather(*(ask(client, request) for request in requests))

    got, wanted = asyncio.run(all_of_them()), []
    for request in requests:
        text = request["text"]
        oracle = setting.oracle
        tokens = oracle.chat_tokens([{"role": "user", "content": text}]) if request["chat"] else oracle.tokens(text)
        chain = setting.alone(tokens)
        wanted.append((chain, setting.text(tokens, chain, request["max_tokens"])))
    assert got == wanted
    assert set(Counter(chain for chain, _ in wanted)) == set(SERVED)
    assert len({text for _, text in wanted}) > COUNT // 3  # were texts alike, mixing them up would not show
    assert proxy.health()["running"] == 0


def test_requests_have_budgets_of_their_own(proxy: Proxied) -> None:
    # Oracle: each prompt alone at its budget. Backends refuse a field of this name that they cannot grant.
    setting, oracle = proxy.setting, proxy.setting.oracle
    budgets = [oracle.least, setting.budget, oracle.most, None]
    asked = [(text, budgets[i % 4]) for i, text in enumerate(texts(40, 6))]

    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=f"{proxy.url}/v1", timeout=300) as client:
            body = {"model": NAME, "temperature": 0, "max_tokens": 2}
            sent = [body | {"prompt": text, "budget": budget} for text, budget in asked]
            return await asyncio.gather(*(client.post("/completions", json=one) for one in sent))

    got = asyncio.run(all_of_them())
    assert {one.status_code for one in got} == {200}
    wanted = [setting.alone(oracle.tokens(text), budget) for text, budget in asked]
    assert [one.headers["x-cola-chain"] for one in got] == wanted
    assert wanted != [setting.alone(oracle.tokens(text)) for text, _ in asked]
    assert proxy.post(prompt=setting.prompt_of(SHORT), budget=LAYERS).headers["x-cola-chain"] == FULL
    for fields, message in (
        ({"budget": 77}, "budget: expected a mean depth in "),
        ({"budget": "4"}, "budget: expected a number, got '4'"),
        ({"latency_factor": 0.9}, "latency_factor: expected a server with a latency_profile, got 'one without'"),
        ({"budget": 4, "latency_factor": 1}, "budget: expected a budget or a latency_factor, got both"),
    ):
        answer = proxy.post(prompt="x", **fields)
        assert refused(answer) == (400, "invalid_value")
        assert answer.json()["error"]["param"] == next(iter(fields))
        assert answer.json()["error"]["message"].startswith(message)


def test_a_budget_that_lost_accuracy_is_refused(setting: Setting, before: Before, tmp_path: Path) -> None:
    # Oracle: a validation split on which all points below one budget lost 0.4 of full depth's accuracy.
    made, least, most = load_router(setting.router), setting.oracle.least, setting.oracle.most
    points = tuple(
        dataclasses.replace(one, accuracy=0.2 if one.mean_depth < setting.budget else 0.6)
        for one in made.config.budget_points
    )
    figures = {"mean_depth": 4.0, "accuracy": 0.6, "full_accuracy": 0.6, "chance_accuracy": 0.2, "samples": 9.0}
    config = dataclasses.replace(made.config, budget_points=points, training={"validation": figures})
    save_router(tmp_path / "measured", dataclasses.replace(made, config=config))
    measured = dataclasses.replace(setting, router=tmp_path / "measured")
    for allowed in ({}, {"allow_loss": 0.4}):
        with before(at=measured, budget=float(LAYERS), **allowed) as proxy:
            assert proxy.post(prompt="x", budget=most).status_code == 200
            answer = proxy.post(prompt="x", budget=least)
            assert answer.status_code == (200 if allowed else 400)
            assert ("budget: expected one that lost at most 0.02 of full depth's" in answer.text) == (not allowed)


def test_the_one_token_that_a_chain_was_judged_by_is_asked_of_its_backend_alone(
    setting: Setting, before: Before, tmp_path: Path
) -> None:
    # Oracle: each chain's own text, of one token where a router has seen answers of one token alone; a chain whose
    # backend is down gives way to full depth, which writes on.
    oracle, prompts = setting.oracle, {chain: setting.prompt_of(chain) for chain in SERVED}
    rows = [oracle.routed.read(torch.tensor([oracle.tokens(one)])).run.rows()[0] for one in prompts.values()]
    save_router(tmp_path / "short", scoped(load_router(setting.router), rows, one_token=True))
    made = dataclasses.replace(setting, router=tmp_path / "short")
    with before({SHORTER: f"http://127.0.0.1:{free_port()}"}, made) as proxy:
        for chain, prompt in prompts.items():
            ran, most = {FULL: (FULL, 6), SHORT: (SHORT, 1), SHORTER: (FULL, 6)}[chain]
            answer = proxy.post(prompt=prompt)
            assert answer.headers["x-cola-chain"] == ran
            assert answer.json()["choices"][0]["text"] == setting.text(oracle.tokens(prompt), ran, most)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {"max_tokens": 1}),
        ({"max_tokens": 9, "min_tokens": 5, "n": 2}, {"max_tokens": 1, "n": 2}),
        ({"max_completion_tokens": 9, "max_tokens": None}, {"max_completion_tokens": 1, "max_tokens": 1}),
        ({"max_tokens": 0, "echo": True}, {"max_tokens": 0, "echo": True}),
        ({"max_tokens": -1, "max_completion_tokens": "9"}, {"max_tokens": -1, "max_completion_tokens": "9"}),
    ],
)
def test_what_is_asked_of_a_backend_for_one_token(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    assert of_one_token(asked) == sent


def test_what_a_proxy_has_done_is_counted(setting: Setting, before: Before) -> None:
    # Oracle: each prompt alone; a proxy's own reading of two layers counts as layers that run.
    prompts = {chain: setting.prompt_of(chain) for chain in SERVED}
    read = {chain: len(setting.oracle.tokens(prompt)) for chain, prompt in prompts.items()}
    alone = {
        chain: setting.oracle.alone(setting.oracle.tokens(prompt), 6, chain=Chain.parse(chain, LAYERS))
        for chain, prompt in prompts.items()
    }
    with before() as proxy:
        assert proxy.post(prompt=prompts[SHORT], n=2).status_code == 200
        assert proxy.post(prompt=prompts[FULL], stream=True, stream_options={"include_usage": True}).status_code == 200
        assert proxy.post(prompt=prompts[SHORTER], stream=True, max_tokens=3).status_code == 200
        assert proxy.post(prompt=list(prompts.values()), max_tokens=-1).status_code == 400
        assert proxy.post(prompt="x", best_guess=7).status_code == 400
        until(lambda: scraped(proxy.url)["running"] == 0)
        found = scraped(proxy.url)
    assert (found["requests_total//v1/completions/200"], found["requests_total//v1/completions/400"]) == (3, 2)
    assert [found[f"chain_choices_total/{chain}"] for chain in SERVED] == [1, 2, 1]
    assert found["tokens_total/prompt"] == read[SHORT] + read[FULL]
    assert found["tokens_total/generated"] == 2 * alone[SHORT].tokens + alone[FULL].tokens
    passes = {SHORT: read[SHORT] + 2 * (alone[SHORT].tokens - 1), FULL: read[FULL] + alone[FULL].tokens - 1}
    own = 2 * (read[SHORT] + read[FULL])
    assert found["layer_passes_total"] == 4 * passes[SHORT] + 5 * passes[FULL] + own
    assert found["full_depth_layer_passes_total"] == 5 * (passes[SHORT] + passes[FULL])
    assert found["time_to_first_token_seconds_count"] == 2
    assert found["time_to_first_token_seconds_sum"] > 0
    assert found["full_depth_fallbacks_total/several_chains"] == 1
    assert [found[f"backend_up/{chain}"] for chain in SERVED] == [1, 1, 1]
    assert [found[f"backend_failures_total/{chain}"] for chain in SERVED] == [0, 0, 0]


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def free_port() -> int:
    with bind("127.0.0.1", 0) as bound:
        return int(bound.getsockname()[1])


def test_full_depth_stands_in_for_a_backend_that_is_down_until_it_is_up_again(setting: Setting, before: Before) -> None:
    port, prompt = free_port(), setting.prompt_of(SHORT)
    short = {SHORT: f"http://127.0.0.1:{port}"}
    with before(short, retry_seconds=0.3) as proxy:
        answer = proxy.post(prompt=prompt)
        assert answer.headers["x-cola-chain"] == FULL
        assert answer.json()["choices"][0]["text"] == setting.text(setting.oracle.tokens(prompt), FULL, 6)
        assert proxy.up() == {FULL: True, SHORT: False, SHORTER: True}
        found = scraped(proxy.url)
        assert (found[f"backend_up/{SHORT}"], found[f"backend_up/{FULL}"]) == (0, 1)
        assert (found[f"backend_failures_total/{SHORT}"], found[f"backend_failures_total/{FULL}"]) == (1, 0)
        assert found["full_depth_fallbacks_total/backend_down"] == 1
        with backend(setting, SHORT, port=port):
            until(lambda: proxy.post(prompt=prompt).headers["x-cola-chain"] == SHORT)
            assert proxy.up()[SHORT]
            with before(short | {FULL: f"http://127.0.0.1:{free_port()}"}) as alone:
                # The chain's own backend needs no other; what needs full depth's is refused.
                assert alone.post(prompt=prompt).headers["x-cola-chain"] == SHORT
                assert refused(alone.post(prompt=setting.prompt_of(FULL))) == (502, "backend_down")
                health = httpx.get(f"{alone.url}/health", timeout=60)
                assert (health.status_code, health.json()["ready"]) == (503, False)
        until(lambda: proxy.post(prompt=prompt).headers["x-cola-chain"] == FULL)
        until(lambda: not proxy.up()[SHORT])


def test_a_backend_that_is_down_is_left_out_for_a_while(setting: Setting, before: Before) -> None:
    # Oracle: the connections that a peer counts, which closes each without an answer.
    prompt = setting.prompt_of(SHORT)
    with peer(b"") as broken, before({SHORT: broken.url}, retry_seconds=3600.0) as proxy:
        for _ in range(3):
            assert proxy.post(prompt=prompt).headers["x-cola-chain"] == FULL
        assert broken.connections == 1


@pytest.mark.parametrize("closed", [True, False])
def test_a_backend_that_fails_at_a_request_gives_way(setting: Setting, before: Before, closed: bool) -> None:
    # Oracle: which of the two statuses says that a backend is down: 503, but not 500, which one request may cause.
    prompt = setting.prompt_of(SHORT)
    routed = at_full_depth(AutoModelForCausalLM.from_pretrained(setting.models[SHORT].name_or_path).eval())
    with backend(setting, SHORT, routed) as short:
        if closed:
            short.service.batcher.close()
        else:
            routed.get_input_embeddings().register_forward_pre_hook(lambda *_: 1 / 0)
        status = httpx.post(f"{short.url}/v1/completions", json={"model": "backend-4", "prompt": "x"}).status_code
        assert status == (503 if closed else 500)
        with before({SHORT: short.url}, retry_seconds=3600.0) as proxy:
            assert proxy.post(prompt=prompt).headers["x-cola-chain"] == FULL
            assert proxy.proxy.backends.all[1].up != closed


def test_what_breaks_before_the_first_byte_goes_to_full_depth(setting: Setting, before: Before) -> None:
    prompt = setting.prompt_of(SHORT)
    for sent in (HEAD, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"):
        with peer(sent) as broken, before({SHORT: broken.url}) as proxy:
            assert proxy.post(prompt=prompt, stream=True).headers["x-cola-chain"] == FULL


@pytest.mark.parametrize(("hold", "code"), [(False, "backend_lost"), (True, "timeout")])
def test_what_breaks_in_mid_stream_ends_with_an_error(setting: Setting, before: Before, hold: bool, code: str) -> None:
    prompt = setting.prompt_of(SHORT)
    with peer(HEAD + CHUNK, hold) as broken, before({SHORT: broken.url}, idle_timeout=0.3) as proxy:
        answer = proxy.post(prompt=prompt, stream=True)
        assert (answer.status_code, answer.headers["x-cola-chain"]) == (200, SHORT)
        first, last = events_of(answer.text)
        assert first == {"model": NAME, "choices": [{"index": 0, "text": "one"}]}
        assert last["error"]["code"] == code
        chunks = proxy.openai().completions.create(model=NAME, prompt=prompt, stream=True)
        assert next(chunks).choices[0].text == "one"
        with pytest.raises(openai.APIError):
            next(chunks)
        assert scraped(proxy.url)[f"backend_failures_total/{SHORT}"] == 2


def test_a_first_byte_that_does_not_come_is_waited_for_some_time(setting: Setting, before: Before) -> None:
    prompt = setting.prompt_of(SHORT)
    for timeout in ("first_byte_timeout", "request_timeout"):
        with peer(HEAD, hold=True) as silent, before({SHORT: silent.url}, **{timeout: 0.5}) as proxy:
            assert refused(proxy.post(prompt=prompt)) == (504, "timeout")
            assert proxy.proxy.backends.all[1].up  # it is slow, not down
            assert scraped(proxy.url)[f"backend_failures_total/{SHORT}"] == 1


def test_a_connection_that_does_not_come_is_waited_for_some_time(setting: Setting, before: Before) -> None:
    # A socket whose queue is full drops further connections, as an address that nobody has does.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with before({SHORT: f"http://127.0.0.1:{full.getsockname()[1]}"}, connect_timeout=0.3) as proxy:
            answer = proxy.post(prompt=setting.prompt_of(SHORT))
            assert answer.headers["x-cola-chain"] == FULL
            assert not proxy.proxy.backends.all[1].up


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_backend(setting: Setting, before: Before, stream: bool) -> None:
    # Oracle: the backend's passes; all four hundred tokens would take as many.
    routed = at_full_depth(AutoModelForCausalLM.from_pretrained(setting.models[SHORT].name_or_path).eval())
    brake = Brake(routed)
    with backend(setting, SHORT, routed) as short, before({SHORT: short.url}) as proxy:
        brake.hold()
        brake.step(20)
        body = {"prompt": setting.prompt_of(SHORT), "max_tokens": 300, "temperature": 1, "seed": 1, "stream": stream}
        with proxy.ask(**body) as one:
            until(lambda: brake.passes > 20)
            assert short.service.batcher.running == 1
            if stream:
                assert b"data: {" in one.recv(2**16)
        until(lambda: short.service.batcher.running == 0)
        brake.release()
        assert brake.passes < 50
        until(lambda: proxy.health()["running"] == 0)


def test_a_proxy_that_stops_tells_what_runs(setting: Setting, before: Before) -> None:
    prompt = setting.prompt_of(SHORT)
    with peer(HEAD + CHUNK, hold=True) as silent:
        got = list[str]()
        with before({SHORT: silent.url}, shutdown_timeout=0.2, connect_timeout=0.2) as proxy:
            asking = threading.Thread(target=lambda: got.append(proxy.post(prompt=prompt, stream=True).text))
            asking.start()
            until(lambda: proxy.health()["running"] == 1)
        asking.join(60)
        assert events_of(got[0])[-1]["error"]["code"] == "stopping"


def test_keys_of_clients_and_of_backends_are_apart(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FULL_KEY", "of-the-bäckend")
    with running(at_full_depth(setting.models[FULL]), key="of-the-bäckend", budget=5, name="backend-5") as full:
        asked = {"prompt": "x", "model": NAME, "max_tokens": 2}
        static = {"choose": "static", "chain": FULL}
        with proxied(setting, tmp_path, {FULL: full.url}, "of-clients", key_variable="FULL_KEY", **static) as proxy:
            url = f"{proxy.url}/v1/completions"
            for key in ("of-the-bäckend", "none"):
                assert (
                    httpx.post(url, json=asked, headers={"authorization": f"Bearer {key}".encode()}).status_code == 401
                )
            good = httpx.post(url, json=asked, headers={"authorization": "Bearer of-clients"}, timeout=60)
            assert good.status_code == 200, good.text
            assert proxy.up() == {FULL: True}
            assert httpx.get(f"{proxy.url}/metrics").status_code == 401
        assert "of-the-bäckend" not in repr(proxy.proxy.backends.all)
    assert "of-the-bäckend" not in caplog.text


def test_a_static_choice_loads_no_model(setting: Setting, before: Before) -> None:
    # Oracle: a base model that is not there.
    static = {"choose": "static", "chain": SHORTER, "model": "gone/for-good"}
    with before(**static) as proxy:
        for prompt in map(setting.prompt_of, SERVED):
            assert proxy.post(prompt=prompt).headers["x-cola-chain"] == SHORTER
        refused = proxy.post(prompt="x", budget=4).json()["error"]
        assert (refused["message"], refused["param"]) == (
            "budget: expected none where the choice is static, got 4.0",
            "budget",
        )


def test_what_the_router_cannot_read_takes_full_depth(proxy: Proxied) -> None:
    # Oracle: full depth's backend, which answers or refuses.
    picture = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    twins = [proxy.setting.prompt_of(SHORT)] * 2
    for path, fields in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": picture}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "the template refuses"}]}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": [10**9]}),
        ("/v1/completions", {"prompt": {"what": 1}}),
        ("/v1/completions", {"prompt": "x" * 5000}),
        ("/v1/completions", {}),
        ("/v1/completions", {"prompt": [twins[0], proxy.setting.prompt_of(SHORTER)]}),
        ("/v1/completions", {"prompt": twins * 17}),
    ):
        answer = proxy.post(path, **fields)
        assert answer.headers["x-cola-chain"] == FULL, fields
        assert answer.status_code in (200, 400)
    said = {"content": "Is it?", "name": None}
    chat = [proxy.post("/v1/chat/completions", messages=[{"role": role} | said]) for role in ("system", "developer")]
    wanted = proxy.setting.alone(proxy.setting.oracle.chat_tokens([{"role": "system", "content": "Is it?"}]))
    assert [one.headers["x-cola-chain"] for one in chat] == [wanted, wanted]
    assert wanted != FULL
    agreed = proxy.post(prompt=twins)
    assert agreed.headers["x-cola-chain"] == SHORT
    ids = proxy.post(prompt=proxy.setting.oracle.tokens(twins[0]))
    assert ids.headers["x-cola-chain"] == SHORT
    assert ids.json()["choices"][0]["text"] == agreed.json()["choices"][0]["text"]


def test_unknown_fields_are_the_backends_matter_and_the_model_is_not(proxy: Proxied) -> None:
    answer = proxy.post(prompt="x", best_guess=7)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_field")
    assert "best_guess" in answer.json()["error"]["message"]
    assert answer.headers["x-cola-chain"] in SERVED
    for model in ("backend-4", None, 3):
        assert refused(proxy.post(prompt="x", model=model)) == (404, "model_not_found")
    assert [one.id for one in proxy.openai().models.list()] == [NAME]
    assert proxy.openai().models.retrieve(NAME).id == NAME


def test_what_is_not_ascii_is_passed_on(proxy: Proxied, setting: Setting, before: Before) -> None:
    # Oracle: the bytes that were sent.
    sent = {"x-request-id": b"\xe9\xff", "accept": "é".encode()}
    with proxy.http() as client:
        body = {"model": NAME, "prompt": "x", "max_tokens": 1}
        assert client.post("/v1/completions", json=body, headers=sent).status_code == 200
    head = HEAD.replace(b"\r\n", b"\r\nX-Said: \xe2\x82\xac\r\n", 1)
    with peer(head + CHUNK) as strange, before({SHORT: strange.url}) as one:
        answer = one.post(prompt=setting.prompt_of(SHORT), stream=True)
        assert (answer.status_code, dict(answer.headers.raw)[b"x-said"]) == (200, "€".encode())


def test_a_number_too_large_is_refused(proxy: Proxied) -> None:
    with proxy.http() as client:
        body = b'{"model": "tiny", "prompt": "x", "temperature": 1e999}'
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert refused(answer) == (400, "invalid_value")
    assert answer.json()["error"]["message"] == "body: expected finite numbers, got inf"


def test_more_than_may_be_under_way_are_refused(setting: Setting, before: Before) -> None:
    with (
        peer(HEAD, hold=True) as silent,
        before(
            {SHORT: silent.url},
            max_requests=1,
            connect_timeout=0.2,
            first_byte_timeout=2.0,
            max_body_bytes=999,
        ) as proxy,
    ):
        asking = threading.Thread(target=proxy.post, kwargs={"prompt": setting.prompt_of(SHORT)})
        asking.start()
        until(lambda: proxy.health()["running"] == 1)
        assert refused(proxy.post(prompt="x")) == (429, "queue_full")
        assert refused(proxy.post(prompt="x" * 999)) == (413, "body_too_large")
        asking.join(60)


GOOD = {"chain": FULL, "url": "http://127.0.0.1:1/v1", "model": "full"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "expected YAML, got something corrupt"),
        ("{}", "expected a list of backends"),
        ("- 3", "entry 1: value: expected an object, got 3"),
        ([GOOD | {"weight": 2}], "entry 1: expected no field weight, got one"),
        ([{"chain": FULL, "url": "http://x/v1"}], "entry 1: expected the field model, got none"),
        ([GOOD, GOOD | {"model": "b"}], "entry 2: expected each chain once, got 0-4 twice"),
        ([GOOD, GOOD | {"chain": SHORT}], "entry 2: expected another url or model for another chain, got those of 0-4"),
        ([GOOD | {"chain": "0-5"}], "entry 1: layers[5]: expected an integer in 0..4, got 5"),
        ([GOOD, GOOD | {"chain": "0,2-4", "model": "b"}], "entry 2: chain: expected one that begins with the first 2"),
        ([GOOD | {"chain": SHORT}], "expected one of the full chain, 0-4, in "),
        ([GOOD | {"url": "ftp://x/v1"}], "entry 1: url: expected text like ^https?://"),
        ([GOOD | {"url": "http://me:secret@x/v1"}], "entry 1: url: expected text like ^https?://"),
        ([GOOD | {"url": "http://x:99999999/v1"}], "entry 1: url: expected one like http://127.0.0.1:8001/v1, got"),
        ([GOOD | {"key_variable": "NOT_SET_ANYWHERE"}], "entry 1: key_variable: expected a key in NOT_SET_ANYWHERE"),
    ],
)
def test_a_bad_file_of_backends_is_one_line(
    setting: Setting, tmp_path: Path, content: Any, message: str, refusal: Refusal
) -> None:
    path = tmp_path / "backends.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert message in refusal(main, ["proxy", setting.router, f"--backends={path}", "--port=0"], alone=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backends=gone.yaml"], "backends: expected"),
        (["--choose=static"], "chain: expected one with choose=static alone, got None with static"),
        ([f"--chain={FULL}"], "chain: expected one with choose=static alone, got 0-4 with router"),
        (["--choose=static", f"--chain={SHORT}"], "chain: expected one that has a backend (0-4), got 0-1,3-4"),
        (["--choose=static", "--chain=no"], "chain: expected items such as 4, 0-3 or 5*2"),
        (["--choose=static", f"--chain={FULL}", "--budget=4"], "budget: expected none with choose=static, got 4.0"),
        (["--budget=77"], "budget: expected a mean depth in"),
        (["--retry_seconds=0"], "retry_seconds: expected above 0, got 0"),
    ],
)
def test_bad_settings_are_one_line(
    setting: Setting, tmp_path: Path, words: list[str], message: str, refusal: Refusal
) -> None:
    path = tmp_path / "backends.yaml"
    path.write_text(json.dumps([GOOD]))
    assert message in refusal(main, ["proxy", setting.router, f"--backends={path}", "--port=0", *words], alone=True)
