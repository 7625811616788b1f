"""Experiment tracking in Weights & Biases, as training and evaluation share it: offline where there is no key.

Artifacts are linked by content: each one's metadata carry the SHA-256 of its files and of what it was made from.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb
from pydantic.dataclasses import dataclass

from router.command import one_line, without_places
from router.files import sha256_file, sha256_json
from router.validation import SETTINGS, InputError

BASE_URL = "https://api.wandb.ai"
"""The server, unless WANDB_BASE_URL names another."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TrackingSettings:
    """Where the run is tracked.

    Attributes:
        mode: "auto" (WANDB_MODE where it is set, else online with an API key and offline without), "online", "offline"
            (upload later with `wandb sync`) or "disabled".
        project: W&B project.
        name: name of the run; null: made up by W&B.
        group: group of the run; null: none.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "cola-router"
    name: str | None = None
    group: str | None = None

    def resolved_mode(self) -> Literal["online", "offline", "disabled"]:
        """Return the mode without "auto"."""
        if self.mode != "auto":
            return self.mode
        wanted = os.environ.get("WANDB_MODE")
        if wanted in ("online", "offline", "disabled"):
            return wanted  # type: ignore[return-value]
        return "online" if has_api_key() else "offline"


def has_api_key() -> bool:
    """Return whether W&B would find an API key for its server: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or BASE_URL).hostname
    try:
        return netrc.netrc(path).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def start_run(
    settings: TrackingSettings,
    folder: Path,
    config: Mapping[str, Any],
    *,
    job_type: str | None = None,
    machine: bool = True,
) -> Any:
    """Start a W&B run whose files lie in `folder`/wandb.

    Args:
        settings: where it is tracked.
        folder: an existing folder.
        config: the run's configuration, JSON data.
        job_type: what kind of run it is, within its group; None: not said.
        machine: whether W&B may note the machine too: paths of program and interpreter, git, hardware and its load.

    Returns:
        The run (`wandb.Run`); None where tracking is disabled.

    Raises:
        InputError: where it cannot start: no API key for an online run, a server that does not answer.
    """
    mode = settings.resolved_mode()
    if mode == "disabled":
        return None
    try:
        if mode == "online" and not has_api_key() and not wandb.login(prompt=False, verify=False):
            raise InputError("tracking.mode: expected an API key for an online run (`wandb login`), got none")
        return wandb.init(
            project=settings.project,
            name=settings.name,
            group=settings.group,
            job_type=job_type,
            mode=mode,
            dir=folder,
            config=without_places(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                **({} if machine else {"disable_git": True, "x_disable_meta": True, "x_disable_stats": True}),
            ),
        )
    except wandb.Error as error:
        raise InputError(
            f"tracking: expected a W&B run in mode {mode}, got an error ({one_line(error)}); "
            f"--tracking.mode offline works without a server"
        ) from error


def log_files(run: Any, name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]) -> str:
    """Log files as one artifact of a run; its metadata carry their SHA-256, by which other runs are linked to it.

    Args:
        run: a run of `start_run`, or None where tracking is disabled.
        name: the artifact's name; all of one name are versions of one another.
        kind: its type.
        files: its files, of different names.
        metadata: what its metadata say besides.

    Returns:
        The SHA-256 over the files' names and hashes (`files_digest`), also where tracking is disabled.
    """
    hashes = hashes_of(files)
    if run is not None:
        run.log_artifact(_artifact(name, kind, files, hashes, metadata))
    return files_digest(hashes)


def use_files(run: Any, name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]) -> bool:
    """Say that a run read an artifact of these files; W&B knows it again by their content, or gets it now.

    W&B takes inputs of online runs only. Of others the link is in the metadata of what the run made.

    Args:
        run: a run of `start_run`, or None where tracking is disabled.
        name: the artifact's name, as in `log_files`.
        kind: its type.
        files: its files.
        metadata: what its metadata say besides, where W&B does not have it yet.

    Returns:
        Whether W&B was told.
    """
    if run is None or run.offline:
        return False
    run.use_artifact(_artifact(name, kind, files, hashes_of(files), metadata))
    return True


def hashes_of(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name."""
    return {file.name: sha256_file(file) for file in files}


def files_digest(hashes: Mapping[str, str]) -> str:
    """Return the SHA-256 over the names and hashes of an artifact's files, by which runs refer to it."""
    return sha256_json(dict(hashes))


def _artifact(
    name: str, kind: str, files: Sequence[Path], hashes: dict[str, str], metadata: Mapping[str, Any]
) -> wandb.Artifact:
    artifact = wandb.Artifact(name, kind, metadata={**metadata, "sha256": files_digest(hashes), "files": hashes})
    for file in files:
        artifact.add_file(str(file))
    return artifact
