"""Make a router in one go, and use it with its base model.

python -m router new      --model qwen2.5-coder-1.5b-instruct --task arc_easy,chain_sum --out runs/mine
python -m router run      runs/mine
python -m router info     runs/demo/router
python -m router route    runs/demo/router --budget 25 --prompt "Which of these is a fruit?"
python -m router generate runs/demo/router --budget 25 --prompt "The capital of France is"
python -m router serve    runs/demo/router --budget 25
python -m router proxy    runs/demo/router --backends backends.yaml --budget 25
python -m router export   --model smollm2-135m-instruct --chain 0-24,28-29 --out runs/short
python -m router lm-eval  --model cola-router --model_args router=runs/demo/router,budget=25 --tasks arc_easy
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from router.command import run_command
from router.validation import InputError

VERBS = {
    "new": ("data.new", "main"),
    "run": ("router.steps", "main"),
    "info": ("router.routed.commands", "info"),
    "route": ("router.routed.commands", "route"),
    "generate": ("router.routed.commands", "generate"),
    "serve": ("router.serving.server", "main"),
    "proxy": ("router.serving.proxy", "main"),
    "export": ("router.routed.commands", "export"),
    "lm-eval": ("router.routed.lm_eval", "main"),
}
"""Module and function of each verb; a module is loaded only then, for some need packages of their own."""
USAGE = f"usage: python -m router {{{','.join(VERBS)}}} [--help] [settings]"


def main(argv: Sequence[str] | None) -> None:
    """Run the verb that the first word names.

    Raises:
        InputError: at bad input.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb in ("-h", "--help"):
        print(f"{USAGE}\n\n{__doc__}")
        return
    if verb not in VERBS:
        raise InputError(f"command: expected one of {', '.join(VERBS)}, got {verb!r}")
    if verb == "lm-eval" and importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            "lm-eval: expected the package lm_eval, got none (pip install -c constraints.txt -e '.[lm-eval]')"
        )
    module, function = VERBS[verb]
    getattr(importlib.import_module(module), function)(rest)


if __name__ == "__main__":
    sys.exit(run_command(main))
