"""Made-up search records: of any results, or of chains in text form of a model of six layers, right or wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.records import ChainResult, SearchRecord, pareto_front
from data.store import Store, meta_path
from router.chain import Chain
from router.fingerprint import Fingerprints
from router.validation import to_plain

N = 6
FULL = Chain.full(N)


def chain(text: str) -> Chain:
    return Chain.parse(text, N)


def record_of(name: str, results: Sequence[ChainResult], **changes: Any) -> SearchRecord:
    """A record of some results, the full chain's first, whose right answer is 0 unless changes say otherwise."""
    made = tuple(results)
    one = SearchRecord(
        name, "arc_easy", "train", {}, "continuation", made[0].chain.num_layers, 1, "float32", "gold", 0, 0, len(made),
        1, 1, made, pareto_front(made), Fingerprints("m", "t", "p"), "s",
    )  # fmt: skip
    return dataclasses.replace(one, **changes)


def record(name: str, rights: dict[str, bool], prefix: int = 2, **changes: Any) -> SearchRecord:
    """A record of the full chain and others; a wrong chain answers 1, a right one 0."""
    made = [
        ChainResult(chain(text), (1.0, 0.0) if right else (0.0, 1.0), 0 if right else 1, right, 1.0 if right else -1.0)
        for text, right in rights.items()
    ]
    return record_of(name, made, **({"first_editable": prefix} | changes))


def write_records(path: Path, records: Sequence[SearchRecord], algorithm: str = "uct", **decides: Any) -> Path:
    """Write records as a finished store, with the settings and the identity of a search that would have made them."""
    path.parent.mkdir(exist_ok=True)
    for old in (path, meta_path(path)):
        old.unlink(missing_ok=True)
    first = records[0]
    settings = {"search": {"algorithm": algorithm}, "reward_target": first.reward_target}
    identity = {
        **settings,
        "first_editable": first.first_editable,
        "dtype": first.dtype,
        "fingerprints": to_plain(first.fingerprints),
        "targets": first.reward_target,
        **decides,
    }
    with Store(path, SearchRecord, identity, lambda one: one.sample_id, num_layers=first.num_layers) as store:
        store.note({"run": "made by hand", "settings": settings})
        store.append(records)
        store.finish([one.sample_id for one in records])
    return path
