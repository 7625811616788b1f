"""A finished evaluation whose samples hold what must not become markup, and its page taken apart."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from data.sample import Sample
from eval.page import build_page
from eval.report import Report
from eval.results import ArmResult, read_arms
from tests.reports import RIGHT, write_evaluation

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
                of_arm[i] = dataclasses.replace(one, prediction=EVIL[0] if one.correct else EVIL[1] + "\ud800")
            if one.sample_id == ids[10] and not one.correct:
                of_arm[i] = dataclasses.replace(one, prediction=None)
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
