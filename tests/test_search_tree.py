"""The tree search: sequences worked out by hand, backups, selection, widening, transpositions, leaps."""

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import log, sqrt
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.chain import Chain
from search.actions import ActionSpace
from search.algorithms import TreeSearcher
from search.tree import Tree, select_uct, widening_limit
from tests.toys import SMALL, LastRandom, brute_force, noisy, plain, run, space_of, trials

BY_HAND = plain(
    simulations=20,
    exploration=0.0,
    depth_penalty=0.0,
    random_share=0.0,
    widening_constant=1.0,
    widening_exponent=0.5,
    in_flight=1,
    action_set="skip",
    max_block=1,
    max_edits=2,
)
"""Skips of single layers of a model with 3: actions 0, 1, 2 at the root, 0 and 1 below; ceil(sqrt V) children."""

TABLE = {"0-2": 0.5, "0-1": 0.4, "0,2": 0.6, "1-2": 0.5, "0": 0.1, "1": 0.0, "2": 0.3}


def table(chain):
    return TABLE[str(chain)]


def test_mean_backup_by_hand():
    # Oracle: worked out by hand; LastRandom draws action 2, then 1, then 0. V: visits of the root.
    # 1: the full chain.
    # 2: V=1, nothing open: draw 2, skip layer 2: 0-1, reward 0.4.
    # 3: V=2, 1 child < ceil(sqrt 2) = 2: draw 1: 0,2, reward 0.6.
    # 4: V=3, 2 children = ceil(sqrt 3): values 0.4 and 0.6, go to 0,2; it has no child, draw 1: skip entry 1: 0 (0.1).
    #    0,2 is now worth (0.6 + 0.1) / 2 = 0.35.
    # 5: V=4, 2 = ceil(sqrt 4): 0-1 with 0.4 beats 0.35. There draw 1: 0, known and closed, dropped; draw 0: 1 (0.0).
    #    0-1 has no action and no open child left: closed.
    # 6: V=5, 2 < ceil(sqrt 5) = 3: draw 0: 1-2 (0.5).
    # 7: V=6: 1-2 with 0.5 beats 0,2 with 0.35: draw 1: 1, known; draw 0: 2 (0.3).
    # 8: in 0,2 draw 0: 2, known. Nothing is left.
    assert trials(table, BY_HAND, LastRandom(), 3) == ["0-2", "0-1", "0,2", "0", "1", "1-2", "2"]


def test_max_backup_by_hand():
    # Oracle: worked out by hand. 1 to 4 as with the mean; then 0,2 is worth max(0.6, 0.1) = 0.6.
    # 5: V=4: 0,2 with 0.6 beats 0-1 with 0.4; 1 child < ceil(sqrt 2): draw 0: 2 (0.3). 0,2 is closed.
    # 6: V=5, 2 < 3 children: draw 0: 1-2 (0.5).
    # 7: V=6: 1-2 with 0.5 beats 0-1 with 0.4: draw 1: 1 (0.0).
    # 8: 1-2 is worth 0.5 still; there draw 0: 2, known; in 0-1: 0 and 1, known. Nothing is left.
    settings = replace(BY_HAND, backup="max")
    assert trials(table, settings, LastRandom(), 3) == ["0-2", "0-1", "0,2", "0", "2", "1-2", "1"]


def test_depth_in_the_reward_by_hand():
    # Oracle: worked out by hand; lambda 0.9, so a simulation of d layers is worth reward - 0.3 d.
    # 2, 3: 0-1 is worth 0.4 - 0.6 = -0.2, and 0,2: 0.6 - 0.6 = 0.0.
    # 4: in 0,2 draw 1: 0, worth 0.1 - 0.3 = -0.2, so 0,2 is worth (0.0 - 0.2) / 2 = -0.1: more than 0-1.
    # 5: in 0,2, where the plain mean went to 0-1: draw 0: 2 (0.3 - 0.3 = 0.0). 6 and 7: as with max backup, for 1-2 is
    # worth 0.5 - 0.6 = -0.1, and 0-1 -0.2.
    # With the penalty in the selection 0-1 and 0,2 are of equal depth, so 5 goes as without it.
    settings = replace(BY_HAND, depth_penalty=0.9, depth_in="reward")
    assert trials(table, settings, LastRandom(), 3) == ["0-2", "0-1", "0,2", "0", "2", "1-2", "1"]
    settings = replace(settings, depth_in="selection")
    assert trials(table, settings, LastRandom(), 3) == ["0-2", "0-1", "0,2", "0", "1", "1-2", "2"]


@st.composite
def backups(draw):
    return plain(
        simulations=draw(st.integers(2, 60)),
        backup=draw(st.sampled_from(["mean", "max"])),
        depth_in=draw(st.sampled_from(["selection", "reward"])),
        depth_penalty=draw(st.sampled_from([0.0, 0.3, 5.0])),
        in_flight=draw(st.integers(1, 6)),
        action_set=draw(st.sampled_from(["skip", "both", "both+move"])),
        max_edits=draw(st.integers(1, 4)),
    )


