"""Runs of W&B that were tracked offline, read back from their files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, 7
"""Bytes of a block of a W&B file, and of a record's header: LevelDB's log format."""


def run_files(folder: Path) -> list[Path]:
    """Return the files of the runs below a folder, once they are whole.

    W&B's service writes a block when it is full, and the last one when it closes the file, which may be after
    `run.finish` has returned: until then a short run's file ends after its first 7 bytes. `wandb.teardown` waits for
    the service's end; the next run starts another.
    """
    wandb.teardown()
    return sorted({path.resolve() for path in folder.rglob("*.wandb")})


def records(path: Path) -> Iterator[Any]:
    """Read a W&B file: records in parts (1: whole, 2: first, 3: middle, 4: last), none across a block's last bytes."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    at, whole = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def read_back(folder: Path) -> dict[str, list[Any]]:
    """Return the records of a folder's one run by kind."""
    (path,) = run_files(folder)
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        by_kind[kind].append(getattr(record, kind))
    return by_kind
