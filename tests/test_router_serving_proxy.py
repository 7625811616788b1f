"""`python -m router proxy` before real servers, each of which serves one exported chain of a tiny model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from router.__main__ import main
from router.chain import Chain
from router.command import run_command
from router.heads.head import pad_states
from router.routed import RoutedModel
from router.routed.export import export_chain
from router.serving.proxy import Proxy, ProxySettings, make_app, make_proxy
from router.storage import Router, load_router, save_router
from tests.routed_folders import prompts as some_prompts
from tests.serving import NAME, Brake, Oracle, Running, chat_tokenizer, on_a_socket, running, until, write_served
from tests.tiny import tiny_model

LAYERS = 5
FULL, SHORT, SHORTER, ABSENT = "0-4", "0-1,3-4", "0-2", "0-1,4"
"""The menu; the last chain has no backend."""
SERVED = (FULL, SHORT, SHORTER)
COUNT = 200


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where all is.

    Attributes:
        router: folder of a router with a menu.
        budget: mean depth at which all chains of the menu are taken by some prompts.
        models: the exported chains, loaded by the stock library.
        oracle: says what a chain gives, from a base model of its own.
    """

    router: Path
    budget: float
    models: dict[str, PreTrainedModel]
    oracle: Oracle

    def alone(self, prompt: list[int]) -> str:
        """The chain of the menu that is served and worth most at the budget's price, the router asked alone."""
        routed = self.oracle.routed
        states = routed.read(torch.tensor([prompt])).run.rows()
        head = routed.router.head
        with torch.inference_mode():
            ranked = head.decode_at(head(*pad_states(states)), head.offset_for(self.budget))[0]
        return next(str(one.chain) for one in ranked if str(one.chain) in SERVED)

    def prompt_of(self, chain: str) -> str:
        """A prompt that takes a chain."""
        asked = (f"Which of these is {i}?" for i in range(2000))
        return next(text for text in asked if self.alone(self.oracle.tokens(text)) == chain)

    def text(self, prompt: list[int], chain: str, new_tokens: int) -> str:
        return self.oracle.alone(prompt, new_tokens, chain=Chain.parse(chain, LAYERS)).text


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("proxy")
    router = write_served(folder)
    config = dataclasses.replace(
        load_router(router).config,
        head="menu",
        head_settings={"hidden": 8, "pooling": "ends", "chains": [FULL, SHORT, SHORTER, ABSENT]},
        budget_points=(),
    )
    torch.manual_seed(1)
    head = config.build()
    for parameter in head.parameters():
        parameter.data.normal_(0, 1)
    head.eval()
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids, mask = some_prompts(40)
    hidden = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[config.read_layer]
    states = [row[kept.bool()] for row, kept in zip(hidden, mask, strict=True)]
    with torch.inference_mode():
        head.calibrate(head(*pad_states(states)))
    made = dataclasses.replace(config, budget_points=head.budget_points)
    save_router(router, Router(made, head))
    points = [point.mean_depth for point in head.budget_points]
    budget = (min(points) + max(points)) / 2
    models = {}
    for number, chain in enumerate(SERVED):
        exported = export_chain(base, chat_tokenizer(), Chain.parse(chain, LAYERS), folder / f"chain-{number}")
        models[chain] = AutoModelForCausalLM.from_pretrained(exported).eval()
    return Setting(router, budget, models, Oracle(RoutedModel.from_pretrained(router, budget=budget)))


def at_full_depth(model: PreTrainedModel) -> RoutedModel:
    """A model behind our own server, at its full depth whatever comes."""
    layers = model.config.num_hidden_layers
    config = dataclasses.replace(load_router_of(model), num_layers=layers)
    return RoutedModel.join(model, Router(config, config.build().eval()), tokenizer=chat_tokenizer(), budget=layers)


def load_router_of(model: PreTrainedModel) -> Any:
    from tests.routed_folders import router_for

    return router_for(tiny_model("llama")).config


@contextmanager
def backend(setting: Setting, chain: str, routed: RoutedModel | None = None, **more: Any) -> Iterator[Running]:
    """A server of one chain, whose name for it is `backend-` and its depth."""
    depth = Chain.parse(chain, LAYERS).depth
    made = routed or at_full_depth(setting.models[chain])
    with running(made, budget=depth, name=f"backend-{depth}", **more) as server:
        yield server


def listed(urls: dict[str, str], key_variable: str | None = None) -> str:
    """The file of backends, which is JSON and so YAML."""
    return json.dumps(
        [
            {"chain": chain, "url": f"{url}/v1", "model": f"backend-{Chain.parse(chain, LAYERS).depth}"}
            | ({} if key_variable is None else {"key_variable": key_variable})
            for chain, url in urls.items()
        ]
    )


@dataclasses.dataclass(frozen=True)
class Proxied:
    """A proxy that runs."""

    url: str
    proxy: Proxy
    setting: Setting

    def post(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            return client.post(path, json={"model": NAME, "max_tokens": 6, "temperature": 0} | fields)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def health(self) -> dict[str, Any]:
        value: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=60).json()
        return value

    def up(self) -> dict[str, bool]:
        return {one["chain"]: one["up"] for one in self.health()["backends"]}


@contextmanager
def proxied(
    setting: Setting, folder: Path, urls: dict[str, str], key: str | None = None, **settings: Any
) -> Iterator[Proxied]:
    (folder / "backends.yaml").write_text(listed(urls, settings.pop("key_variable", None)))
    if settings.get("choose") != "static":
        settings = {"budget": setting.budget} | settings
    chosen = ProxySettings(router=str(setting.router), backends=folder / "backends.yaml", name=NAME, **settings)
    proxy, _ = make_proxy(chosen, key)
    with on_a_socket(make_app(proxy), proxy.backends, chosen.shutdown_timeout) as (url, _):
        yield Proxied(url, proxy, setting)


@pytest.fixture(scope="module")
def backends(setting: Setting) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {chain: stack.enter_context(backend(setting, chain)).url for chain in SERVED}


@pytest.fixture(scope="module")
def proxy(setting: Setting, backends: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied(setting, tmp_path_factory.mktemp("all"), backends) as made:
        yield made


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
    oracle, asked = proxy.setting.oracle, [f"Is it {i}?" for i in range(400)]
    absent = [text for text in asked if str(oracle.chain(oracle.tokens(text))) == ABSENT][:12]
    assert len(absent) == 12
    wanted = [proxy.setting.alone(oracle.tokens(text)) for text in absent]
    assert [proxy.post(prompt=text, max_tokens=1).headers["x-cola-chain"] for text in absent] == wanted
    assert set(wanted) - {FULL}


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
    for number in range(COUNT):
        text = f"{number}: " + "".join(draw.choices("abcdefgh é€😀", k=draw.randint(0, 60)))
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
