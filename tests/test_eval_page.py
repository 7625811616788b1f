"""The HTML page of a report: it says what the report says, asks for nothing outside, and text stays text.

Where there is a Chromium, the page's script runs in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from data.sample import Sample
from eval.arms import LABELS
from eval.figures import drawings_of, style_of
from eval.measures import groups_of, worst_kind
from eval.page import (
    PAGE_FILE,
    browser_data,
    build_page,
    facts,
    headline,
    inline_svg,
    marker_svg,
    points,
    points_interval,
    script_json,
    sentences,
    share,
    write_page,
)
from eval.report import Report
from eval.results import ArmResult, read_arms
from eval.tables import print_report
from router.chain import Chain
from router.strip import ASCII, draw_strip
from router.validation import InputError
from tests.reports import FULL, NUM_LAYERS, RIGHT, unchecked, write_evaluation

Results = dict[str, list[ArmResult]]
Seen = tuple[Report, Results, list[Sample]]

EVIL = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script><!--",
    "<!-- <script> \" ' & &amp; \u2028 \u2029 </SCRIPT >",
    "<img src=x onerror=alert(3)> {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe \x00 \\u003c",
)
VOID = {"meta", "input", "link", "br", "hr", "img", "path", "use"}


def make_samples() -> list[Sample]:
    """12 samples; the first hold what must not become markup, the last is free."""
    made = []
    for i in range(12):
        question = EVIL[i] if i < len(EVIL) else f"Which is number {i}?"
        choices = tuple(f"{EVIL[(i + k) % 5]} {k}" if i < 3 else f"answer {k}" for k in range(4))
        metadata = {"difficulty": EVIL[i] if i < 3 else i % 2, "subject": ["<b>", i] if i < 2 else None}
        task = "quiz" if i % 3 else "<i>other</i>"
        context = "One long text for several questions." if i > 8 else ""
        made.append(
            Sample(task, "test", question, () if i == 11 else choices, EVIL[1] if i == 11 else 1, metadata, context)
        )
    return made


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A report with its results and samples."""
    samples = make_samples()
    ids = [sample.id for sample in samples]
    # Ids of the hand-made evaluation are 0, 1, ...: each arm's right samples keep their places.
    right = {name: [ids[int(key, 16)] for key in keys] for name, keys in RIGHT.items()}
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    report = write_evaluation(folder, ids, right)
    results = read_arms(folder)
    for of_arm in results.values():
        for i, one in enumerate(of_arm):
            if one.sample_id == ids[-1]:
                of_arm[i] = replace(one, prediction=EVIL[0] if one.correct else EVIL[1] + "\ud800")
            if one.sample_id == ids[10] and not one.correct:
                of_arm[i] = replace(one, prediction=None)
    return report, results, samples


@pytest.fixture(scope="module")
def html(seen: Seen) -> str:
    return build_page(*seen)


