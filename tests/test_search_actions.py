"""Actions and the action space: legality, counting, drawing with and without replacement."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from router.chain import Chain
from search.actions import Action, ActionSpace, UniformDraw, WeightedDraw
from tests.toys import plain, space_of


@st.composite
def spaces_and_chains(draw):
    """A space and a chain that up to four of its own actions lead to."""
    n = draw(st.integers(1, 9))
    settings = plain(
        action_set=draw(st.sampled_from(["skip", "repeat", "both", "both+move"])),
        max_block=(block := draw(st.integers(1, 5))),
        below_block=draw(st.one_of(st.none(), st.integers(1, block))),
        max_times=draw(st.integers(1, 5)),
        max_runs=draw(st.one_of(st.none(), st.integers(1, 4))),
        max_shift=draw(st.integers(1, 5)),
        max_depth=draw(st.one_of(st.none(), st.integers(n, 3 * n))),
        depth_shares=draw(st.sampled_from([None, (0.0, 1.0), (0.6, 1.3), (1.0, 5.0)])),
    )
    space = ActionSpace(settings, n, draw(st.integers(0, n)))
    chain = Chain.full(n)
    rng = random.Random(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(0, 4))):
        if space.count(chain):
            chain = space.sample(chain, rng).apply(chain)
    return space, chain


def longest_block(space, chain):
    """The longest block that an action on a chain edits."""
    bounds = space.settings
    return bounds.below_block or bounds.max_block if not chain.is_full else bounds.max_block


def within_depths(space, depth):
    """Whether a depth is within `max_depth` and the shares of the model's layers."""
    low, high = space.settings.depth_shares or (0, 1000)
    most = space.settings.max_depth or 2 * space.num_layers
    return max(1, round(low * space.num_layers)) <= depth <= min(most, round(high * space.num_layers))


def legal_by_definition(space, chain):
    """Every skip and repeat, tried one by one against the rules as the brief states them."""
    bounds = space.settings
    kinds = {"skip": ["skip"], "repeat": ["repeat"]}.get(bounds.action_set, ["skip", "repeat"])
    for kind in kinds:
        for position in range(chain.depth):
            for size in range(1, longest_block(space, chain) + 1):
                for times in [0] if kind == "skip" else range(1, bounds.max_times + 1):
                    if position < space.first_editable or position + size > chain.depth:
                        continue
                    action = Action(kind, position, size, times)
                    if size == chain.depth and kind == "skip":
                        continue
                    edited = action.apply(chain)
                    if not within_depths(space, edited.depth):
                        continue
                    runs = Counter(edited.layers)
                    before = Counter(chain.layers)
                    if all(runs[i] <= max(bounds.max_runs or 1000, before[i]) for i in runs):
                        yield action


def moves_by_definition(space, chain):
    """Every order that puts a block of 1..max_block entries 1..max_shift earlier or later, behind the prefix."""
    for position in range(space.first_editable, chain.depth):
        for size in range(1, min(longest_block(space, chain), chain.depth - position) + 1):
            rest = chain.layers[:position] + chain.layers[position + size :]
            for to in range(space.first_editable, len(rest) + 1):
                if 1 <= abs(to - position) <= space.settings.max_shift:
                    yield rest[:to] + chain.layers[position : position + size] + rest[to:]


@given(spaces_and_chains())
def test_legal_actions_equal_the_definition_and_keep_the_rules(case):
    # Oracle: brute force over all positions, sizes and times; the rules, read off the edited chain.
    space, chain = case
    listed = space.legal(chain)
    assert len(listed) == len(set(listed)) == space.count(chain)
    assert {action for action in listed if action.kind != "move"} == set(legal_by_definition(space, chain))
    for action in listed:
        edited = action.apply(chain)
        assert edited != chain or action.kind == "move"  # a move of a block before its like changes nothing
        assert edited.layers[: space.first_editable] == tuple(range(space.first_editable))
        assert 1 <= edited.depth <= space.max_depth
        space.count(edited)


