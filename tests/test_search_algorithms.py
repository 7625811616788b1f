"""The searches: the laws that all keep, the exact chains that each asks for, and toys whose best chain is known.

The exact chains stand in tests/golden/searches.json.

The goldens are remade with
COLA_UPDATE_GOLDENS=1 .venv/bin/python -m pytest tests/test_search_algorithms.py
"""

import json
import os
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.chain import Chain
from search.actions import ActionSpace
from search.algorithms import make_searcher
from search.settings import SearchSettings
from tests.toys import ALGORITHMS, SMALL, brute_force, constant, noisy, ordered, plain, run, smooth, trials

GOLDENS = Path(__file__).parent / "golden" / "searches.json"
LAYERS = 10
TREE = plain(simulations=60, max_block=2, max_times=2, max_edits=3, in_flight=3)
GOLDEN_SEARCHES = {
    "uct": TREE,
    "uct, max, depth in reward": replace(TREE, backup="max", depth_in="reward", depth_penalty=0.5),
    "uct, moves": replace(TREE, action_set="both+move", in_flight=1),
    "uct, bounds of PoLar": replace(TREE, below_block=1, max_runs=2, depth_shares=(0.6, 1.4)),
    "random": replace(TREE, algorithm="random", edit_weights=(2.0, 0.0, 1.0)),
    "ours": replace(SearchSettings(), simulations=60, in_flight=3),
}


def golden_trials(name):
    reward = smooth(Chain((0, 1, 2, 2, 3, 4, 6, 7, 9), LAYERS))
    return trials(reward, GOLDEN_SEARCHES[name], 7, LAYERS, 2)


def test_searches_ask_exactly_the_golden_chains():
    # Oracle: the stored sequences, written by this test with the command in the module's docstring.
    found = {name: golden_trials(name) for name in GOLDEN_SEARCHES}
    if os.environ.get("COLA_UPDATE_GOLDENS"):
        GOLDENS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(GOLDENS.read_text(encoding="utf-8"))
    assert len({tuple(chains) for chains in found.values()}) == len(found)
    assert all(len(chains) == 60 for chains in found.values())


@st.composite
def searches(draw, algorithm):
    """Space and seed of any search."""
    n = draw(st.integers(1, 8))
    max_edits = draw(st.integers(0, 5))
    settings = plain(
        algorithm=algorithm,
        simulations=draw(st.integers(1, 60)),
        exploration=draw(st.sampled_from([0.0, 0.5, 2.0])),
        depth_penalty=draw(st.sampled_from([0.0, 0.1, 5.0])),
        depth_in=draw(st.sampled_from(["selection", "reward"])),
        backup=draw(st.sampled_from(["mean", "max"])),
        random_share=draw(st.sampled_from([0.0, 0.1, 1.0])),
        skip_share=draw(st.sampled_from([None, 0.1, 0.9])),
        root_leap=draw(st.integers(1, 4)),
        leap=draw(st.integers(1, 3)),
        shorter_first=draw(st.booleans()),
        widening_constant=draw(st.sampled_from([0.3, 2.0, 500.0])),
        widening_exponent=draw(st.sampled_from([0.0, 0.5, 1.0])),
        edit_weights=draw(
            st.one_of(st.none(), st.tuples(*[st.sampled_from([0.5, 0.0, 3.0])] * max_edits).filter(any))
            if max_edits
            else st.none()
        ),
        in_flight=draw(st.integers(1, 9)),
        action_set=draw(st.sampled_from(["skip", "repeat", "both", "both+move"])),
        max_block=(block := draw(st.integers(1, 4))),
        below_block=draw(st.one_of(st.none(), st.integers(1, block))),
        max_runs=draw(st.sampled_from([None, None, 1, 2])),
        depth_shares=draw(st.sampled_from([None, None, (0.5, 1.5), (1.0, 1.0)])),
        max_times=draw(st.integers(1, 4)),
        max_shift=draw(st.integers(1, 4)),
        max_depth=draw(st.one_of(st.none(), st.integers(n, 2 * n))),
        max_edits=max_edits,
    )
    prefix = draw(st.integers(0, n))
    return ActionSpace(settings, n, prefix), draw(st.integers(0, 99))


