"""The serving example end to end on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.serve_and_ask import (
    Answer,
    Example,
    collect,
    main,
    openai_chunks,
    request_of,
    urllib_chunks,
)
from router.chain import Chain
from router.command import run_command
from router.routed import RoutedModel
from tests.serving import Oracle, running, write_served


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("example"))


def question_for(oracle: Oracle, chat: bool) -> str:
    """A question whose answer is printable: the tiny model likes bytes that do not pass a terminal as they are."""
    asked = map("Which is {}?".format, range(200))
    return next(text for text in asked if answer(oracle, text, chat)[0].isprintable())


def answer(oracle: Oracle, question: str, chat: bool) -> tuple[str, Chain]:
    prompt = oracle.chat_tokens([{"role": "user", "content": question}]) if chat else oracle.tokens(question)
    alone = oracle.alone(prompt, 6)
    return alone.text, alone.chain


def test_the_example_prints_what_the_model_answers(router: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Oracle: the prompt alone, without a server.
    oracle = Oracle(RoutedModel.from_pretrained(router, budget=4.0))
    question = question_for(oracle, chat=True)
    words = [f"--router={router}", "--budget=4", f"--question={question}", "--max_tokens=6"]
    assert run_command(main, [*words, "--client=openai", '--serve_args=["--name=small model"]']) == 0
    shown = capfd.readouterr()
    text, chain = answer(oracle, question, chat=True)
    said = f"{text}\n[{len(chain.layers)} layers: {chain}]\n"
    first, rest = shown.out.split("\n", 1)
    assert first.startswith("serving small model at http://127.0.0.1:")
    assert rest == f"{said}{said}the server has stopped\n"
    assert text in shown.err


def test_both_clients_get_the_same_answers_whole_and_in_pieces() -> None:
    # Oracle: the prompt alone; this server runs in the test's own process.
    with running() as server:
        for chat in (True, False):
            question = question_for(server.oracle, chat)
            text, chain = answer(server.oracle, question, chat)
            request = request_of(Example(question=question, max_tokens=6, chat=chat), f"{server.url}/v1")
            for chunks_of in (openai_chunks, urllib_chunks):
                for stream in (True, False):
                    got = collect(chunks_of(f"{server.url}/v1", request, stream), echo=False)
                    assert got == Answer(text, str(chain), chain.depth)


def test_a_server_that_does_not_start_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")  # the server has said why; here it says nothing
    assert run_command(main, ["--router=no/router/here"]) == 2
    assert capfd.readouterr().err == "error: router: expected one that can be served, got 'no/router/here'\n"
