"""Learn-then-Test on calibration losses: p-values, their validity and power, and fixed sequence testing."""

from itertools import pairwise
from math import comb, floor

import numpy as np
import pytest
from scipy.stats import binom

from router.validation import InputError
from train import guarantee
from train.guarantee import GAMMA, TOLERANCE, Counts, certify


def losses_of(samples, plus, minus):
    """Losses with so many 1 and so many -1."""
    return np.repeat([1, -1, 0], [plus, minus, samples - plus - minus])


def p_value(losses, epsilon, kind="accuracy"):
    return guarantee.p_value(Counts.of(losses, kind), epsilon)


def all_counts(samples):
    return [(plus, minus) for plus in range(samples + 1) for minus in range(samples + 1 - plus)]


def distribution(samples, p_plus, p_minus):
    """P(plus, minus) of every outcome, by the multinomial formula (oracle)."""
    zero = 1 - p_plus - p_minus
    return {
        (a, b): comb(samples, a) * comb(samples - a, b) * p_plus**a * p_minus**b * max(zero, 0.0) ** (samples - a - b)
        for a, b in all_counts(samples)
    }


def brute_tail(samples, s, epsilon, rate):
    """P(S <= s) at E[loss] = epsilon, summed over all outcomes."""
    outcomes = distribution(samples, (rate + epsilon) / 2, max((rate - epsilon) / 2, 0.0))
    return sum(p for (a, b), p in outcomes.items() if a - b <= s)


def binomial_margin(rate, draws):
    """Three standard errors of a frequency."""
    return 3 * (rate * (1 - rate) / draws) ** 0.5


def test_disagreement_is_the_binomial_tail():
    # 5 samples, 1 differs, epsilon 0.5: (1 + 5) / 32. Then none of 10 at epsilon 0.2: 0.8^10.
    assert p_value(losses_of(5, 1, 0), 0.5, "disagreement") == pytest.approx(6 / 32)
    assert p_value(losses_of(10, 0, 0), 0.2, "disagreement") == pytest.approx(0.8**10)
    assert p_value(losses_of(5, 5, 0), 0.5, "disagreement") == 1
    assert p_value(losses_of(5, 0, 0), 0.0, "disagreement") == 1


def test_accuracy_by_hand():
    # One sample, loss 0: all rates stay, f(r) = P(loss <= 0) = 1 - (r + epsilon) / 2, greatest at r = epsilon: 1/2.
    # The p-value may be above, by no more than half a cell of the rates' grid.
    assert 0.5 + GAMMA <= p_value(np.array([0]), 0.5) <= 0.5 + GAMMA + 0.5 / guarantee.CELLS
    # Two samples, both -1: f(r) = ((r - epsilon) / 2)^2, greatest at r = 1: 1/16 at epsilon 0.5.
    assert p_value(np.array([-1, -1]), 0.5) == pytest.approx(1 / 16 + GAMMA)
    # A thousand zeros: the rate is at most 1 - GAMMA^(1/1000) = 0.0092, so a mean of 0.05 is out of the question.
    assert p_value(np.zeros(1000, int), 0.05) == pytest.approx(GAMMA)
    # As many won as lost, epsilon 0: no evidence.
    assert p_value(losses_of(100, 10, 10), 0.0) == 1


@pytest.mark.parametrize("samples", [2, 5, 12])
@pytest.mark.parametrize("epsilon", [0.0, 0.07, 0.62])
def test_greatest_tail_is_no_less_than_brute_force(samples, epsilon):
    """Oracle: the multinomial sum on a fine grid of rates. Never below it; above by no more than the cells allow."""
    tails = {
        s: np.array([brute_tail(samples, s, epsilon, rate) for rate in np.linspace(epsilon, 1, 61)])
        for s in range(-samples, samples + 1)
    }
    for highest in (0.2, 0.45, 0.5, 0.7, 1.0):
        rates = np.linspace(epsilon, 1, 61)
        kept = rates <= highest
        for s, values in tails.items():
            got = guarantee._greatest_tail(samples, s, epsilon, highest)
            if highest < epsilon:
                assert got == 0 or s >= samples * epsilon
                continue
            ends = [brute_tail(samples, s, epsilon, highest)]
            greatest = max([*values[kept], *ends])
            assert got >= greatest - 1e-12
            if s < samples * epsilon:
                # Half a cell (0.5 / CELLS / 2) more of mean for each sample, at a density of at most 1; and the grid's.
                assert got <= greatest + 0.25 / guarantee.CELLS * samples + 0.005


def test_the_tail_rises_with_the_rate_where_it_is_said_to():
    """The argument of `_greatest_tail`, on values of the exact tail: a rise up to (1 + epsilon^2) / 2, not always on.

    The condition is needed: near r = 1 the parity of the sum makes the tail fall, so the upper end is no supremum.
    """
    falls = 0
    for samples in (3, 8, 21, 60):
        for epsilon in (0.0, 0.05, 0.4):
            for s in range(-samples, floor((samples - 1) * epsilon - 1) + 1):
                rates = np.linspace(epsilon + 1e-9, 1, 60)
                values = [guarantee._tail(samples, s, (r + epsilon) / 2, (r - epsilon) / 2) for r in rates]
                for rate, (before, after) in zip(rates[1:], pairwise(values), strict=True):
                    if rate <= (1 + epsilon**2) / 2:
                        assert after >= before - 1e-11
                    falls += after < before - 1e-6
    assert falls > 50


