"""The search on toy rewards: best chains, determinism, branching, termination.

Toy rewards are functions of the chain alone; no model runs here.
"""

import random
from collections import Counter
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.chain import Chain
from search.mcts import Searcher, search
from search.selection import select_uct, uct_score, widening_limit
from search.settings import SearchSettings
from search.tree import Tree

SMALL = SearchSettings(max_block=2, max_times=2, max_edits=2, in_flight=1)


def constant(chains):
    return [0.5] * len(chains)


def chains_within(space, edits):
    """Brute force: every chain that at most `edits` legal actions lead to."""
    known = frontier = {Chain.full(space.num_layers)}
    for _ in range(edits):
        frontier = {action.apply(chain) for chain in frontier for action in space.legal(chain)} - known
        known = known | frontier
    return known


def counts(chain):
    return [chain.layers.count(layer) for layer in range(chain.num_layers)]


def smooth(target):
    """1 for a chain with the target's counts, less for each layer that runs too often or too rarely."""
    wanted = counts(target)
    return lambda chain: 1 / (1 + sum(abs(a - b) for a, b in zip(counts(chain), wanted, strict=True)))


def random_search(reward, space, settings, rng):
    """The rival at equal cost: distinct chains of one or two uniformly drawn actions."""
    full = Chain.full(space.num_layers)
    rewards = {full: reward(full)}
    while len(rewards) < settings.simulations:
        chain = full
        for _ in range(rng.randint(1, 2)):
            chain = space.sample(chain, rng).apply(chain)
        rewards[chain] = reward(chain)
    return max(rewards.values())


# a. The best chain is found.


