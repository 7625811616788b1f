"""What every algorithm of the search keeps, and the exact chains that each asks for (tests/golden/searches.json).

The goldens are remade with
COLA_UPDATE_GOLDENS=1 .venv/bin/python -m pytest tests/test_search_algorithms.py
"""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.chain import Chain
from search.algorithms import make_searcher, search
from search.settings import SearchSettings
from tests.toys import ALGORITHMS, SMALL, brute_force, constant, noisy, plain, run, smooth, trials

GOLDENS = Path(__file__).parent / "golden" / "searches.json"
LAYERS = 10
TREE = plain(simulations=60, max_block=2, max_times=2, max_edits=3, in_flight=3)
GOLDEN_SEARCHES = {
    "uct": TREE,
    "uct, max, depth in reward": replace(TREE, backup="max", depth_in="reward", depth_penalty=0.5),
    "uct, moves": replace(TREE, action_set="both+move", in_flight=1),
    "random": replace(TREE, algorithm="random", edit_weights=(2.0, 0.0, 1.0)),
    "ours": replace(SearchSettings(), simulations=60, in_flight=3),
    "exhaustive": replace(TREE, algorithm="exhaustive", max_edits=1, simulations=60, max_times=1, max_block=3),
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
    assert all(len(chains) == 60 for name, chains in found.items() if name != "exhaustive")


@st.composite
def searches(draw, algorithm):
    """Settings, space and seed of any search; the exhaustive one is told to take any space that is small."""
    n = draw(st.integers(1, 8))
    max_edits = draw(st.integers(0, 2 if algorithm == "exhaustive" else 5))
    settings = plain(
        algorithm=algorithm,
        simulations=10**6 if algorithm == "exhaustive" else draw(st.integers(1, 60)),
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
        max_block=draw(st.integers(1, 2 if algorithm == "exhaustive" else 4)),
        max_times=draw(st.integers(1, 2 if algorithm == "exhaustive" else 4)),
        max_shift=draw(st.integers(1, 4)),
        max_depth=draw(st.one_of(st.none(), st.integers(n, 2 * n))),
        max_edits=max_edits,
    )
    prefix = draw(st.integers(0, n))
    return settings, settings.action_space(n, prefix), draw(st.integers(0, 99))


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
@hypothesis_settings(max_examples=100, deadline=None)
def test_any_search_keeps_the_rules_and_ends(algorithm, data):
    # Oracle: the rules: no chain proposed twice, full depth first, the prefix unedited, depth and simulations capped,
    # asks of 1..in_flight; a search that ends early has tried every chain within two edits (with more, the tree may
    # miss some behind a detour), unless it was told to draw chains of some numbers of edits only.
    settings, space, seed = data.draw(searches(algorithm))
    searcher = make_searcher(space, settings, random.Random(seed))
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
        assert 1 <= chain.depth <= space.max_depth
    if searcher.simulations < settings.simulations and (settings.edit_weights is None or algorithm != "random"):
        assert brute_force(space, min(2, settings.max_edits)) <= set(proposed)
    again = make_searcher(space, settings, random.Random(seed))
    assert follow(again) == sizes
    assert list(again.evaluated) == proposed


@given(data=st.data())
@hypothesis_settings(max_examples=80, deadline=None)
def test_counters_of_the_tree_add_up(data):
    # Oracle: sums over the tree; actions worked out again; edits as documented.
    settings, space, seed = data.draw(searches("uct"))
    searcher = make_searcher(space, settings, random.Random(seed))
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_chains_lie_within_the_edits(algorithm):
    # Oracle: brute force within max_edits of a small space, and a chain further away that must not be met.
    settings = replace(SMALL, algorithm=algorithm, simulations=2000, action_set="both+move", max_edits=2)
    within = brute_force(settings.action_space(4), 2)
    assert len(within) < len(brute_force(settings.action_space(4), 3))
    assert set(run(noisy, settings, 0, 4).evaluated) <= within


def run_interleaved(seeds, settings, order):
    """Advance one searcher a seed, in the order that `order` (a generator) draws."""
    space = settings.action_space(LAYERS, 2)
    searchers = {seed: make_searcher(space, settings, random.Random(seed)) for seed in seeds}
    while waiting := [seed for seed, searcher in searchers.items() if not searcher.done]:
        chosen = order.sample(waiting, order.randint(1, len(waiting)))
        asked = {seed: searchers[seed].ask() for seed in chosen}
        for seed, chains in reversed(asked.items()):
            searchers[seed].tell([noisy(chain) for chain in chains])
    return {seed: list(searcher.evaluated.items()) for seed, searcher in searchers.items()}


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_results_depend_on_the_seed_and_not_on_the_batching(algorithm, in_flight):
    # Oracle: each search run alone; searches that advance together in any order give the same trials. Only the
    # exhaustive search is the same for every seed.
    settings = plain(algorithm=algorithm, simulations=60, in_flight=in_flight)
    if algorithm == "exhaustive":
        settings = replace(settings, max_edits=1, simulations=2000)
    expected = {seed: list(run(noisy, settings, seed, LAYERS, 2).evaluated.items()) for seed in range(6)}
    for order in range(3):
        assert run_interleaved(range(6), settings, random.Random(order)) == expected
    assert len({tuple(chains) for chains in expected.values()}) == (1 if algorithm == "exhaustive" else 6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_in_flight_is_a_setting_of_the_search(algorithm):
    # Oracle: the asks hold up to in_flight chains, never fewer where nothing waits for rewards, and the same budget.
    asked = {}
    for in_flight in (1, 4):
        settings = plain(algorithm=algorithm, simulations=50, in_flight=in_flight)
        if algorithm == "exhaustive":
            settings = replace(settings, max_edits=1, simulations=49, max_times=1, max_block=2)
        searcher = make_searcher(settings.action_space(12), settings, random.Random(0))
        sizes = follow(searcher)
        assert sum(sizes) == searcher.simulations == {"exhaustive": 47}.get(algorithm, 50)
        assert all(size == in_flight for size in sizes[:-1])
        asked[in_flight] = list(searcher.evaluated)
    # The others (random, exhaustive) see no rewards.
    assert (asked[1] != asked[4]) == (algorithm == "uct")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_protocol_errors(algorithm):
    # Oracle: the messages, written by hand; a refused tell changes nothing.
    settings = plain(algorithm=algorithm, simulations=2000, in_flight=2, max_edits=1)
    space = settings.action_space(6)
    searcher = make_searcher(space, settings, random.Random(0))
    with pytest.raises(ValueError, match="rewards: expected one for each of the 0 chains asked, got 1"):
        searcher.tell([0.5])
    chains = searcher.ask()
    assert (len(chains), chains[0].is_full, searcher.done, searcher.simulations) == (2, True, False, 0)
    with pytest.raises(RuntimeError, match="expected the rewards of 2 chains to be told first"):
        searcher.ask()
    with pytest.raises(ValueError, match="rewards: expected one for each of the 2 chains asked, got 1"):
        searcher.tell([0.5])
    for bad in (float("nan"), 1.5, -0.1, float("inf")):
        with pytest.raises(ValueError, match=rf"rewards\[1\]: expected a number in 0\.\.1, got {bad}"):
            searcher.tell([0.5, bad])
    assert searcher.evaluated == {}
    searcher.tell([0.25, 1])
    assert list(searcher.evaluated.items()) == [(chains[0], 0.25), (chains[1], 1.0)]
    with pytest.raises(ValueError, match="space: expected the one of these settings"):
        make_searcher(replace(settings, max_block=1).action_space(6), settings, random.Random(0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("simulations", "max_edits", "prefix"), [(1, 4, 0), (9, 0, 0), (9, 4, 5)])
def test_full_depth_alone(algorithm, simulations, max_edits, prefix):
    # Oracle: one simulation, no edit allowed, or nothing to edit: the full chain and nothing else.
    if algorithm == "exhaustive" and simulations == 1:
        return
    settings = plain(algorithm=algorithm, simulations=simulations, max_edits=max_edits)
    searcher = search(constant, settings.action_space(5, prefix), settings, random.Random(0))
    assert list(map(str, searcher.evaluated)) == ["0-4"]
    assert searcher.done
