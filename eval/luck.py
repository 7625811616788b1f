"""What the oracle's records say when another search's stand beside them: how much is luck, and what chance finds.

A search tries many chains and keeps what gives the answer that it looks for. With few possible answers some chain gives
any of them, right or wrong. So the same search is run once more for a wrong answer; as often as it finds a chain that
gives that one, finding the right one proves nothing (`Luck`). A random search that tries as many chains says what the
tree search is worth beyond trying (`RandomSearch`).

Both controls need records only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic.dataclasses import dataclass

from data.records import ChainResult, SearchRecord
from data.statistics import Estimate, PairedShares, Proportion, estimate_of, mean_of, paired_shares, share_of
from data.store import differences, identity_of
from router.validation import STORED, Count, InputError, NotNegative, Positive

OF_ANSWER = frozenset({"reward_target", "targets"})
"""What of a search's identity says which answer it looks for."""
OF_CHAINS = frozenset({"search", "menu"})
"""What of it says which chains are tried."""
TOLERANCE = 0.05
"""Proportion of the oracle's nominal layers by which a random search of other simulations may differ."""
FullGives = Literal["right", "told", "other", "unclear"]
"""What full depth answers: the right answer, the wrong one that is searched for (`told`), neither of them, or unclear:
it ties with one of them, or gives one in one of its two judgements only."""
OfBoth = dict[Literal["oracle", "random"], NotNegative]
"""A number of the oracle's search and of the random one."""
Pair = tuple[SearchRecord, SearchRecord]
"""The records that two searches made of one sample, the oracle's first."""


@dataclass(frozen=True, config=STORED, kw_only=True)
class Luck:
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
        left_out: samples that the oracle has a record of and the search for a wrong answer has not.
        verified: whether a chain counts only where it stood a second judgement, in both searches.
        simulations: simulations a sample, mean: the oracle's ("gold") and that of the search for a "wrong" answer.
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

    left_out: Count
    verified: bool
    simulations: dict[Literal["gold", "wrong"], NotNegative]
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

    @classmethod
    def of(cls, gold: Sequence[SearchRecord], wrong: Sequence[SearchRecord], seed: int) -> Luck:
        """Measure how much is luck.

        That it is the same search but for the answer is for `require_same_search` to check.

        Args:
            gold: the oracle's records.
            wrong: records of the same search for a wrong answer, of all of these samples or of some.
            seed: seed of the bootstrap.
        """
        pairs = _pairs(gold, wrong)
        simulations = _means(pairs, "simulations")
        full = np.array([_full_gives(*pair) for pair in pairs])
        found, lucky = (np.array([pair[i].shortest is not None for pair in pairs]) for i in (0, 1))
        of_wrong, eligible = full != "right", full == "other"
        gained, rest = of_wrong & found, 1.0 * (eligible & found) - (eligible & lucky)
        columns = np.stack([np.ones(len(full)), of_wrong, gained, eligible, rest], axis=1)
        return cls(
            left_out=len(gold) - len(pairs),
            verified=pairs[0][0].full.verified is not None,
            simulations={"gold": simulations[0], "wrong": simulations[1]},
            n=len(full),
            full={kind: int((full == kind).sum()) for kind in get_args(FullGives)},
            eligible=int(eligible.sum()),
            gold=share_of(found[eligible]),
            luck=share_of(lucky[eligible]),
            paired=paired_shares(found[eligible], lucky[eligible], seed),
            full_wrong=share_of(of_wrong),
            gain=estimate_of(columns, lambda sums: sums[:, 2] / sums[:, 0], seed),
            # (share wrong at full depth) * (rate of right chains - rate of lucky ones)
            net_gain=estimate_of(columns, lambda sums: sums[:, 1] / sums[:, 0] * sums[:, 4] / sums[:, 3], seed),
            flipped=share_of(lucky[~of_wrong]),
        )


