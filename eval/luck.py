"""What the oracle's records say when another search's stand beside them: how much is luck, and what chance finds.

A search tries many chains and keeps what gives the answer that it looks for. With few possible answers some chain gives
any of them, right or wrong. So the same search is run once more for a wrong answer; as often as it finds a chain that
gives that one, finding the right one proves nothing (`Luck`). A random search that tries as many chains says what the
tree search is worth beyond trying (`RandomSearch`).

Both controls need records only. `LuckFound` and `RandomFound` are what two searches found, sample by sample, as
`controls.json` keeps it; their `measure` makes the report's part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic.dataclasses import dataclass

from data.records import ChainResult, SearchRecord, runs_file
from data.statistics import Estimate, PairedShares, Proportion, estimate_of, mean_of, paired_shares, share_of
from eval.results import fields_of
from router.files import read_json, require_file, sha256_file
from router.validation import STORED, Count, InputError, NotNegative, Positive

OF_FILE = ("num_layers", "first_editable", "dtype", "fingerprints")
"""Fields of records that are the same in searches of one model and prompt."""
OF_SEARCH = ("search", "menu", "first_editable", "shuffle", "verify", "dtype")
"""Settings that decide what a search does, but for the answer that it looks for."""
TOLERANCE = 0.05
"""Proportion of the oracle's nominal layers by which a random search of other simulations may differ."""
FullGives = Literal["right", "told", "other", "unclear"]
"""What full depth answers: the right answer, the wrong one that is searched for (`told`), neither of them, or unclear:
it ties with one of them, or gives one in one of its two judgements only."""
OfBoth = dict[Literal["oracle", "random"], NotNegative]
"""A number of the oracle's search and of the random one."""
Pair = tuple[SearchRecord, SearchRecord]
"""The records that two searches made of one sample, the oracle's first."""


@dataclass(frozen=True, config=STORED)
class LuckRow:
    """What the search for the right answer and that for a wrong one found on one sample.

    Attributes:
        sample_id: `Sample.id`.
        full: what full depth answers.
        found: whether a right chain stands in the oracle's record (`SearchRecord.shortest`).
        lucky: whether by the same rule one stands that gives the wrong answer.
    """

    sample_id: str
    full: FullGives
    found: bool
    lucky: bool

    @classmethod
    def of(cls, gold: SearchRecord, wrong: SearchRecord) -> LuckRow:
        """Join the two records of a sample."""
        full: FullGives = "unclear"
        gives_right, gives_wrong = gives(gold.full), gives(wrong.full)
        if gives_right:
            full = "right"
        elif gives_wrong:
            full = "told"
        elif gives_right is False and gives_wrong is False:
            full = "other"
        return cls(gold.sample_id, full, gold.shortest is not None, wrong.shortest is not None)


@dataclass(frozen=True, config=STORED, kw_only=True)
class LuckSearches:
    """The search for the right answer and that for a wrong one.

    Attributes:
        left_out: samples that the oracle has a record of and the search for a wrong answer has not.
        verified: whether a chain counts only where it stood a second judgement, in both searches.
        simulations: simulations a sample, mean: the oracle's ("gold") and that of the search for a "wrong" answer.
    """

    left_out: Count
    verified: bool
    simulations: dict[Literal["gold", "wrong"], NotNegative]


@dataclass(frozen=True, config=STORED, kw_only=True)
class LuckFound(LuckSearches):
    """What the two searches found.

    Attributes:
        samples: a row for each sample of both.
    """

    samples: tuple[LuckRow, ...]

    @classmethod
    def of(cls, gold: Sequence[SearchRecord], wrong: Sequence[SearchRecord]) -> LuckFound:
        """Collect it.

        That the settings are the same but for the answer is for `require_same_search` to check: records hold a hash of
        them only.

        Args:
            gold: the oracle's records.
            wrong: records of the same search for a wrong answer, of all of these samples or of some.

        Raises:
            InputError: where the two are not the same search of the same samples.
        """
        pairs = _pairs(gold, wrong, "wrong_records")
        most = [max(pair[i].simulations for pair in pairs) for i in (0, 1)]  # fewer only where no chain was left
        if most[0] != most[1]:
            raise InputError(
                f"wrong_records: expected a search of {most[0]} simulations like the oracle's, got {most[1]}"
            )
        first, second = _means(pairs, "simulations")
        return cls(
            left_out=len(gold) - len(pairs),
            verified=pairs[0][0].full.verified is not None,
            simulations={"gold": first, "wrong": second},
            samples=tuple(LuckRow.of(one, two) for one, two in pairs),
        )

    def measure(self, seed: int) -> Luck:
        """Measure how much is luck; the seed is the bootstrap's."""
        full = np.array([row.full for row in self.samples])
        found, lucky = (np.array([getattr(row, name) for row in self.samples]) for name in ("found", "lucky"))
        wrong, eligible = full != "right", full == "other"
        gained, rest = wrong & found, 1.0 * (eligible & found) - (eligible & lucky)
        columns = np.stack([np.ones(len(full)), wrong, gained, eligible, rest], axis=1)
        return Luck(
            **fields_of(self, LuckSearches),
            n=len(full),
            full={kind: int((full == kind).sum()) for kind in get_args(FullGives)},
            eligible=int(eligible.sum()),
            gold=share_of(found[eligible]),
            luck=share_of(lucky[eligible]),
            paired=paired_shares(found[eligible], lucky[eligible], seed),
            full_wrong=share_of(wrong),
            gain=estimate_of(columns, lambda sums: sums[:, 2] / sums[:, 0], seed),
            # (share wrong at full depth) * (rate of right chains - rate of lucky ones)
            net_gain=estimate_of(columns, lambda sums: sums[:, 1] / sums[:, 0] * sums[:, 4] / sums[:, 3], seed),
            flipped=share_of(lucky[~wrong]),
        )


