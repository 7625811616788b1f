"""`eval.analysis` on records made by hand: every share follows from counting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data.records import ChainResult, SearchRecord
from data.statistics import Proportion, wilson_interval
from eval.analysis import measures_of, write_figures
from router.chain import Chain
from tests.menus import record_of

FULL = Chain.full(4)
SHORT = FULL.skip(2, 1)


def record(sample_id: str, full: float, short: float, target: str = "gold") -> SearchRecord:
    """A record of two chains with these margins; a chain is right where its margin is above 0."""

    def result(chain: Chain, margin: float) -> ChainResult:
        return ChainResult(chain, (margin, 0.0), 0 if margin > 0 else 1, margin > 0, margin)

    results = (result(FULL, full), result(SHORT, short))
    return record_of(sample_id, results, task="quiz", mode="letter", first_editable=0, reward_target=target)


GOLD = [record("a", 1, 1), record("b", 1, -1), record("c", -1, 1), record("d", -1, -1)]
WRONG = {
    "a": record("a", -1, 1, "wrong"),
    "b": record("b", -1, -1, "wrong"),
    "c": record("c", 1, 1, "wrong"),  # full depth gives that wrong answer: no luck can be told from it
    "d": record("d", -1, 1, "wrong"),
}


def test_shares_are_counted_and_luck_is_on_the_same_samples() -> None:
    # Oracle: counted by hand.
    told = measures_of(GOLD, WRONG, 0)
    assert (told["original"].share, told["oracle"].share) == (2 / 4, 3 / 4)
    assert told["shortened"]["found"] == Proportion(2, 0.5, wilson_interval(1, 2))
    assert told["set_right"]["found"].share == 1 / 2
    luck = told["shortened"]["luck"]
    assert (luck["wrong"].n, luck["wrong"].share, luck["rest"].value) == (2, 1 / 2, 0.0)
    luck = told["set_right"]["luck"]
    assert (luck["found"].n, luck["found"].share, luck["wrong"].share) == (1, 0, 1)
    assert luck["rest"] is None  # one sample has no interval
    assert told["depth"].value == (3 + 4 + 3) / 3
    assert told["use"].skip_rate[2] == 2 / 3


def test_a_chain_whose_second_run_disagreed_does_not_stand() -> None:
    # Oracle: the short chain of "a" counted above; refuted it counts no more, nor does a refuted full chain.
    one = GOLD[0]
    refuted = dataclasses.replace(one.results[1], verified=False, verified_by="letter")
    told = measures_of([dataclasses.replace(one, results=(one.results[0], refuted))], None, 0)
    assert (told["original"].share, told["shortened"]["found"].share) == (1, 0)
    refuted = dataclasses.replace(one.results[0], verified=False, verified_by="letter")
    told = measures_of([dataclasses.replace(one, results=(refuted, one.results[1]))], None, 0)
    assert (told["shortened"]["found"], told["set_right"]["found"]) == (None, None)
    assert told["shortened"]["luck"] is None


def test_each_row_of_the_figure_tells_its_own_number_of_chains(tmp_path: Path) -> None:
    # Oracle: by hand: some chain stands for three of the four samples, and for the first two.
    searches = [
        {"search": name, "model": "m", "split": "test", "num_layers": 4, "groups": {"all": measures_of(some, None, 0)}}
        for name, some in (("whole", GOLD), ("part", GOLD[:2]))
    ]
    (svg,) = [path for path in write_figures({"searches": searches}, tmp_path) if path.suffix == ".svg"]
    assert {"<!-- whole, n = 3 -->", "<!-- part, n = 2 -->"} <= {line.strip() for line in svg.read_text().splitlines()}
