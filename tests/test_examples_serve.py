"""The serving example end to end on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
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
from tests.harness import documents, write_tasks
from tests.serving import NAME, Oracle, Running, chat_tokenizer, running, write_served


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


DEPLOYMENT = Path(__file__).parents[1] / "docs" / "deployment.md"


def block_with(word: str) -> str:
    """The page's block of code that holds a word."""
    found = re.findall(r"^```(?:python)?\n(.*?)^```", DEPLOYMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = [one for one in found if word in one]
    return str(block)


def here(text: str, server: Running) -> str:
    """A text of the page, for a server of this test."""
    served = text.replace("http://127.0.0.1:8000", server.url).replace('"budget": 26', '"budget": 4')
    return served.replace("qwen2.5-coder-1.5b-instruct", NAME)


def test_the_pages_python_and_curl_get_answers(capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the prompts alone.
    with running() as server:
        exec(compile(here(block_with("import openai"), server), "snippet", "exec"), {})
        alone = server.oracle.alone(
            server.oracle.chat_tokens([{"role": "user", "content": "What is the capital of France?"}]), 20
        )
        assert capsys.readouterr().out == f"{alone.text} {alone.chain} {alone.chain.depth}\n"
        curl = block_with("curl").split("\n\n")[0]
        got = subprocess.run(here(curl, server), shell=True, capture_output=True, text=True, check=True)
        alone = server.oracle.alone(server.oracle.tokens("The capital of France is"), 8)
        assert json.loads(got.stdout)["choices"][0]["text"] == alone.text


def test_the_pages_harness_gets_answers(tmp_path: Path) -> None:
    # Oracle: each document's prompt alone.
    chat_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_tasks(tmp_path / "tasks", documents())
    command = block_with("local-completions").split("\n\n")[1].split("\n", 1)[1]
    command = command.replace("gsm8k", "tiny_written").replace(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct", str(tmp_path / "tokenizer")
    )
    options = f"--include_path {tmp_path / 'tasks'} --log_samples --output_path {tmp_path / 'out'}"
    with running() as server:
        words = shlex.split(here(command, server).replace("\\\n", " ")) + shlex.split(options)
        ran = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        (path,) = (tmp_path / "out").rglob("samples_tiny_written*.jsonl")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == 10
        for row in rows:
            prompt = row["arguments"]["gen_args_0"]["arg_0"]
            alone = server.oracle.alone(server.oracle.tokens(prompt), 6, stop=["\n"])
            assert row["resps"] == [[alone.text] * 2]  # the task asks twice


def test_a_server_that_does_not_start_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")  # the server has said why; here it says nothing
    assert run_command(main, ["--router=no/router/here"]) == 2
    assert capfd.readouterr().err == "error: router: expected one that can be served, got 'no/router/here'\n"
