"""What earlier searches tell about one sample's actions before the search begins. Pure data, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from router.chain import Chain
from search.actions import ActionSpace

LOG_LIMIT = 20.0
"""Greatest absolute log weight of a layer: no action ever gets a weight of 0, or one that a float cannot add."""


@dataclass(frozen=True, slots=True)
class SamplePrior:
    """Weights of the edits of one sample's chains, and chains that are worth a try.

    Attributes:
        skip: log weight of skipping each layer, natural logarithm, one for each layer of the model, within -20..20;
            0 is neutral.
        repeat: log weight of repeating each layer, likewise.
        known: chains that solved other samples with a weight each, within exp(-20)..exp(20), no chain twice: for
            example how often each did. An ordinary action of log weight 0 has weight 1; they compete by weight.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    skip: tuple[float, ...]
    repeat: tuple[float, ...]
    known: tuple[tuple[Chain, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no prior."""
        for name in ("skip", "repeat"):
            object.__setattr__(self, name, check_log_weights(name, getattr(self, name)))
        if not self.skip or len(self.skip) != len(self.repeat):
            raise ValueError(
                f"repeat: expected one log weight for each of the {len(self.skip)} layers of skip (at least 1), "
                f"got {len(self.repeat)}"
            )
        object.__setattr__(self, "known", tuple((chain, weight) for chain, weight in self.known))
        check_known("known", self.known, self.num_layers)

    @classmethod
    def neutral(cls, num_layers: int) -> SamplePrior:
        """Return the prior that prefers nothing."""
        return cls((0.0,) * num_layers, (0.0,) * num_layers)

    @property
    def num_layers(self) -> int:
        """Layers of the unedited model."""
        return len(self.skip)

    def require(self, space: ActionSpace) -> None:
        """Check that this prior is for models like the space's.

        Raises:
            ValueError: where it has another number of layers.
        """
        if space.num_layers != self.num_layers:
            raise ValueError(f"prior: expected one of {space.num_layers} layers, got one of {self.num_layers}")

    def weights(self, chain: Chain, space: ActionSpace) -> list[float]:
        """Return the weight of every legal action of a chain, by its number in the space, each above 0.

        The weight of a skip or repeat is exp(mean of the log weights of its block's layers), so blocks of every size
        are alike where the layers are; how often a repeat runs its block does not matter. A move has weight 1.

        Raises:
            ValueError: where the chain is not of this space, or the space not of a model of as many layers.
        """
        self.require(space)
        layers = chain.layers[space.prefix_layers :]
        sums = {
            "skip": [0.0, *accumulate([self.skip[layer] for layer in layers])],
            "repeat": [0.0, *accumulate([self.repeat[layer] for layer in layers])],
        }
        made: dict[tuple[str, int], list[float]] = {}
        weights: list[float] = []
        exp = math.exp
        for group in space.groups(chain):
            if group.kind == "move":
                weights += [1.0] * group.positions
                continue
            key = (group.kind, group.size)
            block = made.get(key)
            if block is None:
                cumulative, size = sums[group.kind], group.size
                block = [exp((b - a) / size) for a, b in zip(cumulative, cumulative[size:], strict=False)]
                made[key] = block
            weights += block
        return weights

    def known_in(self, space: ActionSpace) -> tuple[tuple[Chain, float], ...]:
        """Return the known chains that lie in a space: its prefix unedited, at most `max_depth` deep, not full depth.

        They need not be reachable by `max_edits` actions: going to one counts as one edit.
        """
        return tuple((chain, weight) for chain, weight in self.known if space.holds(chain) and not chain.is_full)


def check_log_weights(name: str, values: object) -> tuple[float, ...]:
    """Return log weights of layers as a tuple of floats.

    Raises:
        ValueError: where one is no number in -LOG_LIMIT..LOG_LIMIT.
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}: expected a list of log weights, got {values!r}")
    for layer, value in enumerate(values):
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LOG_LIMIT:
            raise ValueError(f"{name}[{layer}]: expected a number in -{LOG_LIMIT:g}..{LOG_LIMIT:g}, got {value!r}")
    return tuple(map(float, values))


def check_known(name: str, known: tuple[tuple[Chain, float], ...], num_layers: int) -> None:
    """Check known chains and their weights.

    Raises:
        ValueError: where a chain is of another model or comes twice, or a weight's logarithm is out of bounds.
    """
    seen: set[Chain] = set()
    for i, (chain, weight) in enumerate(known):
        if chain.num_layers != num_layers:
            raise ValueError(f"{name}[{i}]: expected a chain of {num_layers} layers, got one of {chain.num_layers}")
        if chain in seen:
            raise ValueError(f"{name}[{i}]: expected every chain once, got {chain} again")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.exp(-LOG_LIMIT) <= weight <= math.exp(LOG_LIMIT):
            raise ValueError(f"{name}[{i}]: expected a weight in exp(-20)..exp(20), got {weight!r}")
        seen.add(chain)
