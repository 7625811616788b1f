"""How much of the oracle's gain is luck: the same search, told a wrong answer.

A search tries many chains and keeps what gives the answer that it was told. With few possible answers some chain gives
any of them, right or wrong. So the same search is run once more and told a wrong answer; as often as it finds a chain
that gives that one, finding the right one proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.records import ChainResult, SearchRecord
from eval.controls.searches import in_order, means
from eval.controls.statistics import PairedShares, Share, Sums, Value, paired_shares, share_of, value_of
from eval.policies import shortest_standing
from router.validation import InputError

GIVES_RIGHT, GIVES_TOLD, GIVES_OTHER, UNCLEAR = "right", "told", "other", "unclear"
ANSWERS = (GIVES_RIGHT, GIVES_TOLD, GIVES_OTHER, UNCLEAR)


@dataclass(frozen=True)
class LuckRow:
    """What both searches found on one sample.

    Attributes:
        sample_id: `Sample.id`.
        full: what full depth answers: the "right" answer, the wrong one that was "told", neither of them ("other"),
            or "unclear": it ties with one of them, or gives one in one of its two judgements only.
        found: whether a right chain stands in the oracle's record (`eval.policies.shortest_standing`).
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
    gold: Share | None
    luck: Share | None
    paired: PairedShares | None
    full_wrong: Share | None
    gain: Value | None
    net_gain: Value | None
    flipped: Share | None


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
        gain=value_of(columns, lambda sums: sums[:, 2] / sums[:, 0], seed),
        net_gain=value_of(columns, _net, seed),
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
        found=shortest_standing(gold) is not None,
        lucky=shortest_standing(wrong) is not None,
    )


def _gives(full: ChainResult) -> bool | None:
    """Whether full depth gives the answer that counts, in all judgements; None: in some, or it ties."""
    if full.verified is False or full.margin == 0:
        return None
    return full.correct
