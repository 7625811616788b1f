"""A trained router on disk: `config.json` beside `router.safetensors`. No pickles."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from router.budget import BudgetPoint
from router.chain import Chain
from router.command import InputError, one_line
from router.durable import read_json, replacing, require_directory, require_file, sha256_file, write_json
from router.fingerprint import Fingerprints
from router.guarantee import Guarantee, read_guarantee
from router.head import Head, ScoredChain, pad_states
from router.layerwise import LayerwiseHead
from router.menu_head import MenuHead
from router.program import ProgramHead

SCHEMA = 2
HEADS: dict[str, type[Head]] = {"layerwise": LayerwiseHead, "menu": MenuHead, "program": ProgramHead}
CONFIG_FILE, WEIGHTS_FILE = "config.json", "router.safetensors"
TRAINED_ON_FILE = "trained_on.json"
"""Beside a router: hashes of the questions (`Sample.split_hash`) that it was trained and chosen on."""
LARGEST = {
    "num_layers": 2**10,
    "d_model": 2**20,
    "hidden": 2**16,
    "windows": 2**12,
    "max_block": 2**10,
    "max_times": 2**6,
    "beam": 2**12,
}
"""Sizes in a `config.json` beyond which it is no router's: some cost memory before or without any weights."""
MOST_CHAINS, MOST_SEGMENTS = 2**12, 2**16
"""Chains of a menu, and segments of a program head's layers, at most; see `LARGEST`."""


@dataclass(frozen=True)
class RouterConfig:
    """What a router is and what it is valid for.

    Attributes:
        head: name of the head, a key of `HEADS`.
        head_settings: the head's own settings (hidden, windows, dropout).
        num_layers: layers of the base model.
        prefix_layers: layers that run in every chain; the head reads their output.
        d_model: width of the base model's hidden states.
        task: the task that it was trained on.
        mode: the task's scoring mode.
        base_model: name or path that the base model was loaded from.
        revision: its hub revision, where one was named.
        dtype: dtype of the base model whose states it was trained on.
        fingerprints: the base model, tokenizer and prompt that it was trained for.
        budget_points: operating points measured on the validation split.
        training: what is worth knowing of the training: settings, hashes of the records, measures.
    """

    head: str
    head_settings: dict[str, Any]
    num_layers: int
    prefix_layers: int
    d_model: int
    task: str
    mode: str
    base_model: str
    revision: str | None
    dtype: str
    fingerprints: Fingerprints
    budget_points: tuple[BudgetPoint, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse unknown heads."""
        if self.head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)}, got {self.head!r}")

    def build(self) -> Head:
        """Return an untrained head of this configuration.

        Raises:
            ValueError: where a setting of the head is unknown or out of its bounds.
        """
        try:
            head = HEADS[self.head](self.num_layers, self.prefix_layers, self.d_model, **self.head_settings)
        except TypeError as error:
            raise ValueError(f"head_settings: {one_line(error)}") from error
        head.budget_points = self.budget_points
        return head

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RouterConfig:
        """Read `config.json`.

        Raises:
            ValueError: at another schema, or a missing or unknown field.
        """
        value = dict(value)
        if value.pop("schema", None) != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}")
        known = {item.name for item in fields(cls)}
        if set(value) != known:
            raise ValueError(f"expected the fields {sorted(known)}, got {sorted(value)}")
        value["fingerprints"] = Fingerprints(**value["fingerprints"])
        value["budget_points"] = tuple(BudgetPoint(**point) for point in value["budget_points"])
        return cls(**value)


@dataclass(frozen=True)
class Router:
    """A trained head with its configuration, and what was certified of it."""

    config: RouterConfig
    head: Head
    guarantee: Guarantee | None = None

    @torch.inference_mode()
    def outputs(self, states: Sequence[Float[Tensor, "_ d_model"]]) -> Float[Tensor, "batch ..."]:
        """Return the head's output for each sample; batch partners do not matter."""
        output: Tensor = self.head(*pad_states(states))
        return output

    def route(self, states: Sequence[Float[Tensor, "_ d_model"]], budget: float | None = None) -> list[ScoredChain]:
        """Return one chain for each sample, from its `hidden_states[prefix_layers]`; batch partners do not matter.

        Args:
            states: the states of each sample's tokens.
            budget: mean depth wanted, layers; None: the router's own choice.

        Raises:
            ValueError: where the budget lies outside what was measured in training.
        """
        return [ranked[0] for ranked in self.head.decode(self.outputs(states), budget)]

    def route_at(
        self, output: Float[Tensor, "batch ..."], offset: float | None, least_score: float | None
    ) -> list[ScoredChain]:
        """Return one chain for each row of the head's output, at an operating point and with fallback to full depth.

        Args:
            output: what `outputs` returned.
            offset: the operating point; None: full depth for all.
            least_score: chains that score less give way to full depth; None: none do.
        """
        full = ScoredChain(Chain.full(self.config.num_layers), 0.0)
        if offset is None:
            return [full] * len(output)
        best = [ranked[0] for ranked in self.head.decode_at(output, offset)]
        return [full if least_score is not None and one.score < least_score else one for one in best]

    def route_guaranteed(self, states: Sequence[Float[Tensor, "_ d_model"]]) -> list[ScoredChain]:
        """Return one chain for each sample, at the certified operating point.

        Raises:
            ValueError: where the router was not calibrated (`python -m train.calibrate`).
        """
        return self.guaranteed(self.outputs(states))

    def guaranteed(self, output: Float[Tensor, "batch ..."]) -> list[ScoredChain]:
        """Do as `route_guaranteed` does, from what `outputs` returned."""
        if self.guarantee is None:
            raise ValueError("guarantee: expected a router with one (python -m train.calibrate), got none")
        return self.route_at(output, self.guarantee.offset, self.guarantee.least_score)


def save_router(folder: Path, router: Router) -> None:
    """Write a router into a directory, which is made if need be; each file is complete or absent."""
    folder.mkdir(exist_ok=True)
    with replacing(folder / WEIGHTS_FILE) as aside:
        save_file(_tensors(router.head), aside)
    # Two files cannot be replaced in one step; by this hash a reader refuses one half of an old and a new router.
    hashed = sha256_file(folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, {"schema": SCHEMA, "weights_sha256": hashed, **asdict(router.config)})


def weights_sha256(router: Router) -> str:
    """Return the SHA-256 that the weights' file has once the router is saved; a guarantee is bound to it."""
    return hashlib.sha256(save(_tensors(router.head))).hexdigest()


def _tensors(head: Head) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in head.state_dict().items()}


