"""What `python -m data prepare` says of its folder, and what every reader of the folder's files checks."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from router.files import read_json, sha256_file
from router.validation import STORED, Count, InputError, from_plain

MANIFEST = "manifest.json"
"""Beside the sample files."""


@dataclass(frozen=True, slots=True, config=STORED)
class SplitCount:
    """What became of a task's candidates: taken + used_elsewhere + repeated + not_needed = candidates.

    Attributes:
        candidates: samples of the source split.
        taken: samples of the finished split.
        used_elsewhere: left out, for an earlier split (test, calibration, validation, then the examples), or
            another task in this one, has the question.
        repeated: left out, for the source split has the question twice.
        not_needed: left out, for the split has its size.
    """

    candidates: Count
    taken: Count
    used_elsewhere: Count
    repeated: Count
    not_needed: Count


@dataclass(frozen=True, kw_only=True, config=STORED)
class Manifest:
    """A folder of samples. What a writer did not say has its default; only what is said is checked.

    Attributes:
        settings: settings of the run.
        commit: git commit of the run.
        versions: of Python and libraries.
        threads: processor cores of the run.
        started: when it started.
        identity: what decides the files' content: tasks, sources, seed, sizes.
        settings_hash: SHA-256 of the identity.
        task: names of the tasks.
        prompt_hash: what decides prompts and scoring (`TaskSet.prompt_hash`).
        rows: what became of the source's rows, by "task, source split".
        counts: what became of the candidates, by split and task.
        files: SHA-256 by name of a file.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    threads: Count | None = None
    started: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    settings_hash: str = ""
    task: str = ""
    prompt_hash: str | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, dict[str, SplitCount]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder of samples; None: it has none.

    Raises:
        InputError: where it is corrupt.
    """
    path = folder / MANIFEST
    return from_plain(Manifest, read_json(path), str(path)) if path.is_file() else None


def require_as_prepared(path: Path, found: str) -> None:
    """Refuse a file that the manifest beside it does not name, or that is another one; without a manifest all pass.

    Args:
        path: a file of a folder of samples.
        found: what the message says of its content.

    Raises:
        InputError: where its SHA-256 is another, or it is not among the files.
    """
    manifest = read_manifest(path.parent)
    if manifest is None or not manifest.files or manifest.files.get(path.name) == sha256_file(path):
        return
    if path.name not in manifest.files:
        raise InputError(f"{path}: expected a file that {MANIFEST} names, got one of another run or folder")
    counts = manifest.counts.get(path.stem, {}).values()
    taken = f"{sum(count.taken for count in counts)} lines" if counts else "one"
    raise InputError(
        f"{path}: expected {taken} with the SHA-256 in {MANIFEST}, got {found} with another: "
        "it was changed or cut after it was prepared"
    )
