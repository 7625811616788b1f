"""The search under a constant reward: no action, and no part of the network, is preferred."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

from scipy.stats import chi2

from router.chain import Chain
from search.actions import ActionSpace
from tests.toys import constant, plain, run_in

UNBIASED = plain(depth_penalty=0.0, random_share=0.1, exploration=0.5, in_flight=1)
"""Without the depth penalty, which prefers skips by design, a constant reward prefers no action."""


class SkewedRandom(random.Random):
    """Negative control: prefers small numbers a little (one draw in five is the smaller of two)."""

    def randrange(self, *args):
        first = super().randrange(*args)
        return min(first, super().randrange(*args)) if self.random() < 0.2 else first


def root_p_values(make_rng, trees=1000):
    """P-values of the root's drawn actions and of the root's visits, over independent trees.

    Null hypothesis: within a tree, which action is drawn as the first, second, ... is a uniform shuffle of the
    legal actions, so a tree's vector of weights (1 for a drawn action, or its visits) is exchangeable. Draws
    within a tree are without replacement and visits come in clusters, so neither count is multinomial; but a
    uniformly shuffled vector w of N weights has covariance s * (N * I - 1) / (N - 1) with s the population
    variance of w, whatever the cluster sizes. Trees are independent, so for many of them
    sum((observed - expected)**2) / (sum of s * N / (N - 1)) is chi-square with N - 1 degrees of freedom.
    """
    space = ActionSpace(replace(UNBIASED, simulations=20, max_block=2, max_times=2), 8)
    legal = space.legal(Chain.full(8))
    size = len(legal)
    seen = defaultdict(Counter)
    scale = defaultdict(float)
    for tree in range(trees):
        searcher = run_in(space, constant, make_rng(f"0/{tree}"))
        visits = {edge.action: edge.visits for edge in searcher.tree.root.edges}
        for name, weights in (("draws", dict.fromkeys(visits, 1)), ("visits", visits)):
            seen[name].update(weights)
            variance = sum(w * w for w in weights.values()) / size - (sum(weights.values()) / size) ** 2
            scale[name] += variance * size / (size - 1)
    p_values = {}
    for name, counter in seen.items():
        expected = counter.total() / size
        statistic = sum((counter[action] - expected) ** 2 for action in legal) / scale[name]
        p_values[name] = chi2.sf(statistic, size - 1)
    return p_values


def test_constant_reward_draws_root_actions_uniformly():
    # Oracle: chi-square against the uniform draw, see root_p_values for the null hypothesis; and a generator that
    # prefers low action numbers in one draw of five must fail it.
    assert min(root_p_values(random.Random).values()) > 0.01
    assert max(root_p_values(SkewedRandom).values()) < 0.01
