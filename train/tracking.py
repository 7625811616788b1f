"""Experiment tracking in Weights & Biases: offline without a key, never a prompt."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger

from router.durable import sha256_file, sha256_json

HOST = "api.wandb.ai"


@dataclass(frozen=True)
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
    """Return whether W&B would find an API key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def start_logger(settings: TrackingSettings, folder: Path, config: Mapping[str, Any]) -> WandbLogger | None:
    """Return a Lightning logger whose run's files lie in `folder`/wandb, or None where tracking is disabled."""
    mode = settings.resolved_mode()
    if mode == "disabled":
        return None
    run = wandb.init(
        project=settings.project,
        name=settings.name,
        group=settings.group,
        mode=mode,
        dir=folder,
        config=dict(config),
        settings=wandb.Settings(silent=True, console="off"),
    )
    return WandbLogger(experiment=run, log_model=False)


def log_files(
    logger: WandbLogger | None, name: str, kind: str, files: Sequence[Path], metadata: Mapping[str, Any]
) -> str:
    """Log files as one artifact; its metadata carries their SHA-256, by which other runs are linked to it.

    Returns:
        The SHA-256 over the files' names and hashes, also where tracking is disabled.
    """
    hashes = {file.name: sha256_file(file) for file in files}
    digest = sha256_json(hashes)
    if logger is not None:
        artifact = wandb.Artifact(name, kind, metadata={**metadata, "sha256": digest, "files": hashes})
        for file in files:
            artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact)
    return digest
