"""Searches that can be compared: the same samples, model and prompt, told the right answer or a wrong one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.records import ChainResult, SearchRecord
from data.statistics import Estimate, PairedShares, Proportion, Sums, estimate_of, mean_of, paired_shares, share_of
from data.store import meta_path
from router.files import read_json, require_file, sha256_file
from router.validation import InputError

OF_FILE = ("num_layers", "first_editable", "dtype", "fingerprints")
"""Fields of records that are the same in searches of one model and prompt."""
OF_SAMPLE = ("task", "split", "mode")
"""Fields of records that are the same in searches of one sample."""
OF_SEARCH = ("search", "menu", "first_editable", "shuffle", "verify", "dtype")
"""Settings that decide what a search does, but for what it is told."""


def in_order(
    oracle: Sequence[SearchRecord], other: Sequence[SearchRecord], targets: tuple[str, str], what: str
) -> list[tuple[SearchRecord, SearchRecord]]:
    """Return the pairs of records of the same sample, in the oracle's order.

    Args:
        oracle: records of the oracle.
        other: records of another search, of all of its samples or of some.
        targets: `reward_target` of each.
        what: name of the setting of the other records, for refusals.

    Raises:
        InputError: where the records are not of the same samples, model and prompt, were told something else, or were
            verified in one search only.
    """
    known = {record.sample_id: record for record in oracle}
    pairs = [(known[record.sample_id], record) for record in other if record.sample_id in known]
    if not pairs or len(pairs) < len(other):
        raise InputError(
            f"{what}: expected records of the oracle's samples, got {len(other) - len(pairs)} of {len(other)} of others"
        )
    first = pairs[0][0]
    for one, two in pairs:
        expected: dict[str, Any] = {name: getattr(first, name) for name in OF_FILE}
        expected |= {name: getattr(one, name) for name in OF_SAMPLE}
        for record, told in ((one, targets[0]), (two, targets[1])):
            for name, value in (expected | {"reward_target": told}).items():
                if getattr(record, name) != value:
                    raise InputError(
                        f"{what}: expected {name} {value} of a search like the oracle's, got {getattr(record, name)} "
                        f"(sample {record.sample_id})"
                    )
            if (record.full.verified is None) != (first.full.verified is None):
                raise InputError(f"{what}: expected both searches verified, or neither (sample {record.sample_id})")
        if (one.target == two.target) != (targets[0] == targets[1]):
            raise InputError(
                f"{what}: expected {'the same answer' if targets[0] == targets[1] else 'a wrong answer'} to be told, "
                f"got {two.target!r} where {one.target!r} is right (sample {one.sample_id})"
            )
    order = {record.sample_id: place for place, record in enumerate(oracle)}
    return sorted(pairs, key=lambda pair: order[pair[0].sample_id])


def means(pairs: Sequence[tuple[SearchRecord, SearchRecord]], name: str) -> tuple[float, float]:
    """Return the mean of a count over both searches' records."""
    first, second = (sum(int(getattr(pair[i], name)) for pair in pairs) / len(pairs) for i in (0, 1))
    return first, second


def require_same_search(oracle: Path, wrong: Path) -> None:
    """Check that two record files come of the same search settings, but for what the search was told.

    Records name their settings by a hash that holds what was told, so the settings files beside them are compared.

    Raises:
        InputError: where a settings file is missing or of another record file, or a setting is another.
    """
    settings = {path: search_settings(path) for path in (oracle, wrong)}
    for path, told in ((oracle, "gold"), (wrong, "wrong")):
        if settings[path].get("reward_target") != told:
            raise InputError(
                f"wrong_records: expected {path} of a search with reward_target {told}, "
                f"got {settings[path].get('reward_target')}"
            )
    first, second = settings[oracle], settings[wrong]
    for name in OF_SEARCH:
        if first.get(name) != second.get(name):
            raise InputError(
                f"wrong_records: expected {wrong} of {_difference(name, first.get(name), second.get(name))}"
            )


def require_random_search(path: Path) -> None:
    """Check that a record file comes of a random search.

    Raises:
        InputError: where it comes of another one, or its settings file is missing or of another record file.
    """
    settings = search_settings(path)
    search = settings.get("search")
    algorithm = search.get("algorithm") if isinstance(search, dict) and settings.get("menu") is None else "a menu"
    if algorithm != "random":
        raise InputError(f"random_search: expected {path} of a search with the algorithm random, got {algorithm}")


