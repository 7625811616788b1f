"""A read-layer profile as data: its measures, its JSON and its table. `data.profile` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data.observe import Skip

SCHEMA = 1
"""Version of the profile's JSON."""
CHANCE = {"confidence": 0.0, "correct": 0.5, "kept": 0.5}
"""Each measure's value where the states say nothing."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of a probe.

    Attributes:
        value: the measure, from out-of-fold predictions; None where it cannot be computed.
        interval: its 95 % bootstrap interval over samples, all skips of a sample drawn together
            (`data.probe.interval_of`).
        samples: number of samples.
        rarer: samples of the rarer class, of the rarest target where several are averaged; None for a correlation.
        targets: how many targets the measure is the mean of.
        reason: why there is no value; None where there is one.
    """

    value: float | None
    interval: tuple[float, float] | None
    samples: int
    rarer: int | None
    targets: int
    reason: str | None = None

    def above(self, chance: float, lengthened: float = 1.0) -> float:
        """Return by how much the interval's lower end exceeds chance; 0 where it does not or there is no value.

        Args:
            chance: the value where nothing is known.
            lengthened: factor by which the interval's lower arm is lengthened first.
        """
        if self.value is None or self.interval is None:
            return 0.0
        return max(0.0, self.value - lengthened * (self.value - self.interval[0]) - chance)

    def __str__(self) -> str:
        """Return value and interval for a table."""
        if self.value is None or self.interval is None:
            return "-"
        return f"{self.value:.3f} [{self.interval[0]:.3f}..{self.interval[1]:.3f}]"


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """What can be read at one layer.

    Attributes:
        prefix_layers: e, layers that have run when the states are read.
        editable: layers that a router which reads there can still change, `num_layers - e`.
        confidence: Pearson's r of the probe with full depth's confidence.
        correct: AUC of the probe for "full depth is right".
        kept: AUC of the probe for "this skip keeps full depth's answer", mean over the skips from e on.
        by_confidence: the same AUC, for the same skips, of full depth's confidence itself: known only at the end, a
            reference for what could be known.
    """

    prefix_layers: int
    editable: int
    confidence: Measure
    correct: Measure
    kept: Measure
    by_confidence: Measure


@dataclass(frozen=True, slots=True)
class SkipProfile:
    """One set of skipped layers.

    Attributes:
        layers: the layers left out.
        share_kept: share of samples whose answer stays full depth's.
        by_confidence: AUC of full depth's confidence for "the answer stays".
    """

    layers: Skip
    share_kept: float
    by_confidence: Measure


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The read layer to start from.

    Attributes:
        prefix_layers: the layer; None where nothing can be read anywhere.
        measure: the measure that it was chosen by, "kept" or, where that is nowhere above chance, "confidence".
        score: the rule's value there, in layers: evidence above chance times layers that can still be edited.
        reason: the choice in words.
    """

    prefix_layers: int | None
    measure: str | None
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of a model on a task's samples.

    Attributes:
        num_layers: layers of the model.
        samples: number of samples.
        accuracy: full depth's share of right answers.
        folds: folds of the cross-validation.
        seed: seed of folds, bootstrap and permutations.
        components: principal components that a probe may use.
        resamples: bootstrap resamples.
        layers: one entry a read layer, ascending.
        skips: one entry a set of skipped layers, ascending.
        permuted: mean over layers of each measure where every layer's targets were dealt to other samples: near
            chance (0 for confidence, 0.5 for the others), unless a probe sees what it is tested on.
        suggestion: the read layer to start from.
    """

    num_layers: int
    samples: int
    accuracy: float
    folds: int
    seed: int
    components: int
    resamples: int
    layers: tuple[LayerProfile, ...]
    skips: tuple[SkipProfile, ...]
    permuted: dict[str, float | None]
    suggestion: Suggestion

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the profile."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Profile:
        """Read the JSON object.

        Raises:
            ValueError: where it is of another schema, or a field is missing or unknown.
        """
        fields = dict(value)
        if fields.pop("schema", None) != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {value.get('schema')!r}")
        try:
            fields["layers"] = tuple(
                LayerProfile(**{key: _measure_from(item) for key, item in one.items()}) for one in fields["layers"]
            )
            fields["skips"] = tuple(
                SkipProfile(tuple(one["layers"]), one["share_kept"], _measure_from(one["by_confidence"]))
                for one in fields["skips"]
            )
            fields["suggestion"] = Suggestion(**fields["suggestion"])
            return cls(**fields)
        except KeyError as error:
            raise ValueError(f"expected the field {error}, got none") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(f"expected a profile, got {error}") from error

    def table(self) -> str:
        """Return the profile for a terminal: one line a layer, then what a reader must know with it."""
        heads = ("e", "editable", "r(confidence)", "AUC(correct)", "AUC(kept)", "AUC(kept) of confidence")
        rows: list[tuple[str, ...]] = [heads]
        for one in self.layers:
            measures = (one.confidence, one.correct, one.kept, one.by_confidence)
            rows.append((f"{one.prefix_layers}", f"{one.editable}", *map(str, measures)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        means = ", ".join(f"{name} {'-' if at is None else f'{at:.3f}'}" for name, at in self.permuted.items())
        lines += [
            f"{self.samples} samples, full depth right on {self.accuracy:.3f}; [95 % bootstrap interval]",
            f"targets permuted (near 0, 0.5, 0.5 unless something leaks): {means}",
            "the last column is known only after the last layer: a reference, not a read layer",
        ]
        missing: dict[str, list[int]] = {}
        for one in self.layers:
            for name in ("confidence", "correct", "kept"):
                if (reason := getattr(one, name).reason) is not None:
                    missing.setdefault(f"no {name}: {reason}", []).append(one.prefix_layers)
        lines += [f"e = {', '.join(map(str, layers))}: {why}" for why, layers in missing.items()]
        return "\n".join([*lines, f"suggestion: {self.suggestion.reason}"])


def _measure_from(value: Any) -> Any:
    """Return a measure of its JSON object; other values as they are."""
    if not isinstance(value, Mapping):
        return value
    interval = value["interval"]
    return Measure(**{**value, "interval": None if interval is None else tuple(interval)})
