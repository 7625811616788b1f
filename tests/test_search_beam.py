"""The beam search: levels worked out by hand."""

import random
from dataclasses import replace

import pytest

from search.algorithms import make_searcher
from tests.toys import SMALL, LastRandom, brute_force, noisy, run, trials

BY_HAND = replace(
    SMALL, algorithm="beam", action_set="skip", max_block=1, max_edits=2, depth_penalty=0.0, beam_width=2, simulations=9
)
TABLE = {"1-3": 0.1, "0,2-3": 0.6, "0-1,3": 0.7, "0-2": 0.2}


def test_levels_by_hand():
    # Oracle: worked out by hand: skips of single layers of 4; LastRandom draws the last action first. A level holds
    # ceil(8 / 2) = 4 chains. Level 1: all four skips of the full chain (worth 0.9, but without an action left).
    # Level 2: parents are the two best, 0-1,3 (0.7) and 0,2-3 (0.6), in turns: skip entry 2: 0-1; skip entry 2: 0,2;
    # skip entry 1: 0,3; skip entry 1: 0,3, known, so skip entry 0: 2-3. That makes 9.
    found = trials(lambda chain: TABLE.get(str(chain), 0.9), BY_HAND, LastRandom(), 4)
    assert found == ["0-3", "0-2", "0-1,3", "0,2-3", "1-3", "0-1", "0,2", "0,3", "2-3"]


@pytest.mark.parametrize("depth_in", ["selection", "reward"])
def test_the_penalty_decides_who_is_best(depth_in):
    # Oracle: by hand: skips of blocks of 1 and 2 of 4 layers, a beam of one. Level 1, ceil(14 / 2) = 7 chains, the last
    # by number first: 0-1 (skips 2-3), 0,3, 2-3, then 0-2, 0-1,3, 0,2-3, 1-3. The last is worth 0.6 and all others 0.5:
    # without a penalty it is the parent, and skipping 2-3 gives the chain 1; with one of 1 a layer of depth costs 0.25,
    # and the earliest of the chains of two layers is: 0-1, and skipping 1 gives the chain 0.
    settings = replace(BY_HAND, max_block=2, simulations=15, beam_width=1, depth_in=depth_in)
    level = ["0-3", "0-1", "0,3", "2-3", "0-2", "0-1,3", "0,2-3", "1-3"]
    for penalty, child in ((0.0, "1"), (1.0, "0")):
        changed = replace(settings, depth_penalty=penalty)
        found = trials(lambda chain: 0.6 if str(chain) == "1-3" else 0.5, changed, LastRandom(), 4)
        assert found[:8] == level
        assert found[8] == child


def test_the_number_per_level_follows_from_the_budget():
    # Oracle: by hand: ceil(40 / 4) = 10 chains a level, so asks that wait for a level's rewards end at 1 + 10 k.
    settings = replace(SMALL, algorithm="beam", simulations=41, max_edits=4, in_flight=7, beam_width=3)
    searcher = make_searcher(settings.action_space(20), settings, random.Random(0))
    sizes = []
    while chains := searcher.ask():
        sizes.append(len(chains))
        searcher.tell([noisy(chain) for chain in chains])
    assert sizes == [7, 4, 7, 3, 7, 3, 7, 3]


@pytest.mark.parametrize("beam_width", [1, 100])
def test_levels_go_on_until_the_budget_is_used(beam_width):
    # Oracle: brute force: a budget for the whole space is used for it, though single levels run out of parents.
    settings = replace(SMALL, algorithm="beam", simulations=5000, beam_width=beam_width, in_flight=4)
    assert set(run(noisy, settings, 0, 5).evaluated) == brute_force(settings.action_space(5), 2)


def test_children_are_those_of_the_best():
    # Oracle: every chain of level 2 is one action away from one of the best chains of level 1 and full depth.
    settings = replace(SMALL, algorithm="beam", simulations=61, beam_width=3, depth_penalty=0.0)
    space = settings.action_space(10)
    chains = list(run(noisy, settings, 4, 10).evaluated)
    best = sorted(chains[:31], key=noisy, reverse=True)[:3]
    below = {action.apply(parent) for parent in best for action in space.legal(parent)}
    assert len(chains) == 61
    assert set(chains[31:]) <= below
