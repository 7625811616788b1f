"""The menu file: the chains that a router may choose from (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.chain import Chain
from router.command import InputError
from router.durable import read_json, require_file, sha256_json, write_json

SCHEMA = 1
"""Version of the menu file's format."""


@dataclass(frozen=True)
class Menu:
    """Chains to choose from.

    Attributes:
        chains: the chains, all different, of one model; the full chain is the first.
        prefix_layers: layers 0..prefix_layers-1 run unedited in every chain.
        made: how it was made: settings, measures, hashes of what it was chosen from.

    Raises:
        ValueError: where the chains are not so.
    """

    chains: tuple[Chain, ...]
    prefix_layers: int
    made: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse what is no menu."""
        if not self.chains or not self.chains[0].is_full:
            raise ValueError("chains: expected the full chain as the first, got another or none")
        if len({chain.num_layers for chain in self.chains}) > 1:
            raise ValueError("chains: expected chains of one model, got several numbers of layers")
        if len(set(self.chains)) != len(self.chains):
            raise ValueError("chains: expected every chain once, got one twice")
        if not 0 <= self.prefix_layers < self.num_layers:
            raise ValueError(f"prefix_layers: expected 0..{self.num_layers - 1}, got {self.prefix_layers}")
        for chain in self.chains:
            if chain.unedited_prefix < self.prefix_layers:
                raise ValueError(
                    f"chains: expected chains that begin with layers 0..{self.prefix_layers - 1}, got {chain}"
                )

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.chains[0].num_layers

    @property
    def sha256(self) -> str:
        """Hash of the chains and the prefix; how they were chosen does not count."""
        return sha256_json([self.prefix_layers, self.num_layers, [chain.to_json() for chain in self.chains]])

    @classmethod
    def of(cls, chains: Sequence[Chain], prefix_layers: int, made: dict[str, Any] | None = None) -> Menu:
        """Return the menu of some chains: the full chain first, the others by depth and layers, each once."""
        full = Chain.full(chains[0].num_layers)
        others = sorted(set(chains) - {full}, key=lambda chain: (-chain.depth, chain.layers))
        return cls((full, *others), prefix_layers, made or {})


def write_menu(path: Path, menu: Menu) -> None:
    """Write a menu file, complete or not at all."""
    write_json(
        path,
        {
            "schema": SCHEMA,
            "num_layers": menu.num_layers,
            "prefix_layers": menu.prefix_layers,
            "chains": [str(chain) for chain in menu.chains],
            "made": menu.made,
        },
    )


def read_menu(path: Path) -> Menu:
    """Read a menu file.

    Raises:
        InputError: where it is missing or no menu.
    """
    value = read_json(require_file(path, "menu"))
    try:
        if value.get("schema") != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {value.get('schema')!r}")
        chains = tuple(Chain.parse(text, value["num_layers"]) for text in value["chains"])
        return Menu(chains, int(value["prefix_layers"]), dict(value.get("made", {})))
    except KeyError as error:
        raise InputError(f"{path}: expected the field {error}, got none") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {error}") from error
