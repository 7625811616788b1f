"""Every settings class of the project: its fields are described, its types have words, its refusals name the field."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import typing
from pathlib import Path

import pytest

from router.command import parse_settings
from router.validation import SETTINGS, InputError, describe

PACKAGES = ("router", "data", "search", "train", "eval")
WRONG = {"no_such_setting": 1}
"""A value that no type of a setting takes: no setting is an object, and settings inside settings have other names."""


def settings_classes() -> list[type]:
    """Return all pydantic dataclasses with the config `SETTINGS`, each from the module that defines it."""
    found = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                # STORED has all that SETTINGS has, and is strict besides.
                config = getattr(kind, "__pydantic_config__", None)
                if kind.__module__ == module.name and dataclasses.is_dataclass(kind) and config == SETTINGS:
                    found.append(kind)
    return found


KINDS = settings_classes()


def attributes_of(kind: type) -> set[str]:
    """Return the names that stand under `Attributes:` in the docstring of the class itself."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    return set(re.findall(r"^    (\w+): \S", section.partition("\n\n")[0], re.MULTILINE))


def test_the_settings_of_every_command_are_found() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert names >= {"ModelSettings", "RunSettings", "ServeSettings", "SearchRun", "TrainSettings", "EvalSettings"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_is_described_has_a_type_in_words_and_is_refused_by_name(kind: type, tmp_path: Path) -> None:
    inherited = {name for parent in kind.__mro__[1:] for name in inspect.get_annotations(parent)}
    own = set(inspect.get_annotations(kind))
    assert own - inherited <= attributes_of(kind) <= own | inherited

    with pytest.raises(InputError, match="no_such_setting"):
        parse_settings(kind, ["--no_such_setting", "1"], "test", "A test.")

    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if field.name not in own:
            continue  # tried with the class that declares it
        words = describe(hints[field.name])
        assert not re.search(r"[\[\]<>|]|typing", words), f"{field.name}: {words}"

        if "an object" in words:
            continue  # it takes the object, whatever stands in it
        file = tmp_path / "settings.yaml"
        file.write_text(json.dumps({field.name: WRONG}))
        with pytest.raises(InputError, match=rf"\b{field.name}\b"):
            parse_settings(kind, ["--config", str(file)], "test", "A test.")
