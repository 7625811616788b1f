"""A certified operating point of a router: what it promises, and where it falls back to full depth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from router.command import InputError
from router.durable import read_json, write_json

SCHEMA = 1
"""Version of the file's format."""
GUARANTEE_FILE = "guarantee.json"
"""Beside a router; made by `python -m train.calibrate`."""


@dataclass(frozen=True)
class Guarantee:
    """What calibration certified: with probability 1 - delta over the calibration draw, the loss is at most epsilon.

    Attributes:
        epsilon: loss allowed against full depth, mean over samples like the calibration split's.
        delta: probability, over calibration draws, with which the claim may be wrong.
        loss: "accuracy": accuracy of full depth minus the router's; "disagreement": share of samples whose answers
            differ.
        offset: operating point of the head (`Head.decode_at`); None: nothing was certified, all run at full depth.
        least_score: samples whose chain scores less fall back to full depth; None: none do.
        samples: calibration samples.
        mean_loss: loss on them.
        mean_depth: layers, mean over them.
        smallest_epsilon: the least epsilon that could have been certified for the safest setting; descriptive, since
            it is chosen after the data were seen. None: none below 1.
    """

    epsilon: float
    delta: float
    loss: Literal["accuracy", "disagreement"]
    offset: float | None
    least_score: float | None
    samples: int
    mean_loss: float
    mean_depth: float
    smallest_epsilon: float | None


def write_guarantee(folder: Path, guarantee: Guarantee, weights_sha256: str, more: dict[str, Any]) -> None:
    """Write the guarantee beside the router whose weights have that hash."""
    content = {"schema": SCHEMA, "weights_sha256": weights_sha256, "guarantee": asdict(guarantee), **more}
    write_json(folder / GUARANTEE_FILE, content)


def read_guarantee(folder: Path, weights_sha256: str) -> Guarantee | None:
    """Read a router's guarantee; None where it has none, or one of other weights (trained anew since).

    Raises:
        InputError: where the file is corrupt.
    """
    path = folder / GUARANTEE_FILE
    if not path.exists():
        return None
    value = read_json(path)
    if value.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected schema {SCHEMA}, got {value.get('schema')!r}")
    if value.get("weights_sha256") != weights_sha256:
        return None
    try:
        return Guarantee(**value["guarantee"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a guarantee, got one without or with another field: {error}") from error
