"""The model card: front matter and Markdown read back by the hub's and a CommonMark reader."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from router.chain import Chain
from router.decision import Guarantee, Router, RouterConfig
from router.fingerprint import Fingerprints
from router.heads.budget import BudgetPoint
from router.routed.card import model_card
from router.storage import load_router, weights_sha256
from router.validation import InputError
from tests.reports import GOLDEN
from tests.routed_folders import write_routed
from tests.tiny import tiny_tokenizer

PRINTS = Fingerprints("a" * 64, "b" * 64, "c" * 64)
SMALL = {"hidden": 8, "windows": 2, "dropout": 0.0}
MENU = ["0-3", "0-2", "0-1,3", "0,1*3,2-3", "0-1,3,2"]
PROMISED = Guarantee(0.02, 0.1, "accuracy", 0.3, None, 200, -0.005, 3.25, 0.015)
NAME = "smollm2-135m-instruct"
EVIL = [
    "a | b", "x\n---\nlicense: mit\n", "---", "# Title", "<script>alert(1)</script>", "`code`", "[a](http://b)",
    "![](http://b/c.png)", "&lt;b&gt;", "***", "~~~\n", "```\n# out", "\u202eabc", "\u2028# x", "$$x$$", "1. a", "- a",
    "2) a", "+", "\\", "<!--", "\\`b\\` \\*c\\*", "\\| a", "x" * 5000,
]  # fmt: skip
"""Texts that would do something in Markdown or YAML."""


def make_router(head: str = "layerwise", guarantee: Guarantee | None = None, **changed: Any) -> Router:
    settings = SMALL | ({"chains": MENU, "agreement": 0.25} if head == "menu" else {})
    config = RouterConfig(head, settings, 4, 1, 16, "quiz", "letter", NAME, None, "float32", PRINTS)
    points = tuple(BudgetPoint(1.0 + i / 10, float(-i)) for i in range(31))
    torch.manual_seed(0)
    config = dataclasses.replace(config, **{"budget_points": points} | changed)
    return Router(config, config.build().eval(), guarantee)


def report_of(router: Router) -> dict[str, Any]:
    """The golden report, as if its router were this one."""
    report: dict[str, Any] = json.loads(GOLDEN.read_text())
    report["inputs"]["router/router.safetensors"] = weights_sha256(router)
    return report


def parsed(card: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)


def tables(card: str) -> list[list[list[str]]]:
    """The cells of each table, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = parsed(card)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append("".join(part.content for part in tokens[i + 1].children or []))
    return found


def headings(card: str) -> list[str]:
    tokens = parsed(card)
    return [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]


@pytest.mark.parametrize("name", ["card_layerwise.txt", "card_menu.txt"])
def test_a_card_is_the_golden_one(name: str) -> None:
    """Compare with a card read by eye. To write both anew, after a change that is meant:

    COLA_UPDATE_GOLDENS=1 .venv/bin/python -m pytest tests/test_router_card.py
    """
    if name == "card_menu.txt":  # an offline asset, which is on no hub; more chains and no points
        many = [*MENU, *(str(Chain.full(4).repeat(i, 1, k)) for i in range(1, 4) for k in range(3, 8))]
        settings = SMALL | {"chains": many, "agreement": 0.25}
        trained = {"validation": {"mean_depth": 3.25, "f1_skip": 0.5}}
        made = model_card(make_router("menu", head_settings=settings, budget_points=(), training=trained))
    else:
        router = make_router(base_model="us/base", guarantee=PROMISED, num_layers=40)
        made = model_card(router, report=report_of(router) | {"caveats": ["Depth is not time."], "notes": ["A note."]})
    if os.environ.get("COLA_UPDATE_GOLDENS"):
        (GOLDEN.parent / name).write_text(made + "\n", encoding="utf-8")
    assert made + "\n" == (GOLDEN.parent / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["weights", "prompt", "no prompt", "no arms", "no interval", "no report"])
