"""Use a trained router with its base model.

python -m router info     runs/demo/router
python -m router route    runs/demo/router --budget 27 --prompt "Which of these is a fruit?"
python -m router generate runs/demo/router --budget 27 --prompt "The capital of France is"
python -m router serve    runs/demo/router --budget 27
python -m router export   --model smollm2-135m-instruct --chain 0-24,28-29 --out runs/short
python -m router lm-eval  --model cola-router --model_args router=runs/demo/router,budget=27 --tasks arc_easy
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from router.command import run_command
from router.validation import InputError

COMMANDS = {
    "info": "info",
    "route": "route",
    "generate": "generate",
    "serve": "serve",
    "export": "export",
    "lm-eval": "lm_eval",
}
"""What each word runs, a module of `router.commands`; loaded only then, for some need packages of their own."""
USAGE = f"usage: python -m router {{{','.join(COMMANDS)}}} [--help] [settings]"


def main(argv: Sequence[str] | None) -> None:
    """Run the subcommand that the first word names.

    Raises:
        InputError: at bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
        return
    if command not in COMMANDS:
        raise InputError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}")
    importlib.import_module(f"router.commands.{COMMANDS[command]}").main(rest)


if __name__ == "__main__":
    sys.exit(run_command(main))
