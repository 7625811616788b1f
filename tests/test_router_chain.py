"""The chain of layers: text form, edits and counts."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.chain import MAX_DEPTH, Chain


@st.composite
def chains(draw, most=12):
    """Any chain: layers in any order, any number of times."""
    n = draw(st.integers(1, most))
    return Chain(tuple(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3 * n))), n)


@st.composite
def edited_chains(draw):
    """A full chain after a few skips, repeats and moves: as a search meets it."""
    chain = Chain.full(draw(st.integers(1, 12)))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["skip", "repeat", "move"]))
        position = draw(st.integers(0, chain.depth - 1))
        k = draw(st.integers(1, chain.depth - position))
        if kind == "skip" and k < chain.depth:
            chain = chain.skip(position, k)
        elif kind == "repeat" and chain.depth < 40:
            chain = chain.repeat(position, k, draw(st.integers(1, 3)))
        elif kind == "move":
            chain = chain.move(position, k, draw(st.integers(0, chain.depth - k)))
    return chain


@st.composite
def blocks(draw):
    """An edited chain, and a block of its entries: where it begins and how long it is."""
    chain = draw(edited_chains())
    position = draw(st.integers(0, chain.depth - 1))
    return chain, position, draw(st.integers(1, chain.depth - position))


@given(st.one_of(chains(), edited_chains()))
def test_text_and_json_read_back(chain):
    # Oracle: the round trip is the identity.
    assert Chain.parse(str(chain), chain.num_layers) == chain
    assert Chain.from_json(chain.to_json(), chain.num_layers) == chain


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((0, 1, 2, 3, 4, 5), "0-5"),
        ((0, 1, 2, 4, 4, 5), "0-2,4*2,5"),
        ((3,), "3"),
        ((5, 4, 3), "5,4,3"),
        ((0, 1, 0, 1, 2), "0-1,0-2"),
        ((2, 2, 2), "2*3"),
        ((0, 1, 1, 2, 3), "0,1*2,2-3"),
    ],
)
def test_text_form(layers, text):
    # Oracle: written by hand from the format's description.
    assert str(Chain(layers, 6)) == text
    assert Chain.parse(text, 6).layers == layers
    assert Chain.parse(f" {text.replace(',', ' , ')} ", 6).layers == layers


@given(blocks())
def test_skip(block):
    # Oracle: list slicing, and the law depth' = depth - k.
    chain, position, k = block
    if k == chain.depth:
        with pytest.raises(ValueError, match=rf"^k: expected fewer than all {k} .*got {k}$"):
            chain.skip(position, k)
        return
    rest = list(chain.layers)
    del rest[position : position + k]
    assert chain.skip(position, k).layers == tuple(rest)
    assert chain.skip(position, k).depth == chain.depth - k


@given(blocks(), st.data())
def test_repeat(block, data):
    # Oracle: the law depth' = depth + k * times, and skipping the added entries gives the chain back.
    chain, position, k = block
    times = data.draw(st.integers(1, 4))
    repeated = chain.repeat(position, k, times)
    assert repeated.depth == chain.depth + k * times
    part = chain.layers[position : position + k]
    assert repeated.layers[position : position + k * (times + 1)] == part * (times + 1)
    assert repeated.skip(position, k * times) == chain


@given(blocks(), st.data())
def test_move(block, data):
    # Oracle: a move keeps depth and layers, moving back undoes it, and the block stands where it was put.
    chain, position, k = block
    to = data.draw(st.integers(0, chain.depth - k))
    moved = chain.move(position, k, to)
    assert sorted(moved.layers) == sorted(chain.layers)
    assert moved.layers[to : to + k] == chain.layers[position : position + k]
    assert moved.move(to, k, position) == chain


@given(edited_chains())
def test_edits_are_zero_for_the_full_chain_only(chain):
    # Oracle: the definition of the full chain.
    assert (chain.edits == 0) == chain.is_full == (chain == Chain.full(chain.num_layers))
    assert 0 <= chain.edits <= chain.depth + 1


@given(st.integers(2, 20), st.data())
def test_edits_of_one_action(n, data):
    # Oracle: one skipped block is one jump, a block that runs `times` more times is `times` jumps.
    position = data.draw(st.integers(0, n - 1))
    k = data.draw(st.integers(1, n - position))
    times = data.draw(st.integers(1, 4))
    assert Chain.full(n).repeat(position, k, times).edits == times
    if k < n:
        assert Chain.full(n).skip(position, k).edits == 1


@given(st.one_of(chains(), edited_chains()))
def test_counts_round_trip_or_raise(chain):
    # Oracle: counts lose nothing exactly where the layers ascend.
    if all(before <= after for before, after in pairwise(chain.layers)):
        counts = chain.to_counts()
        assert sum(counts) == chain.depth
        assert Chain.from_counts(counts) == chain
    else:
        with pytest.raises(ValueError, match="ascending"):
            chain.to_counts()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain((), 4), "layers: expected at least one layer index, got an empty chain"),
        (lambda: Chain((0, 4), 4), r"layers\[1\]: expected an integer in 0..3, got 4"),
        (lambda: Chain((-1,), 4), r"layers\[0\]: expected an integer in 0..3, got -1"),
        (lambda: Chain((True,), 4), r"layers\[0\]: expected an integer in 0..3, got True"),
        (lambda: Chain((0,), 0), "num_layers: expected an integer of at least 1, got 0"),
        (lambda: Chain.full(4).skip(4, 1), "position: expected an integer in 0..3, got 4"),
        (lambda: Chain.full(4).skip(-1, 1), "position: expected an integer in 0..3, got -1"),
        (lambda: Chain.full(4).skip(3, 2), "k: expected an integer in 1..1, got 2"),
        (lambda: Chain.full(4).skip(0, 0), "k: expected an integer in 1..4, got 0"),
        (lambda: Chain.full(4).skip(0, 4), "k: expected fewer than all 4 entries of the chain, got 4"),
        (lambda: Chain.full(4).repeat(0, 1, 0), "times: expected an integer of at least 1, got 0"),
        (lambda: Chain.full(4).move(0, 2, 3), "to: expected an integer in 0..2, got 3"),
        (lambda: Chain.from_counts([1, -1]), r"counts\[1\]: expected an integer of at least 0, got -1"),
        (lambda: Chain.from_counts([0, 0]), "layers: expected at least one"),
        (lambda: Chain.from_json("0-3", 4), "chain: expected a list of layer indices, got '0-3'"),
        (lambda: Chain.from_json([0, "1"], 4), r"layers\[1\]: expected an integer in 0..3, got '1'"),
    ],
)
def test_bad_values_name_field_bound_and_value(make, message):
    # Oracle: the messages, written by hand.
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "", "0,", "-1", "0--1", "3-1", "0*0", "0-3*2", "0;1", "0\n", "1e1", "1.0", "9", "0-9", f"0*{MAX_DEPTH + 1}",
        "0*999999999999", "0-999999999999", "0," * 5000 + "0", "1 2",
    ],
)  # fmt: skip
def test_adversarial_text_is_refused(text):
    # Oracle: none of these is a list of items within the 4 layers of the model.
    with pytest.raises(ValueError, match=r"expected"):
        Chain.parse(text, 4)


@given(st.text(alphabet="0123456789-*, x", max_size=30))
def test_any_text_parses_or_raises_value_error(text):
    # Oracle: what parses has a canonical form that parses to the same chain.
    try:
        chain = Chain.parse(text, 12)
    except ValueError:
        return
    assert Chain.parse(str(chain), 12) == chain


@given(st.one_of(chains(), edited_chains()))
def test_the_unedited_prefix_is_the_longest_that_runs_once_and_first(chain):
    # Oracle: all prefixes tried, by the definition.
    fits = [
        e
        for e in range(chain.num_layers + 1)
        if chain.layers[:e] == tuple(range(e)) and not set(chain.layers[e:]) & set(range(e))
    ]
    assert chain.unedited_prefix == max(fits)
