"""Toy problems whose best chain is known: every algorithm finds it, and random chains rarely do."""

import random
from dataclasses import replace

import pytest

from search.settings import SearchSettings
from tests.toys import SMALL, brute_force, noisy, ordered, run, smooth

CLEVER = ("uct", "uct-max")


def setting(base: SearchSettings, name: str) -> SearchSettings:
    """The base with an algorithm, and with max backup where the name says so."""
    algorithm, _, backup = name.partition("-")
    return replace(base, algorithm=algorithm, backup=backup or "mean")


def times_found(settings, seeds, num_layers, everything):
    """Of problems whose best chains are drawn from `everything`, those in which a best chain was met."""
    found = 0
    for seed in seeds:
        reward = smooth(random.Random(seed).choice(everything))
        assert max(map(reward, everything)) == 1.0
        found += max(run(reward, settings, seed, num_layers).evaluated.values()) == 1.0
    return found


@pytest.mark.parametrize("name", CLEVER)
@pytest.mark.parametrize("action_set", ["both", "skip"])
def test_smooth_reward_finds_the_best_more_often_than_random_chains(name, action_set):
    # Oracle: brute force over the chains within 2 edits, of which a share is tried; random search at equal cost.
    layers, percent = {"both": (8, 15), "skip": (14, 25)}[action_set]
    base = replace(SMALL, depth_penalty=0.0, action_set=action_set)
    everything = ordered(brute_force(base.action_space(layers), 2))
    base = replace(base, simulations=len(everything) * percent // 100)
    rival = times_found(setting(base, "random"), range(30), layers, everything)
    found = times_found(setting(base, name), range(30), layers, everything)
    assert found >= 12
    assert found >= rival + 6


@pytest.mark.parametrize("name", CLEVER)
def test_moves_reach_orders_that_no_skip_or_repeat_does(name):
    # Oracle: the order is known: two exchanges of neighbours, each of which puts two more layers in their places. Skips
    # and repeats alone never reach it (brute force); random chains at equal cost rarely do.
    base = replace(SMALL, action_set="both+move", max_shift=2, simulations=300, depth_penalty=0.0)
    without = {chain.layers for chain in brute_force(SMALL.action_space(8), 2)}
    found = rival = 0
    for seed in range(20):
        rng = random.Random(seed)
        first = rng.randrange(5)
        target = list(range(8))
        for i in (first, rng.randrange(first + 2, 7)):
            target[i], target[i + 1] = target[i + 1], target[i]
        wanted = tuple(target)
        assert wanted not in without

        def in_place(chain, wanted=wanted):
            return sum(a == b for a, b in zip(chain.layers, wanted, strict=False)) / max(8, chain.depth)

        for algorithm in (name, "random"):
            searcher = run(in_place, setting(base, algorithm), seed, 8)
            best = max(searcher.evaluated, key=searcher.evaluated.__getitem__)
            assert (best.layers == wanted) == (searcher.evaluated[best] == 1.0)
            found += algorithm == name and best.layers == wanted
            rival += algorithm == "random" and best.layers == wanted
    assert found >= 12
    assert found >= rival + 8


@pytest.mark.parametrize("name", CLEVER)
def test_hidden_pair_of_edits_is_found(name):
    # Oracle: brute force says that both layers can go; half the reward for one of them is the only hint.
    base = replace(SMALL, simulations=150, depth_penalty=0.0, action_set="skip", max_edits=3)
    settings = setting(base, name)
    found = 0
    for seed in range(10):
        a, b = random.Random(seed).sample(range(16), 2)

        def reward(chain, a=a, b=b):
            return ((a not in chain.layers) + (b not in chain.layers)) / 2

        assert max(map(reward, brute_force(settings.action_space(16), 2))) == 1.0
        found += max(run(reward, settings, seed, 16).evaluated.values()) == 1.0
    assert found >= 9


@pytest.mark.parametrize("name", CLEVER)
@pytest.mark.parametrize("depth_in", ["selection", "reward"])
def test_shortest_right_chain_is_found(name, depth_in):
    # Oracle: brute force over the skips of 10 layers; right means that five needed layers still run.
    base = replace(SMALL, simulations=150, depth_penalty=1.0, action_set="skip", max_edits=4, depth_in=depth_in)
    settings = setting(base, name)
    everything = brute_force(settings.action_space(10), 4)
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


@pytest.mark.parametrize("name", [*CLEVER, "random", "exhaustive"])
def test_needle_is_found_once_everything_was_tried(name):
    # Oracle: brute force; a needle without a hint takes the whole space, which every algorithm covers exactly.
    everything = brute_force(SMALL.action_space(4), 2)
    settings = setting(replace(SMALL, simulations=10_000), name)
    for seed in range(5):
        needle = random.Random(seed).choice(ordered(everything))
        searcher = run(lambda chain, needle=needle: float(chain == needle), settings, seed, 4)
        assert set(searcher.evaluated) == everything
        assert searcher.evaluated[needle] == 1.0


@pytest.mark.parametrize("name", [*CLEVER, "random", "exhaustive"])
def test_a_space_that_runs_out_was_tried_whole(name):
    # Oracle: brute force over the chains within 2 edits, the cap.
    for n, prefix, action_set in [
        (1, 0, "both"),
        (2, 0, "both"),
        (3, 1, "both"),
        (3, 1, "both+move"),
        (5, 0, "skip"),
        (4, 4, "both+move"),
    ]:
        settings = replace(SMALL, simulations=100_000, action_set=action_set, in_flight=3)
        for seed in range(3):
            searcher = run(noisy, setting(settings, name), seed, n, prefix)
            assert set(searcher.evaluated) == brute_force(settings.action_space(n, prefix), 2)


def test_margin_reward_guides_where_correctness_is_silent():
    # Oracle: brute force gives the best margin; only chains near it are right, so a 0/1 reward says nothing until
    # one is met. Budget: 60 simulations in a space of thousands of chains.
    found = {"correct": 0, "margin": 0}
    base = replace(SMALL, simulations=60, depth_penalty=0.0, action_set="skip", max_edits=3)
    everything = brute_force(base.action_space(12), 3)
    for seed in range(40):
        rng = random.Random(seed)
        gains = [rng.gauss(0, 1) for _ in range(12)]

        def gain(chain, gains=gains):
            return sum(gains[layer] for layer in range(12) if layer not in chain.layers)

        threshold = 0.8 * max(map(gain, everything))
        for kind in found:
            settings = replace(base, reward=kind)

            def judge(chain, gain=gain, threshold=threshold, settings=settings):
                margin = gain(chain) - threshold
                return settings.reward_for(margin > 0, margin)

            tried = run(judge, settings, seed, 12).evaluated
            found[kind] += any(gain(chain) > threshold for chain in tried)
    assert found["margin"] >= found["correct"] + 8
