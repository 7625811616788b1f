"""The serving example end to end on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.serve_and_ask import main
from router.chain import Chain
from router.command import run_command
from router.routed import RoutedModel
from tests.serving import Oracle, write_served
from tests.smol import write_smol_router


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("example"))


@pytest.mark.parametrize(("client", "chat"), [("openai", True), ("urllib", False), ("urllib", True)])
def test_the_example_prints_what_the_model_answers(
    router: Path, client: str, chat: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the prompt alone, without a server. The tiny model likes bytes that do not pass a terminal as they are.
    oracle = Oracle(RoutedModel.from_pretrained(router, budget=4.0))
    question = next(
        text for text in map("Which is {}?".format, range(200)) if answer(oracle, text, chat)[0].isprintable()
    )
    words = [f"--router={router}", "--budget=4", f"--question={question}", "--max_tokens=6", f"--chat={chat}"]
    assert run_command(main, [*words, f"--client={client}", '--serve_args=["--name=small model"]']) == 0
    shown = capfd.readouterr()
    text, chain = answer(oracle, question, chat)
    said = f"{text}\n[{len(chain.layers)} layers: {chain}]\n"
    first, rest = shown.out.split("\n", 1)
    assert first.startswith("serving small model at http://127.0.0.1:")
    assert rest == f"{said}{said}the server has stopped\n"
    assert text in shown.err


def answer(oracle: Oracle, question: str, chat: bool) -> tuple[str, Chain]:
    prompt = oracle.chat_tokens([{"role": "user", "content": question}]) if chat else oracle.tokens(question)
    alone = oracle.alone(prompt, 6)
    return alone.text, alone.chain


def test_the_example_runs_on_smollm2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Oracle: the routed model's own generate, in float32, whose texts repeat.
    folder = write_smol_router(tmp_path / "router")
    words = [f"--router={folder}", "--budget=24", "--max_tokens=8", '--serve_args=["--dtype=float32"]']
    assert run_command(main, words) == 0
    routed = RoutedModel.from_pretrained(folder, budget=24.0, dtype="float32", device="cpu")
    assert routed.tokenizer is not None
    message = [{"role": "user", "content": "What is ice made of?"}]
    batch = routed.tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = routed.generate(**batch, max_new_tokens=8, do_sample=False)
    text = routed.tokenizer.decode(out[0, batch.input_ids.shape[1] :], skip_special_tokens=True)
    chain = routed.route(**batch)[0].chain
    said = f"{text}\n[{chain.depth} layers: {chain}]\n"
    assert capfd.readouterr().out.split("\n", 1)[1] == f"{said}{said}the server has stopped\n"


def test_a_router_that_cannot_be_served_is_one_line_of_each(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["--router=no/router/here"]) == 2
    shown = capfd.readouterr().err.splitlines()
    assert shown[-1] == "error: router: expected one that can be served, got 'no/router/here'"
    assert len(shown) == 2
    assert run_command(main, ["--client=curl"]) == 2
    assert "client: expected auto, openai or urllib, got 'curl'" in capfd.readouterr().err