def follow(searcher):
    """Run a search to its end and return the sizes of its asks."""
    sizes = []
    while chains := searcher.ask():
        assert not searcher.done
        sizes.append(len(chains))
        searcher.tell([noisy(chain) for chain in chains])
    return sizes


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_search_keeps_the_rules_and_ends(algorithm, data):
    # Oracle: the rules: no chain proposed twice, full depth first, the prefix unedited, depth and simulations capped,
    # asks of 1..in_flight; a search that ends early has tried every chain within two edits (with more, the tree may
    # miss some behind a detour), unless it was told to draw chains of some numbers of edits only.
    space, seed = data.draw(searches(algorithm))
    settings, searcher = space.settings, make_searcher(space, random.Random(seed))
    sizes = follow(searcher)
    assert searcher.done
    assert searcher.ask() == []
    proposed = list(searcher.evaluated)
    assert proposed[0].is_full
    assert all(1 <= size <= settings.in_flight for size in sizes)
    assert sum(sizes) == len(proposed) == searcher.simulations <= settings.simulations
    assert list(searcher.evaluated.values()) == [noisy(chain) for chain in proposed]
    for chain in proposed:
        assert chain.layers[: space.first_editable] == tuple(range(space.first_editable))
        assert space.min_depth <= chain.depth <= space.max_depth
    if searcher.simulations < settings.simulations and (settings.edit_weights is None or algorithm != "random"):
        assert brute_force(space, min(2, settings.max_edits)) <= set(proposed)
    if settings.max_edits < 2:
        assert set(proposed) <= brute_force(space, settings.max_edits)
    again = make_searcher(space, random.Random(seed))
    assert follow(again) == sizes
    assert list(again.evaluated) == proposed


@given(data=st.data())
@hypothesis_settings(max_examples=50, deadline=None)
def test_counters_of_the_tree_add_up(data):
    # Oracle: sums over the tree; actions worked out again; edits as documented.
    space, seed = data.draw(searches("uct"))
    settings, searcher = space.settings, make_searcher(space, random.Random(seed))
    follow(searcher)
    root = searcher.tree.root
    assert root.visits == searcher.simulations == 1 + sum(edge.visits for edge in root.edges)
    for node in searcher.tree.nodes.values():
        assert node.edits <= settings.max_edits
        assert all(node.edits < edge.child.edits for edge in node.open)  # so no walk returns to a chain
        for edge in node.edges:
            if edge.action is None:  # a leap
                assert settings.root_leap > 1 or settings.leap > 1 or settings.shorter_first
            else:
                assert edge.action.apply(node.chain) == edge.child.chain
    if searcher.simulations < settings.simulations:
        assert root.closed