def search_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the run that made a record file, as they stand beside it.

    Raises:
        InputError: where they are missing, or the record file is not the one that they name.
    """
    beside = require_file(
        meta_path(path) if meta_path(path).exists() else path.with_suffix(".settings.json"), "records"
    )
    content = read_json(beside)
    runs = content.get("runs")
    settings = runs[-1].get("settings") if isinstance(runs, list) and runs and isinstance(runs[-1], dict) else None
    if not isinstance(settings, dict):
        raise InputError(f"{beside}: expected the settings of python -m search, got none")
    if "first_editable" not in settings and "prefix_layers" in settings:  # schema 2
        settings = {**settings, "first_editable": settings["prefix_layers"]}
    if content.get("sha256") != sha256_file(path):
        raise InputError(f"{beside}: expected the SHA-256 of {path.name} beside it, got another")
    return settings


def _difference(name: str, first: Any, second: Any) -> str:
    """Return the setting in which two values differ: what is expected, and what came."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            if first.get(key) != second.get(key):
                return _difference(f"{name}.{key}", first.get(key), second.get(key))
    return f"a search with {name} {first}, like the oracle's, got {second}"


# How much of the oracle's gain is luck: the same search, told a wrong answer.
#
# A search tries many chains and keeps what gives the answer that it was told. With few possible answers some chain
# gives any of them, right or wrong. So the same search is run once more and told a wrong answer; as often as it
# finds a chain
# that gives that one, finding the right one proves nothing.


GIVES_RIGHT, GIVES_TOLD, GIVES_OTHER, UNCLEAR = "right", "told", "other", "unclear"
ANSWERS = (GIVES_RIGHT, GIVES_TOLD, GIVES_OTHER, UNCLEAR)


@dataclass(frozen=True)
class LuckRow:
    """What both searches found on one sample.

    Attributes:
        sample_id: `Sample.id`.
        full: what full depth answers: the "right" answer, the wrong one that was "told", neither of them ("other"),
            or "unclear": it ties with one of them, or gives one in one of its two judgements only.
        found: whether a right chain stands in the oracle's record (`SearchRecord.shortest`).
        lucky: whether by the same rule one stands that gives the wrong answer.
    """

    sample_id: str
    full: str
    found: bool
    lucky: bool

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LuckRow:
        """Read a row; raises KeyError, TypeError or ValueError where it is none."""
        row = cls(*(value[name] for name in ("sample_id", "full", "found", "lucky")))
        if row.full not in ANSWERS or type(row.found) is not bool or type(row.lucky) is not bool:
            raise ValueError(f"luck: expected what two searches found, got {dict(value)}")
        return row


@dataclass(frozen=True)
class Luck:
    """The oracle's gain, in its records, and what of it is left when luck is taken off.

    What it rests on:

    - Eligible is a sample where full depth gives neither the right answer nor the one that was told, in any judgement:
      there both searches chase an answer that the model does not give, by the same number of simulations.
    - What is found for the wrong answer is luck, and luck hits right and wrong answers alike. A model that knows
      something ranks the right answer above a wrong one, so chance hits it more often: what is left net of luck holds
      this too. It bounds from above what there is to learn about chains.
    - Of samples that full depth gets wrong otherwise (it gives the told answer, or ties), the rates of the eligible
      ones are assumed. With two choices no sample is eligible, and nothing can be said.

    Attributes:
        n: samples of both searches.
        left_out: samples that the oracle has a record of and the search told a wrong answer has not.
        verified: whether a chain counts only where it stood a second judgement, in both searches.
        simulations: simulations a sample, mean: the oracle's ("gold") and that of the search told a "wrong" answer.
        full: number of samples by what full depth answers (`LuckRow.full`).
        eligible: samples with full depth "other".
        gold: share of the eligible for which a right chain stands; None: there are none.
        luck: share of them for which a chain stands that gives the wrong answer.
        paired: `gold` against `luck`, on the same samples.
        full_wrong: share of all samples that full depth does not get right.
        gain: accuracy of the oracle minus full depth's, in the records: share of all samples that full depth does not
            get right and for which a right chain stands.
        net_gain: `full_wrong` times (`gold` - `luck`); None: no sample is eligible. It can be below 0.
        flipped: of the samples that full depth gets right, the share that the search can set to the wrong answer.
    """

    n: int
    left_out: int
    verified: bool
    simulations: dict[str, float]
    full: dict[str, int]
    eligible: int
    gold: Proportion | None
    luck: Proportion | None
    paired: PairedShares | None
    full_wrong: Proportion | None
    gain: Estimate | None
    net_gain: Estimate | None
    flipped: Proportion | None