class Page(HTMLParser):
    """Elements, attributes, ids, texts and scripts of a page; refuses what is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        if where == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif where == "style":
            self.styles.append(data)
        else:
            self.texts.setdefault(where, []).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(parts) for parts in self.texts.values())

    def data(self) -> dict[str, Any]:
        (found,) = (json.loads(text) for attrs, text in self.scripts if attrs.get("type") == "application/json")
        return dict(found)


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


def test_each_kind_stands_by_itself_and_the_worst_is_named(
    seen: Seen, html: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: by hand: of the toy's 12 samples the first six are one kind, of which full depth answers 6 and the router
    # 4 (2..5) rightly; of the others 0 and 3. Every third sample runs 4 layers, the others 3.
    monkeypatch.setattr("eval.page.drawings_of", lambda _: [])
    report, results, samples = seen
    told = {key: {one.sample_id: one for one in of_arm} for key, of_arm in results.items()}
    kinds = {sample.id: "letters" if i < 6 else "sums" for i, sample in enumerate(samples)}
    by_kind = {
        name: [replace(of_arm[sample.id], task=kinds[sample.id]) for sample in samples] for name, of_arm in told.items()
    }
    groups = groups_of(by_kind, 0)
    page = Page(build_page(replace(report, groups=groups, worst_kind=worst_kind(groups)), results, samples))
    text = page.text.replace("\u00a0", " ")
    assert "the router loses the most on letters: 66.7 % with 3.3 layers, full depth 100.0 % (\u221233.3 points" in text
    letters, sums = (next(arm for arm in group.arms if arm.name == "router") for group in groups[:2])
    for arm, difference in ((letters, "\u221233.3"), (sums, "+50.0")):
        assert f"{difference} ({points_interval(arm.difference_interval)})".replace("\u00a0", " ") in text
    assert "3.33 layers" in text
    better = Page(build_page(replace(report, groups=groups, worst_kind="sums"), results, samples)).text
    assert "On no kind of task is the router below full depth here (sums: +50.0 points" in better
    assert "loses the most" not in Page(html).text


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
    assert [arm["name"] for arm in data["arms"]] == [arm.name for arm in report.arms]
    for arm in data["arms"]:
        by_id = {one.sample_id: one for one in results[arm["name"]]}
        for i, sample in enumerate(samples):
            one = by_id[sample.id]
            text, marks, depth = data["chains"][arm["chain"][i]]
            assert Chain.parse(text, NUM_LAYERS) == one.chain
            assert (marks, depth) == (draw_strip(one.chain, 0, ASCII), one.chain.depth)
            assert (arm["right"][i] == "1") == one.correct
            told = arm["prediction"][i]
            assert (data["texts"][-1 - told] if told is not None and told < 0 else told) == one.prediction


def test_texts_and_chains_stand_once(html: str) -> None:
    assert html.count("One long text for several questions.") == 1
    data = Page(html).data()
    assert len(data["chains"]) == 2
    assert sorted(set(data["texts"])) == sorted(data["texts"])


def test_untrusted_names_stay_text(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the same elements as with harmless names. Figures are left out: their texts have a test of their own.
    report, results, samples = seen
    monkeypatch.setattr("eval.page.drawings_of", lambda _: [])

    def named(text: str) -> Page:
        changed = replace(
            report,
            arms=tuple(replace(arm, label=f"{text} {arm.label}") for arm in report.arms),
            model=replace(report.model, name=text),
            task=text,
            notes=(text,),
            caveats=(text,),
            provenance=replace(report.provenance, settings={text: text}),
        )
        return Page(build_page(changed, results, samples))

    harmless, evil = named("plain words"), named(EVIL[1])
    assert evil.tags == harmless.tags
    assert len(evil.scripts) == 2
    assert EVIL[1] in evil.text


def test_what_a_data_set_says_of_its_samples_stays_text(
    seen: Seen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Levels that are no formula of matplotlib's, no character of XML's, and an order to a terminal.
    report, results, samples = seen
    levels = (r"$\nonsense$ \$", "\x1b[2J\x00")
    groups = [group for group in report.groups if group.kind == "difficulty"]
    named = [replace(group, value=level) for group, level in zip(groups, levels, strict=True)]
    report = replace(report, groups=tuple(named))
    monkeypatch.setattr("eval.page.drawings_of", lambda one: [two for two in drawings_of(one) if "diff" in two.name])
    drawn = " ".join(Page(build_page(report, results, samples)).texts["text"])
    assert levels[0] in drawn
    assert "?[2J?" in drawn
    print_report(report, sys.stdout)
    printed = capsys.readouterr().out
    assert "?[2J?" in printed
    assert "\x1b" not in printed


def test_tables_and_headline_have_the_reports_numbers(html: str, seen: Seen) -> None:
    # Oracle: the report, formatted here.
    report, _, _ = seen
    page = Page(html)
    for arm in report.arms:
        assert f"{100 * arm.accuracy:.1f}\N{NO-BREAK SPACE}%" in page.texts["b"]
        assert any(text.strip() == arm.label for text in page.texts["th"])
        assert f"{arm.mean_depth:.2f}" in page.texts["td"]
    for caveat in (*report.caveats, *report.notes):
        assert caveat in page.texts["li"]
    assert page.texts["h1"] == [headline(report)]
    assert "With 3.3 of 4 layers the router answers 58.3" in headline(report)
    assert [text for text in page.texts["h3"] if text] == [one.title for one in drawings_of(report)]
    assert not {"Latency", "Controls: what of the oracle's gain is luck?"} & set(page.texts["h2"])
    assert "part of it is luck" in sentences(report)[-1]
    assert page.tags["figure"] == len(drawings_of(report))


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
    other = Sample("quiz", "test", "Another?", ("a", "b"), 0)
    assert len(browser_data(report, results, [other, *samples])["samples"]["id"]) == len(samples)


def test_the_page_is_the_same_for_the_same_content(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: a second page, byte by byte; one figure stands for all.
    monkeypatch.setattr("eval.page.drawings_of", lambda report: drawings_of(report)[:1])
    path = write_page(*seen, tmp_path)
    assert path == tmp_path / PAGE_FILE
    assert path.read_text(encoding="utf-8") == build_page(*seen)
    assert [one.name for one in tmp_path.iterdir()] == [PAGE_FILE]


@pytest.mark.parametrize(
    ("difference", "interval", "words"),
    [
        (0.018, [-0.003, 0.041], "is 1.8 points ahead, which chance alone can explain"),
        (-0.018, [-0.041, 0.0], "is 1.8 points behind, which chance alone can explain"),
        (0.05, [0.03, 0.07], "is better by 5.0 points (95\N{NO-BREAK SPACE}% interval +3.0 to +7.0)"),
        (
            0.025,
            [0.002, 0.048],
            "is 2.5 points ahead, which is not shown (95\N{NO-BREAK SPACE}% interval +0.2 to +4.8; p 0.13",
        ),
        (-0.05, [-0.07, -0.03], "is worse by 5.0 points"),
        (0.0, [0.0, 0.0], "is neither better nor worse"),
    ],
)
def test_words_for_a_difference_are_honest_about_its_interval(
    seen: Seen, difference: float, interval: list[float], words: str
) -> None:
    report = seen[0]
    p = 0.13 if "not shown" in words else 0.01
    changes = {"difference": difference, "difference_interval": interval, "mcnemar_p_holm": p}
    pair = unchecked(report.arm("router").against_full, **changes)
    arms = [unchecked(arm, against_full=pair) if arm.name == "router" else arm for arm in report.arms]
    assert words in sentences(unchecked(report, arms=arms))[0]


def test_numbers_for_readers() -> None:
    assert (share(0.59583), share(None)) == ("59.6\N{NO-BREAK SPACE}%", "-")
    assert (points(-0.0004), points(-0.25), points(0.018)) == ("0.0", "\N{MINUS SIGN}25.0", "+1.8")
    assert points_interval([-0.003, 0.04]) == "\N{MINUS SIGN}0.3 to +4.0"
    assert facts({"a": {"b": 1, "c": None}, "d": "x", "e": [1, 2], "f": {}}) == [
        ("a.b", "1"),
        ("a.c", "none"),
        ("d", "x"),
        ("e", "[1, 2]"),
        ("f", "{}"),
    ]


LEAVES = st.text() | st.none() | st.integers()


@settings(max_examples=30)
@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_for_scripts_is_the_same_value_without_dangerous_characters(value: Any) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode()


def test_a_figure_with_pixels_is_refused() -> None:
    figure = Figure()
    figure.subplots().imshow([[0, 1]])
    with pytest.raises(ValueError, match="expected shapes and text in picture, got pixels"):
        inline_svg(figure, "picture", "a", "b")


def test_texts_of_a_figure_are_escaped() -> None:
    figure = Figure()
    figure.subplots().set_title(EVIL[1])
    drawn = str(inline_svg(figure, "one", EVIL[0], EVIL[2]))
    page = Page(drawn)
    assert page.tags["script"] == 0
    assert EVIL[1] in page.texts["text"]
    assert page.texts["title"] == [EVIL[0]]


def test_each_arm_has_a_mark_of_its_own_shape() -> None:
    marks = [marker_svg(style_of(name)) for name in [*LABELS, "router@3"]]
    assert len({(mark["d"], mark["fill"] == "none") for mark in marks}) == len(marks)
    numbers = [float(x) for mark in marks for x in re.findall(r"-?\d+\.\d+", mark["d"])]
    assert max(map(abs, numbers)) < 8


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page's script was not run")


def run_browser(url: str, profile: Path) -> tuple[str, list[str]]:
    """Open a page without a window: the document after its script ran, and what the console said."""
    flags = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={profile}",
             "--virtual-time-budget=5000", "--dump-dom"]  # fmt: skip
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # which root cannot have
    assert BROWSER is not None
    ran = subprocess.run([BROWSER, *flags, url], capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


@in_browser
def test_in_a_browser_samples_are_shown_as_text_and_nothing_else_runs(seen: Seen, tmp_path: Path) -> None:
    # Oracle: the samples; a page with an error shows that errors would be heard.
    report, results, samples = seen
    page = write_page(report, results, samples, tmp_path)
    dom, console = run_browser(page.as_uri(), tmp_path / "profile")
    assert console == []
    shown = Page(dom.replace("<!DOCTYPE html>", ""))
    assert shown.tags["article"] == 10  # a page of them
    assert len(shown.scripts) == 2
    assert shown.tags["img"] == 0
    questions = [sample.question.replace("\x00", "\ufffd") for sample in samples[:10]]
    assert set(questions) <= {text.replace("\x00", "\ufffd") for text in shown.texts["div"]}
    assert "12 of 12 samples" in shown.texts["p"]
    assert shown.text.count("\u2713\u00a0right\u00a0answer") == 10

    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace('"use strict";', '"use strict"; missing();'))
    dom, console = run_browser(broken.as_uri(), tmp_path / "profile")
    assert "violates" in " ".join(console)  # another script than the one of the policy's hash
    assert Page(dom.replace("<!DOCTYPE html>", "")).tags["article"] == 0


@in_browser
def test_in_a_browser_the_address_chooses_samples(seen: Seen, tmp_path: Path) -> None:
    # Oracle: the right answers of router and full depth, counted by hand from the results.
    report, results, samples = seen
    page = write_page(report, results, samples, tmp_path)
    full = {one.sample_id for one in results["full"] if one.correct}
    rescued = [one.sample_id for one in results["router"] if one.correct and one.sample_id not in full]
    dom, console = run_browser(f"{page.as_uri()}#outcome=rescued&arm=router", tmp_path / "profile")
    shown = Page(dom.replace("<!DOCTYPE html>", ""))
    assert console == []
    assert f"{len(rescued)} of 12 samples" in shown.texts["p"]
    assert shown.tags["article"] == len(rescued) > 0
    assert {text for text in shown.texts["code"] if re.fullmatch("[0-9a-f]{16}", text)} == set(rescued)
    skipped = sum((name, value) == ("class", "cell skipped") for _, name, value in shown.attributes)
    chains = [one.chain for of_arm in results.values() for one in of_arm if one.sample_id in rescued]
    assert skipped == sum(chain != FULL for chain in chains) + 1  # one layer each, and the legend's


@in_browser
def test_in_a_browser_the_table_of_arms_fits_a_screen_of_1280_pixels(seen: Seen, tmp_path: Path) -> None:
    # Oracle: the browser's layout of the longest numbers of a thousand samples and more, with every column.
    playwright = pytest.importorskip("playwright.sync_api")
    report, results, samples = seen
    label = "router with guarantee (loss of at most 0.02 with probability 0.9)"
    pairs = {"difference_interval": (-0.583, -0.417), "wrong_to_right": 1234, "right_to_wrong": 1234}
    shares = {"accuracy_interval": (0.994, 1.0), "rescued_share": 0.99, "rescued_interval": (0.98, 1.0)}
    arms = tuple(
        unchecked(
            arm,
            label=label if arm.name == "router" else arm.label,
            no_answer=1234,
            against_full=arm.against_full and unchecked(arm.against_full, **pairs),
            **shares,
        )
        for arm in report.arms
    )
    page = write_page(unchecked(report, arms=arms), results, samples, tmp_path)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.goto(page.as_uri())
        assert shown.locator("#arms th[scope=col]").count() == 10
        needed, there = shown.locator("#arms .scroll").evaluate("one => [one.scrollWidth, one.clientWidth]")
        browser.close()
    assert needed <= there
