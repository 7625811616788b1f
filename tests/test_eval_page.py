"""The HTML page of a report: it says what the report says, asks for nothing outside, and text stays text."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from data.sample import Sample
from eval.figures import drawings_of
from eval.page import PAGE_FILE, browser_data, build_page, headline, sentences, write_page
from router.chain import Chain
from router.validation import InputError
from tests.reports import NUM_LAYERS
from tests.seen import EVIL, Page, Seen, html, seen  # noqa: F401  (fixtures)


def test_the_page_asks_for_nothing_and_its_policy_allows_its_own_style_and_script_only(html: str) -> None:
    # Oracle: no address in any attribute but places in the page; hashes computed here.
    page = Page(html)
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "style", "action", "formaction", "data", "poster"), (tag, name, value)
        assert not name.startswith("on"), (tag, name, value)
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
        assert "url(" not in value or value.startswith("url(#"), (tag, name, value)
    assert page.tags["link"] + page.tags["base"] + page.tags["iframe"] + page.tags["img"] + page.tags["image"] == 0
    (style,) = page.styles
    assert "url(" not in style
    assert "@import" not in style
    (script,) = (text for attrs, text in page.scripts if "type" not in attrs)
    (policy,) = (value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))

    def sha(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{sha(style)}'",
        f"script-src 'sha256-{sha(script)}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_the_script_makes_no_markup_of_texts(html: str) -> None:
    # Oracle: the names of everything in a browser that parses a text as markup or code.
    (script,) = (text for attrs, text in Page(html).scripts if "type" not in attrs)
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc",
                 "DOMParser", "createContextualFragment", "setHTML", "fetch", "XMLHttpRequest", "import("):  # fmt: skip
        assert name not in script


def test_samples_travel_as_data_that_cannot_leave_its_element(html: str, seen: Seen) -> None:
    # Oracle: what JSON gives back, and that no character in it means anything to an HTML parser.
    _, _, samples = seen
    page = Page(html)
    ((_, text),) = ((attrs, text) for attrs, text in page.scripts if attrs.get("type") == "application/json")
    assert not set("<>&\u2028\u2029") & set(text)
    assert len(page.scripts) == 2
    data = page.data()
    columns = data["samples"]
    assert columns["question"] == [sample.question for sample in samples]
    assert [tuple(choices) for choices in columns["choices"]] == [sample.choices for sample in samples]
    assert columns["answer"] == [sample.answer for sample in samples]
    assert [data["tasks"][i] for i in columns["task"]] == [sample.task for sample in samples]
    contexts = ["" if i is None else data["texts"][i] for i in columns["context"]]
    assert contexts == [sample.context for sample in samples]
    assert columns["subject"][0] == '["<b>", 0]'
    assert columns["difficulty"] == [str(sample.metadata["difficulty"]) for sample in samples]


def test_answers_read_from_the_data_are_the_results(html: str, seen: Seen) -> None:
    # Oracle: the results, looked up by hand.
    report, results, samples = seen
    data = Page(html).data()
    assert [arm["name"] for arm in data["arms"]] == [arm["name"] for arm in report["arms"]]
    for arm in data["arms"]:
        by_id = {one.sample_id: one for one in results[arm["name"]]}
        for i, sample in enumerate(samples):
            one = by_id[sample.id]
            text, _, depth = data["chains"][arm["chain"][i]]
            assert Chain.parse(text, NUM_LAYERS) == one.chain
            assert depth == one.chain.depth
            assert (arm["right"][i] == "1") == one.correct
            told = arm["prediction"][i]
            assert (data["texts"][-1 - told] if told is not None and told < 0 else told) == one.prediction


def test_texts_and_chains_stand_once(html: str) -> None:
    assert html.count("One long text for several questions.") == 1
    data = Page(html).data()
    assert len(data["chains"]) == 2
    assert sorted(set(data["texts"])) == sorted(data["texts"])


def test_untrusted_names_stay_text(seen: Seen) -> None:
    # Oracle: the same elements as with harmless names.
    report, results, samples = seen

    def named(text: str) -> Page:
        arms = [arm | {"label": f"{text} {arm['label']}"} for arm in report["arms"]]
        changed = report | {
            "arms": arms,
            "model": report["model"] | {"name": text},
            "task": text,
            "notes": [text],
            "caveats": [text],
            "provenance": report["provenance"] | {"settings": {text: text}},
        }
        return Page(build_page(changed, results, samples))

    harmless, evil = named("plain words"), named(EVIL[1])
    drawn = {"path", "use", "g", "text"}  # a figure's shapes hang on the length of its labels
    assert {tag: n for tag, n in evil.tags.items() if tag not in drawn} == {
        tag: n for tag, n in harmless.tags.items() if tag not in drawn
    }
    assert len(evil.scripts) == 2
    assert EVIL[1] in evil.text


def test_tables_and_headline_have_the_reports_numbers(html: str, seen: Seen) -> None:
    # Oracle: the report, formatted here.
    report, _, _ = seen
    page = Page(html)
    for arm in report["arms"]:
        assert f"{100 * arm['accuracy']:.1f}\N{NO-BREAK SPACE}%" in page.texts["b"]
        assert any(text.strip() == arm["label"] for text in page.texts["th"])
        assert f"{arm['mean_depth']:.2f}" in page.texts["td"]
    for caveat in [*report["caveats"], *report["notes"]]:
        assert caveat in page.texts["li"]
    assert page.texts["h1"] == [headline(report)]
    assert "With 3.3 of 4 layers the router answers 58.3" in headline(report)
    assert [text for text in page.texts["h3"] if text] == [one.title for one in drawings_of(report)]
    assert "Latency" not in page.texts["h2"]
    assert page.tags["figure"] == len(drawings_of(report))


def test_parts_that_a_report_may_lack_are_shown_where_it_has_them(seen: Seen) -> None:
    report, results, samples = seen
    spread = {"median": 2.0, "low": 1.9, "high": 2.25, "n": 9}
    value = {"n": 12, "value": 0.29, "interval": [0.27, 0.31]}
    part = {"n": 12, "share": 0.5, "interval": [0.3, 0.7]}
    luck = {"eligible": 5, "gold": part, "luck": part, "gain": value, "net_gain": value | {"value": 0.07}}
    arm = {"name": "router", "mean_depth": 3.3, "depth_ratio": 0.8, "prefill_ms": spread, "decode_ms_per_token": None,
           "ratio_prefill": spread, "ratio_decode": None}  # fmt: skip
    cell = {"profile": {"batch": 8, "prompt_tokens": 64}, "router_ms": spread, "peak_bytes": 2**20, "arms": [arm]}
    full = report | {
        "controls": {"luck": luck, "reshuffled": None, "generated": None, "random_search": None},
        "latency": {"device": "cuda", "dtype": "bfloat16", "new_tokens": 0, "rounds": 9, "cells": [cell]},
    }
    page = Page(build_page(full, results, samples))
    assert {"Latency", "Controls: what of the oracle's gain is luck?"} <= set(page.texts["h2"])
    assert "2.000 (1.900 to 2.250)" in page.texts["td"]
    assert "+7.0 (+27.0 to +31.0) are left when luck" in sentences(full)[-1]
    assert "part of it is luck" in sentences(report)[-1]
    bare = report | {"groups": [], "layer_use": {}, "baselines": {}}
    assert "Groups" not in Page(build_page(bare, results, samples)).texts["h2"]


def test_a_figure_in_the_page_brings_no_style_and_no_id_of_another(html: str) -> None:
    page = Page(html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    wanted = {value for _, name, value in page.attributes if name == "href"}
    wanted |= {value[4:-1] for _, _, value in page.attributes if value.startswith("url(#")}
    wanted |= {f"#{one}" for _, name, value in page.attributes if name == "aria-labelledby" for one in value.split()}
    assert {one.removeprefix("#") for one in wanted} <= set(ids)
    assert page.tags["style"] == 1
    assert any("wrong to right" in text or "full depth" in text for text in page.texts["text"])


def test_samples_that_are_missing_are_refused(seen: Seen) -> None:
    report, results, samples = seen
    with pytest.raises(InputError, match=f"expected the sample of every result, got none with id {samples[3].id}"):
        browser_data(report, results, samples[:3] + samples[4:])
    fewer = results | {"static": results["static"][1:]}
    gone = results["static"][0].sample_id
    with pytest.raises(InputError, match=f"every sample for the arm static, got none for {gone}"):
        browser_data(report, fewer, samples)
    other = Sample("quiz", "test", "Another?", ("a", "b"), 0)
    assert len(browser_data(report, results, [other, *samples])["samples"]["id"]) == len(samples)


def test_the_page_is_the_same_for_the_same_content(seen: Seen, html: str, tmp_path: Path) -> None:
    path = write_page(*seen, tmp_path)
    assert path == tmp_path / PAGE_FILE
    assert path.read_text(encoding="utf-8") == html
    assert [one.name for one in tmp_path.iterdir()] == [PAGE_FILE]