@given(spaces_and_chains())
def test_moves_equal_the_definition(case):
    # Oracle: brute force over all blocks and targets, as orders of entries; each exchange is listed once, so on entries
    # that all differ no two moves give the same order.
    space, chain = case
    bounds = space.settings
    moves = [action for action in space.legal(chain) if action.kind == "move"]
    expected = set(moves_by_definition(space, chain)) if bounds.action_set == "both+move" else set()
    assert {action.apply(chain).layers for action in moves} == expected
    assert all(action.size <= bounds.max_block and abs(action.shift) <= bounds.max_shift for action in moves)
    full = Chain.full(space.num_layers)
    moves = [action for action in space.legal(full) if action.kind == "move"]
    assert len(moves) == len({action.apply(full).layers for action in moves})


@pytest.mark.parametrize(
    ("space", "count"),
    [
        (space_of(30), 114 * 5),  # 30 + 29 + 28 + 27 blocks of 1..4, one skip and four repeats each
        # Exchanges of a block of 1..4 with the 1..4 entries behind it: 16 pairs, 31 - a - b positions each.
        (space_of(30, action_set="both+move"), 114 * 5 + 16 * 31 - 16 * 5),
        # Blocks of 1, shifts up to 3, of 4 entries: 1 goes 1, 2, 3 later (3 + 2 + 1), and 2, 3 earlier (2 + 1).
        (space_of(4, action_set="both+move", max_block=1, max_times=1, max_shift=3), 8 + 9),
        (space_of(20, 4, action_set="skip"), 58),  # 16 layers behind the prefix: 16 + 15 + 14 + 13
        (space_of(2, action_set="skip"), 2),  # one layer to run at least: either may go, both may not
        (space_of(3, 3), 0),
        # PoLar: skips and one repeat of blocks of 1..4, twice 28 + 27 + 26 + 25, at 16..32 of 28 layers.
        (space_of(28, max_times=1, below_block=1, max_runs=2, depth_shares=(0.5714, 1.1429)), 212),
    ],
)
def test_count_of_the_full_chain_by_hand(space, count):
    # Oracle: the numbers, worked out by hand.
    assert space.count(Chain.full(space.num_layers)) == len(space.legal(Chain.full(space.num_layers))) == count


def test_below_the_root_and_after_a_repeat_by_hand():
    # Oracle: the lists, written by hand: single layers alone below the root, no layer three times, 3 to 5 of 4 layers.
    space = space_of(4, max_times=1, below_block=1, max_runs=2, depth_shares=(0.75, 1.25))
    assert (space.min_depth, space.max_depth) == (3, 5)
    found = [str(action.apply(Chain((0, 1, 3), 4))) for action in space.legal(Chain((0, 1, 3), 4))]
    assert found == ["0*2,1,3", "0,1*2,3", "0-1,3*2"]
    found = [str(action.apply(Chain((0, 0, 1, 2), 4))) for action in space.legal(Chain((0, 0, 1, 2), 4))]
    assert found == ["0-2", "0-2", "0*2,2", "0*2,1", "0*2,1*2,2", "0*2,1,2*2"]


def test_sampling_is_uniform():
    # Oracle: chi-square against the uniform distribution over the listed actions; a skewed draw must fail it.
    space = space_of(8, 2)
    chain = Chain((0, 1, 2, 5, 5, 6), 8)
    legal = space.legal(chain)

    def p_value(draw):
        seen = Counter(draw() for _ in range(100 * len(legal)))
        return chisquare([seen[action] for action in legal]).pvalue

    rng = random.Random(0)
    assert p_value(lambda: space.sample(chain, rng)) > 0.01
    assert p_value(lambda: legal[min(rng.randrange(len(legal)), rng.randrange(len(legal)))]) < 1e-6
    # Four of five are repeats: each block of 1..4 can be skipped once and repeated 1..4 times.
    wide, full = space_of(30, 12), Chain.full(30)
    skips = wide.skips(full)
    assert skips / wide.count(full) == pytest.approx(0.2)
    assert [action.kind for action in wide.legal(full)][:skips] == ["skip"] * skips


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_skips_are_drawn_with_their_share_and_evenly_among_themselves(share):
    # Oracle: the binomial law for the share, chi-square for the places (null: uniform among skips).
    space, full, rng = space_of(8, 2, skip_share=share), Chain.full(8), random.Random(0)
    drawn = [space.sample(full, rng) for _ in range(5000)]
    skips = Counter(action for action in drawn if action.kind == "skip")
    assert binomtest(skips.total(), len(drawn), share).pvalue > 0.01
    assert set(skips) == {action for action in space.legal(full) if action.kind == "skip"}
    assert chisquare(list(skips.values())).pvalue > 0.01
    assert set(drawn) - set(skips) == {action for action in space.legal(full) if action.kind != "skip"}