def run_interleaved(seeds, settings, order):
    """Advance one searcher a seed, in the order that `order` (a generator) draws."""
    space = ActionSpace(settings, LAYERS, 2)
    searchers = {seed: make_searcher(space, random.Random(seed)) for seed in seeds}
    while waiting := [seed for seed, searcher in searchers.items() if not searcher.done]:
        chosen = order.sample(waiting, order.randint(1, len(waiting)))
        asked = {seed: searchers[seed].ask() for seed in chosen}
        for seed, chains in reversed(asked.items()):
            searchers[seed].tell([noisy(chain) for chain in chains])
    return {seed: list(searcher.evaluated.items()) for seed, searcher in searchers.items()}


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_results_depend_on_the_seed_and_not_on_the_batching(algorithm, in_flight):
    # Oracle: each search run alone; searches that advance together in any order give the same trials.
    settings = plain(algorithm=algorithm, simulations=60, in_flight=in_flight)
    expected = {seed: list(run(noisy, settings, seed, LAYERS, 2).evaluated.items()) for seed in range(6)}
    for order in range(2):
        assert run_interleaved(range(6), settings, random.Random(order)) == expected
    assert len({tuple(chains) for chains in expected.values()}) == 6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_flight_is_a_setting_of_the_search(algorithm):
    # Oracle: the asks hold up to in_flight chains, never fewer where nothing waits for rewards, and the same budget.
    asked = {}
    for in_flight in (1, 4):
        settings = plain(algorithm=algorithm, simulations=50, in_flight=in_flight)
        searcher = make_searcher(ActionSpace(settings, 12), random.Random(0))
        sizes = follow(searcher)
        assert sum(sizes) == searcher.simulations == 50
        assert all(size == in_flight for size in sizes[:-1])
        asked[in_flight] = list(searcher.evaluated)
    # The other (random) sees no rewards.
    assert (asked[1] != asked[4]) == (algorithm == "uct")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_protocol_errors(algorithm):
    # Oracle: the messages, written by hand; a refused tell changes nothing.
    settings = plain(algorithm=algorithm, simulations=2000, in_flight=2, max_edits=1)
    searcher = make_searcher(ActionSpace(settings, 6), random.Random(0))
    with pytest.raises(ValueError, match="longer than argument 1"):
        searcher.tell([0.5])
    chains = searcher.ask()
    assert (len(chains), chains[0].is_full, searcher.done, searcher.simulations) == (2, True, False, 0)
    with pytest.raises(RuntimeError, match="expected the rewards of 2 chains to be told first"):
        searcher.ask()
    with pytest.raises(ValueError, match="shorter than argument 1"):
        searcher.tell([0.5])
    for bad in (float("nan"), 1.5, -0.1, float("inf")):
        with pytest.raises(ValueError, match=rf"rewards\[1\]: expected a number in 0\.\.1, got {bad}"):
            searcher.tell([0.5, bad])
    assert searcher.evaluated == {}
    searcher.tell([0.25, 1])
    assert list(searcher.evaluated.items()) == [(chains[0], 0.25), (chains[1], 1.0)]


RANDOM = replace(SMALL, algorithm="random", simulations=40)


@pytest.mark.parametrize(("weights", "two"), [((1.0,), 0.0), ((0.0, 1.0), 1.0), ((3.0, 1.0), 0.25), (None, 0.5)])
def test_edit_weights_are_the_shares_of_edits(weights, two):
    # Oracle: the weights, but for chains of two actions that one action gives as well (neighbouring skips, a skip that
    # undoes part of a repeat): their probability is worked out over all pairs of actions. Tolerance: 3 % of all chains,
    # over four standard errors.
    settings = replace(RANDOM, edit_weights=weights)
    space, full = ActionSpace(settings, 10), Chain.full(10)
    single, both = brute_force(space, 1) - {full}, brute_force(space, 2)
    shallow = Counter()
    for first in space.legal(full):
        chain = first.apply(full)
        pairs = space.legal(chain)
        for second in pairs:
            edited = second.apply(chain)
            shallow["none" if edited == full else "one" if edited in single else "two"] += 1 / len(pairs)
    collapsed = shallow["one"] / (shallow["one"] + shallow["two"])
    assert 0.01 < collapsed < 0.2
    tried = [chain for seed in range(100) for chain in list(run(noisy, settings, seed, 10).evaluated)[1:]]
    assert len(tried) == 100 * 39
    assert set(tried) <= both
    assert sum(chain not in single for chain in tried) / len(tried) == pytest.approx(two * (1 - collapsed), abs=0.03)


def test_a_number_of_edits_without_chains_left_is_not_drawn():
    # Oracle: brute force: with single edits alone the search ends with exactly the chains one action away; and a weight
    # that is all but 0 does not keep the search from the rest of the space.
    space = ActionSpace(RANDOM, 5)
    settings = replace(RANDOM, simulations=10_000, edit_weights=(1.0, 0.0))
    assert set(run(noisy, settings, 0, 5).evaluated) == brute_force(space, 1)
    settings = replace(settings, edit_weights=(1.0, 1e-12))
    assert set(run(noisy, settings, 0, 5).evaluated) == brute_force(space, 2)


def test_random_chains_do_not_hang_on_rewards():
    # Oracle: the same chains whatever is told.
    assert trials(constant, RANDOM, 3, 10) == trials(noisy, RANDOM, 3, 10)