def luck(gold: Sequence[SearchRecord], wrong: Sequence[SearchRecord], seed: int) -> dict[str, Any]:
    """Return the oracle's gain net of luck, as JSON data of `Luck`.

    That the settings are the same but for what the search was told is for `require_same_search` to check: records
    hold a hash of them only.

    Args:
        gold: the oracle's records.
        wrong: records of the same search told a wrong answer, of all of these samples or of some.
        seed: seed of the bootstrap.

    Raises:
        InputError: where the two are not the same search of the same samples.
    """
    return measure_luck(collect_luck(gold, wrong), seed)


def collect_luck(gold: Sequence[SearchRecord], wrong: Sequence[SearchRecord]) -> dict[str, Any]:
    """Return what `measure_luck` needs of two searches, as JSON data.

    Raises:
        InputError: where the two are not the same search of the same samples.
    """
    pairs = in_order(gold, wrong, ("gold", "wrong"), "wrong_records")
    most = [max(pair[i].simulations for pair in pairs) for i in (0, 1)]  # fewer only where no chain was left
    if most[0] != most[1]:
        raise InputError(f"wrong_records: expected a search of {most[0]} simulations like the oracle's, got {most[1]}")
    simulations = means(pairs, "simulations")
    return {
        "left_out": len(gold) - len(pairs),
        "verified": pairs[0][0].full.verified is not None,
        "simulations": dict(zip(("gold", "wrong"), simulations, strict=True)),
        "samples": [asdict(_row(one, two)) for one, two in pairs],
    }


def measure_luck(collected: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measure what `collect_luck` collected; see `luck`.

    Raises:
        KeyError, TypeError, ValueError: where it is something else.
    """
    rows = [LuckRow.from_json(row) for row in collected["samples"]]
    eligible = [row for row in rows if row.full == GIVES_OTHER]
    found, lucky = [row.found for row in eligible], [row.lucky for row in eligible]
    columns = [
        (
            1.0,
            float(row.full != GIVES_RIGHT),
            float(row.full != GIVES_RIGHT and row.found),
            float(row.full == GIVES_OTHER),
            float(row.full == GIVES_OTHER and row.found) - float(row.full == GIVES_OTHER and row.lucky),
        )
        for row in rows
    ]
    measured = Luck(
        n=len(rows),
        left_out=int(collected["left_out"]),
        verified=bool(collected["verified"]),
        simulations=dict(collected["simulations"]),
        full={answer: sum(row.full == answer for row in rows) for answer in ANSWERS},
        eligible=len(eligible),
        gold=share_of(found),
        luck=share_of(lucky),
        paired=paired_shares(found, lucky, seed),
        full_wrong=share_of([row.full != GIVES_RIGHT for row in rows]),
        gain=estimate_of(columns, lambda sums: sums[:, 2] / sums[:, 0], seed),
        net_gain=estimate_of(columns, _net, seed),
        flipped=share_of([row.lucky for row in rows if row.full == GIVES_RIGHT]),
    )
    return asdict(measured)


def _net(sums: Sums) -> Sums:
    """Return (share wrong at full depth) * (rate of right chains - rate of lucky ones), of the columns' sums."""
    net: Sums = sums[:, 1] / sums[:, 0] * sums[:, 4] / sums[:, 3]
    return net


def _row(gold: SearchRecord, wrong: SearchRecord) -> LuckRow:
    gives = [(_gives(gold.full), GIVES_RIGHT), (_gives(wrong.full), GIVES_TOLD)]
    full = next((name for given, name in gives if given), UNCLEAR)
    if all(given is False for given, _ in gives):
        full = GIVES_OTHER
    return LuckRow(
        sample_id=gold.sample_id,
        full=full,
        found=gold.shortest is not None,
        lucky=wrong.shortest is not None,
    )


def _gives(full: ChainResult) -> bool | None:
    """Whether full depth gives the answer that counts, in all judgements; None: in some, or it ties."""
    if full.verified is False or full.margin == 0:
        return None
    return full.correct


# A random search at the oracle's cost: what the tree search finds beyond trying as many chains at random.


TOLERANCE = 0.05
"""Proportion of the oracle's nominal layers by which a random search of other simulations may differ."""
ORACLE, RANDOM = "oracle", "random"
COUNTS = ("simulations", "nominal_layers", "executed_layers")


@dataclass(frozen=True)
class RandomRow:
    """What both searches found on one sample.

    Attributes:
        sample_id: `Sample.id`.
        num_layers: layers of the model, which run where nothing was found.
        oracle: depth of the oracle's chain (`SearchRecord.shortest`), layers; None: no right one stands.
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
    oracle: Proportion | None
    random: Proportion | None
    paired: PairedShares | None
    mean_depth: dict[str, Estimate | None]
    depth_difference: Estimate | None


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
    found = record.shortest
    return None if found is None else found.chain.depth