def trained_questions(folder: Path) -> frozenset[str] | None:
    """Return the questions (`Sample.split_hash`) that a router was trained and chosen on; None: it does not say.

    Raises:
        InputError: where the file that says so is corrupt.
    """
    path = folder / TRAINED_ON_FILE
    if not path.is_file():
        return None
    seen = read_json(path).get("split_hashes")
    if not isinstance(seen, list):
        raise InputError(f"router: expected split_hashes in {path}, got none")
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
    try:
        value = read_json(path)
        hashed = value.pop("weights_sha256", None)
        config = RouterConfig.from_json(value)
        if expected is not None:
            config.fingerprints.require(expected, f"router {folder}")
        weights = require_file(folder / WEIGHTS_FILE, "router")
        if sha256_file(weights) != hashed:
            raise InputError(f"router: expected {weights} with the SHA-256 in {path.name}, got another file")
        _require_sizes(config)
        _require_shapes(config, weights)
        head = config.build()
        head.load_state_dict(load_file(weights))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"router: expected a router in {str(folder)!r}, got {one_line(error)}") from error
    return Router(config, head.eval(), read_guarantee(folder, hashed))


def _require_sizes(config: RouterConfig) -> None:
    """Refuse sizes that no router has: a folder from elsewhere must not fill the memory."""
    settings = config.head_settings
    given = {"num_layers": config.num_layers, "d_model": config.d_model, **settings}
    for name, largest in LARGEST.items():
        if name in given and (type(given[name]) is not int or not 1 <= given[name] <= largest):
            raise ValueError(f"{name}: expected an integer in 1..{largest}, got {given[name]!r}")
    if len(settings.get("chains", ())) > MOST_CHAINS:
        raise ValueError(f"chains: expected at most {MOST_CHAINS}, got {len(settings['chains'])}")
    blocks, times = settings.get("max_block", 1), settings.get("max_times", 1)
    if config.num_layers * blocks * (times + 1) > MOST_SEGMENTS:
        raise ValueError(f"max_block, max_times: expected at most {MOST_SEGMENTS} segments, got {blocks} and {times}")


def _require_shapes(config: RouterConfig, weights: Path) -> None:
    """Compare the head's shapes with those that the weights' file names, before memory is taken for either."""
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in config.build().state_dict().items()}
    with safe_open(weights, framework="pt") as file:
        found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"router: expected {weights} with {name} of shape {wanted.get(name)}, got {found.get(name)}"
            )
