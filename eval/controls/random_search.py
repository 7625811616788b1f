"""A random search at the oracle's cost: what the tree search finds beyond trying as many chains at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.records import SearchRecord
from eval.controls.searches import in_order, means
from eval.controls.statistics import PairedShares, Share, Value, mean_of, paired_shares, share_of
from eval.policies import shortest_standing
from router.validation import InputError

TOLERANCE = 0.05
"""Share of the oracle's nominal layers by which a random search of other simulations may differ."""
ORACLE, RANDOM = "oracle", "random"
COUNTS = ("simulations", "nominal_layers", "executed_layers")


@dataclass(frozen=True)
class RandomRow:
    """What both searches found on one sample.

    Attributes:
        sample_id: `Sample.id`.
        num_layers: layers of the model, which run where nothing was found.
        oracle: depth of the oracle's chain (`eval.policies.shortest_standing`), layers; None: no right one stands.
        random: depth of the random search's.
    """

    sample_id: str
    num_layers: int
    oracle: int | None
    random: int | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RandomRow:
        """Read a row; raises KeyError, TypeError or ValueError where it is none."""
        row = cls(*(value[name] for name in ("sample_id", "num_layers", "oracle", "random")))
        if type(row.num_layers) is not int or any(
            type(one) not in (int, type(None)) for one in (row.oracle, row.random)
        ):
            raise ValueError(f"random_search: expected depths, got {dict(value)}")
        return row


@dataclass(frozen=True)
class RandomSearch:
    """The oracle against a random search of the same cost, in their records.

    Attributes:
        n: samples of both searches.
        left_out: samples that the oracle has a record of and the random search has not.
        equal: what is equal: "simulations", or "nominal_layers" within `tolerance`.
        tolerance: share by which nominal layers may differ.
        simulations: of each search the simulations a sample, mean.
        nominal_layers: of each search the layers of all chains of a sample, as if each ran alone, mean.
        executed_layers: of each search the layers really run for a sample, mean (0 where answers are generated).
        oracle: share of samples for which a right chain stands in the oracle's records.
        random: the same of the random search.
        paired: the first against the second.
        mean_depth: of each search the depth of the chain that it would run, full depth where none stands, mean.
        depth_difference: the oracle's minus the random search's, layers.
    """

    n: int
    left_out: int
    equal: str
    tolerance: float
    simulations: dict[str, float]
    nominal_layers: dict[str, float]
    executed_layers: dict[str, float]
    oracle: Share | None
    random: Share | None
    paired: PairedShares | None
    mean_depth: dict[str, Value | None]
    depth_difference: Value | None


def random_search(
    gold_records: Sequence[SearchRecord], random_records: Sequence[SearchRecord], seed: int = 0
) -> dict[str, Any]:
    """Compare the oracle with a random search of the same cost; JSON data of `RandomSearch`.

    That the second is a random search is for `require_random_search` to check: records do not say it.

    Args:
        gold_records: the oracle's records.
        random_records: those of a random search told the right answers, of all of these samples or of some.
        seed: seed of the bootstrap.

    Raises:
        InputError: where they are of other samples, another model or prompt, or another cost.
    """
    return measure_random(collect_random(gold_records, random_records), seed)


def collect_random(gold_records: Sequence[SearchRecord], random_records: Sequence[SearchRecord]) -> dict[str, Any]:
    """Return what `measure_random` needs of two searches, as JSON data.

    Raises:
        InputError: where they are of other samples, another model or prompt, or another cost.
    """
    pairs = in_order(gold_records, random_records, ("gold", "gold"), "random_search")
    counts = {name: dict(zip((ORACLE, RANDOM), means(pairs, name), strict=True)) for name in COUNTS}
    nominal = counts["nominal_layers"]
    equal = "simulations"
    if counts["simulations"][ORACLE] != counts["simulations"][RANDOM]:
        equal = "nominal_layers"
        if abs(nominal[RANDOM] - nominal[ORACLE]) > TOLERANCE * nominal[ORACLE]:
            raise InputError(
                f"random_search: expected the oracle's {counts['simulations'][ORACLE]:g} simulations or "
                f"{nominal[ORACLE]:g} nominal layers a sample (within {TOLERANCE:.0%}), "
                f"got {counts['simulations'][RANDOM]:g} and {nominal[RANDOM]:g}"
            )
    rows = [RandomRow(one.sample_id, one.num_layers, _depth(one), _depth(two)) for one, two in pairs]
    return {
        "left_out": len(gold_records) - len(pairs),
        "equal": equal,
        **counts,
        "samples": [asdict(row) for row in rows],
    }


def measure_random(collected: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measure what `collect_random` collected; see `random_search`.

    Raises:
        KeyError, TypeError, ValueError: where it is something else.
    """
    rows = [RandomRow.from_json(row) for row in collected["samples"]]
    found = {name: [getattr(row, name) is not None for row in rows] for name in (ORACLE, RANDOM)}
    depths = {
        name: [float(row.num_layers if getattr(row, name) is None else getattr(row, name)) for row in rows]
        for name in (ORACLE, RANDOM)
    }
    differences = [one - other for one, other in zip(depths[ORACLE], depths[RANDOM], strict=True)]
    measured = RandomSearch(
        n=len(rows),
        left_out=int(collected["left_out"]),
        equal=str(collected["equal"]),
        tolerance=TOLERANCE,
        simulations=dict(collected["simulations"]),
        nominal_layers=dict(collected["nominal_layers"]),
        executed_layers=dict(collected["executed_layers"]),
        oracle=share_of(found[ORACLE]),
        random=share_of(found[RANDOM]),
        paired=paired_shares(found[ORACLE], found[RANDOM], seed),
        mean_depth={name: mean_of(depths[name], seed) for name in (ORACLE, RANDOM)},
        depth_difference=mean_of(differences, seed),
    )
    return asdict(measured)


def _depth(record: SearchRecord) -> int | None:
    found = shortest_standing(record)
    return None if found is None else found.chain.depth
