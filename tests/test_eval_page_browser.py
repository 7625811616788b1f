"""The HTML page in a browser: its script runs, shows samples as text, and nothing else does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from eval.page import write_page
from tests.reports import FULL
from tests.seen import Page, Seen, seen  # noqa: F401  (fixture)

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
