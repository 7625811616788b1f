"""Balanced draws, leaps of several actions, and the preference for shorter chains."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from scipy.stats import binomtest, chisquare

from router.chain import Chain
from search.algorithms import TreeSearcher, make_searcher, search
from search.settings import SearchSettings
from search.tree import Tree
from tests.toys import brute_force, plain

LEAPING = plain(skip_share=0.8, root_leap=4, leap=2, shorter_first=True, max_edits=4, in_flight=2)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_skips_are_drawn_with_their_share_and_evenly_among_themselves(share: float) -> None:
    # Oracle: the binomial law for the share, chi-square for the places (null: uniform among skips).
    space = plain().action_space(8, 2)
    full, rng = Chain.full(8), random.Random(0)
    drawn = [space.sample(full, rng, share) for _ in range(5000)]
    skips = Counter(action for action in drawn if action.kind == "skip")
    assert binomtest(skips.total(), len(drawn), share).pvalue > 0.01
    assert set(skips) == {action for action in space.legal(full) if action.kind == "skip"}
    assert chisquare(list(skips.values())).pvalue > 0.01
    others = Counter(action for action in drawn if action.kind != "skip")
    assert set(others) == {action for action in space.legal(full) if action.kind != "skip"}


def test_without_a_share_four_of_five_draws_are_repeats() -> None:
    # Oracle: counting. Each block of 1..4 of the 18 editable layers: one skip, four repeats (30 more layers fit).
    space = plain().action_space(30, 12)
    full = Chain.full(30)
    assert space.skips(full) / space.count(full) == pytest.approx(0.2)
    assert [action.kind for action in space.legal(full)][: space.skips(full)] == ["skip"] * space.skips(full)


@pytest.mark.parametrize("action_set", ["skip", "repeat"])
def test_a_share_changes_nothing_where_all_actions_are_of_one_kind(action_set: str) -> None:
    space = plain(action_set=action_set).action_space(8)  # type: ignore[arg-type]
    one, other = random.Random(3), random.Random(3)
    full = Chain.full(8)
    assert [space.sample(full, one, 0.9) for _ in range(50)] == [space.sample(full, other) for _ in range(50)]


def test_the_weights_of_a_node_give_skips_their_share() -> None:
    # Oracle: the share itself; within a kind all weigh the same.
    space = plain().action_space(8)
    full, skips = Chain.full(8), space.skips(Chain.full(8))
    weights = Tree(space, 0.7).weights(full)
    assert sum(weights[:skips]) == pytest.approx(0.7 * sum(weights))
    assert len(set(weights[:skips])) == len(set(weights[skips:])) == 1
    assert Tree(space).weights(full) == [1.0] * space.count(full)


@pytest.mark.parametrize("seed", range(5))
def test_leaping_searches_stay_in_the_space_and_never_repeat_a_chain(seed: int) -> None:
    # Oracle: brute force of the chains within 4 actions of 5 layers, 1 of them in the prefix.
    settings = replace(LEAPING, simulations=400, max_block=2, max_times=1, max_depth=8)
    space = settings.action_space(5, 1)
    asked: list[Chain] = []

    def reward(chains: list[Chain]) -> list[float]:
        asked.extend(chains)
        return [float(chain.depth % 3 == 1) for chain in chains]

    searcher = search(reward, space, settings, random.Random(seed))  # type: ignore[arg-type]
    assert len(set(asked)) == len(asked) == searcher.simulations
    assert set(asked) <= brute_force(space, 4)
    again = search(reward, space, settings, random.Random(seed))  # type: ignore[arg-type]
    assert list(again.evaluated.items()) == list(searcher.evaluated.items())


def test_a_small_space_is_searched_to_its_end_by_leaps_too() -> None:
    # Oracle: brute force. Where leaps give nothing new or nothing shorter, single actions go on.
    settings = replace(LEAPING, simulations=10_000, max_edits=2, max_block=2, max_times=1)
    space = settings.action_space(4)
    found = search(lambda chains: [1.0] * len(chains), space, settings, random.Random(0))
    assert set(found.evaluated) == brute_force(space, 2)


def shorter_than_all_before(settings: SearchSettings) -> float:
    """Share of chains that are shorter than every one before, over searches in which every chain is right."""
    space = settings.action_space(30, 12)
    shorter = tried = 0
    for seed in range(20):
        found = search(lambda chains: [1.0] * len(chains), space, settings, random.Random(seed)).evaluated
        depths = [chain.depth for chain in found]
        shorter += sum(depth < min(depths[:i]) for i, depth in enumerate(depths) if i)
        tried += len(depths) - 1
    return shorter / tried


def test_chains_are_shorter_than_the_best_once_one_is_right() -> None:
    # Oracle: counting. Two chains after the full one; nearly always ten draws hold a shorter chain so early.
    settings = replace(LEAPING, simulations=3, in_flight=1, max_edits=8)
    assert shorter_than_all_before(settings) > 0.85
    assert shorter_than_all_before(replace(settings, shorter_first=False)) < 0.75


def test_wrong_chains_do_not_make_others_shorter() -> None:
    # Oracle: nothing is right (reward 0.5 is not above 0.5), so the preference has nothing to go by.
    settings = replace(LEAPING, simulations=40, max_edits=8)
    space = settings.action_space(30, 12)
    one, other = (
        search(lambda chains: [0.5] * len(chains), space, each, random.Random(0)).evaluated
        for each in (settings, replace(settings, shorter_first=False))
    )
    assert list(one) == list(other)


def test_a_leap_finds_edits_that_only_help_together() -> None:
    # Oracle: only chains without three given layers are right, and fewer skips change nothing. Single steps must go
    # down the right branch by chance, twice, before the third.
    single = plain(simulations=60, action_set="skip", max_block=1, max_edits=3, in_flight=1, depth_penalty=0.0)
    found = {1: 0, 3: 0}
    space = single.action_space(10)
    for seed in range(150):
        needed = set(random.Random(seed).sample(range(10), 3))
        for root_leap in found:
            searcher = search(
                lambda chains, needed=needed: [float(not needed & set(c.layers)) for c in chains],  # type: ignore[misc]
                space,
                replace(single, root_leap=root_leap),
                random.Random(seed),
            )
            found[root_leap] += max(searcher.evaluated.values()) == 1.0
    assert found[3] >= 1.5 * found[1]


def test_edits_of_a_leap_are_counted() -> None:
    settings = replace(LEAPING, simulations=100)
    searcher = make_searcher(settings.action_space(30, 12), settings, random.Random(1))
    assert isinstance(searcher, TreeSearcher)
    while chains := searcher.ask():
        searcher.tell([chain.depth / 60 for chain in chains])
    edits = [node.edits for node in searcher.tree.nodes.values()]
    assert max(edits) <= 4
    assert len(set(edits)) == 5  # full depth, and one to four edits
