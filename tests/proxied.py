"""A proxy before real servers of exported chains of a tiny model, and peers that break."""

from __future__ import annotations

import dataclasses
import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from router.chain import Chain
from router.decision import Router
from router.heads.head import pad_states
from router.routed import RoutedModel
from router.routed.export import export_chain
from router.serving.proxy import Proxy, ProxySettings, make_app, make_proxy
from router.storage import load_router, save_router
from tests.routed_folders import router_for
from tests.serving import NAME, Asked, Oracle, Running, chat_tokenizer, on_a_socket, running, write_served
from tests.tiny import tiny_model, untrained

LAYERS = 5
FULL, SHORT, SHORTER, ABSENT = "0-4", "0-1,3-4", "0-2", "0-1,4"
"""The menu; the last chain has no backend."""
SERVED = (FULL, SHORT, SHORTER)


def texts(count: int, seed: int) -> list[str]:
    """Texts of many lengths, all different."""
    draw = random.Random(seed)
    return [f"{i}: " + "".join(draw.choices("abcdefgh é€😀", k=draw.randint(0, 60))) for i in range(count)]


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

    def alone(self, prompt: list[int], budget: float | None = None) -> str:
        """The chain of the menu that is served and worth most at a budget's price, the router asked alone."""
        routed = self.oracle.routed
        states = routed.read(torch.tensor([prompt])).run.rows()
        head = routed.router.head
        served, price = [Chain.parse(chain, LAYERS) for chain in SERVED], head.offset_for(budget or self.budget)
        with torch.inference_mode():
            values = head.scores_of(head(*pad_states(states)), served)[0].tolist()
        worths = {str(chain): value - price * chain.depth for chain, value in zip(served, values, strict=True)}
        return max(worths, key=worths.__getitem__)

    def prompt_of(self, chain: str) -> str:
        """A prompt that takes a chain."""
        return next(text for text in texts(400, 1) if self.alone(self.oracle.tokens(text)) == chain)

    def text(self, prompt: list[int], chain: str, new_tokens: int) -> str:
        return self.oracle.alone(prompt, new_tokens, chain=Chain.parse(chain, LAYERS)).text


def write_setting(folder: Path) -> Setting:
    """Write a base model, a router with a menu, and the exported chains."""
    router = write_served(folder)
    config = dataclasses.replace(
        load_router(router).config,
        head="menu",
        head_settings={"hidden": 8, "pooling": "ends", "chains": [FULL, SHORT, SHORTER, ABSENT]},
        budget_points=(),
    )
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    rows = [torch.tensor([chat_tokenizer()(text)["input_ids"]]) for text in texts(100, 2)]
    with torch.no_grad():
        states = [base(row, output_hidden_states=True).hidden_states[config.read_layer][0] for row in rows]
    made = untrained(config, states, seed=3)
    save_router(router, made)
    points = [point.mean_depth for point in made.config.budget_points]
    budget = (min(points) + max(points)) / 2
    models = {}
    for number, chain in enumerate(SERVED):
        exported = export_chain(base, chat_tokenizer(), Chain.parse(chain, LAYERS), folder / f"chain-{number}")
        models[chain] = AutoModelForCausalLM.from_pretrained(exported).eval()
    return Setting(router, budget, models, Oracle(RoutedModel.from_pretrained(router, budget=budget)))


def at_full_depth(model: PreTrainedModel) -> RoutedModel:
    """A model behind our own server, at its full depth whatever comes."""
    layers = model.config.num_hidden_layers
    config = dataclasses.replace(router_for(tiny_model("llama")).config, num_layers=layers)
    return RoutedModel.join(model, Router(config, config.build().eval()), tokenizer=chat_tokenizer(), budget=layers)


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
class Proxied(Asked):
    """A proxy that runs."""

    proxy: Proxy
    setting: Setting

    def post(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        return super().post(path, **{"max_tokens": 6, "temperature": 0} | fields)

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
    with on_a_socket(make_app(proxy), proxy.backends.close, chosen) as (url, _):
        yield Proxied(url, proxy, setting)


@dataclasses.dataclass
class Peer:
    """A raw socket that stands for a backend which breaks; counts its connections."""

    url: str
    connections: int = 0


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"model": "backend-4", "choices": [{"index": 0, "text": "one"}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


@contextmanager
def peer(sent: bytes, hold: bool = False) -> Iterator[Peer]:
    """Answer every request with some bytes; then close, or say nothing more."""
    done, kept = threading.Event(), list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        made = Peer(f"http://127.0.0.1:{listening.getsockname()[1]}")

        def serve() -> None:
            while not done.is_set():
                one, _ = listening.accept()
                made.connections += not done.is_set()
                one.settimeout(60)
                if not done.is_set() and one.recv(2**16):
                    one.sendall(sent)
                if hold:
                    kept.append(one)
                else:
                    one.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield made
        finally:
            done.set()
            socket.create_connection(listening.getsockname()).close()
            thread.join(60)
            for one in kept:
                one.close()
