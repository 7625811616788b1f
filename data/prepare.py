"""`python -m data prepare`: split files, the tasks that they are asked with, and the manifest that vouches for them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.loading import Loaded, load_samples
from data.sample import Sample, write_samples
from data.settings import PrepareSettings, TaskSettings
from data.sources import content_of, source_of
from data.splits import Shots, SplitCount, build_splits
from data.task_files import TASKS_FILE, TaskSet, write_tasks
from data.tasks import Task
from router.command import InputError, one_line, plain_values, provenance
from router.durable import read_json, sha256_file, sha256_json, writable_directory, write_json

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class _Part:
    """A task with the settings that say where its rows come from."""

    task: Task
    settings: TaskSettings
    source: str


def prepare(settings: PrepareSettings, resolved: dict[str, Any]) -> None:
    """Write the split files, the tasks and, as the last, the manifest that vouches for them.

    Args:
        settings: the settings.
        resolved: the same as plain data, for the manifest.

    Raises:
        InputError: at bad input, or where the folder holds splits made with other settings.
    """
    parts = _parts(settings)
    sizes = {
        split: settings.sizes(split, {name: part.settings for name, part in parts.items()})
        for split in settings.wanted()
    }
    identity = _identity(settings, parts)
    out = writable_directory(settings.out, "out")
    if _already_there(out, identity):
        print(f"{out}: the splits are there already, made with the same settings")
        return
    loaded = _load(settings, parts)
    candidates = {
        split: {name: loaded[name, settings.source_split(part.settings, split)].samples for name, part in parts.items()}
        for split in settings.wanted()
    }
    shots = {
        name: Shots(loaded[name, settings.source_split(part.settings, "train")].samples, part.settings.shots)
        for name, part in parts.items()
        if part.settings.shots
    }
    splits = build_splits(candidates, sizes, settings.seed, shots)
    tasks = TaskSet.of(_with_examples(part.task, splits.examples.get(name, ())) for name, part in parts.items())
    (out / MANIFEST).unlink(missing_ok=True)  # it must not vouch for a half-changed folder
    write_tasks(out, tasks)
    for split, samples in splits.samples.items():
        write_samples(out / f"{split}.jsonl", samples)
    files = [TASKS_FILE, *(f"{split}.jsonl" for split in settings.wanted())]
    manifest = {
        **provenance(resolved),
        "identity": identity,
        "settings_hash": sha256_json(identity),
        "task": tasks.name,
        "prompt_hash": tasks.prompt_hash(),
        "rows": {f"{name}, {source_split}": one.counts() for (name, source_split), one in loaded.items()},
        "counts": plain_values(splits.counts),
        "files": {name: sha256_file(out / name) for name in files},
    }
    write_json(out / MANIFEST, manifest)
    _report(splits.counts, loaded)
    print(f"written to {out}")


def _parts(settings: PrepareSettings) -> dict[str, _Part]:
    """Read the tasks, by name."""
    listed = [(one.load(), one) for one in settings.components()]
    TaskSet.of(task for task, _ in listed)  # refuses two of one name
    return {task.name: _Part(task, one, source_of(task, one.source, one.path)) for task, one in listed}


def _load(settings: PrepareSettings, parts: Mapping[str, _Part]) -> dict[tuple[str, str], Loaded]:
    """Read every source split that is needed once, by task and source split."""
    loaded: dict[tuple[str, str], Loaded] = {}
    for name, part in parts.items():
        for split in (*settings.wanted(), *(["train"] if part.settings.shots else [])):
            source_split = settings.source_split(part.settings, split)
            if (name, source_split) not in loaded:
                loaded[name, source_split] = load_samples(
                    part.task, part.source, source_split, split, part.settings.path, settings.on_bad_row
                )
    return loaded


def _with_examples(task: Task, examples: tuple[Sample, ...]) -> Task:
    """Give a task its examples, and refuse those that cannot be shown."""
    task = dataclasses.replace(task, examples=examples)
    for example in examples:
        try:
            task.query(example)
        except ValueError as error:
            raise InputError(f"{task.name}: {one_line(error)}") from error
    return task


def _identity(settings: PrepareSettings, parts: Mapping[str, _Part]) -> dict[str, Any]:
    """Return what decides the files' content, as JSON data."""
    wanted = settings.wanted()
    tasks, sources = {}, {}
    for name, part in parts.items():
        one = part.settings
        drawn = {split: settings.source_split(one, split) for split in (*wanted, *(["train"] if one.shots else []))}
        content = content_of(part.task, part.source, list(drawn.values()), one.path)
        tasks[name] = {**plain_values(part.task), "prompt_hash": part.task.prompt_hash(), "shots": one.shots}
        sources[name] = {"kind": part.source, "content": content, "splits": drawn}
    identity = {
        "tasks": tasks,
        "sources": sources,
        "seed": settings.seed,
        "on_bad_row": settings.on_bad_row,
        "splits": {split: getattr(settings, split).size for split in wanted},
        "weights": {name: getattr(part.settings, "weight", 1.0) for name, part in parts.items()},
    }
    return dict(json.loads(json.dumps(identity)))  # as it is stored: tuples are lists, keys are text


def _already_there(out: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds these splits, unharmed; other settings' splits are never overwritten."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_json(out / MANIFEST)
    stored = manifest.get("identity")
    if manifest.get("settings_hash") != sha256_json(identity) or not isinstance(stored, dict):
        differing = [key for key in identity if not isinstance(stored, dict) or stored.get(key) != identity[key]]
        raise InputError(
            f"out: expected a folder without splits, or with those of the same settings, "
            f"got {str(out)!r} made with another {', '.join(differing)}"
        )
    files = manifest.get("files", {})
    return all((out / name).is_file() and sha256_file(out / name) == digest for name, digest in files.items())


def _report(counts: Mapping[str, Mapping[str, SplitCount]], loaded: Mapping[tuple[str, str], Loaded]) -> None:
    """Print what became of the samples, and which rows were left out."""
    width = max(12, *(len(name) + 2 for by_task in counts.values() for name in by_task))
    print(
        f"{'split':<12}{'task':<{width}}{'taken':>8}{'candidates':>12}{'used elsewhere':>16}{'repeated':>10}"
        f"{'not needed':>12}"
    )
    for split, by_task in counts.items():
        for name, c in by_task.items():
            print(
                f"{split:<12}{name:<{width}}{c.taken:>8}{c.candidates:>12}{c.used_elsewhere:>16}{c.repeated:>10}"
                f"{c.not_needed:>12}"
            )
    for (name, source_split), one in loaded.items():
        where = f"{name}, {source_split}"
        if one.same_question:
            print(f"{where}: {one.same_question} of {one.rows} rows left out: their question was read before")
        if one.other_metadata:
            print(f"{where}: {one.other_metadata} of {one.rows} rows left out: keep does not want their metadata")
        for bad in one.bad.values():
            print(f"{where}: {bad.rows} of {one.rows} rows left out, the first: {bad.first}")
