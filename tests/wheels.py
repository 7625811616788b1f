"""Small wheels for the tests of assets; the fixture `shelf` is where the real pip finds them."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


def build_wheel(shelf: Path, name: str, content: dict[str, bytes]) -> dict[str, object]:
    """Put version 1.0 of a wheel on the shelf; returns its entry for a catalogue, all of the content as members."""
    distribution = name.replace("-", "_")
    wheel, info = shelf / f"{distribution}-1.0-py3-none-any.whl", f"{distribution}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
        archive.writestr(f"{distribution}/unasked.txt", "not in the catalogue")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return {
        "version": "1.0",
        "file": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "licence": "none",
        "members": list(content),
    }


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
