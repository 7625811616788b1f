"""Serve a routed model, ask it twice (once streamed), and stop it again.

    python -m examples.serve_and_ask --router runs/demo/router --budget 25 --question "What is ice made of?"

It prints each answer with the chain of layers that the router picked and the number of layers run. Needs the server's
packages (`pip install -c constraints.txt -e '.[serve]'`); asks with OpenAI's client where that is installed, else with
`urllib`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.dataclasses import dataclass as settings_dataclass

from router.command import parse_settings, run_command
from router.validation import SETTINGS, InputError, Positive

STOP_SECONDS = 60
"""How long the server may take to stop."""
KEY = os.environ.get("COLA_ROUTER_API_KEY", "none").strip()
"""What the server, which has this environment too, wants to be sent."""


@settings_dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Example:
    """Settings of the example.

    Attributes:
        router: a router's folder or hub id.
        budget: mean depth wanted, layers; unset: the router's own choice.
        question: what to ask.
        max_tokens: most tokens of an answer.
        chat: ask as a chat (needs a chat template), not as plain text.
        client: openai, urllib, or auto: the first that is installed.
        serve_args: more settings of `python -m router serve`.
    """

    router: str = "runs/demo/router"
    budget: float | None = None
    question: str = "What is ice made of?"
    max_tokens: Positive = 32
    chat: bool = True
    client: Literal["auto", "openai", "urllib"] = "auto"
    serve_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """An answer, and what it took.

    Attributes:
        text: the answer.
        chain: the layers that the router picked.
        depth: how many layers ran for each token.
    """

    text: str
    chain: str
    depth: int


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    example, _ = parse_settings(Example, argv, "examples.serve_and_ask", "Serve a routed model and ask it.")
    installed = importlib.util.find_spec("openai") is not None
    client = example.client if example.client != "auto" else "openai" if installed else "urllib"
    chunks_of = openai_chunks if client == "openai" else urllib_chunks
    with served(example) as url:
        for stream in (False, True):
            answer = collect(chunks_of(url, request_of(example, url), stream), echo=stream)
            print(f"{answer.text}\n[{answer.depth} layers: {answer.chain}]", flush=True)
    print("the server has stopped")


@contextmanager
def served(example: Example) -> Iterator[str]:
    """Run the server as a process of its own; gives its URL, `http://.../v1`.

    Raises:
        InputError: where it does not start; it has said why.
    """
    words = ["--port=0", *(() if example.budget is None else (f"--budget={example.budget}",)), *example.serve_args]
    command = [sys.executable, "-m", "router", "serve", "--router", example.router, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()  # "serving NAME at URL (...)", once requests are taken
            if not ready:
                raise InputError(f"router: expected one that can be served, got {example.router!r}")
            print(ready, end="", flush=True)
            yield ready.rpartition(" at ")[2].split()[0]
            process.send_signal(signal.SIGTERM)
            status = process.wait(STOP_SECONDS)
            if status != 0:
                raise OSError(f"the server ended with status {status}")
        finally:
            process.kill()


def request_of(example: Example, url: str) -> dict[str, Any]:
    """Return what to ask the server, whose only model is asked for."""
    with _opened(f"{url}/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    chat = {"messages": [{"role": "user", "content": example.question}]}
    asked = chat if example.chat else {"prompt": example.question}
    return {"model": model, "max_tokens": example.max_tokens, "temperature": 0, **asked}


def openai_chunks(url: str, request: dict[str, Any], stream: bool) -> Iterator[dict[str, Any]]:
    """Ask with OpenAI's client; yields the answer's choice, whole or piece by piece.

    Raises:
        InputError: where the server refuses the request.
    """
    import openai

    with openai.OpenAI(base_url=url, api_key=KEY) as client:
        create: Any = client.chat.completions.create if "messages" in request else client.completions.create
        try:
            got = create(**request, stream=stream)
            for chunk in got if stream else [got]:
                yield chunk.choices[0].model_dump()
        except openai.APIError as error:
            raise InputError(f"the server refuses: {error.message}") from error


def urllib_chunks(url: str, request: dict[str, Any], stream: bool) -> Iterator[dict[str, Any]]:
    """Ask with nothing but the standard library; yields as `openai_chunks` does."""
    path = "/chat/completions" if "messages" in request else "/completions"
    body = json.dumps(request | {"stream": stream}).encode()
    with _opened(url + path, body) as answer:
        if not stream:
            yield json.load(answer)["choices"][0]
            return
        for line in answer:
            event = line.decode().strip().removeprefix("data: ")
            if event and event != "[DONE]":
                yield json.loads(event)["choices"][0]


def _opened(url: str, body: bytes | None = None) -> Any:
    """Open a URL; a refusal is an InputError that says what the server says."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers))
    except urllib.error.HTTPError as error:
        raise InputError(f"the server refuses: {json.load(error)['error']['message']}") from error


def collect(choices: Iterator[dict[str, Any]], echo: bool) -> Answer:
    """Put an answer together; `echo`: show each piece on stderr as it comes."""
    text, chain, depth = "", "", 0
    for choice in choices:
        said = choice.get("message") or choice.get("delta") or {}
        piece = choice.get("text") or said.get("content") or ""
        text, chain, depth = text + piece, choice["chain"], choice["depth"]
        if echo:
            print(piece, end="", file=sys.stderr, flush=True)
    return Answer(text, chain, depth)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
