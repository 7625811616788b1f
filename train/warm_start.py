"""A router whose weights another router's training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from router.command import InputError
from router.durable import sha256_file
from router.fingerprint import Fingerprints
from router.head import Head
from router.menu_head import OUTCOMES, MenuHead
from router.storage import TRAINED_ON_FILE, WEIGHTS_FILE, Router, load_router, trained_questions


@dataclass(frozen=True)
class WarmStart:
    """A router to start from.

    Attributes:
        router: the router.
        weights_sha256: hash of its weights, which decides what training makes of it.
        split_hashes: the questions (`Sample.split_hash`) that it was trained and chosen on; whatever starts from it has
            seen them too.
    """

    router: Router
    weights_sha256: str
    split_hashes: frozenset[str]

    @classmethod
    def read(cls, folder: Path, out: Path) -> WarmStart:
        """Read a router's folder.

        Args:
            folder: the router's folder.
            out: the folder that training will write.

        Raises:
            InputError: where it holds no router, none that says what it was trained on, or is `out`.
        """
        if folder.resolve() == out.resolve():
            raise InputError(f"warm_start: expected another folder than out, got {str(folder)!r}")
        with torch.random.fork_rng(devices=[]):  # a head draws when it is built; the new one draws as without this one
            router = load_router(folder)
        seen = trained_questions(folder)
        if seen is None:
            raise InputError(
                f"warm_start: expected a router with {TRAINED_ON_FILE}, so that nobody evaluates on questions that it "
                f"has seen, got {str(folder)!r} without"
            )
        return cls(router, sha256_file(folder / WEIGHTS_FILE), seen)

    def require(
        self, name: str, head_settings: Mapping[str, Any], prefix_layers: int, fingerprints: Fingerprints
    ) -> None:
        """Check that a new head can start from this one; the prompt and the chains of a menu may be others.

        Args:
            name: the new head's kind, a key of `router.storage.HEADS`.
            head_settings: its settings.
            prefix_layers: its read layer.
            fingerprints: what its records were made for.

        Raises:
            InputError: at the first that differs; the message names it and both values.
        """
        config = self.router.config
        config.fingerprints.require(replace(fingerprints, prompt=config.fingerprints.prompt), "warm_start")
        pairs = {"head": (name, config.head), "prefix_layers": (prefix_layers, config.prefix_layers)}
        for key in (*head_settings, *(key for key in config.head_settings if key not in head_settings)):
            if key != "chains":
                pairs[key] = (head_settings.get(key), config.head_settings.get(key))
        for key, (wanted, got) in pairs.items():
            if wanted != got:
                raise InputError(f"warm_start: expected a router with {key} {wanted}, as set here, got {got}")

    def give(self, head: Head) -> str:
        """Copy the weights into a head that was started from its own targets, and return a line on what was copied.

        Of a menu head, chains that the old menu lacks keep what they started with, the rates among the targets.
        """
        old = self.router.head
        if isinstance(head, MenuHead) and isinstance(old, MenuHead) and head.chains != old.chains:
            head.encoder.load_state_dict(old.encoder.state_dict())
            count = _copy_shared_rows(head, old)
            return f"warm start: encoder, and {count} of {len(head.chains)} chains of the menu, from {self._told}"
        head.load_state_dict(old.state_dict())
        return f"warm start: all weights from {self._told}"

    @property
    def _told(self) -> str:
        return f"a router of {self.router.config.task} (weights {self.weights_sha256[:12]})"


@torch.no_grad()
def _copy_shared_rows(head: MenuHead, old: MenuHead) -> int:
    """Copy the rows of chains that both menus have, and of the auxiliary values; returns the number of chains."""
    places = {chain: i for i, chain in enumerate(old.chains)}
    width = len(OUTCOMES)
    pairs = [(i, places[chain]) for i, chain in enumerate(head.chains) if chain in places]
    for to, source in ((head.predict.weight, old.predict.weight), (head.predict.bias, old.predict.bias)):
        for i, j in pairs:
            to[i * width : (i + 1) * width] = source[j * width : (j + 1) * width]
        to[len(head.chains) * width :] = source[len(old.chains) * width :]
    return len(pairs)
