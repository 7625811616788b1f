"""lm-evaluation-harness with routed models: its own command line, which knows `--model cola-router` here.

python -m router lm-eval --model_args router=runs/demo/router,budget=23.5 --tasks arc_easy,hellaswag --batch_size 8
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

from router.command import InputError, one_line

_SUBCOMMANDS = ("ls", "validate")
_REFUSING = ("lm_eval._cli.", "lm_eval.config.", "lm_eval.evaluator", "lm_eval.api.registry", "lm_eval.tasks.")
"""Modules of lm-eval that raise a bare ValueError or TypeError at what the user typed."""


def main(argv: Sequence[str]) -> None:
    """Run lm-eval's command line with routed models among its models.

    Args:
        argv: lm-eval's arguments; without `--model` or `--config` the model is a routed one.

    Raises:
        InputError: where lm-eval is not installed, or refuses an argument.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval: expected the package lm_eval, got none (pip install 'cola-router[lm-eval]')")
    # Only now: most who use a router do not have lm-eval.
    model, harness = (importlib.import_module(name) for name in ("router.harness.model", "lm_eval.__main__"))
    model.register()
    words = list(argv)
    if words in (["-h"], ["--help"]):
        names = ", ".join(field.name for field in fields(model.ModelArguments))
        print(f"{__doc__}\nmodel_args: {names}\nThe rest is lm-eval's:\n")
        words = ["run", "--help"]
    elif words and words[0] not in _SUBCOMMANDS and not _names_a_model(words):
        words += ["--model", model.NAME]
    try:
        with _program_arguments(words):
            harness.cli_evaluate()
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError) or not _raised_by(error).startswith(_REFUSING):
            raise
        raise InputError(f"lm-eval: {one_line(error)}") from error


def _names_a_model(words: Sequence[str]) -> bool:
    """Whether the command line says which model, or has a file that may."""
    return any(word.partition("=")[0] in ("--model", "-M", "--config", "-C") for word in words)


@contextmanager
def _program_arguments(words: Sequence[str]) -> Iterator[None]:
    """Put words where lm-eval looks for its arguments, and restore what was there."""
    kept = sys.argv
    sys.argv = ["lm-eval", *words]
    try:
        yield
    finally:
        sys.argv = kept


def _raised_by(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", ""))
