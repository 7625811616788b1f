"""The prior of a whole model as a file: frozen, hashed, and refused where it was made for something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from router.chain import Chain
from router.command import InputError
from router.durable import read_json, sha256_json, write_json
from router.fingerprint import Fingerprints
from search.prior import SamplePrior, check_known, check_log_weights

SCHEMA = 1
"""Version of the file's format."""
PriorKind = Literal["redundancy", "records", "router"]

_FIELDS = (
    "schema", "kind", "num_layers", "prefix_layers", "fingerprints", "source", "skip", "repeat", "known", "samples",
)  # fmt: skip


@dataclass(frozen=True)
class ModelPrior:
    """What is known of a model's layers before a search, for all samples alike and for single ones.

    Attributes:
        kind: where it is from: "redundancy" (how little a layer changes the hidden states), "records" (an earlier
            search's records) or "router" (a trained router's probabilities).
        num_layers: layers of the unedited model, at least 1.
        prefix_layers: layers that ran unedited in every chain when it was made; 0..num_layers.
        fingerprints: model, tokenizer and prompt that it was made for.
        source: how it was made, for a reader: a JSON object.
        skip: log weight of skipping each layer, natural logarithm, common to all samples; see `SamplePrior`.
        repeat: log weight of repeating each layer, likewise.
        known: known chains with their weights (on how many samples each was right, or chosen by the router); see
            `SamplePrior`.
        samples: by sample id: log weights of skip and of repeat, which are added to the common ones.
        sha256: SHA-256 of everything that the file holds, in hex.

    Raises:
        ValueError: where a field is out of its bounds; the message names field, bound and value.
    """

    kind: PriorKind
    num_layers: int
    prefix_layers: int
    fingerprints: Fingerprints
    source: Mapping[str, Any]
    skip: tuple[float, ...]
    repeat: tuple[float, ...]
    known: tuple[tuple[Chain, float], ...] = ()
    samples: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what is no prior."""
        if self.kind not in get_args(PriorKind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(PriorKind))}, got {self.kind!r}")
        for name, least, most in (("num_layers", 1, None), ("prefix_layers", 0, self.num_layers)):
            value = getattr(self, name)
            if type(value) is not int or value < least or (most is not None and value > most):
                bound = f"of at least {least}" if most is None else f"in {least}..{most}"
                raise ValueError(f"{name}: expected an integer {bound}, got {value!r}")
        for name in ("skip", "repeat"):
            object.__setattr__(self, name, self._weights(name, getattr(self, name)))
        check_known("known", self.known, self.num_layers)
        object.__setattr__(self, "known", tuple((chain, float(weight)) for chain, weight in self.known))
        samples = {}
        for sample_id, (skip, repeat) in self.samples.items():
            name = f"samples[{sample_id!r}]"
            samples[sample_id] = (self._weights(f"{name}.skip", skip), self._weights(f"{name}.repeat", repeat))
            for kind, common, own in zip(("skip", "repeat"), (self.skip, self.repeat), samples[sample_id], strict=True):
                check_log_weights(f"{name}.{kind} with the common weights", _sum(common, own))
        object.__setattr__(self, "samples", samples)
        try:
            object.__setattr__(self, "sha256", sha256_json(self.to_json()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"source: expected what JSON can hold, got other values ({error})") from error

    def _weights(self, name: str, values: object) -> tuple[float, ...]:
        weights = check_log_weights(name, values)
        if len(weights) != self.num_layers:
            raise ValueError(
                f"{name}: expected one log weight for each of the {self.num_layers} layers, got {len(weights)}"
            )
        return weights

    def for_sample(self, sample_id: str) -> SamplePrior:
        """Return a sample's prior: the common log weights, and its own added where it has some."""
        own = self.samples.get(sample_id)
        if own is None:
            return SamplePrior(self.skip, self.repeat, self.known)
        return SamplePrior(_sum(self.skip, own[0]), _sum(self.repeat, own[1]), self.known)

    def require(
        self, fingerprints: Fingerprints, num_layers: int, prefix_layers: int, *, other_task: bool = False
    ) -> None:
        """Check that this prior was made for a model, tokenizer, prompt and prefix.

        Args:
            fingerprints: of the search's model, tokenizer and prompt.
            num_layers: layers of the unedited model.
            prefix_layers: layers that run unedited in every chain.
            other_task: whether the prompt may be another one.

        Raises:
            InputError: at the first that differs; the message names it and both values.
        """
        allowed = replace(fingerprints, prompt=self.fingerprints.prompt) if other_task else fingerprints
        self.fingerprints.require(allowed, "prior")
        for name, wanted in (("num_layers", num_layers), ("prefix_layers", prefix_layers)):
            if getattr(self, name) != wanted:
                raise InputError(f"prior: expected it to be made with {name} {wanted}, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the file."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "num_layers": self.num_layers,
            "prefix_layers": self.prefix_layers,
            "fingerprints": asdict(self.fingerprints),
            "source": dict(self.source),
            "skip": list(self.skip),
            "repeat": list(self.repeat),
            "known": [{"chain": chain.to_json(), "weight": weight} for chain, weight in self.known],
            "samples": {
                sample_id: {"skip": list(skip), "repeat": list(repeat)}
                for sample_id, (skip, repeat) in self.samples.items()
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelPrior:
        """Read the JSON object of the file.

        Raises:
            ValueError: where it is none; the message names field, bound and value.
        """
        _require_fields("prior", value, _FIELDS)
        if value["schema"] != SCHEMA or type(value["schema"]) is not int:
            raise ValueError(f"schema: expected {SCHEMA}, got {value['schema']!r}")
        for name, wanted in (("fingerprints", dict), ("source", dict), ("known", list), ("samples", dict)):
            if not isinstance(value[name], wanted):
                shape = "an object" if wanted is dict else "a list"
                raise ValueError(f"{name}: expected {shape}, got {value[name]!r}")
        fingerprints, num_layers = value["fingerprints"], value["num_layers"]
        _require_fields("fingerprints", fingerprints, ("model", "tokenizer", "prompt"))
        for name, text in fingerprints.items():
            if not isinstance(text, str):
                raise ValueError(f"fingerprints.{name}: expected text, got {text!r}")
        known = []
        for i, item in enumerate(value["known"]):
            _require_fields(f"known[{i}]", item, ("chain", "weight"))
            known.append((Chain.from_json(item["chain"], num_layers), item["weight"]))
        samples = {}
        for sample_id, item in value["samples"].items():
            _require_fields(f"samples[{sample_id!r}]", item, ("skip", "repeat"))
            samples[sample_id] = (item["skip"], item["repeat"])
        return cls(
            kind=value["kind"],
            num_layers=num_layers,
            prefix_layers=value["prefix_layers"],
            fingerprints=Fingerprints(**fingerprints),
            source=value["source"],
            skip=value["skip"],
            repeat=value["repeat"],
            known=tuple(known),
            samples=samples,
        )


def write_prior(path: Path, prior: ModelPrior) -> None:
    """Write a prior to a file that is complete or absent."""
    write_json(path, prior.to_json())


def read_prior(path: Path) -> ModelPrior:
    """Read a prior; whatever the file holds, nothing but a valid prior comes back.

    Raises:
        InputError: where the file is missing or holds something else; one line that names the file, the field, what
            was expected and what was found.
    """
    try:
        return ModelPrior.from_json(read_json(path))
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{path}: expected a prior, got values nested too deeply") from error
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected a prior, got another file ({reason[:300]})") from error


def _require_fields(what: str, value: object, fields: tuple[str, ...]) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what}: expected an object, got {value!r}")
    if missing := [name for name in fields if name not in value]:
        raise ValueError(f"{what}: expected {', '.join(fields)}, got none of {', '.join(missing)}")
    if unknown := [str(name) for name in value if name not in fields]:
        raise ValueError(f"{what}: expected {', '.join(fields)}, got {', '.join(unknown)} as well")


def _sum(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))
