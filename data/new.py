"""`python -m router new`: the configs of the whole way from a model and some tasks to an evaluated router.

    python -m router new --model qwen2.5-coder-1.5b-instruct --task arc_easy,chain_sum --out runs/mine
    python -m router run runs/mine

The recipe is that of configs/demo/*.yaml: a menu head that reads the output of the first layers which always run, on
a menu of chains that drop some of the later ones. The files are written as text, so that no command's settings are
imported; a test lets each command parse its own.
"""

from __future__ import annotations

import math
import shlex
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from data.prepare import TaskSettings
from data.sample import SPLITS
from data.sources import local_file, source_of
from data.tasks import CHOICE_MODES, Task
from router.command import parse_settings
from router.engine.load import Outline, has_chat_template, outline_of
from router.files import writable_directory, write_text
from router.steps import STEPS, Step
from router.validation import SETTINGS, InputError

READ_SHARE = 22 / 28
"""Share of the layers that always run, of the demo's model; after them the router reads."""
BLOCKS = 6
"""Runs of neighbouring later layers that the menu's chains drop or keep: 64 chains."""
SIZES = {"train": 600, "validation": 200, "calibration": 800, "test": 600}
"""The demo's samples of each split."""
LEAST = 1 / 20
"""Share of `SIZES` below which a run says nothing."""
USABLE = 0.9
"""Share of a source split's rows that is taken at most: some are repeated, or no questions."""
TOKENS = 100
"""Tokens of a prompt, assumed."""
OPERATIONS = 3e13
"""Operations a second of a GPU, assumed: a tenth of what docs/scale.md assumes of a 7B model on an H100."""
TABLE_SHARE = 0.5
"""Share of the GPU hours that the table may take; the evaluation has the rest."""
ROWS: dict[str, dict[str, int]] = {
    "arc_easy": {"train": 2251, "validation": 570, "test": 2376},
    "arc_challenge": {"train": 1119, "validation": 299, "test": 1172},
    "boolq": {"train": 9427, "validation": 3270},
    "commonsense_qa": {"train": 9741, "validation": 1221},
    "dart_gsm8k": {"train": 7000},
    "dart_math": {"train": 7000},
    "gsm8k": {"train": 7473, "test": 1319},
    "math": {"train": 7500, "test": 5000},
    "mrpc": {"validation": 408},
    "openbookqa": {"train": 4957, "validation": 500, "test": 500},
    "piqa": {"train": 16113, "validation": 1838},
    "rte": {"validation": 277},
    "science_qa": {"train": 12726, "validation": 4241, "test": 4241},
    "sciq": {"validation": 1000},
    "social_iqa": {"validation": 1954},
    "sst2": {"validation": 872},
    "trivia_qa": {"validation": 7993},
}
"""Rows of the shipped tasks' usual sources, by split, so that nothing is fetched to know them."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class NewSettings:
    """Settings of `python -m router new`. On a terminal it asks for model, task and out where they are not given.

    Attributes:
        model: the base model: an offline asset, a local directory or a hub id.
        task: tasks, parted by commas: names of shipped ones or YAML files.
        out: folder for the configs and all that their commands make.
        path: rows of the tasks that are YAML files without a source of their own: a folder of <split>.jsonl or one
            JSON Lines file for each, parted by commas.
        revision: hub revision of the model.
        gpu_hours: time on one GPU that search and evaluation may take (`--gpu-hours` does too); null: the demo's
            number of samples.
    """

    model: str | None = None
    task: str | None = None
    out: Path | None = None
    path: str | None = None
    revision: str | None = None
    gpu_hours: Annotated[float, Field(gt=0)] | None = None


QUESTIONS = {
    "model": "Base model (offline asset, local directory or hub id)",
    "task": "Task, or several parted by commas",
    "out": "Folder for configs and results",
}
"""What is asked on a terminal where a setting is missing."""


@plain_dataclass(frozen=True)
class Part:
    """A task of the mixture.

    Attributes:
        settings: what the config says of it.
        task: the task, so asked.
        rows: rows of each split of its source; None: not known.
        drawn_on: split of its source that each split is drawn from.
    """

    settings: TaskSettings
    task: Task
    rows: dict[str, int | None]
    drawn_on: dict[str, str]


@plain_dataclass(frozen=True)
class Plan:
    """What the configs say.

    Attributes:
        outline: the model's layers.
        parts: the tasks.
        sizes: samples of each split.
        short: the task that keeps a split from being larger, by split.
    """

    outline: Outline
    parts: tuple[Part, ...]
    sizes: dict[str, int]
    short: dict[str, str]

    @property
    def read_layer(self) -> int:
        """Layers that run unedited in every chain; the router reads their output."""
        return read_layer_of(self.outline.num_layers)

    @property
    def layer_runs(self) -> int:
        """Layers run for one sample's row of the table: chains share what they begin with."""
        return self.read_layer + sum(size << i for i, size in enumerate(self.blocks))

    @property
    def blocks(self) -> list[int]:
        """Layers of each run that a chain drops or keeps, as `python -m search menu` cuts them."""
        editable = range(self.read_layer, self.outline.num_layers)
        return [len(block) for block in np.array_split(editable, min(BLOCKS, len(editable)))]

    def gpu_hours(self, samples: float) -> float:
        """Return the GPU hours of a table of so many samples, by the assumptions above."""
        in_layer = 2 * self.outline.layer_parameters / self.outline.num_layers * TOKENS
        return samples * self.layer_runs * in_layer / OPERATIONS / 3600