@dataclass(frozen=True, config=STORED, kw_only=True)
class Luck(LuckSearches):
    """The oracle's gain, in its records, and what is left of it minus what the wrong-answer search finds.

    What it rests on:

    - Eligible is a sample where full depth gives neither the right answer nor the wrong one that is searched for, in
      any judgement: there both searches chase an answer that the model does not give, by the same number of
      simulations.
    - What is found for the wrong answer is luck, and luck hits right and wrong answers alike. A model that knows
      something ranks the right answer above a wrong one, so chance hits it more often: what is left holds this too. It
      bounds from above what there is to learn about chains.
    - Of samples that full depth gets wrong otherwise (it gives the wrong answer that is searched for, or ties), the
      rates of the eligible ones are assumed. With two choices no sample is eligible, and nothing can be said.

    Attributes:
        n: samples of both searches.
        full: number of samples by what full depth answers: the "right" answer, the wrong one that is searched for
            ("told"), neither of them ("other"), or "unclear": it ties with one of them, or gives one in one of its two
            judgements only.
        eligible: samples with full depth "other".
        gold: share of the eligible for which a right chain stands; null: there are none.
        luck: share of them for which a chain stands that gives the wrong answer.
        paired: `gold` against `luck`, on the same samples.
        full_wrong: share of all samples that full depth does not get right.
        gain: accuracy of the oracle minus full depth's, in the records: share of all samples that full depth does not
            get right and for which a right chain stands.
        net_gain: `full_wrong` times (`gold` - `luck`); null: no sample is eligible. It can be below 0.
        flipped: of the samples that full depth gets right, the share that the search can set to the wrong answer.
    """

    n: Positive
    full: dict[FullGives, Count]
    eligible: Count
    gold: Proportion | None
    luck: Proportion | None
    paired: PairedShares | None
    full_wrong: Proportion | None
    gain: Estimate | None
    net_gain: Estimate | None
    flipped: Proportion | None


@dataclass(frozen=True, config=STORED)
class RandomRow:
    """What the oracle's search and a random one found on one sample.

    Attributes:
        sample_id: `Sample.id`.
        num_layers: layers of the model, which run where nothing was found.
        oracle: depth of the oracle's chain (`SearchRecord.shortest`), layers; null: no right one stands.
        random: depth of the random search's.
    """

    sample_id: str
    num_layers: Positive
    oracle: Positive | None
    random: Positive | None


@dataclass(frozen=True, config=STORED, kw_only=True)
class RandomCosts:
    """What the oracle's search and a random one cost.

    Attributes:
        left_out: samples that the oracle has a record of and the random search has not.
        equal: what is equal: simulations, or nominal layers within `tolerance`.
        simulations: of each search the simulations a sample, mean.
        nominal_layers: of each search the layers of all chains of a sample, as if each ran alone, mean.
        executed_layers: of each search the layers really run for a sample, mean (0 where answers are generated).
    """

    left_out: Count
    equal: Literal["simulations", "nominal_layers"]
    simulations: OfBoth
    nominal_layers: OfBoth
    executed_layers: OfBoth