def test_a_report_of_another_router_or_of_nothing_is_refused(change: str) -> None:
    router = make_router()
    report = report_of(router)
    if change == "weights":
        report["inputs"]["router/router.safetensors"] = "0" * 64
    elif change == "prompt":
        report["fingerprints"]["prompt"] = "0" * 64
    elif change == "no prompt":
        del report["fingerprints"]["prompt"]
    elif change == "no arms":
        del report["arms"]
    elif change == "no interval":
        report["arms"][1]["accuracy_interval"] = None
    else:
        report = {"schema": 3}
    with pytest.raises(InputError, match="report: expected") as caught:
        model_card(router, report=report)
    assert "\n" not in str(caught.value)


def test_the_guarantee_is_told_in_plain_words() -> None:
    # Oracle: the numbers put in; what is not certified promises nothing.
    def told(**changed: Any) -> str:
        return model_card(make_router(guarantee=dataclasses.replace(PROMISED, **changed)))

    assert "the mean accuracy is at most 0.02 below that of full depth: this holds with probability 0.9 over" in told()
    assert "mean depth was 3.25 of 4 layers and the loss -0.0050" in told()
    assert "a share of 0.02 of the answers differ" in told(loss="disagreement")
    assert "prompts of which it is unsure run at full depth" in told(least_score=-0.5)
    assert "None could be certified" in told(offset=None)
    assert "enough for a bound of 0.0150 or more" in told(offset=None)
    assert "None: this router was not calibrated." in model_card(make_router())


@pytest.mark.parametrize("text", EVIL, ids=range(len(EVIL)))
def test_no_text_of_a_config_or_a_report_does_anything(text: str) -> None:
    # Oracle: the card with harmless texts in the same places: the same tokens, one by one, but for what they say.
    def card(word: str) -> str:
        training = {"validation": {word: 1.0, "other": word}}
        router = make_router(
            task=word, mode=word, dtype=word, revision=word, training=training, base_model=word,
            fingerprints=Fingerprints(word, word, word),
        )  # fmt: skip
        report = copy.deepcopy(report_of(router))
        report |= {"task": word, "judged_mode": word, "split": word, "caveats": [word, word], "notes": [word]}
        report["fingerprints"] = {"model": word, "tokenizer": word, "prompt": word}
        report["provenance"] |= {"commit": word, "started": word}
        report["comparisons"]["method"] = report["model"]["dtype"] = word
        for arm in report["arms"]:
            arm["label"] = word
        return model_card(router, report=report)

    def shape(made: str) -> list[tuple[str, str]]:
        inner = [child for token in parsed(made) for child in [token, *(token.children or [])]]
        return [(token.type, token.tag) for token in inner if token.type not in ("text", "text_special", "inline")]

    made, harmless = card(text), card("a harmless word")  # with a space, so no hub id either
    assert shape(made) == shape(harmless)
    assert ModelCard(made).data.to_dict() == ModelCard(harmless).data.to_dict()
    assert headings(made) == headings(harmless)
    assert all(letter.isprintable() or letter == "\n" for letter in made)
    ours, theirs = (next(table for table in tables(one) if table[0][0] == "arm") for one in (made, harmless))
    assert [row[1:] for row in ours] == [row[1:] for row in theirs]
    if text.isprintable() and len(text) < 100:
        assert {row[0] for row in ours[1:]} == {text}  # a reader sees it as it is


def test_the_code_of_the_card_runs(tmp_path: Path) -> None:
    # Oracle: it is run, with the placeholders replaced, on a tiny model.
    router = load_router(write_routed(tmp_path))
    (code,) = [token.content for token in parsed(model_card(router)) if token.info == "python"]
    assert len(ast.parse(code).body) == 4
    assert 'base_model="PATH/OF/THE/MODEL"' in code
    places = {"USER/NAME": str(tmp_path / "router"), "PATH/OF/THE/MODEL": str(tmp_path / "model")}
    for placeholder, path in places.items():
        assert placeholder in code
        code = code.replace(placeholder, path)
    names: dict[str, Any] = {}
    exec(code, names)
    prompt = tiny_tokenizer()("a prompt", return_tensors="pt")["input_ids"]
    assert torch.equal(names["tokens"].cpu()[:, : prompt.shape[1]], prompt)
    assert names["tokens"].shape[1] > prompt.shape[1]
