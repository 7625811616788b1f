"""Priors: weights by hand, bounds, files that are not trusted."""

import json
import math
import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.chain import Chain
from router.command import InputError
from router.fingerprint import Fingerprints
from search.actions import ActionSpace
from search.prior import SamplePrior
from search.prior_file import ModelPrior, read_prior, write_prior

PRINTS = Fingerprints("a" * 64, "b" * 64, "c" * 64)
FAR = Chain((0, 1, 3, 3), 4)


def model_prior(**changes):
    values = {
        "kind": "redundancy",
        "num_layers": 4,
        "prefix_layers": 1,
        "fingerprints": PRINTS,
        "source": {"split": "train", "samples": 3},
        "skip": (0.0, 0.5, -0.5, 2.0),
        "repeat": (0.0, 1.0, 0.0, 0.0),
        "known": ((FAR, 3),),
        "samples": {"s1": ((0.0, 1.0, 1.0, 1.0), (0.0, -1.0, 0.0, 0.0))},
    }
    return ModelPrior(**(values | changes))


def weight_by_definition(prior, chain, action):
    """exp of the mean log weight of the block's layers."""
    if action.kind == "move":
        return 1.0
    by_layer = prior.skip if action.kind == "skip" else prior.repeat
    block = chain.layers[action.position : action.position + action.size]
    return math.exp(sum(by_layer[layer] for layer in block) / len(block))


@given(st.integers(0, 500), st.sampled_from(["skip", "repeat", "both", "both+move"]), st.integers(0, 6))
def test_weights_equal_the_definition(seed, action_set, prefix):
    # Oracle: the definition, action by action, on edited chains.
    rng = random.Random(seed)
    prior = SamplePrior(tuple(rng.uniform(-20, 20) for _ in range(6)), tuple(rng.gauss(0, 1) for _ in range(6)))
    space = ActionSpace(6, prefix, action_set, max_block=rng.randint(1, 4), max_times=rng.randint(1, 3))
    chain = Chain.full(6)
    for _ in range(rng.randint(0, 3)):
        if space.count(chain):
            chain = space.sample(chain, rng).apply(chain)
    weights = prior.weights(chain, space)
    assert weights == pytest.approx([weight_by_definition(prior, chain, action) for action in space.legal(chain)])
    assert all(weight > 0 for weight in weights)
    assert len(weights) == space.count(chain)


def test_weights_by_hand():
    # Oracle: by hand: skips of 1 and of 2 entries behind one prefix layer.
    prior = SamplePrior((9.0, math.log(2), math.log(8)), (0.0, 0.0, 0.0))
    space = ActionSpace(3, 1, "skip", max_block=2)
    assert prior.weights(Chain.full(3), space) == pytest.approx([2, 8, 4])
    assert prior.weights(Chain((0, 2, 2), 3), space) == pytest.approx([8, 8, 8])
    assert SamplePrior.neutral(3).weights(Chain.full(3), space) == [1, 1, 1]


def test_weights_are_cheap():
    # Oracle: a bound of 300 microseconds for 986 actions, about ten times what it takes.
    rng = random.Random(0)
    prior = SamplePrior(tuple(rng.gauss(0, 1) for _ in range(30)), tuple(rng.gauss(0, 1) for _ in range(30)))
    space, chain = ActionSpace(30, action_set="both+move"), Chain.full(30)
    assert len(prior.weights(chain, space)) == 986
    start = time.process_time()
    for _ in range(200):
        prior.weights(chain, space)
    assert (time.process_time() - start) / 200 < 300e-6


