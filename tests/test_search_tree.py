"""The search tree and its selection rules: branching, widening, transpositions, scores, draws."""

import random
from collections import Counter
from dataclasses import replace
from statistics import mean

import pytest
from scipy.stats import chisquare

from search.actions import UniformDraw, WeightedDraw
from search.tree import Tree, select_uct, uct_score, widening_limit
from tests.toys import SMALL, brute_force, noisy, plain, run


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_branches(seed):
    # Oracle: bounds written by hand: 50 simulations are 50 chains (Dr.LLM: 200 simulations, 40 chains, one
    # path), at least ten actions at the root and at least five nodes with more than one child.
    searcher = run(lambda c: c.depth % 3 == 0, plain(simulations=50), seed, 30)
    assert searcher.simulations == len(searcher.evaluated) == 50
    assert len(searcher.tree.root.edges) >= 10
    assert sum(len(node.edges) > 1 for node in searcher.tree.nodes.values()) >= 5
    assert max(node.edits for node in searcher.tree.nodes.values()) >= 2


def test_deeper_spaces_are_covered_but_for_detours():
    # Oracle: brute force within 3 edits; the documented exception costs at most 15 % of the chains of 4 layers.
    settings = replace(SMALL, simulations=100_000, max_edits=3)
    everything = brute_force(settings.action_space(4), 3)
    for seed in range(3):
        found = set(run(noisy, settings, seed, 4).evaluated)
        assert found <= everything
        assert len(found) >= 0.85 * len(everything)


def scored_edge(settings):
    """One edge at a root with 10 visits: v 2, Q 0.75, depth 20/30."""
    tree = Tree(settings.action_space(30))
    edge = tree.expand(tree.root, random.Random(0))
    tree.root.visits, edge.visits = 10, 2
    edge.child.value, edge.child.relative_depth = 0.75, 20 / 30
    return edge


def test_uct_score_by_hand():
    # Oracle: the formula, with numbers worked out by hand: Q 0.75, c sqrt(ln 10 / 2), lambda 20/30.
    settings = plain(exploration=2.0, depth_penalty=0.3)
    edge = scored_edge(settings)
    assert uct_score(edge, settings) == pytest.approx(0.75 + 2 * 1.0729830131446736 - 0.2)
    assert uct_score(edge, replace(settings, depth_in="reward")) == pytest.approx(0.75 + 2 * 1.0729830131446736)


@pytest.mark.parametrize("depth_in", ["selection", "reward"])
def test_selection_takes_the_best_score(depth_in):
    # Oracle: the argmax of the score over the open edges; with random_share 1, a uniform draw.
    settings = plain(simulations=80, random_share=0.0, depth_in=depth_in, depth_penalty=0.7)
    tree = run(noisy, settings, 1, 30).tree
    branching = 0
    for node in tree.nodes.values():
        if node.open:
            branching += len(node.open) > 1
            chosen = select_uct(node, settings, random.Random(0))
            assert chosen is max(node.open, key=lambda edge: uct_score(edge, settings))
    assert branching > 5
    rng = random.Random(0)
    drawn = Counter(id(select_uct(tree.root, replace(settings, random_share=1.0), rng)) for _ in range(3000))
    assert len(drawn) == len(tree.root.open)
    assert min(drawn.values()) > 0.5 * mean(drawn.values())


def test_widening_limit_by_hand():
    # Oracle: ceil(2 * sqrt(visits)).
    settings = plain(widening_constant=2.0, widening_exponent=0.5)
    assert [widening_limit(visits, settings) for visits in (1, 2, 4, 5, 100)] == [2, 3, 4, 5, 20]


def test_widening_bounds_the_children():
    # Oracle: the formula; the cap may be passed only where no open child was left, which 30 layers rule out.
    settings = plain(simulations=200, in_flight=1)
    searcher = run(noisy, settings, 0, 30)
    assert len(searcher.tree.root.edges) > 20
    for node in searcher.tree.nodes.values():
        if node.edits < settings.max_edits - 1:
            assert len(node.edges) <= widening_limit(max(node.visits, 1), settings)


def test_transpositions_share_one_node():
    # Oracle: brute force over the tree: some chain has two parents, its value counts both paths' simulations.
    settings = replace(SMALL, simulations=400, action_set="skip", max_edits=4)
    searcher = run(noisy, settings, 0, 8)
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


# Draws without replacement.

WEIGHTS = [1.0, 2.0, 4.0, 9.0]


def ordered_pairs(make, rng, times=20_000):
    seen = Counter()
    for _ in range(times):
        draws = make()
        seen[draws.draw(rng), draws.draw(rng)] += 1
    return seen


def pair_p_value(make, weights):
    """Chi-square of the first two numbers drawn against w_i / W * w_j / (W - w_i)."""
    seen = ordered_pairs(make, random.Random(0))
    total = sum(weights)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = [seen.total() * weights[i] / total * weights[j] / (total - weights[i]) for i, j in pairs]
    return chisquare([seen[pair] for pair in pairs], expected).pvalue


def test_weighted_draws_are_in_proportion_to_what_is_left():
    # Oracle: the probability of each ordered pair, worked out; the uniform draw must fail it, and pass its own.
    assert pair_p_value(lambda: WeightedDraw(WEIGHTS), WEIGHTS) > 0.01
    assert pair_p_value(lambda: UniformDraw(4), WEIGHTS) < 1e-6
    assert pair_p_value(lambda: UniformDraw(4), [1.0] * 4) > 0.01


@pytest.mark.parametrize("weights", [[1e-9, 4.8e8, 1.0, 1e-9], [4.8e8] * 3 + [2e-9] * 300, [1.0]])
def test_weighted_draws_give_every_number_once(weights):
    # Oracle: the numbers themselves, whatever the weights.
    draws = WeightedDraw(weights)
    drawn = [draws.draw(random.Random(i)) for i in range(len(weights))]
    assert sorted(drawn) == list(range(len(weights)))
    assert draws.left == 0
    assert drawn[0] in [i for i, weight in enumerate(weights) if weight == max(weights)]
