"""PUCT: a sequence worked out by hand, what the prior does, and what it cannot prevent."""

import math
import random
from dataclasses import replace

import pytest

from router.chain import Chain
from search.algorithms import make_searcher
from search.prior import SamplePrior
from search.settings import SearchSettings
from tests.toys import SMALL, ScriptedRandom, brute_force, ordered, plain, run, smooth, trials

TABLE = {"0-2": 0.5, "0-1": 0.2, "0,2": 0.3, "1-2": 0.4, "0": 0.0, "2": 1.0, "1": 0.7}


def test_puct_by_hand():
    # Oracle: worked out by hand. Skips of single layers of 3, weights 1, 2, 5, so P is 1/8, 2/8, 5/8; c = 1, no
    # penalty; a C of 500 widens at once. A draw is the number where the scripted share of the weights left falls.
    # 1: the full chain. 2: share 0.5 of 1+2+5 is 4, in action 2: 0-1 (0.2). 3: 0.2 * 8 = 1.6, in action 1: 0,2 (0.3).
    # 4: 0.0, action 0: 1-2 (0.4).
    # 5: V=4, root sqrt 2: 0-1: 0.2 + 5/8 * 2 / 2 = 0.825; 0,2: 0.3 + 2/8 * 2/2 = 0.55; 1-2: 0.4 + 1/8 = 0.525.
    #    0-1: weights 1, 2; share 0.9 is 2.7, in action 1: skip layer 1: chain 0 (0.0). 0-1 is worth 0.1.
    # 6: V=5: 0-1: 0.1 + 0.625 * 2.236 / 3 = 0.566; 0,2: 0.3 + 0.25 * 2.236 / 2 = 0.580; 1-2: 0.4 + 0.125 * 1.118.
    #    0,2: weights 1, 5; share 0.5 is 3, in action 1: chain 0, known, dropped; share 0.1 is 0.6, in action 0:
    #    chain 2 (1.0). 0,2 is closed.
    # 7: V=6: 0-1: 0.1 + 0.625 * 2.449 / 3 = 0.610; 1-2: 0.4 + 0.125 * 2.449 / 2 = 0.553. 0-1: share 0.0, action 0:
    #    chain 1. Every chain was tried.
    prior = SamplePrior((0.0, math.log(2), math.log(5)), (0.0, 0.0, 0.0))
    settings = plain(
        algorithm="puct",
        simulations=7,
        prior_exploration=1.0,
        uniform_share=0.0,
        depth_penalty=0.0,
        random_share=0.0,
        widening_constant=500.0,
        in_flight=1,
        action_set="skip",
        max_block=1,
        max_edits=2,
    )
    rng = ScriptedRandom(0.5, 0.2, 0.0, 0.9, 0.5, 0.1, 0.0)
    found = trials(lambda chain: TABLE[str(chain)], settings, rng, 3, prior=prior)
    assert found == ["0-2", "0-1", "0,2", "1-2", "0", "2", "1"]
    assert rng.numbers == []


def priors(target, num_layers):
    """A prior that prefers the edits which lead to the target's counts, and one that shuns them."""
    skip = tuple(2.0 if target.layers.count(layer) == 0 else -2.0 for layer in range(num_layers))
    repeat = tuple(2.0 if target.layers.count(layer) > 1 else -2.0 for layer in range(num_layers))
    good = SamplePrior(skip, repeat)
    return good, SamplePrior(tuple(-x for x in skip), tuple(-x for x in repeat))