@dataclass(frozen=True, config=STORED, kw_only=True)
class RandomSearch:
    """The oracle against a random search of the same cost, in their records.

    Attributes:
        left_out: samples that the oracle has a record of and the random search has not.
        equal: what is equal: simulations, or nominal layers within `tolerance`.
        simulations: of each search the simulations a sample, mean.
        nominal_layers: of each search the layers of all chains of a sample, as if each ran alone, mean.
        executed_layers: of each search the layers really run for a sample, mean (0 where answers are generated).
        n: samples of both searches.
        tolerance: share by which nominal layers may differ.
        oracle: share of samples for which a right chain stands in the oracle's records.
        random: the same of the random search.
        paired: the first against the second.
        mean_depth: of each search the depth of the chain that it would run, full depth where none stands, mean.
        depth_difference: the oracle's minus the random search's, layers.
    """

    left_out: Count
    equal: Literal["simulations", "nominal_layers"]
    simulations: OfBoth
    nominal_layers: OfBoth
    executed_layers: OfBoth
    n: Positive
    tolerance: NotNegative
    oracle: Proportion | None
    random: Proportion | None
    paired: PairedShares | None
    mean_depth: dict[Literal["oracle", "random"], Estimate | None]
    depth_difference: Estimate | None

    @classmethod
    def of(cls, oracle: Sequence[SearchRecord], drawn: Sequence[SearchRecord], seed: int) -> RandomSearch:
        """Compare the two searches.

        That the second is a random search of the same model and prompt is for `require_random_search` to check.

        Args:
            oracle: the oracle's records.
            drawn: those of a random search for the right answers, of all of these samples or of some.
            seed: seed of the bootstrap.

        Raises:
            InputError: where they are of another cost.
        """
        pairs = _pairs(oracle, drawn)
        simulations, nominal = _means(pairs, "simulations"), _means(pairs, "nominal_layers")
        executed = _means(pairs, "executed_layers")
        same = simulations[0] == simulations[1]
        if not same and abs(nominal[1] - nominal[0]) > TOLERANCE * nominal[0]:
            raise InputError(
                f"random_search: expected the oracle's {simulations[0]:g} simulations or {nominal[0]:g} nominal layers "
                f"a sample (within {TOLERANCE:.0%}), got {simulations[1]:g} and {nominal[1]:g}"
            )
        found = [pair[0].shortest is not None for pair in pairs], [pair[1].shortest is not None for pair in pairs]
        depths = [_depth(pair[0]) for pair in pairs], [_depth(pair[1]) for pair in pairs]
        return cls(
            left_out=len(oracle) - len(pairs),
            equal="simulations" if same else "nominal_layers",
            simulations={"oracle": simulations[0], "random": simulations[1]},
            nominal_layers={"oracle": nominal[0], "random": nominal[1]},
            executed_layers={"oracle": executed[0], "random": executed[1]},
            n=len(pairs),
            tolerance=TOLERANCE,
            oracle=share_of(found[0]),
            random=share_of(found[1]),
            paired=paired_shares(*found, seed),
            mean_depth={"oracle": mean_of(depths[0], seed), "random": mean_of(depths[1], seed)},
            depth_difference=mean_of([one - other for one, other in zip(*depths, strict=True)], seed),
        )


def _pairs(oracle: Sequence[SearchRecord], other: Sequence[SearchRecord]) -> list[Pair]:
    """Return the pairs of records of the same sample, in the oracle's order.

    Args:
        oracle: records of the oracle, which searches for the right answer.
        other: records of another search, of all of its samples or of some.
    """
    known = {record.sample_id: record for record in other}
    return [(record, known[record.sample_id]) for record in oracle if record.sample_id in known]


def _means(pairs: Sequence[Pair], name: str) -> tuple[float, float]:
    """Return the mean of a count over both searches' records."""
    first, second = (sum(int(getattr(pair[i], name)) for pair in pairs) / len(pairs) for i in (0, 1))
    return first, second


def gives(full: ChainResult) -> bool | None:
    """Whether full depth gives the answer that counts, in all judgements; None: in some, or it ties."""
    if full.verified is False or full.margin == 0:
        return None
    return full.correct


def _full_gives(gold: SearchRecord, wrong: SearchRecord) -> FullGives:
    """Return what full depth answers on a sample, by the two searches' records of it."""
    gives_right, gives_wrong = gives(gold.full), gives(wrong.full)
    if gives_right:
        return "right"
    if gives_wrong:
        return "told"
    return "other" if gives_right is False and gives_wrong is False else "unclear"


def _depth(record: SearchRecord) -> float:
    """Return the depth of the chain that a search would run: the shortest that stands, full depth where none does."""
    found = record.shortest
    return float(record.num_layers if found is None else found.chain.depth)


def unlike(oracle: Mapping[str, Any], other: Mapping[str, Any], but: Set[str]) -> list[str]:
    """Return the dotted names of what decides a search (its store's identity) and differs, but for some names."""
    first, second = ({name: one for name, one in of.items() if name not in but} for of in (oracle, other))
    return differences(first, second)


def require_same_search(oracle: Path, wrong: Path) -> None:
    """Check that two record files come of the same search, but for the answer that is searched for.

    Raises:
        InputError: where they do not, or one of them does not say what it comes of (records of schema 2).
    """
    _require_like(oracle, wrong, "wrong_records", OF_ANSWER)


def require_random_search(oracle: Path, drawn: Path) -> None:
    """Check that a record file comes of a random search, which is like the oracle's but for the chains that it tries.

    Raises:
        InputError: where it does not, or one of them does not say what it comes of (records of schema 2).
    """
    algorithm = _require_like(oracle, drawn, "random_search", OF_CHAINS).get("search", {}).get("algorithm", "a menu")
    if algorithm != "random":
        raise InputError(f"random_search: expected {drawn} of a search with the algorithm random, got {algorithm}")


def _require_like(oracle: Path, other: Path, setting: str, but: Set[str]) -> dict[str, Any]:
    """Check that another search is like the oracle's but for some names; returns what decides it."""
    first, second = identity_of(oracle, "records"), identity_of(other, setting)
    differing = unlike(first, second, but)
    if differing:
        name = differing[0]
        wanted, got = _value(first, name), _value(second, name)
        raise InputError(f"{setting}: expected {other} of a search with {name} {wanted}, like the oracle's, got {got}")
    return second


def _value(of: Any, name: str) -> Any:
    """Return what stands in JSON data under a dotted name."""
    for key in name.split("."):
        of = of.get(key)
    return of
