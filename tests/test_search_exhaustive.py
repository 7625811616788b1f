"""The exhaustive search: every chain, in order, or a refusal."""

from dataclasses import replace

import pytest

from tests.toys import SMALL, brute_force, noisy, run, trials

EXHAUSTIVE = replace(SMALL, algorithm="exhaustive", simulations=100_000)


@pytest.mark.parametrize("action_set", ["skip", "repeat", "both", "both+move"])
@pytest.mark.parametrize("max_edits", [0, 1, 2, 3])
def test_exhaustive_equals_brute_force(action_set, max_edits):
    # Oracle: the set that brute force gives; breadth first: never a chain of fewer edits after one of more.
    settings = replace(EXHAUSTIVE, action_set=action_set, max_edits=max_edits)
    space = settings.action_space(5, 1)
    found = list(run(noisy, settings, 0, 5, 1).evaluated)
    levels = [brute_force(space, edits) for edits in range(max_edits + 1)]
    assert len(found) == len(set(found))
    assert set(found) == levels[-1]
    for level in levels:
        assert set(found[: len(level)]) == level


def test_the_order_by_hand():
    # Oracle: by hand: skips of single layers of 3, by number, then those of each in turn.
    settings = replace(EXHAUSTIVE, action_set="skip", max_block=1)
    assert trials(noisy, settings, 0, 3) == ["0-2", "1-2", "0,2", "0-1", "2", "1", "0"]


def test_a_space_that_is_too_large_is_refused():
    # Oracle: the message; the very number of chains is allowed, one less is not.
    size = len(brute_force(EXHAUSTIVE.action_space(6), 2))
    assert run(noisy, replace(EXHAUSTIVE, simulations=size), 0, 6).simulations == size
    message = f"simulations: expected a space of at most {size - 1} chains for the exhaustive search, got more"
    with pytest.raises(ValueError, match=f"^{message}$"):
        run(noisy, replace(EXHAUSTIVE, simulations=size - 1), 0, 6)