@pytest.mark.parametrize(("samples", "epsilon"), [(6, 0.0), (15, 0.1), (20, 0.35)])
def test_accuracy_is_valid_exactly(samples, epsilon):
    """Oracle: the whole distribution of the p-value over all outcomes, at every threshold that it can take."""
    p_values = {(a, b): p_value(losses_of(samples, a, b), epsilon) for a, b in all_counts(samples)}
    for rate in (epsilon, epsilon + 0.05, 0.5, 0.8, 1.0):
        for excess in (0.0, 0.05):  # on the boundary, and above it as far as the rate allows
            p_plus = min((rate + epsilon + excess) / 2, rate)
            outcomes = distribution(samples, p_plus, rate - p_plus)
            below = 0.0
            for key in sorted(p_values, key=p_values.__getitem__):
                below += outcomes[key]
                assert below <= p_values[key] + 1e-9


@pytest.mark.parametrize(("samples", "plus", "minus"), [(30, 2, 1), (30, 12, 11), (500, 5, 4), (500, 190, 180)])
def test_p_falls_as_epsilon_rises(samples, plus, minus):
    for kind, losses in (
        ("accuracy", losses_of(samples, plus, minus)),
        ("disagreement", losses_of(samples, plus, 0)),
    ):
        values = [p_value(losses, epsilon, kind) for epsilon in np.linspace(0, 0.99, 60)]
        assert all(after <= before + 1e-11 for before, after in pairwise(values))
        assert values[0] > 0.5 > 0.01 > values[-1]


def test_power():
    """n = 2,000, 5 % lost, 4.5 % won, epsilon 0.02, delta 0.1. Measured with 4,000 draws: 0.75."""
    counts = np.random.default_rng(11).multinomial(2000, [0.05, 0.045, 0.905], 400)
    certain = np.mean([p_value(losses_of(2000, a, b), 0.02) <= 0.1 for a, b, _ in counts])
    assert 0.75 - binomial_margin(0.75, 400) < certain < 0.75 + binomial_margin(0.75, 400)


def stored_table(seed=0, samples=4000):
    """A table `[12, samples]` of losses whose means on the whole table are known, six of them at about 0.0325.

    Each setting has its own hard samples: dependent settings would make the correction for many tests look needless.
    """
    means = [0.002, 0.004, 0.006, 0.008, 0.0325, 0.0325, 0.0325, 0.033, 0.033, 0.0335, 0.05, 0.08]
    generator, table, won = np.random.default_rng(seed), np.zeros((12, samples), int), samples // 50
    for row, mean in zip(table, means, strict=True):
        order = generator.permutation(samples)
        row[order[:won]] = -1
        row[order[won : 2 * won + round(samples * mean)]] = 1
    return table, [32 - 1.5 * index for index in range(12)]


@pytest.mark.parametrize("starts", [1, 3])
def test_the_loss_exceeds_epsilon_in_at_most_delta_of_the_calibration_draws(starts, monkeypatch):
    """Oracle: the mean of each setting on the whole table, which a draw with replacement has as its expectation.

    Measured, of 1,000 draws: above epsilon in 46 (one start) and 12 (three), by the naive rule in 990, by every setting
    tested at delta without order or correction in 266.
    """
    monkeypatch.setattr(guarantee, "_smallest_epsilon", lambda *_: None)  # slow, and no part of the procedure
    table, depths = stored_table()
    epsilon, delta, draws = 0.0325 - 1 / 8000, 0.1, 400  # the fifth setting is above epsilon by half a sample
    truth, generator = table.mean(1), np.random.default_rng(21)
    assert truth[3] < epsilon < truth[4]
    wrong, useful = {"certified": 0, "naive": 0, "uncorrected": 0}, 0
    for _ in range(draws):
        drawn = table[:, generator.integers(table.shape[1], size=1000)]
        chosen = certify(drawn, depths, epsilon, delta, starts=starts).chosen
        useful += chosen is not None
        passing = {
            "certified": [] if chosen is None else [chosen],
            "naive": np.flatnonzero(drawn.mean(1) <= epsilon),  # the mean as it was drawn
            "uncorrected": [index for index, row in enumerate(drawn) if p_value(row, epsilon) <= delta],
        }
        for rule, fine in passing.items():
            wrong[rule] += len(fine) > 0 and truth[min(fine, key=lambda index: depths[index])] > epsilon
    assert wrong["certified"] / draws <= delta + binomial_margin(delta, draws)
    # Not vacuous: most draws certify something, some of them wrongly, and two simpler rules break delta clearly.
    assert useful / draws > 0.9
    assert wrong["certified"] / draws > 0.005
    assert wrong["naive"] / draws > delta + 3 * binomial_margin(delta, draws)
    assert wrong["uncorrected"] / draws > delta + binomial_margin(delta, draws)


