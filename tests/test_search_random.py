"""The random search: numbers of edits, uniform actions, and spaces that run out."""

import time
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import pytest
from scipy.stats import chisquare

from router.chain import Chain
from search.settings import SearchSettings
from tests.toys import SMALL, brute_force, constant, noisy, run, trials

RANDOM = replace(SMALL, algorithm="random", simulations=40)


@lru_cache
def levels_of(space, most):
    return [brute_force(space, edits) for edits in range(most + 1)]


def least_edits(chains, space, most):
    """The least number of actions that lead to each chain, by brute force."""
    levels = levels_of(space, most)
    return [next(edits for edits, level in enumerate(levels) if chain in level) for chain in chains]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1.0,), {1: 1.0}), ((0.0, 1.0), {2: 1.0}), ((3.0, 1.0), {1: 0.75, 2: 0.25}), (None, {1: 0.5, 2: 0.5})],
)
def test_edit_weights_are_the_shares_of_edits(weights, expected):
    # Oracle: the weights, but for chains of two actions that one action gives as well (neighbouring skips, a skip that
    # undoes part of a repeat): their probability is worked out over all pairs of actions. Tolerance: 3 % of all chains,
    # over four standard errors.
    settings = replace(RANDOM, edit_weights=weights)
    space = settings.action_space(10)
    full = Chain.full(10)
    shallow = Counter()
    for first in space.legal(full):
        chain = first.apply(full)
        pairs = space.legal(chain)
        for second in pairs:
            shallow[least_edits([second.apply(chain)], space, 2)[0]] += 1 / len(pairs)
    collapsed = shallow[1] / (shallow[1] + shallow[2])
    assert 0.01 < collapsed < 0.2
    edits = Counter()
    for seed in range(100):
        edits.update(least_edits(list(run(noisy, settings, seed, 10).evaluated)[1:], space, 2))
    assert edits.total() == 100 * 39
    assert edits[2] / edits.total() == pytest.approx(expected.get(2, 0) * (1 - collapsed), abs=0.03)
    assert edits[1] + edits[2] == edits.total()


def test_single_edits_are_uniform():
    # Oracle: chi-square over the legal actions of the full chain, one chain a search; a search that asks for two edits
    # must fail the test for those that are one edit away.
    def p_value(weights):
        settings = replace(RANDOM, simulations=2, edit_weights=weights)
        space = settings.action_space(6)
        chains = [action.apply(Chain.full(6)) for action in space.legal(Chain.full(6))]
        seen = Counter(list(run(noisy, settings, seed, 6).evaluated)[1] for seed in range(40 * len(chains)))
        return chisquare(
            [seen[chain] for chain in chains], [max(1e-9, seen.total() / len(chains))] * len(chains), sum_check=False
        ).pvalue

    assert p_value((1.0,)) > 0.01
    assert p_value((0.0, 1.0)) < 1e-6


def test_a_number_of_edits_without_chains_left_is_not_drawn():
    # Oracle: brute force: with single edits alone the search ends with exactly the chains one action away; and a weight
    # that is all but 0 does not keep the search from the rest of the space.
    space = RANDOM.action_space(5)
    settings = replace(RANDOM, simulations=10_000, edit_weights=(1.0, 0.0))
    assert set(run(noisy, settings, 0, 5).evaluated) == brute_force(space, 1)
    settings = replace(settings, edit_weights=(1.0, 1e-12))
    assert set(run(noisy, settings, 0, 5).evaluated) == brute_force(space, 2)


def test_rewards_change_nothing():
    # Oracle: the same chains whatever is told.
    expected = trials(noisy, RANDOM, 3, 10)
    assert trials(lambda chain: constant([chain])[0], RANDOM, 3, 10) == expected
    assert len(expected) == 40


def test_a_small_part_to_edit_ends_soon():
    # Oracle: the clock, generously. Chains of 8 edits run out of layers on the way; listing them all would never end.
    settings = SearchSettings(algorithm="random", simulations=100, max_edits=8, skip_share=0.85)
    start = time.monotonic()
    found = run(noisy, settings, 0, 30, 28)
    assert time.monotonic() - start < 30
    assert len(found.evaluated) > 10
