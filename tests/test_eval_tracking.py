"""Tracking of an evaluation: an offline run read back record by record, and what an upload would find."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from data.tracking import TrackingSettings, files_digest, hashes_of, log_files
from eval.report import Report
from eval.results import RESULTS_FILE
from eval.tracking import lineage, shown, table, track_report
from router.files import sha256_file
from router.validation import to_plain
from tests.reports import IDS, RIGHT, hash_of, results_of, run_of, write_evaluation
from tests.wandb_runs import read_back

KEY = "0123456789abcdef" * 3
"""What stands for an API key: it must be found nowhere."""
PAGE = "<!doctype html><p>é &lt;script&gt;</p>\n"


def config_of(run: Any) -> dict[str, Any]:
    return {one.key: json.loads(one.value_json) for one in run.config.update}


def logged(kinds: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Return what was logged: name of each medium, and its fields."""
    media: dict[str, dict[str, Any]] = defaultdict(dict)
    for history in kinds["history"]:
        for item in history.item:
            name, *field = item.nested_key
            media[name]["/".join(field)] = json.loads(item.value_json)
    return media


@dataclasses.dataclass(frozen=True)
class Tracked:
    """An evaluation that was tracked offline, and what its run's file holds."""

    project: Path
    report: Report
    run: Path
    kinds: dict[str, list[Any]]

    @property
    def plain(self) -> dict[str, Any]:
        """The report as JSON data."""
        made: dict[str, Any] = to_plain(self.report)
        return made

    @property
    def out(self) -> Path:
        return self.project / "eval"

    @property
    def files(self) -> list[Path]:
        """What the artifact must hold."""
        names = ("report.json", "results.jsonl", "run.json", "accuracy.png", "accuracy.svg", "page.html")
        return [self.out / name for name in names]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home directory of the tests' own, with a key in the environment."""
    home = tmp_path_factory.mktemp("home") / "Users" / "ada"
    home.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_DATA_DIR", str(home / "data"))
        patch.setenv("WANDB_CACHE_DIR", str(home / "cache"))
        yield home


@pytest.fixture(scope="module")
def tracked(home: Path) -> Tracked:
    """An evaluation in the home directory, tracked offline in a group."""
    project = home / "project"
    names = ("router/config.json", "router/router.safetensors", "search/train.jsonl", "search/validation.jsonl")
    for name in names:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    known = dict(zip(("router/config.json", "router/router.safetensors", "records/train", "records/validation"), names,
                     strict=True))  # fmt: skip
    run = run_of(len(IDS), list(RIGHT))
    run["inputs"] |= {name: sha256_file(project / file) for name, file in known.items()}
    folders = {"router": str(project / "router"), "records": str(project / "search"), "model": str(home / "qwen")}
    run["provenance"]["settings"] |= folders | {"revision": None, "nested": [{"other": "~/secret/place"}]}
    run["model"]["name"] = folders["model"]
    report = write_evaluation(project / "eval", changed=run)
    figures = [project / "eval" / name for name in ("accuracy.png", "accuracy.svg")]
    for figure in figures:
        Figure(figsize=(1, 1)).savefig(figure)
    page = project / "eval" / "page.html"
    page.write_text(PAGE, encoding="utf-8")
    settings = TrackingSettings(mode="offline", project="chains", name="tiny", group="one experiment")
    folder = track_report(settings, project / "eval", report, figures, page)
    assert folder is not None
    return Tracked(project, report, folder, read_back(folder))


def test_a_run_stands_in_its_group_with_what_decides_the_report(tracked: Tracked) -> None:
    # Oracle: the report and the settings.
    (run,) = tracked.kinds["run"]
    told = (run.project, run.display_name, run.run_group, run.job_type)
    assert told == ("chains", "tiny", "one experiment", "eval")
    config = config_of(run)
    for name in ("task", "split", "n", "judged_mode", "fingerprints", "inputs", "results_sha256"):
        assert config[name] == tracked.plain[name]
    assert config["settings"]["budget"] == 3.2
    assert config["versions"] == tracked.plain["provenance"]["versions"]
    summary = {one.key: json.loads(one.value_json) for part in tracked.kinds["summary"] for one in part.update}
    router = tracked.plain["arms"][1]
    assert summary["router/accuracy"] == router["accuracy"]
    assert summary["router/mean_depth"] == router["mean_depth"]


def test_no_secret_and_no_home_directory_is_in_the_configuration(tracked: Tracked, home: Path) -> None:
    # Oracle: the texts that were planted. The machine itself (program, interpreter, git) is not noted either.
    (run,) = tracked.kinds["run"]
    text = json.dumps(config_of(run))
    assert str(home) not in text
    assert "secret" not in text
    settings = config_of(run)["settings"]
    assert (settings["router"], settings["model"], settings["nested"]) == ("router", "qwen", [{"other": "place"}])
    assert not tracked.kinds["environment"]
    for file in tracked.run.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_tables_hold_arms_groups_and_every_answer(tracked: Tracked) -> None:
    # Oracle: the report and results.jsonl.
    media = logged(tracked.kinds)
    tables = {
        name: json.loads((tracked.run / "files" / media[name]["path"]).read_bytes())
        for name in ("arms", "groups", "results")
    }
    arms, groups, results = (
        [dict(zip(one["columns"], row, strict=True)) for row in one["data"]] for one in tables.values()
    )
    for row, arm in zip(arms, tracked.plain["arms"], strict=True):
        assert (row["name"], row["n"], row["accuracy"]) == (arm["name"], arm["n"], arm["accuracy"])
        assert [row["accuracy_interval_low"], row["accuracy_interval_high"]] == arm["accuracy_interval"]
        against = arm["against_full"] or {"difference": None, "mcnemar_p_holm": None}
        assert row["against_full.difference"] == against["difference"]
        assert row["against_full.mcnemar_p_holm"] == against["mcnemar_p_holm"]
    assert [row["arm.accuracy"] for row in groups] == [
        arm["accuracy"] for group in tracked.plain["groups"] for arm in group["arms"]
    ]
    assert {(row["arm"], row["sample_id"], row["correct"], row["depth"]) for row in results} == {
        (one.arm, one.sample_id, one.correct, one.chain.depth) for one in results_of(IDS, RIGHT)
    }