@given(settings=backups(), seed=st.integers(0, 99))
@hypothesis_settings(max_examples=30, deadline=None)
def test_values_are_the_mean_and_the_best_of_the_simulations_through_a_node(settings, seed):
    # Oracle: every walk written down as it is made, and each node's value worked out again from those lists, also
    # while simulations are in flight (reward 0).
    walks = []

    class Recorded(TreeSearcher):
        def _walk(self):
            path = super()._walk()
            if path is not None:
                walks.append(path)
            return path

    searcher = Recorded(ActionSpace(settings, 8), random.Random(seed))

    def check():
        through = {}
        for path in walks:
            chain = path[-1].chain
            charge = settings.depth_penalty * chain.depth / 8 if settings.depth_in == "reward" else 0.0
            for node in path:
                through.setdefault(node, []).append(searcher.evaluated.get(chain, 0.0) - charge)
        for node in searcher.tree.nodes.values():
            values = through.get(node, [])
            assert node.visits == len(values)
            if values:
                assert node.total == pytest.approx(sum(values))
                assert node.best == pytest.approx(max(values))
                assert node.value == pytest.approx(max(values) if settings.backup == "max" else mean(values))

    while chains := searcher.ask():
        check()
        searcher.tell([noisy(chain) for chain in chains])
        check()
    assert list(searcher.evaluated.values()) == [noisy(chain) for chain in searcher.evaluated]


def test_the_search_needs_no_torch():
    # Oracle: the modules that a fresh interpreter has loaded after the import.
    code = "import sys, search.algorithms; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_deeper_spaces_are_covered_but_for_detours():
    # Oracle: brute force within 3 edits; the documented exception costs at most 15 % of the chains of 4 layers.
    settings = replace(SMALL, simulations=100_000, max_edits=3)
    everything = brute_force(ActionSpace(settings, 4), 3)
    for seed in range(2):
        found = set(run(noisy, settings, seed, 4).evaluated)
        assert found <= everything
        assert len(found) >= 0.85 * len(everything)


@pytest.mark.parametrize("depth_in", ["selection", "reward"])
def test_selection_takes_the_best_score(depth_in):
    # Oracle: the formula, written anew; with random_share 1, a uniform draw.
    settings = plain(simulations=80, random_share=0.0, depth_in=depth_in, depth_penalty=0.7, exploration=0.4)
    tree = run(noisy, settings, 1, 30).tree

    def score(edge):
        penalty = 0.7 * edge.child.chain.depth / 30 if depth_in == "selection" else 0.0
        return edge.child.value + 0.4 * sqrt(log(edge.parent.visits) / edge.visits) - penalty

    branching = 0
    for node in tree.nodes.values():
        if node.open:
            branching += len(node.open) > 1
            assert score(select_uct(node, settings, random.Random(0))) == pytest.approx(max(map(score, node.open)))
    assert branching > 5
    rng = random.Random(0)
    drawn = Counter(id(select_uct(tree.root, replace(settings, random_share=1.0), rng)) for _ in range(3000))
    assert len(drawn) == len(tree.root.open)
    assert min(drawn.values()) > 0.5 * mean(drawn.values())


def test_widening_bounds_the_children():
    # Oracle: ceil(2 * sqrt(visits)); the cap may be passed only where no open child was left, which 30 layers rule out.
    settings = plain(simulations=200, in_flight=1, widening_constant=2.0, widening_exponent=0.5)
    assert [widening_limit(visits, settings) for visits in (1, 2, 4, 5, 100)] == [2, 3, 4, 5, 20]
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
    assert sum(parents > 1 for parents in arriving.values()) > 5
    for node in searcher.tree.nodes.values():
        assert node.visits == visits[node.chain] + (node is searcher.tree.root) * searcher.simulations


def test_the_weights_of_a_node_give_skips_their_share():
    # Oracle: the share itself; within a kind all weigh the same.
    space, full = space_of(8, skip_share=0.7), Chain.full(8)
    weights, skips = Tree(space).weights(full), space.skips(full)
    assert sum(weights[:skips]) == pytest.approx(0.7 * sum(weights))
    assert len(set(weights[:skips])) == len(set(weights[skips:])) == 1
    assert Tree(space_of(8)).weights(full) == [1.0] * space.count(full)


LEAPING = plain(skip_share=0.8, root_leap=4, leap=2, shorter_first=True, max_edits=4, in_flight=2)


def test_leaping_searches_stay_in_the_space_and_never_repeat_a_chain():
    # Oracle: brute force of the chains within 4 actions of 5 layers, 1 of them in the prefix.
    settings = replace(LEAPING, simulations=400, max_block=2, max_times=1, max_depth=8)
    asked = []

    def reward(chain):
        asked.append(chain)
        return float(chain.depth % 3 == 1)

    searcher = run(reward, settings, 0, 5, 1)
    assert len(set(asked)) == len(asked) == searcher.simulations
    assert set(asked) <= brute_force(ActionSpace(settings, 5, 1), 4)
    edits = [node.edits for node in searcher.tree.nodes.values()]
    assert set(edits) == {0, 1, 2, 3, 4}  # of a leap all are counted


def test_a_small_space_is_searched_to_its_end_by_leaps_too():
    # Oracle: brute force. Where leaps give nothing new or nothing shorter, single actions go on.
    settings = replace(LEAPING, simulations=10_000, max_edits=2, max_block=2, max_times=1)
    found = run(lambda _: 1.0, settings, 0, 4)
    assert set(found.evaluated) == brute_force(ActionSpace(settings, 4), 2)
