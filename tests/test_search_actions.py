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
        prefix_layers=draw(st.integers(0, n)),
        action_set=draw(st.sampled_from(["skip", "repeat", "both"])),
        max_block=draw(st.integers(1, 5)),
        max_times=draw(st.integers(1, 5)),
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
    """Every action, tried one by one against the rules as the brief states them."""
    kinds = {"skip": ["skip"], "repeat": ["repeat"], "both": ["skip", "repeat"]}[space.action_set]
    for kind in kinds:
        for position in range(chain.depth):
            for size in range(1, space.max_block + 1):
                for times in [0] if kind == "skip" else range(1, space.max_times + 1):
                    if position < space.prefix_layers or position + size > chain.depth:
                        continue
                    depth = chain.depth + size * (times if kind == "repeat" else -1)
                    if 1 <= depth <= space.max_depth:
                        yield Action(kind, position, size, times)


@given(spaces_and_chains())
def test_legal_equals_the_definition(case):
    # Oracle: brute force over all positions, sizes and times.
    space, chain = case
    listed = space.legal(chain)
    assert len(listed) == len(set(listed)) == space.count(chain)
    assert set(listed) == set(legal_by_definition(space, chain))


@given(spaces_and_chains())
def test_every_legal_action_keeps_the_rules(case):
    # Oracle: the rules, read off the edited chain.
    space, chain = case
    for action in space.legal(chain):
        edited = action.apply(chain)
        assert edited != chain
        assert edited.layers[: space.prefix_layers] == tuple(range(space.prefix_layers))
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


def test_count_of_the_full_chain_by_hand():
    # Oracle: 30 layers: 30 + 29 + 28 + 27 blocks of 1..4, one skip and four repeats each.
    assert ActionSpace(30).count(Chain.full(30)) == 114 * 5
    # 16 layers behind the prefix: 16 + 15 + 14 + 13 = 58.
    assert ActionSpace(20, prefix_layers=4, action_set="skip").count(Chain.full(20)) == 58
    # One layer to run at least: of two layers, either may go, both may not.
    assert ActionSpace(2, action_set="skip").legal(Chain.full(2)) == [
        Action("skip", 0, 1),
        Action("skip", 1, 1),
    ]
    assert ActionSpace(3, prefix_layers=3).legal(Chain.full(3)) == []


def test_sampling_is_uniform():
    # Oracle: chi-square against the uniform distribution over the listed actions; a skewed draw must fail it.
    space = ActionSpace(8, prefix_layers=2)
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
        (lambda: Action("move", 0, 1), "kind: expected one of skip, repeat, got 'move'"),
        (lambda: Action("skip", -1, 1), "position: expected an integer of at least 0, got -1"),
        (lambda: Action("skip", True, 1), "position: expected an integer of at least 0, got True"),
        (lambda: Action("skip", 0, 0), "size: expected an integer of at least 1, got 0"),
        (lambda: Action("skip", 0, 1, 1), "times: expected 0 for a skip, got 1"),
        (lambda: Action("repeat", 0, 1), "times: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(0), "num_layers: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(4, 5), r"prefix_layers: expected an integer in 0\.\.4, got 5"),
        (lambda: ActionSpace(4, -1), r"prefix_layers: expected an integer in 0\.\.4, got -1"),
        (lambda: ActionSpace(4, 0, "move"), "action_set: expected one of skip, repeat, both, got 'move'"),
        (lambda: ActionSpace(4, max_block=0), "max_block: expected an integer of at least 1, got 0"),
        (lambda: ActionSpace(4, max_times=1.0), r"max_times: expected an integer of at least 1, got 1\.0"),
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