def test_figures_and_page_are_shown_as_they_are(tracked: Tracked) -> None:
    # Oracle: the files. A vector figure is in the artifact only.
    media = logged(tracked.kinds)
    assert {name for name in media if name.startswith("figures/")} == {"figures/accuracy"}
    for name, file in (("figures/accuracy", "accuracy.png"), ("page", "page.html")):
        assert (tracked.run / "files" / media[name]["path"]).read_bytes() == (tracked.out / file).read_bytes()


def test_the_artifact_holds_the_files_and_names_router_and_records_by_content(tracked: Tracked) -> None:
    # Oracle: hashes of the files, and the digests that training's own log_files returns for router and records.
    (artifact,) = [one for one in tracked.kinds["artifact"] if one.type == "report"]
    metadata = json.loads(artifact.metadata)
    assert metadata["files"] == hashes_of(tracked.files)
    assert metadata["sha256"] == files_digest(hashes_of(tracked.files))
    assert metadata["inputs"] == tracked.plain["inputs"]
    router = [tracked.project / "router" / name for name in ("config.json", "router.safetensors")]
    searched = [tracked.project / "search" / name for name in ("train.jsonl", "validation.jsonl")]
    assert metadata["router"] == log_files(None, "router", "router", router, {})
    assert metadata["records"] == log_files(None, "search-records", "records", searched, {})
    assert {one.path for one in artifact.manifest.contents} == {file.name for file in tracked.files}
    for one in artifact.manifest.contents:  # what an upload will read: W&B's own copies
        assert Path(one.local_path).read_bytes() == (tracked.out / one.path).read_bytes()


def test_wandb_sync_finds_the_run(tracked: Tracked) -> None:
    # Oracle: the documented command itself, which lists runs without a server.
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", str(tracked.run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    told = re.sub(r"\s+", "", done.stdout + done.stderr)  # it wraps lines
    assert "Wouldsync1run" in told
    assert f"{tracked.run.name}/run-" in told


def test_a_report_is_tracked_once_and_another_or_a_lost_one_again(tracked: Tracked, tmp_path: Path) -> None:
    # Oracle: the folders of runs.
    out = Path(shutil.copytree(tracked.out, tmp_path / "eval"))
    settings = TrackingSettings(mode="offline", project="chains", name="tiny", group="one experiment")
    figures = [out / "accuracy.png", out / "accuracy.svg"]

    def runs() -> int:
        return len(list((out / "wandb").glob("offline-run-*")))

    assert runs() == 1
    for report, group, expected in (
        (tracked.report, "one experiment", 1),
        (tracked.report, "another", 2),
        (dataclasses.replace(tracked.report, notes=("more",)), "another", 3),
    ):
        again = dataclasses.replace(settings, group=group)
        folder = track_report(again, out, report, figures, out / "page.html")
        assert runs() == expected
    assert folder is not None
    shutil.rmtree(folder)
    assert track_report(again, out, report, figures, out / "page.html") != folder
    assert runs() == 3


@pytest.mark.parametrize(("mode", "environment"), [("disabled", None), ("auto", "disabled")])
def test_nothing_is_written_where_tracking_is_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, environment: str | None
) -> None:
    report = write_evaluation(tmp_path / "eval")
    before = sorted(tmp_path.rglob("*"))
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert track_report(TrackingSettings(mode=mode), tmp_path / "eval", report, [], None) is None
    assert sorted(tmp_path.rglob("*")) == before


def test_long_results_stay_in_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the bound, set to what this evaluation has, and to one less.
    report = write_evaluation(tmp_path / "eval")
    rows = len(IDS) * len(RIGHT)
    monkeypatch.setattr("eval.tracking.ROWS", rows)
    assert len(shown(tmp_path / "eval", report, [], None)["results"].data) == rows
    monkeypatch.setattr("eval.tracking.ROWS", rows - 1)
    (tmp_path / "eval" / RESULTS_FILE).unlink()  # not even read
    assert "results" not in shown(tmp_path / "eval", report, [], None)


def test_records_without_validation_have_no_digest_of_training() -> None:
    # Training's artifact has both splits: of one alone its digest cannot be known, the hashes still stand there.
    inputs = {"router/config.json": hash_of("1"), "router/router.safetensors": hash_of("2")}
    told = lineage(inputs | {"records/train": hash_of("3")})
    assert told["records"] is None
    assert told["inputs"]["records/train"] == hash_of("3")
    assert told["router"] == files_digest({"config.json": hash_of("1"), "router.safetensors": hash_of("2")})


def test_columns_are_those_of_all_rows() -> None:
    made = table([{"name": "a", "part": None, "x": 1.0}, {"name": "b", "part.y": 2.0, "part.z_low": 0.5, "x": None}])
    assert made.columns == ["name", "x", "part.y", "part.z_low"]
    assert made.data == [["a", 1.0, None, None], ["b", None, 2.0, 0.5]]
