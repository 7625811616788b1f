"""A finished evaluation in Weights & Biases: configuration, tables, figures, page, and the report as an artifact.

The artifact's metadata name the router and the records by the SHA-256 that their own artifacts carry
(`train.__main__`), so that records, router and report are linked by content, also in runs that were offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from data.tracking import TrackingSettings, files_digest, log_files, start_run, use_files
from eval.report import REPORT_FILE, Report
from eval.results import RESULTS_FILE, RUN_FILE, read_results, text_of
from router.files import read_json, sha256_file, sha256_json, write_json
from router.storage import CONFIG_FILE, WEIGHTS_FILE
from router.validation import to_plain

TRACKED_FILE = "tracked.json"
"""Says which report was tracked as which run, so that a report is tracked once."""
ROWS = 10_000
"""Rows of per-sample results that go into a table; more are in the artifact only."""
CONFIGURATION = (
    "schema",
    "task",
    "mode",
    "judged_mode",
    "split",
    "n",
    "model",
    "fingerprints",
    "inputs",
    "results_sha256",
)
"""Fields of the report in the run's configuration, beside settings, commit and versions."""
IMAGES = (".png", ".jpg")
"""Figures that W&B shows; others are in the artifact only."""
MADE_OF = {
    "router": ("router", "router", {CONFIG_FILE: f"router/{CONFIG_FILE}", WEIGHTS_FILE: f"router/{WEIGHTS_FILE}"}),
    "records": (
        "search-records",
        "records",
        {"train.jsonl": "records/train", "validation.jsonl": "records/validation"},
    ),
}
"""By the setting that names their folder: name and kind of the artifacts that training logs, and their files, by the
names that the report's inputs have for them."""


def track_report(
    settings: TrackingSettings, out: Path, report: Report, figures: Sequence[Path], page: Path | None
) -> Path | None:
    """Track a finished evaluation; nothing is done where the same report was tracked so before.

    Args:
        settings: where it is tracked.
        out: folder of the evaluation, with `report.json`, `results.jsonl` and `run.json`.
        report: the report.
        figures: the figures' files.
        page: the HTML page, if there is one.

    Returns:
        Folder of the W&B run's files; None where tracking is disabled.

    Raises:
        InputError: where the run cannot start.
    """
    mode = settings.resolved_mode()
    if mode == "disabled":
        return None
    asked = [mode, settings.project, settings.name, settings.group]
    files = [*figures, *([] if page is None else [page])]
    key = sha256_json({"report": to_plain(report), "asked": asked, "files": sorted(file.name for file in files)})
    if (known := tracked(out, key)) is not None:
        return known
    run = start_run(settings, out, configuration(report), job_type="eval", machine=False)
    with run:
        for setting in MADE_OF:
            _use(run, setting, report)
        run.log(shown(out, report, figures, page))
        run.summary.update({f"{arm.name}/accuracy": arm.accuracy for arm in report.arms})
        run.summary.update({f"{arm.name}/mean_depth": arm.mean_depth for arm in report.arms})
        run.summary.update({f"router/{name}": value for name, value in vars(report.router_collapse).items()})
        run.summary.update({"router/worst_kind": report.worst_kind})
        own = [out / name for name in (REPORT_FILE, RESULTS_FILE, RUN_FILE)]
        log_files(run, "report", "report", [*own, *files], lineage(report.inputs))
        folder = Path(run.dir).parent
    write_json(out / TRACKED_FILE, {"key": key, "mode": mode, "run": folder.name})
    return folder


def tracked(out: Path, key: str) -> Path | None:
    """Return the folder of the run that `tracked.json` names for a report; None: there is none, or it is gone."""
    if not (out / TRACKED_FILE).exists():
        return None
    kept = read_json(out / TRACKED_FILE)
    folder = out / "wandb" / str(kept.get("run"))
    return folder if kept.get("key") == key and folder.is_dir() else None


def configuration(report: Report) -> dict[str, Any]:
    """Return the run's configuration: what decides the report."""
    origin, plain = report.provenance, to_plain(report)
    known = {"settings": origin.settings, "commit": origin.commit, "versions": origin.versions}
    return known | {name: plain[name] for name in CONFIGURATION}


def lineage(inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return an artifact's metadata: what the report was made of.

    `router` and `records` are the digests in the metadata of the artifacts that training logged, null where the
    evaluation read no such files; `inputs` has the SHA-256 of every file that it read.
    """
    digests = {}
    for setting, (_, _, files) in MADE_OF.items():
        known = all(name in inputs for name in files.values())
        digests[setting] = files_digest({file: inputs[name] for file, name in files.items()}) if known else None
    return {**digests, "inputs": dict(inputs)}


def shown(out: Path, report: Report, figures: Sequence[Path], page: Path | None) -> dict[str, Any]:
    """Return what the run shows: tables of arms, groups and results, figures and page."""
    plain = to_plain(report)
    media: dict[str, Any] = {"arms": table(flat(arm) for arm in plain["arms"])}
    if report.groups:
        media["groups"] = table(
            flat({name: item for name, item in group.items() if name != "arms"} | {"arm": arm})
            for group in plain["groups"]
            for arm in group["arms"]
        )
    if report.n * len(report.arms) <= ROWS:
        results = read_results(out / RESULTS_FILE, report.model.num_layers)
        media["results"] = table(
            {
                "arm": one.arm,
                "sample_id": one.sample_id,
                "task": one.task,
                **{name: text_of(getattr(one, name)) for name in ("difficulty", "subject", "prediction")},
                "correct": one.correct,
                "margin": one.margin,
                "depth": one.chain.depth,
                "chain": str(one.chain),
            }
            for one in results
        )
    for figure in figures:
        if figure.suffix.lower() in IMAGES:
            media[f"figures/{figure.stem}"] = wandb.Image(str(figure))
    if page is not None:
        media["page"] = wandb.Html(page.read_text(encoding="utf-8"), inject=False, data_is_not_path=True)
    return media


def flat(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of the report as one row: parts as `part.field`, intervals as two columns."""
    row: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            row |= {f"{name}.{inner}": part for inner, part in flat(item).items()}
        elif isinstance(item, list):
            row |= {f"{name}_low": item[0], f"{name}_high": item[1]}
        else:
            row[name] = item
    return row


def table(rows: Iterable[dict[str, Any]]) -> wandb.Table:
    """Return rows as a W&B table, with the columns of all of them in their order; what a row lacks is empty."""
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    # A part that is null in one row (`against_full` of full depth) has columns in the others.
    columns = [name for name in columns if not any(other.startswith((f"{name}.", f"{name}_low")) for other in columns)]
    return wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in listed])


def _use(run: Any, setting: str, report: Report) -> None:
    """Say that the run read an artifact, where its files still are what the report says that was read."""
    name, kind, inputs = MADE_OF[setting]
    folder = Path(str(report.provenance.settings.get(setting)))
    wanted = {folder / file: report.inputs.get(known) for file, known in inputs.items()}
    if all(file.is_file() and sha256_file(file) == digest for file, digest in wanted.items()):
        use_files(run, name, kind, list(wanted), {})
