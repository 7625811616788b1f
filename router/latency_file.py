"""`latency.json`: what `python -m eval.latency` measured; read without the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router.command import InputError
from router.durable import read_json
from router.fingerprint import Fingerprints
from router.latency import LatencyProfile

SCHEMA = 1
"""Version of the file's format."""
LATENCY_FILE = "latency.json"


def read_latency(path: Path) -> dict[str, Any] | None:
    """Read `latency.json`; None where it is not there.

    Raises:
        InputError: where it is corrupt or of another schema.
    """
    if not path.exists():
        return None
    value = read_json(path)
    if value.get("schema") != SCHEMA:
        raise InputError(f"{path}: expected schema {SCHEMA}, got {value.get('schema')!r}")
    return value


def budget_for(path: Path, factor: float, expected: Fingerprints, device: str, dtype: str) -> float:
    """Return the mean depth, layers, at which a routed call takes `factor` of the time at full depth.

    It is the smallest batch's profile that counts, with as many generated tokens as were timed.

    Args:
        path: `latency.json`, measured on this device.
        factor: latency wanted, in units of full depth's.
        expected: the model that is to run.
        device: type of the device that is to run it.
        dtype: its dtype.

    Raises:
        InputError: where the file is missing, corrupt, of another model, device or dtype, or nothing is so fast.
    """
    value = read_latency(path)
    if value is None:
        raise InputError(f"latency_profile: expected a file of python -m eval.latency, got none at {path}")
    for name, wanted in (("model", expected.model), ("device", device.split(":")[0]), ("dtype", dtype)):
        if value.get(name) != wanted:
            raise InputError(f"latency_profile: expected {name} {wanted} in {path}, got {value.get(name)}")
    try:
        profiles = [LatencyProfile.from_json(cell["profile"]) for cell in value["cells"]]
        profile = min(profiles, key=lambda one: one.batch)
        new_tokens = int(value["new_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a latency profile, got one without {error}") from error
    try:
        return profile.depth_for(factor, new_tokens)
    except ValueError as error:
        raise InputError(str(error)) from error
