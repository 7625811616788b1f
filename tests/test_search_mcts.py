"""The tree search: sequences worked out by hand, backups, where the depth penalty goes."""

import random
import subprocess
import sys
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from router.chain import Chain
from search.algorithms import TreeSearcher
from tests.toys import SMALL, LastRandom, noisy, plain, run, trials

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
@hypothesis_settings(max_examples=40, deadline=None)
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

    space = settings.action_space(8)
    searcher = Recorded(space, settings, random.Random(seed))

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
                expected = max(values) if settings.backup == "max" else mean(values)
                assert node.value == pytest.approx(expected)

    while chains := searcher.ask():
        check()
        searcher.tell([noisy(chain) for chain in chains])
        check()
    assert all(0 <= reward <= 1 for reward in searcher.evaluated.values())
    assert list(searcher.evaluated.values()) == [noisy(chain) for chain in searcher.evaluated]


def test_the_penalty_in_the_reward_leads_to_shorter_right_chains():
    # Oracle: the depth of the shortest right chain found, mean of 30 problems at equal cost. Eight of 16 layers are
    # needed; a short right chain pulls the search towards itself only where its own depth is backed up.
    base = replace(SMALL, simulations=150, max_block=4, max_edits=6, depth_penalty=0.5, backup="max", in_flight=4)
    depths = {"selection": [], "reward": []}
    for seed in range(30):
        needed = set(random.Random(seed).sample(range(16), 8))
        for where, found in depths.items():
            settings = replace(base, depth_in=where)
            tried = run(lambda chain, needed=needed: needed <= set(chain.layers), settings, seed, 16).evaluated
            found.append(min(chain.depth for chain, reward in tried.items() if reward))
    assert mean(depths["reward"]) <= mean(depths["selection"]) - 0.25


def test_a_deeper_reward_raises_every_node_above_it():
    # Oracle: by hand: of two equal children, the one whose own child is right and short is worth more in "reward" form.
    settings = replace(BY_HAND, depth_penalty=0.3, depth_in="reward", backup="max")
    searcher = TreeSearcher(settings.action_space(3), settings, LastRandom())
    for rewards in ([1.0], [1.0], [1.0], [1.0]):
        searcher.ask()
        searcher.tell(rewards)
    # Asked: the full chain, 0-1, 0,2, and below 0-1 (the first of equals) the chain 0.
    assert list(map(str, searcher.evaluated)) == ["0-2", "0-1", "0,2", "0"]
    first, second = (edge.child for edge in searcher.tree.root.edges)
    assert (first.value, second.value) == (pytest.approx(1 - 0.1), pytest.approx(1 - 0.2))
    assert searcher.tree.root.value == pytest.approx(1 - 0.1)
    assert set(searcher.evaluated.values()) == {1.0}


def test_max_backup_finds_a_narrow_path_more_often():
    # Oracle: the path is known. Three layers must go one after the other; each step pays, and any other edit nothing,
    # so the mean of the path's subtree sinks as it is searched, and the maximum stays.
    base = replace(SMALL, simulations=50, depth_penalty=0.0, action_set="skip", max_block=1, max_edits=3)
    found = {"mean": 0, "max": 0}
    for seed in range(40):
        steps = random.Random(seed).sample(range(20), 3)
        worth = {tuple(i for i in range(20) if i not in steps[:k]): (k + 1) / 4 for k in range(4)}
        for backup in found:
            settings = replace(base, backup=backup)
            searcher = run(lambda chain, worth=worth: worth.get(chain.layers, 0.0), settings, seed, 20)
            found[backup] += max(searcher.evaluated.values()) == 1.0
    assert found["max"] >= found["mean"] + 10


def test_the_search_needs_no_torch():
    # Oracle: the modules that a fresh interpreter has loaded after the import.
    code = "import sys, search.algorithms; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_searcher_refuses_another_space():
    # Oracle: the message, written by hand.
    settings = plain(simulations=5)
    space = replace(settings, max_block=1).action_space(6)
    with pytest.raises(ValueError, match="space: expected the one of these settings"):
        TreeSearcher(space, settings, random.Random(0))
    assert Chain.full(6) in TreeSearcher(settings.action_space(6), settings, random.Random(0)).ask()