def test_a_small_part_to_edit_ends_soon():
    # Oracle: the clock, generously. Chains of 8 edits run out of layers on the way; listing them all would never end.
    settings = SearchSettings(algorithm="random", simulations=100, max_edits=8, skip_share=0.85)
    start = time.monotonic()
    found = run(noisy, settings, 0, 30, 28)
    assert time.monotonic() - start < 30
    assert len(found.evaluated) > 10


def named(base, name):
    """The base with an algorithm, and with max backup where the name says so."""
    algorithm, _, backup = name.partition("-")
    return replace(base, algorithm=algorithm, backup=backup or "mean")


def times_found(settings, seeds, num_layers, everything):
    """Of problems whose best chains are drawn from `everything`, those in which a best chain was met."""
    found = 0
    for seed in seeds:
        reward = smooth(random.Random(seed).choice(everything))
        found += max(run(reward, settings, seed, num_layers).evaluated.values()) == 1.0
    return found


@pytest.mark.parametrize(("name", "action_set"), [("uct", "both"), ("uct-max", "skip")])
def test_smooth_reward_finds_the_best_more_often_than_random_chains(name, action_set):
    # Oracle: brute force over the chains within 2 edits, of which a share is tried; random search at equal cost.
    layers, percent = {"both": (8, 15), "skip": (14, 25)}[action_set]
    base = replace(SMALL, depth_penalty=0.0, action_set=action_set)
    everything = ordered(brute_force(ActionSpace(base, layers), 2))
    base = replace(base, simulations=len(everything) * percent // 100)
    rival = times_found(named(base, "random"), range(30), layers, everything)
    found = times_found(named(base, name), range(30), layers, everything)
    assert found >= 12
    assert found >= rival + 6


@pytest.mark.parametrize("name", ["uct", "uct-max"])
@pytest.mark.parametrize("depth_in", ["selection", "reward"])
def test_shortest_right_chain_is_found(name, depth_in):
    # Oracle: brute force over the skips of 10 layers; right means that five needed layers still run.
    base = replace(SMALL, simulations=150, depth_penalty=1.0, action_set="skip", max_edits=4, depth_in=depth_in)
    settings = named(base, name)
    everything = brute_force(ActionSpace(settings, 10), 4)
    assert len(everything) > 5 * settings.simulations
    found = 0
    for seed in range(10):
        needed = set(random.Random(seed).sample(range(10), 5))

        def right(chain, needed=needed):
            return needed <= set(chain.layers)

        shortest = min(chain.depth for chain in everything if right(chain))
        searcher = run(right, settings, seed, 10)
        found += min(chain.depth for chain, reward in searcher.evaluated.items() if reward) == shortest
    assert found >= 8


@pytest.mark.parametrize("name", ["uct", "uct-max", "random"])
def test_a_space_that_runs_out_was_tried_whole(name):
    # Oracle: brute force over the chains within 2 edits, the cap.
    for n, prefix, action_set in [
        (1, 0, "both"),
        (3, 1, "both+move"),
        (4, 0, "both"),
        (5, 0, "skip"),
        (4, 1, "both+move"),
    ]:
        settings = replace(SMALL, simulations=100_000, action_set=action_set, in_flight=3)
        for seed in range(2):
            searcher = run(noisy, named(settings, name), seed, n, prefix)
            assert set(searcher.evaluated) == brute_force(ActionSpace(settings, n, prefix), 2)


def test_what_stands_is_told():
    # Oracle: a chain that is right only in most variants has a reward above 0.5 and does not stand: what is proposed
    # afterwards need not be shorter than it, but shorter than one that stands, unless ten draws give no such chain.
    settings = replace(SearchSettings(), in_flight=1, simulations=30, random_share=0.0)
    longer = {}
    for stands in (True, False):
        searcher = make_searcher(ActionSpace(settings, 16), random.Random(0))
        depths = []
        while chains := searcher.ask():
            depths.append(chains[0].depth)
            right = 10 <= chains[0].depth <= 12
            searcher.tell([0.7 if right else 0.2], [stands and right])
        first = next(i for i, depth in enumerate(depths) if 10 <= depth <= 12)
        longer[stands] = sum(depth >= depths[first] for depth in depths[first + 1 :])
    assert longer[True] <= 1
    assert longer[False] >= 5