def main(argv: Sequence[str]) -> None:
    """Write the configs and say how to go on.

    Raises:
        InputError: at bad input, or where the folder holds other configs.
    """
    description = "Write the configs of all steps for a model and some tasks."
    words = [word.replace("--gpu-hours", "--gpu_hours", 1) for word in argv]
    settings, _ = parse_settings(NewSettings, words, "router new", description)
    model, task, out = (_given(settings, name) for name in QUESTIONS)
    outline = outline_of(model, settings.revision)
    if outline.num_layers < 2:
        raise InputError(f"model: expected one of at least 2 layers, got {outline.num_layers}")
    parts = _parts(task, settings.path, has_chat_template(model, settings.revision))
    plan = _sized(Plan(outline, parts, dict(SIZES), {}), settings.gpu_hours)
    folder = Path(out)
    files = configs(plan, replace(settings, model=model), folder)
    for name, text in files.items():
        if (folder / name).exists() and (folder / name).read_text(encoding="utf-8", errors="replace") != text:
            raise InputError(f"out: expected a folder without other configs, got {str(folder / name)!r} there")
    writable_directory(folder, "out")
    for name, text in files.items():
        write_text(folder / name, text)
    print(told(plan, folder, [step for step in STEPS if step.config in files]))


def _given(settings: NewSettings, name: str) -> str:
    """Return a setting, or what is answered on the terminal."""
    value = getattr(settings, name)
    if value is not None:
        return str(value)
    answer = ""
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            answer = input(f"{QUESTIONS[name]}: ").strip()
        except EOFError:
            print()
    if not answer:
        raise InputError(f"{name}: expected --{name} (asked for on a terminal only), got none")
    return answer


def _parts(names: str, paths: str | None, chat: bool) -> tuple[Part, ...]:
    """Read the tasks.

    Args:
        names: names or files of tasks, parted by commas.
        paths: where their rows are, of those that name no source, parted by commas.
        chat: whether the model's tokenizer has a chat template.
    """
    left = [Path(path) for path in paths.split(",")] if paths else []
    parts: list[Part] = []
    for name in names.split(","):
        settings = TaskSettings(task=name.strip())
        task = settings.load()
        if not any((task.hub, task.wheel, task.reasoning_gym, task.shapes)):
            settings = replace(settings, path=left.pop(0) if left else None)
        source = source_of(task, None, settings.path)
        rows = _rows(settings, task, source)
        settings = _asked(settings, task, chat)
        parts.append(Part(settings, settings.load(), rows, _drawn_on(rows)))
    if left:
        raise InputError(f"path: expected one for each task that names no source, got {str(left[0])!r} besides")
    twice = {part.task.name for part in parts if [one.task.name for one in parts].count(part.task.name) > 1}
    if twice:
        raise InputError(f"task: expected each task once, got {min(twice)!r} twice")
    return tuple(parts)


def _asked(settings: TaskSettings, task: Task, chat: bool) -> TaskSettings:
    r"""Return a task's settings as the demo has them: by letter, or into a \boxed{, where there is a chat template."""
    gym = task.reasoning_gym
    if gym is not None and "difficulty" in task.columns.metadata:
        settings = replace(settings, keep={"difficulty": list(gym.settings)[:2]})
    if not chat:
        return settings
    if task.mode in CHOICE_MODES:
        return replace(settings, mode="letter", style="chat")
    if task.mode == "exact" and not task.prompt.opening:
        return replace(settings, style="chat", opening="\\boxed{")
    return replace(settings, style="chat")


