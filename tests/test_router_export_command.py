"""`python -m router export`: where chain, base model and dtype come from, and one line for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.command import run_command
from router.engine.load import load_model
from router.engine.view import chain_view
from router.routed.commands import export as main
from router.storage import Router, save_router
from tests.tiny import NUM_LAYERS, random_router, save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model in `model/`, a router for it in `router/`, and a chain in `static.json`."""
    model = save_tiny(tmp_path / "model")
    router = random_router(ChainScorer(*load_model(str(model), device="cpu"), load_task("arc_easy")), 2)
    save_router(tmp_path / "router", Router(replace(router.config, base_model=str(model)), router.head))
    (tmp_path / "static.json").write_text(json.dumps({"chain": [0, 1, 3, 4, 4], "depth": 5}))
    return tmp_path


def export(*words: str) -> int:
    return run_command(lambda argv: main(list(argv or ())), words)


def test_a_chain_of_a_named_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the chain view of the base model; the lines that are printed.
    out = folder / "runs" / "short"  # the folder above is made as well
    assert export(f"--model={folder / 'model'}", "--chain=0-1,3*2", f"--out={out}") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "chain 0-1,3*2: 4 layers in place of 5, float32"
    assert f"written to {out}" in printed
    assert printed[-1] == f'load it: transformers.AutoModelForCausalLM.from_pretrained("{out}", dtype="float32")'
    model, tokenizer = load_model(str(folder / "model"), device="cpu")
    ids = AutoTokenizer.from_pretrained(out)("a fox", return_tensors="pt").input_ids
    assert ids.tolist() == tokenizer("a fox", return_tensors="pt").input_ids.tolist()
    wanted = chain_view(model, Chain((0, 1, 3, 3), NUM_LAYERS))(ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(loaded(ids).logits.detach(), wanted, rtol=0, atol=1e-5)


def test_a_routers_base_model_under_the_chain_of_an_evaluation(folder: Path) -> None:
    # Oracle: what the router's config and static.json say.
    static = folder / "static.json"
    assert export(f"--router={folder / 'router'}", f"--static={static}", f"--out={folder / 'out'}") == 0
    about = json.loads((folder / "out" / "chain.json").read_text())
    assert (about["layers"], about["dtype"]) == ([0, 1, 3, 4, 4], "float32")
    assert about["base_model"]["name"] == "model"  # of a local path the last part alone is told


def test_the_dtype_is_the_stored_one_or_the_given_one(folder: Path) -> None:
    # Oracle: the dtype of the base model's files, and of the word given.
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder / "half")
    tiny_tokenizer().save_pretrained(folder / "half")
    for words, wanted in (((), "bfloat16"), (("--dtype=float16",), "float16")):
        out = folder / wanted
        assert export(f"--model={folder / 'half'}", "--chain=0,4", f"--out={out}", *words) == 0
        assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, wanted)


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no chain": (lambda folder: [f"--model={folder / 'model'}"], "chain: expected exactly one of chain and static"),
    "a chain that is none": (
        lambda folder: [f"--model={folder / 'model'}", "--chain=0-2;4"],
        "chain: expected items such as 4, 0-3 or 5*2 joined by commas, got '0-2;4'",
    ),
    "a layer too many": (
        lambda folder: [f"--model={folder / 'model'}", "--chain=0-5"],
        "chain 0-5: layers[5]: expected an integer in 0..4, got 5",
    ),
    "an unknown dtype": (
        lambda folder: [f"--model={folder / 'model'}", "--chain=0", "--dtype=int8"],
        "dtype: expected one of float32, bfloat16, float16",
    ),
    "another file": (
        lambda folder: [f"--model={folder / 'model'}", f"--static={folder / 'model' / 'config.json'}"],
        "config.json: chain: expected a list of layer indices, got None",
    ),
    "no router": (lambda folder: [f"--router={folder / 'model'}", "--chain=0"], "expected a router's schema"),
    "a router for another model": (
        lambda folder: [f"--router={folder / 'router'}", f"--model={save_tiny(folder / 'b', seed=1)}", "--chain=0"],
        "expected it to be made for the model",
    ),
    "a folder that holds something": (
        lambda folder: [f"--model={folder / 'model'}", "--chain=0", f"--out={folder}"],
        "out: expected a folder that is absent or empty",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_line_and_status_2(folder: Path, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    # Oracle: the line of each refusal; no folder is made.
    words, wanted = BAD[bad]
    assert export(f"--out={folder / 'out'}", *words(folder)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert wanted in line
    assert not (folder / "out").exists()
