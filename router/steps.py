"""`python -m router run DIR`: the commands of a folder of configs, one after the other, in this process.

`python -m router new` writes such a folder (data/new.py); configs/demo and configs/small are others. Every command goes
on where it was stopped and says so when nothing is left to do, so the whole is resumed by running it again. One
process, so that Ctrl-C and every kill reach the command that is running.
"""

from __future__ import annotations

import gc
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic.dataclasses import dataclass

from router.command import first_word, parse_settings, program_words
from router.files import require_directory
from router.validation import SETTINGS, InputError, parse_yaml


class Step(NamedTuple):
    """A command of a folder of configs.

    Attributes:
        config: its config's file name in the folder.
        words: the words after `python -m`.
        does: what it does, for readers.
        made: the setting that says where its result lies.
        look: what to look at there afterwards.
        needed: whether every folder has it; others are left out where the config is missing.
    """

    config: str
    words: tuple[str, ...]
    does: str
    made: str
    look: str
    needed: bool = True

    def command(self, folder: Path) -> list[str]:
        """Return the words after `python -m`, with the config."""
        return [*self.words, "--config", str(folder / self.config)]


STEPS = (
    Step(
        "data.yaml",
        ("data", "prepare"),
        "draw splits that share no question",
        "out",
        "one line a question; manifest.json says what became of every row",
    ),
    Step(
        "menu.yaml",
        ("search", "menu"),
        "list the chains that the router may choose from",
        "out",
        "a chain a line, as the layers that it runs",
        needed=False,
    ),
    Step(
        "search.yaml", ("search",), "run chains on every sample", "out", "what each chain answered, one line a sample"
    ),
    Step(
        "search_wrong.yaml",
        ("search",),
        "control: search chains for a wrong answer, which shows what is luck",
        "out",
        "as before",
        needed=False,
    ),
    Step("search_random.yaml", ("search",), "control: as many random chains", "out", "as before", needed=False),
    Step(
        "train.yaml",
        ("train",),
        "train the router on what the chains answered",
        "out",
        "the router; python -m router info shows its chains and depths",
    ),
    Step(
        "calibrate.yaml",
        ("train", "calibrate"),
        "certify on samples of their own what the router loses at most",
        "router",
        "guarantee.json: the loss, and at which depth",
        needed=False,
    ),
    Step(
        "eval.yaml",
        ("eval",),
        "run the router on the test questions, beside full depth and fixed chains",
        "out",
        "report.html, to be opened in a browser",
    ),
    Step(
        "latency.yaml",
        ("eval", "latency"),
        "measure what the arms cost in time",
        "evaluation",
        "latency.json, and the same report with times",
        needed=False,
    ),
)
"""The steps in their order."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class StepSettings:
    """Settings of `python -m router run`.

    Attributes:
        folder: folder of configs, as `python -m router new` writes one; may stand alone, as the first word.
    """

    folder: Path


def main(argv: Sequence[str]) -> None:
    """Run the steps; what is finished already is left as it is.

    Raises:
        InputError: where the folder lacks a config.
        SystemExit: with the exit status of the first step that fails, which has said why.
    """
    description = "Run the commands of a folder of configs, or go on where an earlier run was stopped."
    settings, _ = parse_settings(StepSettings, first_word(argv, "folder"), "router run", description)
    folder = require_directory(settings.folder, "folder")
    steps = [step for step in STEPS if step.needed or (folder / step.config).exists()]
    made = [_made(folder, step) for step in steps]  # a folder that lacks a step is refused before anything runs
    for number, (step, place) in enumerate(zip(steps, made, strict=True), start=1):
        command = step.command(folder)
        print(f"\n{number}/{len(steps)}  {step.does}: python -m {shlex.join(command)}", flush=True)
        status = run_module(command)
        if status:
            print(f"stopped at step {number}: once this is set right, the same command goes on", file=sys.stderr)
            raise SystemExit(status)
        print(f"made: {place} ({step.look})", flush=True)


def _made(folder: Path, step: Step) -> str:
    path = folder / step.config
    if not path.is_file():
        raise InputError(
            f"folder: expected a folder of settings, as python -m router new writes one, got {str(folder)!r}, which "
            f"has no {step.config}"
        )
    values = parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))
    if not isinstance(values, dict) or step.made not in values:
        raise InputError(f"{path}: expected the setting {step.made}, got none")
    return str(values[step.made])


def run_module(command: Sequence[str]) -> int:
    """Run what `python -m` runs with some words, in this process, and return its exit status."""
    try:
        with program_words(["", *command[1:]]):
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        gc.collect()  # the step's model must not stand in the next one's memory
    return 0
