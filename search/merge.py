"""Put the records of several drivers together: `python -m search merge --parts '[a,b]' --data DATA --out OUT`.

Each driver has searched a part of each split (`python -m search --part 2/16`); together they are one search, and the
merged file is the one that a single driver would have written.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from data.records import SearchRecord
from data.sample import Split, read_samples
from data.store import Store, differences, meta_path, read_meta
from router.command import parse_settings
from router.files import read_json_lines, require_directory, require_file, writable_directory
from router.validation import SETTINGS, InputError
from search.run import key_of

ROWS_AT_ONCE = 256
"""Records in memory."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class MergeSettings:
    """Settings of `python -m search merge`.

    Attributes:
        parts: folders of the finished parts, all of one search.
        data: folder of `python -m data prepare`, whose order the records get.
        out: folder for the whole.
        splits: splits to merge.
    """

    parts: Annotated[tuple[Path, ...], Field(min_length=1)]
    data: Path
    out: Path
    splits: Annotated[tuple[Split, ...], Field(min_length=1)] = ("train", "validation", "test")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        InputError: where a part is missing, not finished, or of another search.
    """
    settings, _ = parse_settings(MergeSettings, argv, "search merge", "Put the records of several drivers together.")
    writable_directory(settings.out, "out")
    for split in settings.splits:
        parts = [require_file(require_directory(one, "parts") / f"{split}.jsonl", "parts") for one in settings.parts]
        count = merge(parts, [one.id for one in read_samples(settings.data / f"{split}.jsonl", "data")], settings.out)
        print(f"{split}: {count:,} records of {len(parts)} parts in {settings.out / parts[0].name}")


def merge(parts: Sequence[Path], order: Sequence[str], out: Path) -> int:
    """Merge record files of one split, and the states kept beside them; killed anywhere, it can be called again.

    Args:
        parts: finished record files.
        order: ids of all samples of the split.
        out: folder of the whole.

    Returns:
        Records of the whole.

    Raises:
        InputError: where a part is missing, not finished, or of another search.
    """
    metas = [_meta(path) for path in parts]
    identity, of = _common_identity(parts, [meta["identity"] for meta in metas])
    num_layers = next((_layers(first, path) for path in parts for _, first in read_json_lines(path)), 0)
    stores = [
        Store(path, SearchRecord, meta["identity"], key_of, num_layers=num_layers)
        for path, meta in zip(parts, metas, strict=True)
    ]
    owner = _owners(stores)
    if of is not None and len(owner) != of["samples"]:
        raise InputError(f"parts: expected {of['samples']} records in all of them, got {len(owner)}")
    if strange := owner.keys() - set(order):
        raise InputError(f"data: expected the samples of the parts, got none with the id {min(strange)}")
    whole: Store[SearchRecord] = Store(out / parts[0].name, SearchRecord, identity, key_of, num_layers=num_layers)
    if more := [key for key in whole.keys if key not in owner]:
        raise InputError(f"out: expected records of these parts in {whole.path}, got sample {more[0]}")
    with whole:
        for part, meta in zip(stores, metas, strict=True):
            missing = part.rows([key for key in part.keys if key not in whole])
            while rows := list(itertools.islice(missing, ROWS_AT_ONCE)):
                whole.append(rows)
            for run in meta["runs"]:
                whole.note(run)
    for path in parts:
        for file in sorted(path.with_suffix(".states").glob("*.safetensors")):
            folder = (out / path.name).with_suffix(".states")
            folder.mkdir(exist_ok=True)
            shutil.copy(file, folder)
    whole.finish([key for key in order if key in owner])
    return len(owner)


def _meta(path: Path) -> dict[str, Any]:
    meta = read_meta(path)
    if meta is None:
        raise InputError(f"parts: expected {meta_path(path)} beside {path.name}, got none")
    return meta


def _layers(record: dict[str, Any], path: Path) -> int:
    found = record.get("num_layers")
    if not isinstance(found, int):
        raise InputError(f"{path}, line 1: expected num_layers, got {found!r}")
    return found


def _owners(stores: Sequence[Store[SearchRecord]]) -> dict[str, Path]:
    """Return the part that has each sample; refuse parts that still grow, and samples in two of them."""
    owner: dict[str, Path] = {}
    for part in stores:
        if not part.finished:
            raise InputError(f"parts: expected a finished {part.path}, got one that still grows")
        for key in part.keys:
            if key in owner:
                raise InputError(f"parts: expected each sample once, got {key} in {owner[key]} and {part.path}")
            owner[key] = part.path
    return owner


def _common_identity(
    parts: Sequence[Path], identities: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what all parts are of, and how their batches were cut (None: there is one part).

    Raises:
        InputError: where they are of different searches, or some are missing.
    """
    common = {name: value for name, value in identities[0].items() if name != "part"}
    found = []
    for path, identity in zip(parts, identities, strict=True):
        rest = {name: value for name, value in identity.items() if name != "part"}
        if rest != common:
            other = ", ".join(differences(common, rest)[:3])
            raise InputError(f"parts: expected {path} to be of the same search as {parts[0]}, got another {other}")
        found.append(str(identity.get("part", "1/1")))
    total = int(found[0].split("/")[1])
    wanted = [f"{number}/{total}" for number in range(1, total + 1)]
    if sorted(found) != sorted(wanted):
        raise InputError(f"parts: expected {', '.join(wanted)}, got {', '.join(found)}")
    return {name: value for name, value in common.items() if name != "of"}, common.get("of")