@pytest.mark.parametrize("action_set", ["skip", "repeat"])
def test_a_share_changes_nothing_where_all_actions_are_of_one_kind(action_set):
    # Oracle: the draws without a share.
    one, other = (space_of(8, action_set=action_set, skip_share=share) for share in (0.9, None))
    full, rngs = Chain.full(8), (random.Random(3), random.Random(3))
    assert [one.sample(full, rngs[0]) for _ in range(50)] == [other.sample(full, rngs[1]) for _ in range(50)]


def test_sampling_is_cheap():
    # Oracle: a bound of 200 microseconds, over ten times what it takes; listing every action would exceed it.
    space, chain, rng = space_of(30), Chain.full(30), random.Random(0)
    space.sample(chain, rng)
    start = time.process_time()
    for _ in range(1000):
        space.sample(chain, rng)
    assert (time.process_time() - start) / 1000 < 200e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: space_of(4, 5), r"first_editable: expected 0\.\.4, got 5"),
        (lambda: space_of(4, max_depth=3), "max_depth: expected at least the model's 4 layers, got 3"),
        (lambda: space_of(4).count(Chain.full(5)), "expected one of a model of 4 layers, got 5"),
        (lambda: space_of(4, 2).count(Chain((0, 2), 4)), r"expected layers 0\.\.1 first, unedited, got 0,2"),
        (lambda: space_of(2).count(Chain((0,) * 5, 2)), "at most max_depth 4, got 5"),
        (lambda: space_of(4, depth_shares=(0.5, 1)).count(Chain((0,), 4)), "at least 2 and at most max_depth 4, got 1"),
        (lambda: space_of(2).action(Chain.full(2), 99), r"index: expected an action number in 0\.\.\d+, got 99"),
        (lambda: space_of(2).action(Chain.full(2), -1), "index: expected an action number in"),
        (lambda: space_of(3, 3).sample(Chain.full(3), random.Random(0)), "empty range"),
        (lambda: Action("move", 0, 1, shift=-1).apply(Chain.full(3)), "to: expected an integer in"),
    ],
)
def test_bad_values_name_field_bound_and_value(make, message):
    # Oracle: the messages, written by hand.
    with pytest.raises(ValueError, match=message):
        make()


def pair_p_value(make, weights):
    """Chi-square of the first two numbers drawn against w_i / W * w_j / (W - w_i)."""
    rng, seen = random.Random(0), Counter()
    for _ in range(10_000):
        draws = make()
        seen[draws.draw(rng), draws.draw(rng)] += 1
    total = sum(weights)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = [seen.total() * weights[i] / total * weights[j] / (total - weights[i]) for i, j in pairs]
    return chisquare([seen[pair] for pair in pairs], expected).pvalue


def test_draws_without_replacement_are_in_proportion_to_what_is_left():
    # Oracle: the probability of each ordered pair, worked out; the uniform draw must fail it, and pass its own.
    weights = [1.0, 2.0, 4.0, 9.0]
    assert pair_p_value(lambda: WeightedDraw(weights), weights) > 0.01
    assert pair_p_value(lambda: UniformDraw(4), weights) < 1e-6
    assert pair_p_value(lambda: UniformDraw(4), [1.0] * 4) > 0.01


@pytest.mark.parametrize("weights", [[1e-9, 4.8e8, 1.0, 1e-9], [4.8e8] * 3 + [2e-9] * 300, [1.0]])
def test_weighted_draws_give_every_number_once(weights):
    # Oracle: the numbers themselves, whatever the weights.
    draws = WeightedDraw(weights)
    drawn = [draws.draw(random.Random(i)) for i in range(len(weights))]
    assert sorted(drawn) == list(range(len(weights)))
    assert draws.left == 0
    assert drawn[0] in [i for i, weight in enumerate(weights) if weight == max(weights)]
