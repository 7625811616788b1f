"""Pictures of samples: files beside the sample files, named by what they show, so that one picture is one file."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.command import one_line
from router.files import replacing
from router.validation import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "images"
"""Folder of the pictures, beside the sample files."""
MOST_PIXELS = 2**26
"""Pixels of a picture at most: a small file can say that it holds more than memory does."""


def pictures_at(value: Any, column: str, folder: Path | None) -> list[Image]:
    """Return the pictures that a row's column holds: one, several, or none (null).

    Args:
        value: a picture, the path of a picture file in the folder of the rows' file, a list of either, or None.
        column: the column, for messages.
        folder: the folder of the rows' file; None: rows that are no file's hold pictures themselves.

    Raises:
        ValueError: where it holds something else, or a file that is no picture.
    """
    from PIL import Image

    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [one for item in value for one in pictures_at(item, column, folder)]
    if isinstance(value, Image.Image):
        return [value]
    if not isinstance(value, str) or folder is None:
        raise ValueError(f"column {column!r}: expected a picture or a picture file's path, got {type(value).__name__}")
    path = (folder / value).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"column {column!r}: expected a picture file below {folder}, got {value!r}")
    return [_opened(path, f"column {column!r}")]


def store_picture(out: Path, picture: Image) -> str:
    """Write a picture into a folder of samples, unless it is there; returns its name.

    Raises:
        ValueError: where it has too many pixels.
    """
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"picture: expected at most {MOST_PIXELS} pixels, got {picture.width} x {picture.height}")
    picture = picture.convert("RGB")
    name = _name(picture)
    if not (out / FOLDER / name).is_file():
        (out / FOLDER).mkdir(exist_ok=True)
        with replacing(out / FOLDER / name) as written:
            picture.save(written, format="PNG")
    return name


def read_picture(folder: Path, name: str) -> Image:
    """Read a sample's picture from the folder of its sample file.

    Raises:
        InputError: where it is missing, or shows something else than its name says.
    """
    path = folder / FOLDER / name
    try:
        picture = _opened(path, "data")
    except ValueError as error:
        raise InputError(str(error)) from error
    if _name(picture) != name:
        raise InputError(f"data: expected the picture that was prepared as {path}, got another")
    return picture


def keep_pictures(out: Path, names: Container[str]) -> None:
    """Remove the pictures that `store_picture` named and no sample has; others are not ours."""
    for path in (out / FOLDER).glob(f"{'[0-9a-f]' * 32}.png"):
        if path.name not in names:
            path.unlink()


def _opened(path: Path, what: str) -> Image:
    """Return a picture as it is shown: turned as its file says."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels, more than {MOST_PIXELS}")
            return ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{what}: expected a picture file, got {str(path)!r} ({one_line(error)})") from error


def _name(picture: Image) -> str:
    """Return the name of a picture's file: a hash of its pixels, for files of the same pixels can differ."""
    size = f"{picture.width}x{picture.height}:".encode()
    return f"{hashlib.sha256(size + picture.tobytes()).hexdigest()[:32]}.png"