def test_smooth_reward_finds_the_brute_force_best():
    # Oracle: brute force over the chains within 2 edits; budget: 12 % of them; random search at equal cost.
    space = SMALL.action_space(8)
    everything = sorted(chains_within(space, 2), key=lambda chain: chain.layers)
    settings = replace(SMALL, simulations=len(everything) * 12 // 100, depth_penalty=0.0)
    found = rival = 0
    for seed in range(20):
        reward = smooth(random.Random(seed).choice(everything))
        best = max(map(reward, everything))
        assert best == 1.0
        searcher = search(lambda cs, f=reward: list(map(f, cs)), space, settings, random.Random(seed))
        found += max(searcher.evaluated.values()) == best
        rival += random_search(reward, space, settings, random.Random(seed)) == best
    assert found >= 12
    assert found >= rival + 5


def test_hidden_pair_of_edits_is_found():
    # Oracle: brute force says that both layers can go; half the reward for one of them is the only hint.
    settings = replace(SMALL, simulations=150, depth_penalty=0.0, action_set="skip", max_edits=3)
    space = settings.action_space(16)
    for seed in range(10):
        a, b = random.Random(seed).sample(range(16), 2)

        def reward(chain, a=a, b=b):
            return ((a not in chain.layers) + (b not in chain.layers)) / 2

        assert max(map(reward, chains_within(space, 2))) == 1.0
        searcher = search(lambda cs, f=reward: list(map(f, cs)), space, settings, random.Random(seed))
        assert max(searcher.evaluated.values()) == 1.0


def test_shortest_right_chain_is_found():
    # Oracle: brute force over the skips of 10 layers; right means that five needed layers still run.
    settings = replace(SMALL, simulations=150, depth_penalty=1.0, action_set="skip", max_edits=4)
    space = settings.action_space(10)
    everything = chains_within(space, 4)
    assert len(everything) > 5 * settings.simulations
    for seed in range(10):
        needed = set(random.Random(seed).sample(range(10), 5))

        def right(chain, needed=needed):
            return needed <= set(chain.layers)

        shortest = min(chain.depth for chain in everything if right(chain))
        searcher = search(lambda cs, f=right: list(map(f, cs)), space, settings, random.Random(seed))
        assert min(chain.depth for chain, reward in searcher.evaluated.items() if reward) == shortest


def test_needle_is_found_once_everything_was_tried():
    # Oracle: brute force; a needle without a hint takes the whole space, which the search covers exactly.
    space = SMALL.action_space(4)
    everything = chains_within(space, 2)
    settings = replace(SMALL, simulations=10_000)
    for seed in range(5):
        needle = random.Random(seed).choice(sorted(everything, key=str))
        searcher = search(lambda cs, n=needle: [c == n for c in cs], space, settings, random.Random(seed))
        assert set(searcher.evaluated) == everything
        assert searcher.evaluated[needle] == 1.0


def test_margin_reward_guides_where_correctness_is_silent():
    # Oracle: brute force gives the best margin; only chains near it are right, so a 0/1 reward says nothing until
    # one is met. Budget: 60 simulations in a space of thousands of chains.
    found = {"correct": 0, "margin": 0}
    base = replace(SMALL, simulations=60, depth_penalty=0.0, action_set="skip", max_edits=3)
    space = base.action_space(12)
    everything = chains_within(space, 3)
    for seed in range(40):
        rng = random.Random(seed)
        gains = [rng.gauss(0, 1) for _ in range(12)]

        def gain(chain, gains=gains):
            return sum(gains[layer] for layer in range(12) if layer not in chain.layers)

        threshold = 0.8 * max(map(gain, everything))
        for kind in found:
            settings = replace(base, reward=kind)

            def judge(chains, gain=gain, threshold=threshold, settings=settings):
                margins = [gain(chain) - threshold for chain in chains]
                return [settings.reward_for(margin > 0, margin) for margin in margins]

            tried = search(judge, space, settings, random.Random(seed)).evaluated
            found[kind] += any(gain(chain) > threshold for chain in tried)
    assert found["margin"] >= found["correct"] + 8


# b. Determinism.


def noisy(chain):
    """A reward that differs from chain to chain and depends on nothing else."""
    return random.Random(str(chain)).random()


def run_interleaved(seeds, settings, order):
    """Advance one searcher a seed, in the order that `order` (a generator) draws."""
    space = settings.action_space(12, 2)
    searchers = {seed: Searcher(space, settings, random.Random(seed)) for seed in seeds}
    while waiting := [seed for seed, searcher in searchers.items() if not searcher.done]:
        chosen = order.sample(waiting, order.randint(1, len(waiting)))
        asked = {seed: searchers[seed].ask() for seed in chosen}
        for seed, chains in reversed(asked.items()):
            searchers[seed].tell([noisy(chain) for chain in chains])
    return {seed: list(searcher.evaluated.items()) for seed, searcher in searchers.items()}


@pytest.mark.parametrize("in_flight", [1, 4])
def test_results_depend_on_the_seed_and_not_on_the_batching(in_flight):
    # Oracle: each search run alone; searches that advance together in any order give the same trials.
    settings = SearchSettings(simulations=60, in_flight=in_flight)
    space = settings.action_space(12, 2)

    def alone(seed):
        return search(lambda chains: list(map(noisy, chains)), space, settings, random.Random(seed))

    expected = {seed: list(alone(seed).evaluated.items()) for seed in range(8)}
    for order in range(3):
        assert run_interleaved(range(8), settings, random.Random(order)) == expected
    assert len({tuple(trials) for trials in expected.values()}) == 8


def test_in_flight_is_a_setting_of_the_search():
    # Oracle: the asks hold up to in_flight chains, the full chain first; the trials differ from one at a time.
    trials = {}
    for in_flight in (1, 4):
        settings = SearchSettings(simulations=50, in_flight=in_flight)
        searcher = Searcher(settings.action_space(12), settings, random.Random(0))
        sizes = []
        while chains := searcher.ask():
            sizes.append(len(chains))
            searcher.tell([noisy(chain) for chain in chains])
        assert sizes[:-1] == [in_flight] * (len(sizes) - 1)
        assert sum(sizes) == 50
        trials[in_flight] = list(searcher.evaluated)
        assert trials[in_flight][0].is_full
    assert trials[1] != trials[4]


# c. Branching and bounds.


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_branches(seed):
    # Oracle: bounds written by hand: 50 simulations are 50 chains (Dr.LLM: 200 simulations, 40 chains, one
    # path), at least ten actions at the root and at least five nodes with more than one child.
    settings = SearchSettings(simulations=50)
    space = settings.action_space(30)
    searcher = search(lambda chains: [c.depth % 3 == 0 for c in chains], space, settings, random.Random(seed))
    assert searcher.simulations == len(searcher.evaluated) == 50
    assert len(searcher.tree.root.edges) >= 10
    assert sum(len(node.edges) > 1 for node in searcher.tree.nodes.values()) >= 5
    assert max(node.edits for node in searcher.tree.nodes.values()) >= 2


@st.composite
def searches(draw):
    n = draw(st.integers(1, 8))
    settings = SearchSettings(
        simulations=draw(st.integers(1, 60)),
        exploration=draw(st.sampled_from([0.0, 0.5, 2.0])),
        depth_penalty=draw(st.sampled_from([0.0, 0.1, 5.0])),
        random_share=draw(st.sampled_from([0.0, 0.1, 1.0])),
        widening_constant=draw(st.sampled_from([0.3, 2.0, 500.0])),
        widening_exponent=draw(st.sampled_from([0.0, 0.5, 1.0])),
        in_flight=draw(st.integers(1, 9)),
        action_set=draw(st.sampled_from(["skip", "repeat", "both"])),
        max_block=draw(st.integers(1, 4)),
        max_times=draw(st.integers(1, 4)),
        max_depth=draw(st.one_of(st.none(), st.integers(n, 2 * n))),
        max_edits=draw(st.integers(0, 5)),
    )
    return settings, settings.action_space(n, draw(st.integers(0, n))), draw(st.integers(0, 99))


@given(searches())
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_search_keeps_the_rules_and_ends(case):
    # Oracle: the rules: no chain proposed twice, the prefix unedited, depth and edits capped, counters add up.
    settings, space, seed = case
    searcher = Searcher(space, settings, random.Random(seed))
    proposed = []
    while chains := searcher.ask():
        assert not searcher.done
        assert len(chains) <= settings.in_flight
        proposed += chains
        searcher.tell([noisy(chain) for chain in chains])
    assert searcher.done
    assert searcher.ask() == []
    assert proposed[0].is_full
    assert len(proposed) == len(set(proposed)) == searcher.simulations <= settings.simulations
    assert list(searcher.evaluated) == proposed
    for chain in proposed:
        assert chain.layers[: space.prefix_layers] == tuple(range(space.prefix_layers))
        assert 1 <= chain.depth <= space.max_depth
    root = searcher.tree.root
    assert root.visits == searcher.simulations == 1 + sum(edge.visits for edge in root.edges)
    assert root.total == pytest.approx(sum(searcher.evaluated.values()))
    for node in searcher.tree.nodes.values():
        assert node.edits <= settings.max_edits
        assert 0 <= node.total <= node.visits
        for edge in node.edges:
            assert edge.action.apply(node.chain) == edge.child.chain
    if searcher.simulations < settings.simulations:
        assert root.closed


def test_a_space_that_runs_out_was_tried_whole():
    # Oracle: brute force over the chains within 2 edits, the cap.
    for n, prefix, action_set in [
        (1, 0, "both"),
        (2, 0, "both"),
        (3, 1, "both"),
        (5, 0, "skip"),
        (4, 4, "both"),
    ]:
        settings = replace(SMALL, simulations=100_000, action_set=action_set, in_flight=3)
        space = settings.action_space(n, prefix)
        for seed in range(5):
            searcher = search(lambda cs: list(map(noisy, cs)), space, settings, random.Random(seed))
            assert set(searcher.evaluated) == chains_within(space, 2)


def test_deeper_spaces_are_covered_but_for_detours():
    # Oracle: brute force within 3 edits; the documented exception costs at most 10 % of the chains of 4 layers.
    settings = replace(SMALL, simulations=100_000, max_edits=3)
    space = settings.action_space(4)
    everything = chains_within(space, 3)
    for seed in range(3):
        found = set(search(lambda cs: list(map(noisy, cs)), space, settings, random.Random(seed)).evaluated)
        assert found <= everything
        assert len(found) >= 0.9 * len(everything)


# Rules and protocol.


def test_uct_score_by_hand():
    # Oracle: the formula, with numbers worked out by hand: Q/v 0.75, c sqrt(ln 10 / 2), lambda 20/30.
    settings = SearchSettings(exploration=2.0, depth_penalty=0.3)
    tree = Tree(settings.action_space(30))
    edge = tree.expand(tree.root, random.Random(0))
    tree.root.visits, edge.visits = 10, 2
    edge.child.visits, edge.child.total, edge.child.relative_depth = 4, 3.0, 20 / 30
    assert uct_score(edge, settings) == pytest.approx(0.75 + 2 * 1.0729830131446736 - 0.2)


def test_select_uct_takes_the_best_score():
    # Oracle: the argmax of uct_score over the open edges; with random_share 1, a uniform draw.
    settings = SearchSettings(simulations=80, random_share=0.0)
    tree = search(lambda cs: list(map(noisy, cs)), settings.action_space(30), settings, random.Random(1)).tree
    for node in tree.nodes.values():
        if node.open:
            chosen = select_uct(node, settings, random.Random(0))
            assert chosen is max(node.open, key=lambda edge: uct_score(edge, settings))
    rng = random.Random(0)
    drawn = Counter(id(select_uct(tree.root, replace(settings, random_share=1.0), rng)) for _ in range(3000))
    assert len(drawn) == len(tree.root.open)
    assert min(drawn.values()) > 0.5 * mean(drawn.values())


def test_widening_limit_by_hand():
    # Oracle: ceil(2 * sqrt(visits)).
    settings = SearchSettings(widening_constant=2.0, widening_exponent=0.5)
    assert [widening_limit(visits, settings) for visits in (1, 2, 4, 5, 100)] == [2, 3, 4, 5, 20]


def test_widening_bounds_the_children():
    # Oracle: the formula; the cap may be passed only where no open child was left, which 30 layers rule out.
    settings = SearchSettings(simulations=200, in_flight=1)
    searcher = search(lambda cs: list(map(noisy, cs)), settings.action_space(30), settings, random.Random(0))
    for node in searcher.tree.nodes.values():
        if node.edits < settings.max_edits - 1:
            assert len(node.edges) <= widening_limit(max(node.visits, 1), settings)


def test_transpositions_share_one_node():
    # Oracle: brute force over the tree: some chain has two parents, its value counts both paths' simulations.
    settings = replace(SMALL, simulations=400, action_set="skip", max_edits=4)
    searcher = search(lambda cs: list(map(noisy, cs)), settings.action_space(8), settings, random.Random(0))
    arriving = Counter()
    visits = Counter()
    for node in searcher.tree.nodes.values():
        for edge in node.edges:
            arriving[edge.child.chain] += 1
            visits[edge.child.chain] += edge.visits
    shared = [chain for chain, parents in arriving.items() if parents > 1]
    assert len(shared) > 5
    for node in searcher.tree.nodes.values():
        assert node.visits == visits[node.chain] + (node is searcher.tree.root) * searcher.simulations


def test_protocol_errors():
    # Oracle: the messages, written by hand; a refused tell changes nothing.
    settings = SearchSettings(simulations=5, in_flight=2)
    space = settings.action_space(6)
    searcher = Searcher(space, settings, random.Random(0))
    with pytest.raises(ValueError, match="rewards: expected one for each of the 0 chains asked, got 1"):
        searcher.tell([0.5])
    chains = searcher.ask()
    with pytest.raises(RuntimeError, match="expected the rewards of 2 chains to be told first"):
        searcher.ask()
    with pytest.raises(ValueError, match="rewards: expected one for each of the 2 chains asked, got 1"):
        searcher.tell([0.5])
    for bad in (float("nan"), 1.5, -0.1, float("inf")):
        with pytest.raises(ValueError, match=rf"rewards\[1\]: expected a number in 0\.\.1, got {bad}"):
            searcher.tell([0.5, bad])
    assert searcher.evaluated == {}
    assert searcher.tree.root.total == 0
    searcher.tell([0.25, 1])
    assert list(searcher.evaluated.items()) == [(chains[0], 0.25), (chains[1], 1.0)]
    with pytest.raises(ValueError, match="space: expected the one of these settings"):
        Searcher(replace(settings, max_block=1).action_space(6), settings, random.Random(0))


def test_the_search_needs_no_torch():
    # Oracle: the modules that a fresh interpreter has loaded after the import.
    import subprocess
    import sys

    code = "import sys, search.mcts; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
