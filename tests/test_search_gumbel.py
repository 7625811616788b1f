"""The Gumbel search: its halving schedule and who goes on, worked out by hand; the sampling at the root."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from scipy.stats import chisquare

import search.gumbel
from router.chain import Chain
from search.algorithms import make_searcher
from search.gumbel import gumbel
from search.prior import SamplePrior
from tests.toys import LastRandom, noisy, plain, run, trials

BY_HAND = plain(
    algorithm="gumbel",
    simulations=17,
    considered=4,
    exploration=0.0,
    depth_penalty=0.0,
    random_share=0.0,
    in_flight=1,
    action_set="skip",
    max_block=1,
    max_edits=2,
)
LAYERS = 12
FULL = Chain.full(LAYERS)
WORTH = {0: 0.9, 1: 0.6, 2: 0.3}


def reward(chain):
    """The worth of the first layer that is skipped; skipping a later one as well changes nothing."""
    return next((WORTH.get(layer, 0.0) for layer in range(LAYERS) if layer not in chain.layers), 0.0)


def script(monkeypatch, *variates):
    """Give the root's actions these Gumbel variates, by number, and every further one -100."""
    values = iter(variates)
    monkeypatch.setattr(search.gumbel, "gumbel", lambda _: next(values, -100.0))


def root_actions(searcher):
    """Number of the root's action (the first layer skipped) of each simulation but the first."""
    chains = list(searcher.evaluated)[1:]
    return [min(set(range(LAYERS)) - set(chain.layers)) for chain in chains]


@pytest.mark.parametrize(
    ("variates", "scale", "survivors"),
    [
        # B = 16 simulations, m = 4: ceil(log2 4) = 2 phases. Phase 1: floor(16 / (2 * 4)) = 2 for each of 4 actions.
        # Then each has 2 visits and, as the second chain skips layer 11 as well, the value of its own chain:
        # 0.9, 0.6, 0.3, 0. Score: g + (50 + 2) * 1 * q (P is the same for all): 46.8 + 3, 31.2 + 2, 15.6 + 1, 0.
        # Phase 2: floor(16 / (2 * 2)) = 4 for each of two: actions 0 and 1.
        ((3.0, 2.0, 1.0, 0.0), 1.0, [0, 1]),
        # 46.8 + 0, 31.2 + 1, 15.6 + 2, 0 + 40: 46.8, 32.2, 17.6, 40: actions 0 and 3.
        ((0.0, 1.0, 2.0, 40.0), 1.0, [0, 3]),
        # c_scale 0.01: 0.468 + 0, 0.312 + 1, 0.156 + 2, 0 + 3: the values hardly count: actions 3 and 2.
        ((0.0, 1.0, 2.0, 3.0), 0.01, [3, 2]),
    ],
)
def test_halving_by_hand(monkeypatch, variates, scale, survivors):
    # Oracle: the schedule and the scores worked out above; the actions take turns, the greatest g first.
    script(monkeypatch, *variates)
    searcher = run(reward, replace(BY_HAND, value_scale=scale), LastRandom(), LAYERS)
    order = sorted(range(4), key=lambda i: -variates[i])
    asked = root_actions(searcher)
    assert asked[:8] == order * 2
    assert asked[8:] == survivors * 4


def test_exhausted_actions_leave_and_the_next_ones_come():
    # Oracle: worked out by hand for skips of single layers of 3. g: 2, 1, 0, so actions 0 (1-2) and 1 (0,2) are
    # sampled; B = 6, m = 2: one phase, floor(6 / 2) = 3 each. Turns: 1-2; 0,2; below 1-2 draw 1: chain 1; below 0,2
    # draw 1: chain 0; below 1-2 draw 0: chain 2, so 1-2 is used up; below 0,2 draw 0: chain 2, known, so 0,2 is used up
    # as well. The one simulation left goes to the next action, 2 (0-1).
    settings = replace(BY_HAND, simulations=7, considered=2)
    with pytest.MonkeyPatch.context() as patch:
        script(patch, 2.0, 1.0, 0.0)
        assert trials(noisy, settings, LastRandom(), 3) == ["0-2", "1-2", "0,2", "1", "0", "2", "0-1"]


def test_in_flight_stays_within_a_phase(monkeypatch):
    # Oracle: by hand: full depth and 8 simulations of phase 1 in asks of at most 5, then phase 2 with 8.
    script(monkeypatch, 3.0, 2.0, 1.0, 0.0)
    settings = replace(BY_HAND, in_flight=5)
    searcher = make_searcher(settings.action_space(LAYERS), settings, LastRandom())
    sizes = []
    while chains := searcher.ask():
        sizes.append(len(chains))
        searcher.tell([reward(chain) for chain in chains])
    assert sizes == [5, 4, 5, 3]


def test_depth_penalty_counts_in_the_halving(monkeypatch):
    # Oracle: by hand. Action 0 skips four layers, actions 4.. one; with equal rewards the shorter chain goes on where
    # a penalty is set, in either form, and the greater g where none is.
    settings = replace(BY_HAND, max_block=4, considered=2, simulations=1 + 2 + 8, max_edits=3)
    space = settings.action_space(LAYERS)
    numbers = {size: next(i for i in range(50) if space.legal(FULL)[i].size == size) for size in (1, 4)}
    for penalty, depth_in, winner in ((0.0, "reward", 1), (0.5, "selection", 4), (0.5, "reward", 4)):
        variates = [-50.0] * space.count(FULL)
        variates[numbers[1]], variates[numbers[4]] = 5.0, 4.0
        script(monkeypatch, *variates)
        changed = replace(settings, depth_penalty=penalty, depth_in=depth_in)
        searcher = run(lambda _: 0.5, changed, LastRandom(), LAYERS)
        assert max(scores_of(searcher), key=lambda item: item[1])[0] == winner


def scores_of(searcher):
    """Size of the skipped block and final score of the two actions that are left."""
    return [(edge.action.size, searcher._score((edge, score))) for edge, score in searcher._considered]


def test_the_root_samples_by_the_prior():
    # Oracle: the first action of the Gumbel-top-k trick has the probabilities of the prior itself: chi-square against
    # the weights; against equal ones it must fail.
    prior = SamplePrior((0.0, 1.0, 2.0, -1.0), (0.0,) * 4)
    settings = replace(BY_HAND, simulations=2, uniform_share=0.0)
    first = Counter(trials(noisy, settings, seed, 4, prior=prior)[1] for seed in range(3000))
    names = ["1-3", "0,2-3", "0-1,3", "0-2"]
    weights = [math.exp(x) for x in prior.skip]
    seen = [first[name] for name in names]
    assert sum(seen) == 3000
    assert chisquare(seen, [3000 * w / sum(weights) for w in weights]).pvalue > 0.01
    assert chisquare(seen).pvalue < 1e-6


def test_gumbel_variates():
    # Oracle: the distribution function exp(-exp(-x)): a quarter below its quantile, and so on; mean 0.5772.
    rng = random.Random(0)
    values = [gumbel(rng) for _ in range(20_000)]
    assert sum(values) / len(values) == pytest.approx(0.5772, abs=0.03)
    for share in (0.1, 0.25, 0.5, 0.9):
        quantile = -math.log(-math.log(share))
        assert sum(value < quantile for value in values) / len(values) == pytest.approx(share, abs=0.012)