def _rows(settings: TaskSettings, task: Task, source: str) -> dict[str, int | None]:
    """Return how many rows each split of a task's source has; None: not known without fetching them."""
    path = settings.path
    if source == "local":
        if path is not None and path.is_file():
            return {"train": _lines(path)}
        local_file(path, "train")  # refuses a folder that is none, or without rows to train on
        files = {split: Path(str(path)) / f"{split}.jsonl" for split in ("train", "validation", "test")}
        return {split: _lines(file) for split, file in files.items() if file.is_file()}
    if task.reasoning_gym is not None:
        levels = min(2, len(task.reasoning_gym.settings))
        return dict.fromkeys(SPLITS, levels * task.reasoning_gym.size)
    if task.shapes is not None:
        return dict.fromkeys(SPLITS, task.shapes.size)
    if settings.task in ROWS:
        return dict(ROWS[settings.task])
    named = ("train", "validation", "test") if task.wheel is None else tuple(task.wheel.files)
    return dict.fromkeys(named)


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def _drawn_on(rows: Mapping[str, int | None]) -> dict[str, str]:
    """Return the split of a source that each split is drawn from: its own, or else what is there."""
    wanted = {
        "train": ("train", "validation", "test"),
        "validation": ("validation", "train", "test"),
        "calibration": ("train", "validation", "test"),
        "test": ("test", "validation", "train"),
    }
    first = next(iter(rows), "train")
    return {split: next((one for one in order if one in rows), first) for split, order in wanted.items()}


def _sized(plan: Plan, gpu_hours: float | None) -> Plan:
    """Return the plan with the samples that the GPU hours, and then the tasks' rows, allow.

    Raises:
        InputError: where they allow too few.
    """
    whole = plan.gpu_hours(sum(SIZES.values())) / TABLE_SHARE
    times = 1.0 if gpu_hours is None else gpu_hours / whole
    if gpu_hours is not None and times < LEAST:
        raise InputError(f"gpu_hours: expected at least {LEAST * whole:.2g} for this model, got {gpu_hours:g}")
    sizes = {split: int(size * times) for split, size in SIZES.items()}
    short: dict[str, str] = {}
    for part in plan.parts:
        wanted: dict[str, float] = defaultdict(float)
        for split, origin in part.drawn_on.items():
            wanted[origin] += SIZES[split] * times / len(plan.parts)
        for split, origin in part.drawn_on.items():
            rows = part.rows[origin]
            share = 1.0 if rows is None else USABLE * rows / wanted[origin]
            if int(SIZES[split] * times * share) < sizes[split]:
                sizes[split], short[split] = int(SIZES[split] * times * share), part.task.name
    for split, size in sizes.items():
        least = max(len(plan.parts), math.ceil(LEAST * SIZES[split]))
        if size < least:
            raise InputError(
                f"task: expected rows for {least} samples of {split}, got {size} by {short.get(split, 'gpu_hours')}"
            )
    return replace(plan, sizes=sizes, short=short)


def read_layer_of(num_layers: int) -> int:
    """Return after how many layers a router reads: the demo's share of the model's."""
    return min(max(1, round(READ_SHARE * num_layers)), num_layers - 1)


def configs(plan: Plan, settings: NewSettings, folder: Path) -> dict[str, str]:
    """Return the configs' texts, by file name.

    Args:
        plan: what they say.
        settings: the settings, with the model.
        folder: where they and the results lie.
    """
    places = {name: str(folder / name) for name in ("data", "table", "router", "eval", "menu.json")}
    base = {"model": settings.model} | ({} if settings.revision is None else {"revision": settings.revision})
    seeing = {"data": places["data"], "records": places["table"]}
    values: dict[str, dict[str, Any]] = {
        "data.yaml": {
            "out": places["data"],
            "seed": 0,
            "on_bad_row": "skip",
            "mixture": [_component(part) for part in plan.parts],
            **{split: {"size": size} for split, size in plan.sizes.items()},
        },
        "menu.yaml": {
            "kind": "subsets",
            "out": places["menu.json"],
            **base,
            "first_editable": plan.read_layer,
            "blocks": BLOCKS,
        },
        "search.yaml": {
            "data": places["data"],
            "out": places["table"],
            "splits": list(SPLITS),
            **base,
            "menu": places["menu.json"],
            "first_editable": plan.read_layer,
            "read_layers": [plan.read_layer],
            "verify": False,
            "batch_samples": 64,
        },
        "train.yaml": {
            "out": places["router"],
            **seeing,
            **base,
            "seed_everything": 0,
            "read_layer": plan.read_layer,
            "batch_size": 64,
            "head": {
                "kind": "menu",
                "pooling": "ends",
                "hidden": 32,
                "dropout": 0.3,
                "learning_rate": 0.001,
                "weight_decay": 1.0,
                "menu": {"agreement": 0.25},
            },
            "trainer": {"max_epochs": 60},
        },
        "calibrate.yaml": {
            "router": places["router"],
            **seeing,
            **base,
            "static": places["table"],
            "epsilon": 0.02,
            "delta": 0.1,
        },
        "eval.yaml": {
            "out": places["eval"],
            "router": places["router"],
            **seeing,
            **base,
            "budget_share": 0.5,
            "baselines": ["mixture"],
            "batch_samples": 128,
        },
    }
    return {step.config: _text(step.command(folder), values[step.config]) for step in STEPS if step.config in values}