def table_of(*rows, samples=400):
    return np.stack([losses_of(samples, plus, minus) for plus, minus in rows])


def test_testing_stops_at_the_first_that_fails():
    losses = table_of((2, 2), (3, 3), (60, 0), (2, 2), (2, 2))
    certificate = certify(losses, [30, 28, 20, 10, 9], 0.05, 0.1)
    assert certificate.certified == (0, 1)
    assert certificate.chosen == 1
    assert certificate.p_values[:3] == tuple(p_value(row, 0.05) for row in losses[:3])
    assert certificate.p_values[3:] == (None, None)
    assert certificate.mean_losses == (0, 0, 0.15, 0, 0)
    assert certificate.mean_loss == 0
    assert (certificate.samples, certificate.epsilon, certificate.delta) == (400, 0.05, 0.1)


def test_the_cheapest_certified_setting_is_chosen_and_the_earlier_of_equals():
    losses = table_of((2, 2), (3, 1), (3, 3))
    assert certify(losses, [30, 20, 25], 0.05, 0.1).chosen == 1
    assert certify(losses, [30, 20, 20], 0.05, 0.1).chosen == 1
    assert certify(losses, [30, 20, 25], 0.05, 0.1).mean_loss == 2 / 400


def test_full_depth_where_nothing_is_certified():
    certificate = certify(table_of((60, 0), (2, 2)), [30, 20], 0.05, 0.1)
    assert (certificate.chosen, certificate.certified, certificate.mean_loss) == (None, (), 0.0)


def test_several_starts_split_delta():
    losses = table_of((2, 2), (60, 0), (2, 2), (3, 3))
    certificate = certify(losses, [30, 28, 20, 10], 0.05, 0.1, starts=2)  # starts at 0 and 2
    assert certificate.certified == (0, 2, 3)
    assert certificate.chosen == 3
    assert None not in certificate.p_values
    # A setting whose p-value is between delta / 2 and delta: certified with one start, not with two.
    between = table_of((11, 0), (11, 0))
    p = p_value(between[0], 0.05)
    assert 0.02 < p < 0.1
    assert certify(between, [2, 1], 0.05, 1.5 * p).certified == (0, 1)
    assert certify(between, [2, 1], 0.05, 1.5 * p, starts=2).certified == ()
    assert certify(between, [2, 1], 0.05, 2.01 * p, starts=2).certified == (0, 1)


def test_smallest_epsilons():
    """Oracles: the p-value on either side; for disagreement the Clopper-Pearson bound, which inverts the same test."""
    losses = table_of((2, 2), (9, 4), (150, 100))
    certificate = certify(losses, [3, 2, 1], 0.05, 0.1, starts=2)
    for row, least in zip(losses, certificate.smallest_epsilons, strict=True):
        assert p_value(row, least) <= 0.1 < p_value(row, least - 2 * TOLERANCE)
    first = certificate.smallest_epsilon
    assert first > certificate.smallest_epsilons[0]
    assert p_value(losses[0], first) <= 0.05 < p_value(losses[0], first - 2 * TOLERANCE)
    assert certify(losses, [3, 2, 1], first, 0.1, starts=2).certified[:1] == (0,)

    changed = table_of((7, 0), (0, 0))
    certificate = certify(changed, [2, 1], 0.05, 0.1, kind="disagreement")
    assert certificate.smallest_epsilon == certificate.smallest_epsilons[0]
    assert certificate.smallest_epsilons[0] == pytest.approx(binom_upper(7, 400, 0.1), abs=2 * TOLERANCE)
    assert certificate.smallest_epsilons[1] == pytest.approx(1 - 0.1 ** (1 / 400), abs=2 * TOLERANCE)


def binom_upper(successes, trials, alpha):
    """The upper Clopper-Pearson bound by a search over a grid of the binomial tail."""
    grid = np.linspace(0, 0.1, 200_001)
    return float(grid[np.argmax(binom.cdf(successes, trials, grid) <= alpha)])


def test_smallest_epsilon_at_its_ends():
    certificate = certify(table_of((0, 40), (400, 0)), [2, 1], 0.0, 0.1)
    assert certificate.smallest_epsilons == (0.0, None)  # won clearly; lost always
    assert certificate.certified == (0,)


def test_bad_input_is_named():
    # Oracle: the messages. A level that each p-value of accuracy exceeds could certify nothing.
    with pytest.raises(ValueError, match=r"losses: expected only \(-1, 0, 1\) for accuracy, got \[2\]"):
        certify(np.array([[0, 2], [0, 1]]), [3.0, 2.0], 0.1, 0.1)
    with pytest.raises(ValueError, match=r"losses: expected only \(0, 1\) .* got \[-1\]"):
        certify(np.array([[0, -1]]), [3.0], 0.1, 0.1, kind="disagreement")
    losses = np.zeros((2, 50), int)
    with pytest.raises(InputError, match=r"delta / starts: expected above 0\.0001"):
        certify(losses, [3.0, 2.0], 0.1, 2 * GAMMA, starts=2)
    assert certify(losses, [3.0, 2.0], 0.1, GAMMA, kind="disagreement").chosen is None
