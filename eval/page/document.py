"""`report.html`: a report with its figures and samples as one page that opens without a network.

The page asks for nothing outside itself and its security policy forbids it to. Questions and answers are untrusted:
the template escapes, samples travel as data, and the script writes them as text only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from data.sample import Sample
from eval.figures.drawings import drawings_of
from eval.figures.style import Report, short_label, style_of
from eval.page import words as page_words
from eval.page.data import browser_data, script_json
from eval.page.svg import inline_svg, marker_svg
from eval.results import ArmResult
from eval.tables import control_lines, group_label
from router.files import write_text

PAGE_FILE = "report.html"
MANY_GROUPS = 12
"""Groups from which on their table is folded."""


def write_page(
    report: Report, results: Mapping[str, Sequence[ArmResult]], samples: Sequence[Sample], out: Path
) -> Path:
    """Write the page, complete or not at all.

    Args:
        report: the content of `report.json`, schema 3.
        results: each arm's results, one a sample.
        samples: the samples, in the order in which they are shown.
        out: the folder, which exists.

    Returns:
        The page's file.

    Raises:
        InputError: where results and samples do not fit.
    """
    path = out / PAGE_FILE
    write_text(path, build_page(report, results, samples))
    return path


def build_page(report: Report, results: Mapping[str, Sequence[ArmResult]], samples: Sequence[Sample]) -> str:
    """Return the page's HTML; see `write_page`."""
    environment = _environment()
    style, script = (_asset(environment, name) for name in ("style.css", "browser.js"))
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        data=Markup(script_json(browser_data(report, results, samples))),
        figures=_figures(report),
        markers={arm["name"]: marker_svg(style_of(arm["name"])) for arm in report["arms"]},
        labels={arm["name"]: arm["label"] for arm in report["arms"]},
        control_lines=control_lines(report["controls"]),
        many_groups=MANY_GROUPS,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("eval.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = ("share", "share_interval", "points", "points_interval", "probability", "whole", "spread", "facts")
    environment.filters |= {name: getattr(page_words, name) for name in words}
    environment.filters |= {"short_label": short_label, "group_label": group_label}
    told = ("headline", "sentences", "model_name", "task_words", "arm_named")
    environment.globals |= {name: getattr(page_words, name) for name in told}
    return environment


def _asset(environment: Environment, name: str) -> str:
    """Return a style sheet or script as it stands in the package; it is no template."""
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    assert "</" not in source, f"{name} would end its element"
    return source


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this style sheet and this script, nothing else, from nowhere."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _figures(report: Report) -> list[dict[str, Any]]:
    """Return each figure in a wide and a narrow form; the style sheet shows the one that fits the screen."""
    return [
        {
            "title": one.title,
            "caption": one.caption.replace("95 %", f"95{page_words.NBSP}%"),
            "wide": inline_svg(one.draw(report, False), f"{one.name}-wide", one.title, one.caption),
            "narrow": inline_svg(one.draw(report, True), f"{one.name}-narrow", one.title, one.caption),
        }
        for one in drawings_of(report)
    ]