def _component(part: Part) -> dict[str, Any]:
    """Return what the config says of a task: what is not the default."""
    named = {name: getattr(part.settings, name) for name in ("task", "mode", "style", "opening", "keep", "path")}
    said = {name: str(value) if name == "path" else value for name, value in named.items() if value is not None}
    drawn_on = {split: origin for split, origin in part.drawn_on.items() if origin != split}
    return said | ({"source_split": drawn_on} if drawn_on else {})


NOTES = {
    "mixture": "The tasks; `weight` is a task's share of every split, 1 each. How each is asked: docs/concepts.md",
    "train": "Samples of each split. More training samples help little, more calibration samples certify more.",
    "model": "An offline asset, a local directory or a hub id; the same in all files.",
    "first_editable": "Layers before this one run in every chain. The router reads their output.",
    "blocks": "The later layers are dropped in this many runs of neighbours: 2 to this power chains.",
    "batch_samples": "Samples that run at once: as many as memory holds.",
    "menu": "The chains that run on every sample.",
    "head": "The router's network and how it is trained; python -m train --help",
    "epsilon": "Accuracy that may be lost against full depth, and the probability of being wrong about it.",
    "budget_share": "Mean depth asked for, from the router's shallowest (0) to its deepest (1); or `budget:` layers.",
    "baselines": "What the router is compared with besides; null: everything, which takes longer.",
}
"""One line on each setting that one may want to change."""


def _text(command: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return a config: the command, then each setting with its note."""
    lines = [f"# python -m {' '.join(command)}"]
    for name, value in values.items():
        lines += [f"# {NOTES[name]}"] if name in NOTES else []
        text = yaml.safe_dump(value, default_flow_style=None, sort_keys=False, allow_unicode=True, width=math.inf)
        text = text.removesuffix("...\n").rstrip()
        inline = not isinstance(value, (dict, list)) or text.startswith(("{", "["))
        lines.append(f"{name}: {text}" if inline else f"{name}:\n{textwrap.indent(text, '  ')}")
    return "\n".join(lines) + "\n"


def told(plan: Plan, folder: Path, written: Sequence[Step]) -> str:
    """Return what was planned, by which arithmetic, and the commands of the steps whose configs were written."""
    n, samples, chains = plan.outline.num_layers, sum(plan.sizes.values()), 2 ** len(plan.blocks)
    per_layer = plan.outline.layer_parameters / n / 1e6
    lines = [
        f"configs: {', '.join(step.config for step in written)} in {folder}",
        f"model: {n} layers; {plan.read_layer} run always, and the router reads their output; "
        f"{chains} chains keep or drop the other {n - plan.read_layer}",
        f"tasks: {', '.join(f'{part.task.name} ({part.task.mode})' for part in plan.parts)}",
        "samples: " + ", ".join(f"{size:,} {split}" for split, size in plan.sizes.items()),
    ]
    short = ", ".join(f"{split} ({name})" for split, name in plan.short.items())
    lines += [f"  not more, for want of rows: {short}"] if short else []
    unknown = [part.task.name for part in plan.parts if None in part.rows.values()]
    lines += [f"  {name}: rows not known; data prepare says where there are too few" for name in unknown]
    lines += [
        f"search: {samples:,} samples x {plan.layer_runs} layers = {samples * plan.layer_runs:,} layer runs "
        f"({chains} chains of at most {n} layers; what chains begin with in common runs once);",
        f"  with {per_layer:.3g} million parameters a layer, {TOKENS} tokens and {OPERATIONS / 1e12:g} TFLOP/s, both "
        f"assumed, {plan.gpu_hours(samples):.2g} GPU hours, and as much again for the evaluation;",
        "  the search says after its first batch what it really takes",
        "",
    ]
    commands = [f"python -m {shlex.join(step.command(folder))}" for step in written]
    width = max(map(len, commands))
    lines += [f"{command:<{width}}   # {step.does}" for command, step in zip(commands, written, strict=True)]
    return "\n".join(
        [
            *lines,
            "",
            "All of them, and again to go on after a stop:",
            f"python -m router run {shlex.quote(str(folder))}",
        ]
    )
