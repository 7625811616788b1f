"""Tracking of a training: W&B runs of `data.tracking` as Lightning's logger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from data.tracking import TrackingSettings, start_run


def start_logger(settings: TrackingSettings, folder: Path, config: Mapping[str, Any]) -> WandbLogger | None:
    """Return a Lightning logger whose run's files lie in `folder`/wandb, or None where tracking is disabled."""
    run = start_run(settings, folder, config)
    return None if run is None else WandbLogger(experiment=run, log_model=False)
