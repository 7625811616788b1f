"""`python -m router` info, route and generate, on a tiny model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from router.__main__ import VERBS, main
from router.chain import Chain
from router.decision import Router
from router.engine.view import chain_view
from router.heads.menu import MenuHead
from router.latency import SCHEMA
from router.routed import RoutedModel
from router.storage import load_router, save_router
from router.validation import InputError
from tests.conftest import Refusal
from tests.routed_folders import write_routed
from tests.tiny import tiny_model

PROMPTS = ["Which of these", "is a fox?", "The moon and seven bees aside, which is it?", "A"]


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router's folder; its base model lies beside it."""
    return write_routed(tmp_path_factory.mktemp("words"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n")
    return path


def test_info_needs_no_base_model(router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = load_router(router)
    save_router(
        tmp_path / "router", dataclasses.replace(made, config=dataclasses.replace(made.config, base_model="x/y"))
    )
    main(["info", str(tmp_path / "router")])
    shown = capsys.readouterr().out
    assert "x/y" in shown
    main(["info", str(tmp_path / "router"), "--json", "true"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["fingerprints"]["model"] == made.config.fingerprints.model
    assert facts["parameters"] == sum(one.numel() for one in made.head.parameters())
    depths = [*(point.mean_depth for point in made.config.budget_points), made.config.num_layers]
    assert facts["budgets"] == [round(min(depths), 2), round(max(depths), 2)]


def test_info_draws_a_menu(router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_router(router).config
    settings = {"chains": ["0-4", "0-2,4", "0-3,3"], "hidden": 4}
    config = dataclasses.replace(config, head="menu", head_settings=settings, budget_points=())
    save_router(tmp_path / "menu", Router(config, MenuHead(5, 2, config.d_model, **settings)))
    main(["info", str(tmp_path / "menu")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-3:]] == [
        ["▒▒███", "5", "0-4"],
        ["▒▒█·█", "4", "0-2,4"],
        ["▒▒█2·", "5", "0-2,3*2"],
    ]


def test_routes_are_those_of_each_prompt_alone(router: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the routed model itself, prompt by prompt.
    routed = RoutedModel.from_pretrained(router, budget=4.0)
    words = ["route", str(router), "--budget", "4", "--prompts", str(prompts), "--batch_size", "3"]
    main([*words, "--json", "true"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert routed.tokenizer is not None
    for row in rows:
        (alone,) = routed.route(routed.tokenizer(row["prompt"], return_tensors="pt").input_ids)
        assert row["chain"] == str(alone.chain)
        assert row["layers"] == list(alone.chain.layers)
        assert row["depth"] == alone.chain.depth
        assert row["score"] == pytest.approx(alone.score, abs=1e-4)
    main(words)
    shown = capsys.readouterr().out
    assert all(f"  {row['chain']}\n" in shown for row in rows)
    assert f"mean depth {sum(row['depth'] for row in rows) / 4:.2f} of 5 layers" in shown


def test_routing_with_choices_reads_them(router: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices = [" the moon", " glass"]
    asked = ["--prompt", "Which?", "--choices", json.dumps(choices)]
    main(["route", str(router), "--budget", "4", *asked, "--json", "true"])
    row = json.loads(capsys.readouterr().out)
    scored = RoutedModel.from_pretrained(router, budget=4.0).score("Which?", choices)
    assert row["chain"] == str(scored.routed.chain)
    assert row["score"] == pytest.approx(scored.routed.score, abs=1e-5)


def test_generated_text_is_that_of_each_chains_view(
    router: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: the library's generate on the view of the chain that was told, prompt by prompt.
    words = ["generate", str(router), "--budget", "4", "--prompts", str(prompts), "--max_new_tokens", "5"]
    main([*words, "--json", "true"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model, tokenizer = tiny_model("llama"), AutoTokenizer.from_pretrained(router.parent / "model")
    for row in rows:
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        view = chain_view(model, Chain.parse(row["chain"], 5))
        out = view.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert row["text"] == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    main(words)
    told = capsys.readouterr()
    assert told.out == "".join(row["text"] + "\n" for row in rows)
    assert told.err.count(" of 5 layers: ") == 4


def test_sampling_repeats_with_its_seed(router: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(router), "--prompts", str(prompts), "--temperature", "1.5", "--max_new_tokens", "8"]
    found = []
    for seed in ("1", "1", "2"):
        main([*words, "--seed", seed])
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] != found[2]


def test_a_latency_factor_becomes_a_budget(
    router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    # Oracle: seconds = depth, so a factor of 0.8 is 4 of 5 layers.
    line = {"fixed": 0.0, "layer": 1.0, "worst": 0.0}
    profile = {"num_layers": 5, "batch": 1, "prompt_tokens": 8, "prefill": line, "decode": line, "router": 0.0}
    made_for = {"model": load_router(router).config.fingerprints.model, "device": "cpu", "dtype": "float32"}
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"schema": SCHEMA, **made_for, "cells": [{"profile": profile}], "new_tokens": 4}))
    words = ["route", str(router), "--prompt", "Which of these?", "--device", "cpu", "--json", "true"]
    main([*words, "--latency_factor", "0.8", "--latency_profile", str(path)])
    by_factor = capsys.readouterr().out
    main([*words, "--budget", "4"])
    assert capsys.readouterr().out == by_factor
    line = refusal(main, [*words, "--latency_factor", "0.1", "--latency_profile", path])
    assert line.startswith("error: latency_factor: expected one of a depth that the router has, got 0.1 (budget: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sing"], "command: expected one of new, run, info, route"),
        (["route", "ROUTER"], "prompt: expected one of prompt and prompts, got none"),
        (["route", "ROUTER", "--prompts", "nowhere.txt"], "prompts: expected an existing file"),
        (["route", "ROUTER", "--prompt", "a", "--budget", "40"], "budget: expected a mean depth in"),
        (["route", "ROUTER", "--prompt", "a", "--budget", "4", "--guaranteed", "true"], "got budget and guaranteed"),
        (["route", "ROUTER", "--prompt", "a", "--guaranteed", "true"], "expected a router with a guarantee"),
        (["route", "ROUTER", "--prompt", "a", "--chat", "true"], "chat: expected a tokenizer with a chat template"),
        (["route", "ROUTER", "--prompt", ""], "prompt: expected at least one token"),
        (
            ["generate", "ROUTER", "--prompt", "a" * 500, "--max_new_tokens", "20"],
            "prompt: expected at most 492 tokens",
        ),
        (["generate", "ROUTER", "--prompt", "a", "--top_p", "0"], "top_p: expected"),
        (["route", "ROUTER", "--prompt", "no UTF-8: \udce9"], "prompt: expected text that can be written as UTF-8"),
        (["generate", "ROUTER", "--prompt", "a", "--seed", "-1"], "seed: expected at least 0, got -1"),
        (["route", "ROUTER", "--prompt", "a", "--choices", "[]"], "choices: expected at least 1 entries, got []"),
        (
            ["route", "ROUTER", "--prompt", "a", "--choices", '[" b", ""]'],
            "choices[1]: expected text that is not empty",
        ),
        (["route", "ROUTER", "--prompt", "", "--choices", '[" b"]'], "prompt: expected at least one token"),
        (["route", "ROUTER", "--prompt", "a" * 512, "--choices", '[" b"]'], "prompt: expected at most 510 tokens"),
        (["info", "./nowhere"], "router"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, router: Path, refusal: Refusal) -> None:
    assert told in refusal(main, [router if word == "ROUTER" else word for word in words], alone=True)


def test_prompts_in_json_lines(router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one\\nline"}\n{"prompt": "two"}\n')
    main(["route", str(router), "--prompts", str(path), "--json", "true"])
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["one\nline", "two"]
    for line, told in (('{"text": "one"}', "a text as prompt"), ('{"prompt": "\\ud800"}', "text that can be written")):
        path.write_text(line + "\n")
        with pytest.raises(InputError, match=f"expected {told}"):
            main(["route", str(router), "--prompts", str(path)])


def test_a_line_ends_where_an_editor_ends_it(router: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: by hand; the file begins with a byte-order mark, and there are marks within a line.
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\u2028line\x0c and more\r\ntwo\r\n".encode())
    main(["route", str(router), "--prompts", str(path), "--json", "true"])
    prompts = [json.loads(line)["prompt"] for line in capsys.readouterr().out.split("\n")[:-1]]
    assert prompts == ["one\u2028line\x0c and more", "two"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"python -m router {word}" in shown for word in VERBS)