def test_known_chains_outside_the_space_are_left_out():
    # Oracle: by hand: the prefix edited, too deep, full depth; the one that is left keeps its weight.
    chains = [Chain((0, 2, 3), 4), Chain((0, 1, 1, 1, 2, 3), 4), Chain.full(4), Chain((0, 1, 3), 4)]
    prior = SamplePrior((0.0,) * 4, (0.0,) * 4, tuple((chain, i + 1) for i, chain in enumerate(chains)))
    assert prior.known_in(ActionSpace(4, 2, max_depth=5)) == ((chains[3], 4),)
    assert [weight for _, weight in prior.known_in(ActionSpace(4))] == [1, 2, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SamplePrior((), ()),
            r"repeat: expected one log weight for each of the 0 layers of skip \(at least 1\)",
        ),
        (lambda: SamplePrior((0.0,), (0.0, 0.0)), "repeat: expected one log weight for each of the 1 layers .* got 2"),
        (lambda: SamplePrior((21.0,), (0.0,)), r"skip\[0\]: expected a number in -20\.\.20, got 21\.0"),
        (lambda: SamplePrior((0.0,), (math.nan,)), r"repeat\[0\]: expected a number in -20\.\.20, got nan"),
        (lambda: SamplePrior((-math.inf,), (0.0,)), r"skip\[0\]: expected a number in -20\.\.20, got -inf"),
        (lambda: SamplePrior((True,), (0.0,)), r"skip\[0\]: expected a number"),
        (lambda: SamplePrior("0", (0.0,)), "skip: expected a list of log weights, got '0'"),
        (
            lambda: replace(SamplePrior.neutral(4), known=((Chain.full(5), 1.0),)),
            r"known\[0\]: expected a chain of 4 layers, got one of 5",
        ),
        (
            lambda: replace(SamplePrior.neutral(4), known=((FAR, 1.0), (FAR, 2.0))),
            r"known\[1\]: expected every chain once",
        ),
        (
            lambda: replace(SamplePrior.neutral(4), known=((FAR, 0.0),)),
            r"known\[0\]: expected a weight in .*, got 0\.0",
        ),
        (lambda: replace(SamplePrior.neutral(4), known=((FAR, 10**400),)), r"known\[0\]: expected a weight in"),
        (
            lambda: SamplePrior.neutral(4).weights(Chain.full(5), ActionSpace(5)),
            "prior: expected one of 5 layers, got one of 4",
        ),
        (lambda: model_prior(kind="guess"), "kind: expected one of redundancy, records, router, got 'guess'"),
        (lambda: model_prior(num_layers=0), "num_layers: expected an integer of at least 1, got 0"),
        (lambda: model_prior(prefix_layers=5), r"prefix_layers: expected an integer in 0\.\.4, got 5"),
        (lambda: model_prior(skip=(0.0,) * 3), "skip: expected one log weight for each of the 4 layers, got 3"),
        (lambda: model_prior(samples={"x": ((0.0,) * 4, (0.0,))}), r"samples\['x'\]\.repeat: expected one log weight"),
        (
            lambda: model_prior(samples={"x": ((19.0,) * 4, (0.0,) * 4)}),
            r"samples\['x'\]\.skip with the common weights\[3\]: expected a number in -20\.\.20, got 21\.0",
        ),
        (lambda: model_prior(source={"x": math.nan}), "source: expected what JSON can hold"),
        (lambda: model_prior(source={"x": {1}}), "source: expected what JSON can hold"),
    ],
)
def test_bad_values_name_field_bound_and_value(make, message):
    # Oracle: the messages, written by hand.
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_a_sample_has_the_common_weights_and_its_own():
    # Oracle: sums by hand; a sample without its own weights has the common ones.
    prior = model_prior()
    assert prior.for_sample("other") == SamplePrior(prior.skip, prior.repeat, prior.known)
    assert prior.for_sample("s1") == SamplePrior((0.0, 1.5, 0.5, 3.0), (0.0, 0.0, 0.0, 0.0), ((FAR, 3.0),))