@dataclass(frozen=True, config=STORED, kw_only=True)
class RandomFound(RandomCosts):
    """What the two searches found.

    Attributes:
        samples: a row for each sample of both.
    """

    samples: tuple[RandomRow, ...]

    @classmethod
    def of(cls, oracle: Sequence[SearchRecord], drawn: Sequence[SearchRecord]) -> RandomFound:
        """Collect it.

        That the second is a random search is for `require_random_search` to check: records do not say it.

        Args:
            oracle: the oracle's records.
            drawn: those of a random search for the right answers, of all of these samples or of some.

        Raises:
            InputError: where they are of other samples, another model or prompt, or another cost.
        """
        pairs = _pairs(oracle, drawn, "random_search")
        simulations, nominal = _means(pairs, "simulations"), _means(pairs, "nominal_layers")
        executed = _means(pairs, "executed_layers")
        same = simulations[0] == simulations[1]
        if not same and abs(nominal[1] - nominal[0]) > TOLERANCE * nominal[0]:
            raise InputError(
                f"random_search: expected the oracle's {simulations[0]:g} simulations or {nominal[0]:g} nominal layers "
                f"a sample (within {TOLERANCE:.0%}), got {simulations[1]:g} and {nominal[1]:g}"
            )
        return cls(
            left_out=len(oracle) - len(pairs),
            equal="simulations" if same else "nominal_layers",
            simulations={"oracle": simulations[0], "random": simulations[1]},
            nominal_layers={"oracle": nominal[0], "random": nominal[1]},
            executed_layers={"oracle": executed[0], "random": executed[1]},
            samples=tuple(RandomRow(one.sample_id, one.num_layers, _depth(one), _depth(two)) for one, two in pairs),
        )

    def measure(self, seed: int) -> RandomSearch:
        """Compare the two searches; the seed is the bootstrap's."""
        rows = self.samples
        found = [row.oracle is not None for row in rows], [row.random is not None for row in rows]
        depths = (
            [float(row.oracle or row.num_layers) for row in rows],
            [float(row.random or row.num_layers) for row in rows],
        )
        differences = [one - other for one, other in zip(*depths, strict=True)]
        return RandomSearch(
            **fields_of(self, RandomCosts),
            n=len(rows),
            tolerance=TOLERANCE,
            oracle=share_of(found[0]),
            random=share_of(found[1]),
            paired=paired_shares(*found, seed),
            mean_depth={"oracle": mean_of(depths[0], seed), "random": mean_of(depths[1], seed)},
            depth_difference=mean_of(differences, seed),
        )


@dataclass(frozen=True, config=STORED, kw_only=True)
class RandomSearch(RandomCosts):
    """The oracle against a random search of the same cost, in their records.

    Attributes:
        n: samples of both searches.
        tolerance: share by which nominal layers may differ.
        oracle: share of samples for which a right chain stands in the oracle's records.
        random: the same of the random search.
        paired: the first against the second.
        mean_depth: of each search the depth of the chain that it would run, full depth where none stands, mean.
        depth_difference: the oracle's minus the random search's, layers.
    """

    n: Positive
    tolerance: NotNegative
    oracle: Proportion | None
    random: Proportion | None
    paired: PairedShares | None
    mean_depth: dict[Literal["oracle", "random"], Estimate | None]
    depth_difference: Estimate | None


def _pairs(oracle: Sequence[SearchRecord], other: Sequence[SearchRecord], what: str) -> list[Pair]:
    """Return the pairs of records of the same sample, in the oracle's order.

    That the records of each file are alike, and look for the answer that they should, is checked where they are read
    (`eval.inputs`).

    Args:
        oracle: records of the oracle, which searches for the right answer.
        other: records of another search, of all of its samples or of some.
        what: name of the setting of the other records, for refusals.

    Raises:
        InputError: where they are of another model or prompt, or were verified in one search only.
    """
    known = {record.sample_id: record for record in other}
    pairs = [(record, known[record.sample_id]) for record in oracle if record.sample_id in known]
    one, two = pairs[0]
    for name in OF_FILE:
        if getattr(one, name) != getattr(two, name):
            raise InputError(
                f"{what}: expected {name} {getattr(one, name)} of a search like the oracle's, got {getattr(two, name)}"
            )
    if (one.full.verified is None) != (two.full.verified is None):
        raise InputError(f"{what}: expected both searches verified, or neither")
    return pairs


def _means(pairs: Sequence[Pair], name: str) -> tuple[float, float]:
    """Return the mean of a count over both searches' records."""
    first, second = (sum(int(getattr(pair[i], name)) for pair in pairs) / len(pairs) for i in (0, 1))
    return first, second


def gives(full: ChainResult) -> bool | None:
    """Whether full depth gives the answer that counts, in all judgements; None: in some, or it ties."""
    if full.verified is False or full.margin == 0:
        return None
    return full.correct


def _depth(record: SearchRecord) -> int | None:
    found = record.shortest
    return None if found is None else found.chain.depth


def require_same_search(oracle: Path, wrong: Path) -> None:
    """Check that two record files come of the same search settings, but for the answer that is searched for.

    Records name their settings by a hash that holds the answer's kind, so the settings files beside them are compared.

    Raises:
        InputError: where a settings file is missing or of another record file, or a setting is another.
    """
    first, second = _search_settings(oracle), _search_settings(wrong)
    for path, settings, target in ((oracle, first, "gold"), (wrong, second, "wrong")):
        if settings.get("reward_target") != target:
            raise InputError(
                f"wrong_records: expected {path} of a search with reward_target {target}, "
                f"got {settings.get('reward_target')}"
            )
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
    settings = _search_settings(path)
    search = settings.get("search")
    algorithm = search.get("algorithm") if isinstance(search, dict) and settings.get("menu") is None else "a menu"
    if algorithm != "random":
        raise InputError(f"random_search: expected {path} of a search with the algorithm random, got {algorithm}")


def _search_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the run that made a record file, as they stand beside it.

    Raises:
        InputError: where they are missing, or the record file is not the one that they name.
    """
    beside = require_file(runs_file(path), "records")
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
