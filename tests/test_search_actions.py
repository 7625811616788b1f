"""Actions and the action space: legality, counting and drawing."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from router.chain import Chain
from search.actions import Action, ActionSpace


@st.composite
def spaces(draw):
    n = draw(st.integers(1, 9))
    return ActionSpace(
        num_layers=n,
        first_editable=draw(st.integers(0, n)),
        action_set=draw(st.sampled_from(["skip", "repeat", "both", "both+move"])),
        max_block=draw(st.integers(1, 5)),
        max_times=draw(st.integers(1, 5)),
        max_shift=draw(st.integers(1, 5)),
        max_depth=draw(st.one_of(st.none(), st.integers(n, 3 * n))),
    )


@st.composite
def spaces_and_chains(draw):
    """A space and a chain that up to four of its own actions lead to."""
    space = draw(spaces())
    chain = Chain.full(space.num_layers)
    rng = random.Random(draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(0, 4))):
        if space.count(chain):
            chain = space.sample(chain, rng).apply(chain)
    return space, chain


def legal_by_definition(space, chain):
    """Every skip and repeat, tried one by one against the rules as the brief states them."""
    kinds = {"skip": ["skip"], "repeat": ["repeat"]}.get(space.action_set, ["skip", "repeat"])
    for kind in kinds:
        for position in range(chain.depth):
            for size in range(1, space.max_block + 1):
                for times in [0] if kind == "skip" else range(1, space.max_times + 1):
                    if position < space.first_editable or position + size > chain.depth:
                        continue
                    depth = chain.depth + size * (times if kind == "repeat" else -1)
                    if 1 <= depth <= space.max_depth:
                        yield Action(kind, position, size, times)


def moves_by_definition(space, chain):
    """Every order that puts a block of 1..max_block entries 1..max_shift earlier or later, behind the prefix."""
    for position in range(space.first_editable, chain.depth):
        for size in range(1, min(space.max_block, chain.depth - position) + 1):
            rest = chain.layers[:position] + chain.layers[position + size :]
            for to in range(space.first_editable, len(rest) + 1):
                if 1 <= abs(to - position) <= space.max_shift:
                    yield rest[:to] + chain.layers[position : position + size] + rest[to:]


@given(spaces_and_chains())
def test_legal_equals_the_definition(case):
    # Oracle: brute force over all positions, sizes and times.
    space, chain = case
    listed = space.legal(chain)
    assert len(listed) == len(set(listed)) == space.count(chain)
    assert {action for action in listed if action.kind != "move"} == set(legal_by_definition(space, chain))


@given(spaces_and_chains())
def test_moves_equal_the_definition(case):
    # Oracle: brute force over all blocks and targets, as orders of entries; each exchange is listed once, so on entries
    # that all differ no two moves give the same order.
    space, chain = case
    moves = [action for action in space.legal(chain) if action.kind == "move"]
    expected = set(moves_by_definition(space, chain)) if space.action_set == "both+move" else set()
    assert {action.apply(chain).layers for action in moves} == expected
    assert all(action.size <= space.max_block and abs(action.shift) <= space.max_shift for action in moves)
    full = Chain.full(space.num_layers)
    moves = [action for action in space.legal(full) if action.kind == "move"]
    assert len(moves) == len({action.apply(full).layers for action in moves})


@given(spaces_and_chains())
def test_groups_are_the_actions_in_the_order_of_their_numbers(case):
    # Oracle: the actions, one by one.
    space, chain = case
    spelled = [
        Action(group.kind, group.first + i, group.size, group.times, group.shift)
        for group in space.groups(chain)
        for i in range(group.positions)
    ]
    assert spelled == space.legal(chain)


@given(spaces_and_chains())
def test_every_legal_action_keeps_the_rules(case):
    # Oracle: the rules, read off the edited chain.
    space, chain = case
    for action in space.legal(chain):
        edited = action.apply(chain)
        assert edited != chain or action.kind == "move"  # a move of a block before its like changes nothing
        assert edited.layers[: space.first_editable] == tuple(range(space.first_editable))
        assert 1 <= edited.depth <= space.max_depth
        space.count(edited)


@given(spaces_and_chains(), st.integers(0, 99))
def test_a_sample_is_legal(case, seed):
    # Oracle: the list of legal actions.
    space, chain = case
    legal = space.legal(chain)
    if legal:
        assert space.sample(chain, random.Random(seed)) in legal
    else:
        with pytest.raises(ValueError, match="expected at least one legal action, got none"):
            space.sample(chain, random.Random(seed))


def test_apply_by_hand():
    # Oracle: written by hand.
    chain = Chain((0, 1, 1, 2, 3), 4)
    assert Action("skip", 1, 2).apply(chain).layers == (0, 2, 3)
    assert Action("repeat", 2, 2, 2).apply(chain).layers == (0, 1, 1, 2, 1, 2, 1, 2, 3)
    assert Action("move", 0, 2, shift=3).apply(chain).layers == (1, 2, 3, 0, 1)
    assert Action("move", 3, 2, shift=-2).apply(chain).layers == (0, 2, 3, 1, 1)
    assert Action("move", 1, 1, shift=1).apply(chain) == chain


def test_count_of_the_full_chain_by_hand():
    # Oracle: 30 layers: 30 + 29 + 28 + 27 blocks of 1..4, one skip and four repeats each.
    assert ActionSpace(30).count(Chain.full(30)) == 114 * 5
    # Exchanges of a block of 1..4 with the 1..4 entries behind it: 16 pairs, 31 - a - b positions each.
    assert ActionSpace(30, action_set="both+move").count(Chain.full(30)) == 114 * 5 + 16 * 31 - 16 * 5
    # Blocks of 1, shifts up to 3, of 4 entries: 1 goes 1, 2, 3 later (3 + 2 + 1), and 2, 3 earlier (2 + 1).
    assert ActionSpace(4, action_set="both+move", max_block=1, max_times=1, max_shift=3).count(Chain.full(4)) == 8 + 9
    # 16 layers behind the prefix: 16 + 15 + 14 + 13 = 58.
    assert ActionSpace(20, first_editable=4, action_set="skip").count(Chain.full(20)) == 58
    # One layer to run at least: of two layers, either may go, both may not.
    assert ActionSpace(2, action_set="skip").legal(Chain.full(2)) == [
        Action("skip", 0, 1),
        Action("skip", 1, 1),
    ]
    assert ActionSpace(3, first_editable=3).legal(Chain.full(3)) == []


def test_sampling_is_uniform():
    # Oracle: chi-square against the uniform distribution over the listed actions; a skewed draw must fail it.
    space = ActionSpace(8, first_editable=2)
    chain = Chain((0, 1, 2, 5, 5, 6), 8)
    legal = space.legal(chain)

    def p_value(draw):
        seen = Counter(draw() for _ in range(100 * len(legal)))
        return chisquare([seen[action] for action in legal]).pvalue

    rng = random.Random(0)
    assert p_value(lambda: space.sample(chain, rng)) > 0.01
    assert p_value(lambda: legal[min(rng.randrange(len(legal)), rng.randrange(len(legal)))]) < 1e-6


def test_sampling_is_cheap():
    # Oracle: a bound of 200 microseconds, over ten times what it takes; listing every action would exceed it.
    space, chain, rng = ActionSpace(30), Chain.full(30), random.Random(0)
    space.sample(chain, rng)
    start = time.process_time()
    for _ in range(1000):
        space.sample(chain, rng)
    assert (time.process_time() - start) / 1000 < 200e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Action("swap", 0, 1), "kind: expected one of skip, repeat, move, got 'swap'"),
        (lambda: Action("move", 0, 1), "shift: expected an integer other than 0, got 0"),
        (lambda: Action("move", 0, 1, 1, 1), "times: expected 0 for a move, got 1"),
        (lambda: Action("skip", 0, 1, 0, 2), "shift: expected 0 for a skip, got 2"),
        (lambda: Action("move", 0, 1, shift=True), "shift: expected an integer other than 0, got True"),
        (lambda: Action("move", 0, 1, shift=-1).apply(Chain.full(3)), "to: expected an integer in"),
        (lambda: Action("skip", -1, 1), "position: expected an integer of at least 0, got -1"),
        (lambda: Action("skip", True, 1), "position: expected an integer of at least 0, got True"),
        (lambda: Action("skip", 0, 0), "size: expected an integer of at least 1, got 0"),
        (lambda: Action("skip", 0, 1, 1), "times: expected 0 for a skip, got 1"),
        (lambda: Action("repeat", 0, 1), "times: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(0), "num_layers: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(4, 5), r"first_editable: expected an integer in 0\.\.4, got 5"),
        (lambda: ActionSpace(4, -1), r"first_editable: expected an integer in 0\.\.4, got -1"),
        (lambda: ActionSpace(4, 0, "move"), r"action_set: expected one of skip, repeat, both, both\+move, got 'move'"),
        (lambda: ActionSpace(4, max_block=0), "max_block: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(4, max_times=1.0), r"max_times: expected an integer of at least 1, got 1\.0"),
        (lambda: ActionSpace(4, max_shift=0), "max_shift: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(4, max_depth=3), "max_depth: expected an integer of at least 4, got 3"),
        (lambda: ActionSpace(4, max_edits=-1), "max_edits: expected an integer of at least 0, got -1"),
        (lambda: ActionSpace(4).count(Chain.full(5)), "expected one of a model of 4 layers, got 5"),
        (
            lambda: ActionSpace(4, 2).count(Chain((0, 2), 4)),
            r"expected layers 0\.\.1 first, unedited, got 0,2",
        ),
        (lambda: ActionSpace(2).count(Chain((0,) * 5, 2)), "at most max_depth 4, got 5"),
        (
            lambda: ActionSpace(2).action(Chain.full(2), 99),
            r"index: expected an action number in 0\.\.\d+, got 99",
        ),
        (lambda: ActionSpace(2).action(Chain.full(2), -1), "index: expected an action number in"),
    ],
)
def test_bad_values_name_field_bound_and_value(make, message):
    # Oracle: the messages, written by hand.
    with pytest.raises(ValueError, match=message):
        make()


def test_default_depth_cap_is_twice_the_model():
    # Oracle: the documented default.
    assert ActionSpace(7).max_depth == 14
    assert ActionSpace(7) == ActionSpace(7, max_depth=14)
    assert hash(ActionSpace(7)) == hash(ActionSpace(7, max_depth=14))


def test_what_a_space_holds():
    # Oracle: by hand: the model's layers, the prefix, the depth.
    space = ActionSpace(4, 2, max_depth=5)
    assert space.holds(Chain((0, 1, 3, 3, 2), 4))
    assert space.holds(Chain((0, 1), 4))
    assert not space.holds(Chain((0, 1, 3, 3, 2, 2), 4))
    assert not space.holds(Chain((0, 2, 1), 4))
    assert not space.holds(Chain((0,), 4))
    assert not space.holds(Chain.full(5))