def test_a_file_reads_back(tmp_path):
    # Oracle: equality, and a hash that depends on every field and on nothing else.
    prior = model_prior()
    write_prior(tmp_path / "prior.json", prior)
    back = read_prior(tmp_path / "prior.json")
    assert back == prior
    assert back.sha256 == prior.sha256 == model_prior().sha256
    changed = [
        model_prior(kind="router"),
        model_prior(prefix_layers=2),
        model_prior(fingerprints=replace(PRINTS, prompt="d" * 64)),
        model_prior(source={}),
        model_prior(skip=(0.0, 0.5, -0.5, 2.1)),
        model_prior(repeat=(0.0, 1.0, 0.0, 0.1)),
        model_prior(known=()),
        model_prior(known=((FAR, 4),)),
        model_prior(samples={}),
    ]
    assert len({other.sha256 for other in changed} | {prior.sha256}) == len(changed) + 1


def test_a_prior_for_something_else_is_refused():
    # Oracle: the messages, written by hand.
    prior = model_prior()
    prior.require(PRINTS, 4, 1)
    with pytest.raises(
        InputError, match="prior: expected it to be made for the tokenizer eeeeeeeeeeee, got bbbbbbbbbbbb"
    ):
        prior.require(replace(PRINTS, tokenizer="e" * 64), 4, 1)
    with pytest.raises(InputError, match="prior: expected it to be made with num_layers 5, got 4"):
        prior.require(PRINTS, 5, 1)
    with pytest.raises(InputError, match="prior: expected it to be made with prefix_layers 0, got 1"):
        prior.require(PRINTS, 4, 0)


def changed_file(path, **changes):
    value = model_prior().to_json() | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not ...}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema: expected 1, got 2"),
        ({"schema": True}, "schema: expected 1, got True"),
        ({"kind": ["records"]}, "kind: expected one of"),
        ({"known": ...}, "got none of known"),
        ({"extra": 1}, "got extra as well"),
        ({"num_layers": "4"}, "num_layers: expected an integer of at least 1, got '4'"),
        ({"num_layers": None}, "num_layers: expected an integer"),
        ({"prefix_layers": 1.0}, "prefix_layers: expected an integer"),
        ({"fingerprints": {"model": "a"}}, "fingerprints: expected model, tokenizer, prompt, got none of"),
        (
            {"fingerprints": {"model": "a", "tokenizer": 1, "prompt": "c"}},
            "fingerprints.tokenizer: expected text, got 1",
        ),
        ({"fingerprints": []}, "fingerprints: expected an object"),
        ({"source": 1}, "source: expected an object"),
        ({"skip": None}, "skip: expected a list of log weights, got None"),
        ({"skip": [0, 0, 0, 1e400]}, r"skip\[3\]: expected a number in -20\.\.20, got inf"),
        ({"repeat": [0, 0, 0, "1"]}, r"repeat\[3\]: expected a number"),
        ({"known": [{"chain": [0, 9], "weight": 1}]}, r"layers\[1\]: expected an integer in 0\.\.3, got 9"),
        ({"known": [{"chain": "0-3", "weight": 1}]}, "chain: expected a list of layer indices"),
        ({"known": [{"chain": [0], "weight": None}]}, r"known\[0\]: expected a weight"),
        ({"known": [{"chain": [0], "weight": 10**400}]}, r"known\[0\]: expected a weight"),
        ({"known": [7]}, r"known\[0\]: expected an object, got 7"),
        ({"known": {}}, "known: expected a list"),
        ({"samples": {"a": {"skip": [0, 0, 0, 0]}}}, r"samples\['a'\]: expected skip, repeat, got none of repeat"),
        ({"samples": [1]}, "samples: expected an object"),
        ({"source": {"x": float("nan")}}, "source: expected what JSON can hold"),
        ({"source": {"x": "\ud800"}}, "source: expected what JSON can hold"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, changes, message):
    # Oracle: one line that names the file and the field.
    path = changed_file(tmp_path / "prior.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_prior(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"schema": 1}', "\udcff", "[" * 100_000, '{"a":' * 100_000, "9" * 5000]
)
def test_other_files_are_refused_in_one_line(tmp_path, text):
    # Oracle: InputError in one line, whatever the bytes.
    path = tmp_path / "prior.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as caught:
        read_prior(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected an existing file"):
        read_prior(tmp_path / "none.json")
