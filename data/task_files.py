"""Task files: YAML that describes a task, and the tasks that a folder of samples was prepared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.columns import Columns
from data.origins import HubSource, ReasoningGymSource, WheelSource
from data.prompts import Prompt
from data.sample import Sample
from data.tasks import Task
from router.command import InputError, one_line, plain_values
from router.durable import read_json, require_file, sha256_json, write_json

FOLDER = Path(__file__).parent / "tasks"
TASKS_FILE = "tasks.json"
"""Beside the split files: the tasks that they were prepared with."""
SCHEMA = 1
"""Version of `tasks.json`."""
_PARTS: dict[str, Any] = {
    "columns": Columns,
    "prompt": Prompt,
    "hub": HubSource,
    "wheel": WheelSource,
    "reasoning_gym": ReasoningGymSource,
}


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The tasks of a folder of samples: one, or those of a mixture.

    Attributes:
        tasks: the tasks, by name.
    """

    tasks: Mapping[str, Task]

    @classmethod
    def of(cls, tasks: Task | TaskSet | Iterable[Task]) -> TaskSet:
        """Return one task, several, or a set of them as a set.

        Raises:
            InputError: where there is none, or two have one name.
        """
        if isinstance(tasks, TaskSet):
            return tasks
        listed = [tasks] if isinstance(tasks, Task) else list(tasks)
        by_name = {task.name: task for task in listed}
        if not listed or len(by_name) != len(listed):
            raise InputError(f"task: expected tasks of different names, got {', '.join(t.name for t in listed)}")
        return cls(dict(sorted(by_name.items())))

    def __getitem__(self, name: str) -> Task:
        """Return a task by its name.

        Raises:
            InputError: where the set has no such task.
        """
        if name not in self.tasks:
            raise InputError(f"data: expected samples of the tasks {self.name}, got one of {name}")
        return self.tasks[name]

    @property
    def name(self) -> str:
        """The tasks' names, joined by a plus sign."""
        return "+".join(self.tasks)

    @property
    def mode(self) -> str:
        """The scoring modes, joined by a plus sign."""
        return "+".join(sorted({task.mode for task in self.tasks.values()}))

    @property
    def judged_mode(self) -> str:
        """The modes of evaluation, joined by a plus sign."""
        return "+".join(sorted({task.judged_mode for task in self.tasks.values()}))

    def shuffled(self, shuffle: int) -> TaskSet:
        """Return the tasks with another order of the listed choices; those that list none stay as they are.

        Raises:
            InputError: where no task lists any.
        """
        listing = {name for name, task in self.tasks.items() if task.has_choices and task.list_choices}
        if not listing:
            raise InputError(f"shuffle: expected 0 for {self.name}, whose prompt lists no choices, got {shuffle}")
        return TaskSet(
            {n: dataclasses.replace(t, shuffle=shuffle) if n in listing else t for n, t in self.tasks.items()}
        )

    def prompt_hash(self) -> str:
        """Return the SHA-256 of what decides prompts and scoring: the task's own, or that of all by name."""
        hashes = {name: task.prompt_hash() for name, task in self.tasks.items()}
        return sha256_json(hashes) if len(hashes) > 1 else next(iter(hashes.values()))


def known_tasks() -> tuple[str, ...]:
    """Return the names of the tasks that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_task(name: str, mode: str | None = None, **changes: Any) -> Task:
    """Read a task.

    Args:
        name: one of `known_tasks()`, or a path that ends in .yaml or .yml.
        mode: scoring mode instead of the file's; "letter" lists the choices and does not normalise.
        changes: other fields of `Task` instead of the file's; those of `prompt` as a mapping.

    Raises:
        InputError: at an unknown name, a file that is no task, an unknown key or a value that is not allowed.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in known_tasks():
            raise InputError(f"task: expected one of {', '.join(known_tasks())} or a YAML file's path, got {name!r}")
        path = FOLDER / f"{name}.yaml"
    try:
        value = yaml.safe_load(require_file(path, "task").read_text(encoding="utf-8"))
        if isinstance(value, dict):
            own = value.get("prompt") or {}
            if not isinstance(own, dict):
                raise ValueError(f"prompt: expected keys and values, got {own!r}")
            prompt = {**own, **changes.pop("prompt", {})}
            value = {**value, **changes, **({"prompt": prompt} if prompt else {})}
            if mode is not None:
                value["mode"] = mode
            if mode == "letter":
                value |= {"list_choices": True, "normalise": "none"}
            if mode == "generate" and value.get("real_mode") != "generate":
                value |= {"list_choices": True, "normalise": "none", "real_mode": None}
        return task_from(value)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {one_line(error)}") from error


def task_from(value: Any) -> Task:
    """Make a task of a mapping, as a YAML file or `tasks.json` holds it.

    Raises:
        ValueError: at an unknown or missing key, or a value that is not allowed.
    """
    if isinstance(value, dict) and "examples" in value:
        if not isinstance(value["examples"], list | tuple):
            raise ValueError(f"examples: expected a list of samples, got {value['examples']!r}")
        value = {**value, "examples": tuple(_example(one) for one in value["examples"])}
    task: Task = _build(Task, value, "the task", _PARTS)
    return task


def _example(value: Any) -> Sample:
    if isinstance(value, Sample):
        return value
    try:
        return Sample(**value)
    except TypeError as error:
        raise ValueError(f"examples: expected samples, got {one_line(error)}") from error


def _build(kind: Any, value: Any, where: str, parts: Mapping[str, Any]) -> Any:
    """Make a dataclass of a YAML mapping; unknown and missing keys raise ValueError."""
    known = {item.name: item for item in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected keys and values, got {value!r}")
    unknown = [str(key) for key in value if key not in known]
    if unknown:
        raise ValueError(f"{where}: expected keys among {', '.join(known)}, got {unknown[0]!r}")
    required = [key for key, item in known.items() if item.default is item.default_factory is dataclasses.MISSING]
    missing = [key for key in required if key not in value]
    if missing:
        raise ValueError(f"{where}: expected the key {missing[0]!r}, got none")
    return kind(
        **{
            key: item if key not in parts or item is None else _build(parts[key], item, key, {})
            for key, item in value.items()
        }
    )


def write_tasks(folder: Path, tasks: TaskSet) -> None:
    """Write `tasks.json` into a folder of samples."""
    plain = {name: plain_values(dataclasses.asdict(task)) for name, task in tasks.tasks.items()}
    write_json(folder / TASKS_FILE, {"schema": SCHEMA, "tasks": plain})


def read_tasks(folder: Path) -> TaskSet:
    """Read the tasks that a folder of samples was prepared with.

    Raises:
        InputError: where the file is missing, corrupt or of another schema.
    """
    path = require_file(folder / TASKS_FILE, "data")
    value = read_json(path)
    if value.get("schema") != SCHEMA or not isinstance(value.get("tasks"), dict):
        raise InputError(f"{path}: expected the tasks of python -m data prepare, schema {SCHEMA}")
    try:
        return TaskSet.of([task_from(task) for task in value["tasks"].values()])
    except ValueError as error:
        raise InputError(f"{path}: {one_line(error)}") from error
