"""The model card: front matter and Markdown read back by the hub's and a CommonMark reader."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from router.chain import Chain
from router.fingerprint import Fingerprints, model_fingerprint, tokenizer_fingerprint
from router.heads.budget import BudgetPoint
from router.routed.card import model_card, plain_text
from router.storage import Guarantee, Router, RouterConfig, save_router, weights_sha256
from router.validation import InputError
from tests.reports import GOLDEN
from tests.tiny import NUM_LAYERS, save_tiny, tiny_model, tiny_tokenizer

PRINTS = Fingerprints("a" * 64, "b" * 64, "c" * 64)
SMALL = {"hidden": 8, "windows": 2, "dropout": 0.0}
MENU = ["0-3", "0-2", "0-1,3", "0,1*3,2-3", "0-1,3,2"]
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


def test_the_front_matter_says_what_is_known_and_no_more() -> None:
    # Oracle: the hub's own reader of cards.
    told = ModelCard(model_card(make_router(base_model="us/base"))).data.to_dict()
    assert told == {
        "base_model": "us/base",
        "base_model_relation": "adapter",
        "library_name": "cola-router",
        "pipeline_tag": "text-generation",
        "tags": ["cola-router", "adaptive-depth", "layer-skipping"],
    }
    assert "base_model" not in ModelCard(model_card(make_router())).data.to_dict()  # an offline asset is on no hub


def test_a_local_model_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the name's last part, which would be found in any form of the path.
    (tmp_path / "us" / "precious").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "us" / "precious"), "~/precious", "./precious", "us/precious", "a/b/precious"):
        card = model_card(make_router(base_model=name))
        assert "precious" not in card
        assert "a local model" in card
        assert PRINTS.model in card
        assert 'base_model="PATH/OF/THE/MODEL"' in card


def test_the_measures_of_the_report_stand_in_the_table() -> None:
    # Oracle: the golden report's own numbers, arm by arm.
    router = make_router()
    report = report_of(router)
    card = model_card(router, report=report)
    rows = next(table for table in tables(card) if table[0][0] == "arm")
    assert len(rows) == 1 + len(report["arms"])
    for row, arm in zip(rows[1:], report["arms"], strict=True):
        low, high = arm["accuracy_interval"]
        expected = [arm["label"], f"{arm['accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{arm['mean_depth']:.2f}"]
        assert row[:4] == expected
        if arm["against_full"] is None:
            assert row[4:] == ["", "", ""]
            continue
        low, high = arm["against_full"]["difference_interval"]
        assert row[4:6] == [f"{arm['against_full']['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
    assert rows[2] == ["router", "0.583", "0.320 to 0.807", "3.33", "+0.083", "-0.250 to +0.417", "1.000"]
    assert rows[-1][-1] == ""  # what saw the answers is not tested
    assert "12 samples of quiz, split test, judged by letter" in card
    assert "Commit unknown, 2026-01-01T00:00:00+0000" in card
    for text in report["caveats"]:
        assert plain_text(text) in card
    assert "Nothing was measured on a test split yet." in model_card(router)


@pytest.mark.parametrize("change", ["weights", "prompt", "no arms", "no interval", "no report"])
def test_a_report_of_another_router_or_of_nothing_is_refused(change: str) -> None:
    router = make_router()
    report = report_of(router)
    if change == "weights":
        report["inputs"]["router/router.safetensors"] = "0" * 64
    elif change == "prompt":
        report["fingerprints"]["prompt"] = "0" * 64
    elif change == "no arms":
        del report["arms"]
    elif change == "no interval":
        report["arms"][1]["accuracy_interval"] = None
    else:
        report = {"schema": 3}
    with pytest.raises(InputError, match="report: expected") as caught:
        model_card(router, report=report)
    assert "\n" not in str(caught.value)


def test_a_menu_is_drawn_with_depths() -> None:
    # Oracle: by hand; the first layer is read, one out of order is marked.
    card = model_card(make_router("menu"))
    assert "It picks one of 5 chains" in card
    (fence,) = [token.content for token in parsed(card) if token.type == "fence" and token.info == "text"]
    assert fence.splitlines()[:5] == [
        "0-3        depth   4  ▒███",
        "0-2        depth   3  ▒██·",
        "0-1,3      depth   3  ▒█·█",
        "0,1*3,2-3  depth   6  ▒3██",
        "0-1,3,2    depth   4  ▒██↷",
    ]
    many = [str(Chain.full(6)), *(str(Chain.full(6).repeat(i, 1, k)) for i in range(1, 6) for k in range(1, 6))]
    config = dataclasses.replace(
        make_router().config, head="menu", num_layers=6, head_settings=SMALL | {"chains": many}
    )
    card = model_card(Router(config, config.build()))
    assert "It picks one of 26 chains" in card
    assert "14 more stand in config.json." in card


def test_the_number_of_chains_is_counted() -> None:
    # Oracle: three choices for each layer.
    assert "It can say 27 chains: each of the last 3 layers" in model_card(make_router())
    config = dataclasses.replace(make_router().config, num_layers=40)
    assert "It can say about 10^19 chains" in model_card(Router(config, config.build()))  # 39 * log10(3) is 18.6


def test_the_operating_points_are_those_of_the_validation_split() -> None:
    # Oracle: by hand, of 31 points from 1.0 to 4.0 layers; the first and the last are always shown.
    card = model_card(make_router())
    assert "1.00 to 4.00 layers, as measured on the validation split at 31 operating points" in card
    rows = next(table for table in tables(card) if table[0][0] == "mean depth")
    assert [row[0] for row in rows[1:]] == ["1.00", "1.50", "2.00", "2.50", "3.00", "3.50", "4.00"]
    assert rows[2][1:] == ["37.5%", "-5"]
    card = model_card(make_router(budget_points=(), training={"validation": {"mean_depth": 3.25, "f1_skip": 0.5}}))
    assert "it takes no budget" in card
    assert "at its own choice: mean\\_depth 3.25, f1\\_skip 0.5." in card


def test_the_guarantee_is_told_in_plain_words() -> None:
    # Oracle: the numbers put in; what is not certified promises nothing.
    given = Guarantee(0.02, 0.1, "accuracy", 0.3, None, 200, -0.005, 3.25, 0.015)

    def told(**changed: Any) -> str:
        return model_card(make_router(guarantee=dataclasses.replace(given, **changed)))

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
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    save_tiny(tmp_path / "model")
    config = dataclasses.replace(
        make_router().config,
        num_layers=NUM_LAYERS,
        d_model=32,
        fingerprints=Fingerprints(model_fingerprint(model), tokenizer_fingerprint(tokenizer), "c" * 64),
        base_model=str(tmp_path / "model"),
    )
    router = Router(config, config.build().eval())
    save_router(tmp_path / "router", router)
    (code,) = [token.content for token in parsed(model_card(router)) if token.info == "python"]
    assert len(ast.parse(code).body) == 4
    places = {"USER/NAME": str(tmp_path / "router"), "PATH/OF/THE/MODEL": str(tmp_path / "model")}
    for placeholder, path in places.items():
        assert placeholder in code
        code = code.replace(placeholder, path)
    names: dict[str, Any] = {}
    exec(code, names)
    prompt = tokenizer("a prompt", return_tensors="pt")["input_ids"]
    assert torch.equal(names["tokens"].cpu()[:, : prompt.shape[1]], prompt)
    assert names["tokens"].shape[1] > prompt.shape[1]