@pytest.mark.parametrize("algorithm", ["puct", "gumbel", "beam"])
def test_a_good_prior_helps_and_a_wrong_one_does_not_prevent(algorithm):
    # Oracle: brute force; smooth reward whose best is known. At 5 % of the space a good prior finds it more often than
    # none; with a wrong one it is found in most problems once 60 % of the space was tried.
    base = replace(SMALL, algorithm=algorithm, depth_penalty=0.0)
    everything = ordered(brute_force(base.action_space(8), 2))
    few = replace(base, simulations=len(everything) * 5 // 100)
    many = replace(base, simulations=len(everything) * 60 // 100)
    found = {"none": 0, "good": 0, "wrong": 0, "wrong, few": 0}
    for seed in range(30):
        target = random.Random(seed).choice(everything)
        good, wrong = priors(target, 8)
        for name, settings, prior in (
            ("none", few, None),
            ("good", few, good),
            ("wrong, few", few, wrong),
            ("wrong", many, wrong),
        ):
            found[name] += max(run(smooth(target), settings, seed, 8, prior=prior).evaluated.values()) == 1.0
    assert found["good"] >= found["none"] + 5
    assert found["wrong, few"] < found["good"]
    assert found["wrong"] >= 24


@pytest.mark.parametrize("algorithm", ["puct", "gumbel", "beam"])
def test_a_known_chain_far_away_is_tried_at_once(algorithm):
    # Oracle: the chain itself, which four edits lead to; without the prior 20 simulations do not meet it. Its weight is
    # a hundred times that of all actions, so it is among the first that are tried.
    settings = replace(SMALL, algorithm=algorithm, simulations=20, max_edits=4)
    target = max(brute_force(replace(settings, max_block=1, max_times=1).action_space(6), 4), key=lambda c: c.edits)
    assert target.edits >= 4
    prior = replace(SamplePrior.neutral(6), known=((target, 1e4),))
    for seed in range(5):
        with_prior = list(run(smooth(target), settings, seed, 6, prior=prior).evaluated)
        assert target in with_prior[1:4]
        assert target not in run(smooth(target), settings, seed, 6).evaluated


@pytest.mark.parametrize("algorithm", ["uct", "random", "exhaustive"])
def test_the_others_ignore_the_prior(algorithm):
    # Oracle: the same trials with and without.
    settings = replace(SMALL, algorithm=algorithm, simulations=400, max_edits=1)
    full = Chain.full(6)
    good, _ = priors(full.skip(3, 1), 6)
    known = replace(good, known=((full.skip(1, 3), 100.0),))
    plain = trials(lambda chain: chain.depth / 100, settings, 3, 6)
    assert trials(lambda chain: chain.depth / 100, settings, 3, 6, prior=known) == plain
    assert len(plain) > 20


def test_the_uniform_share_keeps_every_action_likely_enough():
    # Oracle: by hand: P = (1 - s) w / W + s / N. Skips of one of 2 layers, weights 1 and 3; a known chain of weight 4.
    settings = replace(SMALL, algorithm="puct", action_set="skip", max_block=1, uniform_share=0.4, simulations=4)
    prior = SamplePrior((0.0, math.log(3)), (0.0, 0.0), ((Chain((0, 0), 2), 4.0),))
    searcher = run(lambda _: 0.5, settings, 0, 2, prior=prior)
    shares = {str(edge.child.chain): edge.prior for edge in searcher.tree.root.edges}
    expected = {"1": 0.6 / 8 + 0.4 / 3, "0": 0.6 * 3 / 8 + 0.4 / 3, "0*2": 0.6 * 4 / 8 + 0.4 / 3}
    assert shares == pytest.approx(expected)


def test_a_prior_is_followed_once_a_chain_is_right():
    # Oracle: counting. Full depth is right, so `shorter_first` holds from the start; the known chain has nearly all the
    # weight of the root's actions.
    known = Chain((*range(20), *range(22, 30)), 30)
    prior = SamplePrior((0.0,) * 30, (0.0,) * 30, ((known, 1e5),))
    settings = SearchSettings(algorithm="puct", simulations=20, uniform_share=0.0)
    tried = 0
    for seed in range(20):
        searcher = make_searcher(settings.action_space(30), settings, random.Random(seed), prior)
        while chains := searcher.ask():
            searcher.tell([0.9] * len(chains))
        tried += known in searcher.evaluated
    assert tried == 20
