"""Two hundred requests at once: none lost, none mixed up."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import openai

from tests.serving import NAME, Alone, Oracle, Running, running

COUNT = 200


def requests(oracle: Oracle) -> list[dict[str, Any]]:
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
            }
        )
    return made


def expected(oracle: Oracle, request: dict[str, Any]) -> Alone:
    if request["chat"]:
        prompt = oracle.chat_tokens([{"role": "user", "content": request["text"]}])
    else:
        prompt = oracle.tokens(request["text"])
    names = ("temperature", "top_p", "seed", "stop", "budget")
    return oracle.alone(prompt, request["max_tokens"], **{name: request[name] for name in names})


async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> tuple[str, str, str]:
    """Return text, chain and the reason of the end."""
    options = {name: request[name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "stream")}
    options |= {"model": NAME, "extra_body": {"budget": request["budget"]}}
    if request["chat"]:
        messages = [{"role": "user", "content": request["text"]}]
        got: Any = await client.chat.completions.create(messages=messages, **options)
    else:
        got = await client.completions.create(prompt=request["text"], **options)
    if not request["stream"]:
        choice = got.choices[0]
        return (choice.message.content if request["chat"] else choice.text), choice.chain, choice.finish_reason
    text = ""
    async for chunk in got:
        choice = chunk.choices[0]
        text += (choice.delta.content or "") if request["chat"] else choice.text
    return text, choice.chain, choice.finish_reason


async def ask_all(server: Running, asked: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        return await asyncio.gather(*(ask(client, request) for request in asked))


def test_two_hundred_at_once_come_out_as_alone() -> None:
    # Oracle: each request's prompt alone, without cache, batch or padding, and sampling as its definition says.
    with running() as server:
        asked = requests(server.oracle)
        got = asyncio.run(ask_all(server, asked))
        alone = [expected(server.oracle, request) for request in asked]
        assert got == [(one.text, str(one.chain), one.reason) for one in alone]
        assert len({one.chain for one in alone}) > 5
        assert len({one.text for one in alone}) > COUNT // 2  # were texts alike, mixing them up would not show
        server.check_answers()
