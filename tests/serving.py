"""A tiny routed model behind a real server, and what it must answer, computed without one."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import openai
import torch
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp
from transformers import PreTrainedTokenizerFast

from router.chain import Chain
from router.engine.view import chain_view
from router.routed import RoutedModel
from router.serving.app import Service, make_app
from router.serving.rows import Sampling
from router.serving.server import ListenSettings, Server, ServeSettings, bind, make_service, url_of
from tests.routed_folders import router_for, write_routed
from tests.tiny import tiny_model, tiny_tokenizer

BUDGET = 4.0
END = 2
NAME = "tiny"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role == 'assistant' %}{{ raise_exception('a user begins') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_served(folder: Path) -> Path:
    """Write a tiny model with a chat template to `model/` and a router for it to `router/`; returns the latter."""
    return write_routed(folder, chat_tokenizer())


def tiny_routed(family: str = "llama", attention: str | None = None, budget: float | None = BUDGET) -> RoutedModel:
    """A tiny routed model with a tokenizer and a chat template."""
    model = tiny_model(family, attention)
    return RoutedModel.join(model, router_for(model), tokenizer=chat_tokenizer(), budget=budget)


@dataclass(frozen=True)
class Alone:
    """What a prompt gives alone."""

    chain: Chain
    text: str
    reason: str
    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids)


class Oracle:
    """What a server must answer, from a routed model of its own."""

    def __init__(self, routed: RoutedModel) -> None:
        assert routed.tokenizer is not None
        self.routed, self.tokenizer = routed, routed.tokenizer
        points = [point.mean_depth for point in routed.router.head.budget_points]
        self.least, self.most = min(points), max(points)
        self.view = functools.cache(functools.partial(chain_view, routed))

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def chat_tokens(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokens(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def chain(self, prompt: Sequence[int], budget: float | None = None) -> Chain:
        """The chain that the router picks for a prompt alone."""
        ids = torch.tensor([list(prompt)])
        return self.routed.decide(self.routed.read(ids, torch.ones_like(ids)), [budget])[0].chain

    def alone(self, prompt: Sequence[int], new_tokens: int, choice: int = 0, **asked: Any) -> Alone:
        """What a prompt alone gives: its chain's view, run anew over all tokens for each next one."""
        chain = asked.get("chain") or self.chain(prompt, asked.get("budget"))
        view = self.view(chain)
        sampling = Sampling.of(asked.get("temperature", 0.0), asked.get("top_p", 1.0), asked.get("seed"), choice)
        ids, text = list(prompt), ""
        for step in range(new_tokens):
            with torch.no_grad():
                logits = view(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
            ids.append(pick(logits, sampling, step))
            made = ids[len(prompt) :]
            text = self.text(made)
            if made[-1] == END:
                return Alone(chain, text, "stop", tuple(made))
            if cut := [text.index(stop) for stop in asked.get("stop", []) if stop in text]:
                return Alone(chain, text[: min(cut)], "stop", tuple(made))
        return Alone(chain, text, "length", tuple(made))


@functools.cache
def tiny_oracle(family: str = "llama", attention: str | None = None) -> Oracle:
    """What a server of `tiny_routed` must answer."""
    return Oracle(tiny_routed(family, attention))


def pick(logits: np.ndarray[Any, Any], sampling: Sampling, step: int) -> int:
    """Pick a token as the definition says, one row, in numpy."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    shares = np.exp((logits - logits.max()) / sampling.temperature)
    shares /= shares.sum()
    kept, total = set[int](), 0.0
    for token in sorted(range(len(shares)), key=lambda token: (-shares[token], token)):
        if kept and total >= sampling.top_p:
            break
        kept.add(token)
        total += shares[token]
    left = sampling.uniform(step) * sum(shares[token] for token in kept)
    for token in sorted(kept):
        left -= shares[token]
        if left < 0:
            return token
    return max(kept)


class Brake:
    """Stops a model before each of its forward passes, until it is let go; counts them."""

    def __init__(self, routed: RoutedModel) -> None:
        self.passes = 0
        self._free = threading.Event()
        self._free.set()
        self._steps = threading.Semaphore(0)
        routed.get_input_embeddings().register_forward_pre_hook(self._wait)
        routed.read(torch.tensor([[90]]))  # the hook is a change, after which the model is tried anew
        self.passes = 0

    def _wait(self, *_: object) -> None:
        self.passes += 1
        while not self._free.is_set():
            if self._steps.acquire(timeout=0.01):
                return

    def hold(self) -> None:
        self._free.clear()

    def step(self, passes: int) -> None:
        """Let a few passes through."""
        self._steps.release(passes)

    def release(self) -> None:
        self._free.set()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come about."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


def scraped(url: str) -> dict[str, float]:
    """Each sample of `/metrics` by its name and labels, as the official parser reads them."""
    answer = httpx.get(f"{url}/metrics", timeout=60)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        one.name.removeprefix("cola_router_") + "".join(f"/{label}" for label in one.labels.values()): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }


@dataclass(frozen=True)
class Asked:
    """What runs at a URL and can be asked."""

    url: str

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60} | options
        )

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def post(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        with self.http() as client:
            return client.post(path, json={"model": NAME} | fields)

    def health(self) -> dict[str, Any]:
        with self.http() as client:
            return dict(client.get("/health").json())

    def status(self) -> dict[str, Any]:
        with self.http() as client:
            return dict(client.get("/status").json())

    def half(self, headers: dict[str, str]) -> socket.socket:
        """A request whose body is still to come."""
        host, port = self.url.removeprefix("http://").split(":")
        made = socket.create_connection((host, int(port)), timeout=60)
        lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
        made.sendall("\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode())
        return made

    def ask(self, **fields: Any) -> socket.socket:
        """A request that waits for its answer."""
        body = json.dumps({"model": NAME} | fields).encode()
        made = self.half({"Content-Length": str(len(body))})
        made.sendall(body)
        return made


@dataclass(frozen=True)
class Running(Asked):
    """A server that runs.

    Attributes:
        service: what it serves.
        server: the server.
        oracle: what it must answer, where it serves `tiny_routed`.
    """

    service: Service
    server: Server

    @property
    def oracle(self) -> Oracle:
        return tiny_oracle()

    def check_answers(self) -> None:
        """The server still answers, and rightly."""
        answer = self.post(prompt="Which of these", max_tokens=6, temperature=0).json()
        alone = self.oracle.alone(self.oracle.tokens("Which of these"), 6)
        assert answer["choices"][0]["text"] == alone.text
        health = self.health()
        assert (health["status"], health["ready"], health["waiting"], health["running"]) == ("ok", True, 0, 0)


@contextmanager
def running(routed: RoutedModel | None = None, key: str | None = None, **settings: Any) -> Iterator[Running]:
    """Serve on a free port of this machine, in a thread."""
    chosen = ServeSettings(router="tiny", **{"budget": BUDGET, "name": NAME, "max_tokens": 400} | settings)
    service = make_service(chosen, routed or tiny_routed(budget=chosen.budget), key)
    with on_a_socket(make_app(service), service.batcher.close, chosen, settings.get("port", 0)) as (url, server):
        yield Running(url, service, server)


@contextmanager
def braked(**settings: Any) -> Iterator[tuple[Running, Brake]]:
    """Serve a model that stands still until its brake lets it go."""
    routed = tiny_routed()
    brake = Brake(routed)
    with running(routed, **settings) as server:
        brake.hold()
        yield server, brake


@contextmanager
def on_a_socket(
    app: ASGIApp, close: Callable[[], object], settings: ListenSettings, port: int = 0
) -> Iterator[tuple[str, Server]]:
    """Serve an application in a thread; gives its URL and the server."""
    started = threading.Event()
    with bind("127.0.0.1", port) as bound:
        server = Server(
            app,
            close,
            shutdown_seconds=settings.shutdown_timeout,
            client_seconds=settings.client_timeout,
            ready=started.set,
            log_level="critical",
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert started.wait(60)
            yield url_of(bound), server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@contextmanager
def started(*words: str, log: int | IO[str] = subprocess.PIPE) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `python -m router` with a free port; gives it and the line that it prints once it is ready."""
    command = [sys.executable, "-m", "router", *words, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()
