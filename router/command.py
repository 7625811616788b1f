"""What every command line shares: one clear line and exit status 2 for bad input, and the run's provenance.

Each package's `__main__.py` calls `run_command(main, argv)`; `main` parses with `parse_settings`.
"""

from __future__ import annotations

import dataclasses
import io
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from pydantic import ValidationError

from router.validation import InputError, UnfinishedError, adapter, describe, explain, parse_yaml

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "lightning",
    "accelerate",
    "wandb",
    "scikit-learn",
    "gguf",
    "math-verify",
)
"""Libraries whose version is written beside every result."""

Settings = TypeVar("Settings")


def parse_settings(
    kind: type[Settings], argv: Sequence[str] | None, program: str, description: str
) -> tuple[Settings, dict[str, Any]]:
    """Parse a command line (`--config FILE`, overrides, `--print_config`) into a dataclass of settings.

    Returns:
        The settings, and the resolved values as plain data, to be written beside the results.

    Raises:
        InputError: at an unknown setting, or a value that its type or the dataclass refuses.
    """
    parser = ArgumentParser(
        prog=f"python -m {program}", description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; later options override it")
    parser.add_class_arguments(kind, as_group=False)
    given = sys.argv[1:] if argv is None else list(argv)
    require_unique_keys(given)
    with refusals_of(kind):
        settings = settings_of(kind, parser.parse_args(given))
    return settings, plain_values(settings)


def settings_of(kind: type[Settings], parsed: Namespace) -> Settings:
    """Make settings of what a parser has read; pydantic makes those inside them too, so an error says where it is.

    Raises:
        ValidationError: where a type refuses a value.
    """
    given = parsed.clone(with_meta=False).as_dict()  # a part read from a file of its own comes with the file's path
    made: Settings = adapter(kind).validate_python({one.name: given[one.name] for one in dataclasses.fields(kind)})  # type: ignore[arg-type]
    return made


@contextmanager
def refusals_of(kind: type) -> Iterator[None]:
    """Turn what a parser, or the types of settings, refuse into one line of ours.

    Raises:
        InputError: in place of their errors.
    """
    try:
        yield
    except ValidationError as error:
        raise InputError(explain(error)) from error
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(_sentence(kind, error)) from error


def require_unique_keys(argv: Sequence[str]) -> None:
    """Refuse a YAML file named on a command line in which a key stands twice: the last one would win in silence.

    Raises:
        InputError: where one does; the message names file and line.
    """
    for word in argv:
        path = Path(word.split("=", 1)[-1])
        if path.suffix in (".yaml", ".yml") and os.path.isfile(path):  # False also of a text too long for a name
            parse_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _sentence(kind: type, error: BaseException) -> str:
    """Return a refusal of the parser's in the words of ours, where it is about the value of one setting."""
    text = one_line(error)
    about = re.match(r'Parser key "([\w.]+)"', text)
    value = re.search(r"(?:Got value|Given value): (.*)$", text)
    if about is None or value is None:
        return text
    annotation: Any = kind
    for name in about[1].split("."):
        if not dataclasses.is_dataclass(annotation):
            return text
        annotation = get_type_hints(annotation, include_extras=True).get(name)
    return f"{about[1]}: expected {describe(annotation)}, got {value[1]!r}"


def first_word(argv: Sequence[str], setting: str) -> list[str]:
    """Return the words of a command line with the name of the setting put before a first word that has none."""
    words = list(argv)
    return [f"--{setting}", *words] if words and not words[0].startswith("-") else words


@contextmanager
def program_words(words: Sequence[str]) -> Iterator[None]:
    """Put a program's name and arguments where it looks for them, and restore what was there."""
    kept, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = kept


def plain_values(value: Any) -> Any:
    """Return settings as JSON data: dataclasses as objects, paths as text, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def without_places(value: Any) -> Any:
    """Return JSON data in which absolute paths, and those from a home directory, are cut down to their last part."""
    if isinstance(value, Mapping):
        return {name: without_places(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if isinstance(value, str) and "\n" not in value and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def one_line(error: BaseException) -> str:
    """Return an error's message as one line."""
    return " ".join(str(error).split())


def _stop(*_: object) -> None:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


def run_command(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and return its exit status.

    It is 0, 1 where a part of the work could not be done, 2 for bad input or a full disk, 130 for Ctrl-C.

    SIGTERM is treated as Ctrl-C: what was computed is already on the disk, the next run goes on from there. Ctrl-C ends
    a background job of a script too, which a shell starts with that signal ignored: nothing is lost by it.
    """
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: no letter ends a command
    try:
        main(argv)
    except (InputError, OSError, UnfinishedError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, UnfinishedError) else 2
    except KeyboardInterrupt:
        print("interrupted: finished work is saved; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def provenance(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a result needs to be traced: settings, git commit, versions, time."""
    return {
        "settings": settings,
        "commit": git_commit(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """Return the commit of the source tree, with `-dirty` where files differ from it, or None outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
