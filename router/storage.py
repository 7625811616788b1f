"""A trained router on disk: `config.json` beside `router.safetensors`. No pickles."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from router.command import one_line
from router.decision import Guarantee, Router, RouterConfig
from router.files import read_json, replacing, require_directory, require_file, sha256_file, write_json
from router.fingerprint import Fingerprints
from router.heads.head import Head
from router.heads.menu import MenuHead
from router.scope import Scope
from router.validation import InputError, from_plain, shown, to_plain

SCHEMA = 3
"""Version of `config.json`; version 2, whose `read_layer` was called `prefix_layers`, is read too."""
GUARANTEE_SCHEMA = 1
"""Version of `guarantee.json`."""
CONFIG_FILE, WEIGHTS_FILE = "config.json", "router.safetensors"
SCOPE_PREFIX, LATE_PREFIX = "scope.", "late."
"""Names of a scope's tensors, and of those of the head that reads late, begin so in the weights' file."""
TRAINED_ON_FILE = "trained_on.json"
"""Beside a router: hashes of the questions (`Sample.split_hash`) that it was trained and chosen on."""
GUARANTEE_FILE = "guarantee.json"
"""Beside a router; made by `python -m train calibrate`."""


def save_router(folder: Path, router: Router) -> None:
    """Write a router into a directory, which is made if need be; each file is complete or absent."""
    folder.mkdir(exist_ok=True)
    with replacing(folder / WEIGHTS_FILE) as aside:
        save_file(_tensors(router), aside)
    # Two files cannot be replaced in one step; by this hash a reader refuses one half of an old and a new router.
    hashed = sha256_file(folder / WEIGHTS_FILE)
    config = dataclasses.replace(router.config, scope=None if router.scope is None else router.scope.config)
    write_json(folder / CONFIG_FILE, {"schema": SCHEMA, "weights_sha256": hashed, **to_plain(config)})


def weights_sha256(router: Router) -> str:
    """Return the SHA-256 that the weights' file has once the router is saved; a guarantee is bound to it."""
    return hashlib.sha256(save(_tensors(router))).hexdigest()


def _tensors(router: Router) -> dict[str, Tensor]:
    state = _state(router.head, router.scope, router.late)
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _state(head: Head, scope: Scope | None, late: MenuHead | None) -> dict[str, Tensor]:
    """Return all that the weights' file holds, by name."""
    state = dict(head.state_dict())
    for prefix, part in ((SCOPE_PREFIX, scope), (LATE_PREFIX, late)):
        state |= {} if part is None else {prefix + name: tensor for name, tensor in part.state_dict().items()}
    return state


def trained_questions(folder: Path) -> frozenset[str] | None:
    """Return the questions (`Sample.split_hash`) that a router was trained and chosen on; None: it does not say.

    Raises:
        InputError: where the file that says so is corrupt.
    """
    path = folder / TRAINED_ON_FILE
    if not path.is_file():
        return None
    seen = read_json(path).get("split_hashes")
    if not isinstance(seen, list) or not all(isinstance(one, str) for one in seen):
        raise InputError(f"router: expected split_hashes in {path}, a list of texts, got {shown(seen)}")
    return frozenset(seen)


def load_router(folder: Path, expected: Fingerprints | None = None) -> Router:
    """Read a router.

    Args:
        folder: directory with `config.json` and `router.safetensors`.
        expected: fingerprints of the base model, tokenizer and prompt that it is to be used with; None: not checked.

    Raises:
        InputError: where a file is missing or corrupt, or the router was made for something else.
    """
    require_directory(folder, "router")
    path = folder / CONFIG_FILE
    value = read_json(path)
    hashed = value.pop("weights_sha256", None)
    config = _config(value, f"router: {path}")
    if expected is not None:
        config.fingerprints.require(expected, f"router {folder}")
    weights = require_file(folder / WEIGHTS_FILE, "router")
    if sha256_file(weights) != hashed:
        raise InputError(f"router: expected {weights} with the SHA-256 in {path.name}, got another file")
    try:
        _require_shapes(config, weights)
        head, scope, late, tensors = config.build(), config.build_scope(), config.build_late(), load_file(weights)
        for prefix, part in ((SCOPE_PREFIX, scope), (LATE_PREFIX, late)):
            if part is not None:
                own = [name for name in tensors if name.startswith(prefix)]
                part.load_state_dict({name.removeprefix(prefix): tensors.pop(name) for name in own})
        head.load_state_dict(tensors)
    except InputError:
        raise
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"router: expected a router in {str(folder)!r}, got {one_line(error)}") from error
    return Router(config, head.eval(), read_guarantee(folder, hashed), scope, None if late is None else late.eval())


def _config(value: dict[str, Any], where: str) -> RouterConfig:
    """Return the configuration of a `config.json` of this version or the one before."""
    schema = value.pop("schema", None)
    if schema not in (2, SCHEMA):
        raise InputError(f"{where}: expected a router's schema, 2 or {SCHEMA}, got {shown(schema)}")
    if schema == 2 and "prefix_layers" in value:
        value["read_layer"] = value.pop("prefix_layers")
    return from_plain(RouterConfig, value, where)


def _require_shapes(config: RouterConfig, weights: Path) -> None:
    """Compare the router's shapes with those that the weights' file names, before memory is taken for either."""
    with torch.device("meta"):
        state = _state(config.build(), config.build_scope(), config.build_late())
        wanted = {name: list(tensor.shape) for name, tensor in state.items()}
    with safe_open(weights, framework="pt") as file:
        found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"router: expected {weights} with {name} of shape {wanted.get(name)}, got {found.get(name)}"
            )


def write_guarantee(folder: Path, guarantee: Guarantee, weights_sha256: str, more: dict[str, Any]) -> None:
    """Write the guarantee beside the router whose weights have that hash."""
    content = {"schema": GUARANTEE_SCHEMA, "weights_sha256": weights_sha256, "guarantee": to_plain(guarantee), **more}
    write_json(folder / GUARANTEE_FILE, content)


def read_guarantee(folder: Path, weights_sha256: str) -> Guarantee | None:
    """Read a router's guarantee; None where it has none, or one of other weights (trained anew since).

    Raises:
        InputError: where the file is corrupt.
    """
    path = folder / GUARANTEE_FILE
    if not path.exists():
        return None
    value = read_json(path)
    if value.get("schema") != GUARANTEE_SCHEMA:
        raise InputError(f"{path}: expected schema {GUARANTEE_SCHEMA}, got {value.get('schema')!r}")
    if value.get("weights_sha256") != weights_sha256:
        return None
    return from_plain(Guarantee, value.get("guarantee"), f"{path}: guarantee")
