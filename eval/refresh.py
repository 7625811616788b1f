"""Everything that readers look at, rebuilt from a run's files, without the model: report, figures and page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sample import read_samples
from eval.figures import write_figures
from eval.page import write_page
from eval.report import read_arms, write_report

SAMPLES_FILE = "samples.jsonl"
"""The test samples, copied beside the results so that the page can show them."""


@dataclass(frozen=True)
class Shown:
    """What was rebuilt.

    Attributes:
        report: the report.
        figures: the figures' files.
        page: the HTML page.
    """

    report: dict[str, Any]
    figures: list[Path]
    page: Path


def refresh(out: Path) -> Shown:
    """Rebuild report, figures and page.

    Raises:
        InputError: where a file is missing or corrupt, or an arm's results are not complete.
    """
    by_arm = read_arms(out)
    report = write_report(out, by_arm)
    figures = write_figures(report, out)
    return Shown(report, figures, write_page(report, by_arm, read_samples(out / SAMPLES_FILE, "out"), out))
