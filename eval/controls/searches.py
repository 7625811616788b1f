"""Searches that can be compared: the same samples, model and prompt, told the right answer or a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.records import SearchRecord
from router.files import read_json, require_file, sha256_file
from router.validation import InputError

OF_FILE = ("num_layers", "first_editable", "dtype", "fingerprints")
"""Fields of records that are the same in searches of one model and prompt."""
OF_SAMPLE = ("task", "split", "mode")
"""Fields of records that are the same in searches of one sample."""
OF_SEARCH = ("search", "menu", "first_editable", "shuffle", "verify", "dtype")
"""Settings that decide what a search does, but for what it is told."""


def in_order(
    oracle: Sequence[SearchRecord], other: Sequence[SearchRecord], targets: tuple[str, str], what: str
) -> list[tuple[SearchRecord, SearchRecord]]:
    """Return the pairs of records of the same sample, in the oracle's order.

    Args:
        oracle: records of the oracle.
        other: records of another search, of all of its samples or of some.
        targets: `reward_target` of each.
        what: name of the setting of the other records, for refusals.

    Raises:
        InputError: where the records are not of the same samples, model and prompt, were told something else, or were
            verified in one search only.
    """
    known = {record.sample_id: record for record in oracle}
    pairs = [(known[record.sample_id], record) for record in other if record.sample_id in known]
    if not pairs or len(pairs) < len(other):
        raise InputError(
            f"{what}: expected records of the oracle's samples, got {len(other) - len(pairs)} of {len(other)} of others"
        )
    first = pairs[0][0]
    for one, two in pairs:
        expected: dict[str, Any] = {name: getattr(first, name) for name in OF_FILE}
        expected |= {name: getattr(one, name) for name in OF_SAMPLE}
        for record, told in ((one, targets[0]), (two, targets[1])):
            for name, value in (expected | {"reward_target": told}).items():
                if getattr(record, name) != value:
                    raise InputError(
                        f"{what}: expected {name} {value} of a search like the oracle's, got {getattr(record, name)} "
                        f"(sample {record.sample_id})"
                    )
            if (record.full.verified is None) != (first.full.verified is None):
                raise InputError(f"{what}: expected both searches verified, or neither (sample {record.sample_id})")
        if (one.target == two.target) != (targets[0] == targets[1]):
            raise InputError(
                f"{what}: expected {'the same answer' if targets[0] == targets[1] else 'a wrong answer'} to be told, "
                f"got {two.target!r} where {one.target!r} is right (sample {one.sample_id})"
            )
    order = {record.sample_id: place for place, record in enumerate(oracle)}
    return sorted(pairs, key=lambda pair: order[pair[0].sample_id])


def means(pairs: Sequence[tuple[SearchRecord, SearchRecord]], name: str) -> tuple[float, float]:
    """Return the mean of a count over both searches' records."""
    first, second = (sum(int(getattr(pair[i], name)) for pair in pairs) / len(pairs) for i in (0, 1))
    return first, second


def require_same_search(oracle: Path, wrong: Path) -> None:
    """Check that two record files come of the same search settings, but for what the search was told.

    Records name their settings by a hash that holds what was told, so the settings files beside them are compared.

    Raises:
        InputError: where a settings file is missing or of another record file, or a setting is another.
    """
    settings = {path: search_settings(path) for path in (oracle, wrong)}
    for path, told in ((oracle, "gold"), (wrong, "wrong")):
        if settings[path].get("reward_target") != told:
            raise InputError(
                f"wrong_records: expected {path} of a search with reward_target {told}, "
                f"got {settings[path].get('reward_target')}"
            )
    first, second = settings[oracle], settings[wrong]
    for name in OF_SEARCH:
        if first.get(name) != second.get(name):
            raise InputError(
                f"wrong_records: expected {wrong} of {_difference(name, first.get(name), second.get(name))}"
            )


def require_random_search(path: Path) -> None:
    """Check that a record file comes of a random search.

    Raises:
        InputError: where it comes of another one, or its settings file is missing or of another record file.
    """
    settings = search_settings(path)
    algorithm = settings["search"].get("algorithm") if settings.get("menu") is None else "a menu"
    if algorithm != "random":
        raise InputError(f"random_search: expected {path} of a search with the algorithm random, got {algorithm}")


def search_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the run that made a record file, as they stand beside it.

    Raises:
        InputError: where they are missing, or the record file is not the one that they name.
    """
    beside = require_file(path.with_suffix(".settings.json"), "records")
    content = read_json(beside)
    runs = content.get("runs")
    settings = runs[-1].get("settings") if isinstance(runs, list) and runs and isinstance(runs[-1], dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("search"), dict):
        raise InputError(f"{beside}: expected the settings of python -m search, got none")
    if content.get("sha256") != sha256_file(path):
        raise InputError(f"{beside}: expected the SHA-256 of {path.name} beside it, got another")
    return settings


def _difference(name: str, first: Any, second: Any) -> str:
    """Return the setting in which two values differ: what is expected, and what came."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key):
                return _difference(f"{name}.{key}", first.get(key), second.get(key))
    return f"a search with {name} {first}, like the oracle's, got {second}"
