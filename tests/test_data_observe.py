"""What the read-layer profile observes, against single runs of each chain and the stock model's hidden states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data import profile as observing
from data.probes import Observations
from data.profile import confidence_of, observe, without
from data.records import ChainResult
from data.sample import Sample
from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.validation import InputError
from tests.sums import SUMS, digit_model, sums
from tests.tiny import NUM_LAYERS, tiny_model, tiny_samples, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)
SKIPS = [(4,), (1,), (2, 3), (1, 4)]
EACH = [(1,), (2,), (3,), (4,)]


def scorer_for(mode: str = "letter", packed: bool = True) -> ChainScorer:
    return ChainScorer(tiny_model("llama"), tiny_tokenizer(), load_task("arc_easy", mode), packed=packed)


@pytest.mark.parametrize("mode", ["letter", "continuation", "exact"])
def test_answers_are_those_of_each_chain_run_alone(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: every chain in a block of its own, one sample at a time, its layers written out.
    if mode == "exact":
        scorer, samples = ChainScorer(digit_model(), tiny_tokenizer(), SUMS), sums("train", 14)
    else:
        scorer, samples = scorer_for(mode), tiny_samples("train", 14)
    monkeypatch.setattr(observing, "JOBS_PER_CALL", 7)  # calls end within a chain
    observed = observe(scorer, samples, SKIPS, batch_samples=4)
    assert list(observed.kept) == SKIPS
    differing = 0
    for i, sample in enumerate(samples):

        def alone(chain: Chain, sample: Sample = sample) -> ChainResult:
            return scorer.score(scorer.load([scorer.encode(sample)]), [(0, chain)])[0]

        full = alone(FULL)
        assert observed.correct[i] == full.correct
        if sample.choices:
            confidence = float(np.exp(full.scores)[full.prediction] / np.exp(full.scores).sum())
        else:
            confidence = float(np.prod(np.exp(full.scores)))
        assert observed.confidence[i] == pytest.approx(confidence, abs=1e-4)
        for skip in SKIPS:
            result = alone(Chain(tuple(layer for layer in range(NUM_LAYERS) if layer not in skip), NUM_LAYERS))
            kept = (result.prediction, result.correct) == (full.prediction, full.correct)
            assert observed.kept[skip][i] == kept
            differing += not kept
    assert 0 < differing < len(samples) * len(SKIPS)


@pytest.mark.parametrize("mode", ["letter", "continuation"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_features_are_the_stock_hidden_states(mode: str, packed: bool) -> None:
    # Oracle: one row a continuation through the stock model; `hidden_states[e]` of the prompt's last token, and the
    # mean over the prompt's tokens and each continuation's without its last.
    model, samples = tiny_model("llama"), tiny_samples("test", 4)
    scorer = scorer_for(mode, packed)
    observed = observe(scorer, samples, [(2,)], batch_samples=3)
    assert sorted(observed.features) == list(range(1, NUM_LAYERS))
    for i, sample in enumerate(samples):
        encoded = scorer.encode(sample)
        n = len(encoded.prompt)
        rows = [[*encoded.prompt, *tokens[:-1]] for tokens in encoded.continuations]
        stock = [model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
        for e, features in observed.features.items():
            assert features.dtype == np.float32
            assert features.shape == (len(samples), 2 * scorer.d_model)
            joined = torch.cat([stock[0][e][0, :n], *(states[e][0, n:] for states in stock)])
            wanted = torch.cat([joined[n - 1], joined.mean(0)]).numpy()
            np.testing.assert_allclose(features[i], wanted, rtol=0, atol=2e-5)


def test_a_free_answer_is_not_read() -> None:
    # Oracle: the stock model on the prompt alone.
    model, samples = digit_model(), sums("test", 3)
    scorer = ChainScorer(model, tiny_tokenizer(), SUMS)
    observed = observe(scorer, samples, [(2,)])
    for i, sample in enumerate(samples):
        prompt = torch.tensor([scorer.encode(sample).prompt])
        stock = model(prompt, output_hidden_states=True).hidden_states[3][0]
        wanted = torch.cat([stock[-1], stock.mean(0)]).numpy()
        np.testing.assert_allclose(observed.features[3][i], wanted, rtol=0, atol=2e-5)


def test_batches_change_nothing() -> None:
    # Oracle: one sample a block.
    scorer, samples = scorer_for(), tiny_samples("train", 7)
    single = observe(scorer, samples, EACH, batch_samples=1)
    assert (single.num_layers, single.samples) == (NUM_LAYERS, 7)
    for size in (3, 16):
        other = observe(scorer, samples, EACH, batch_samples=size)
        np.testing.assert_array_equal(other.correct, single.correct)
        np.testing.assert_allclose(other.confidence, single.confidence, atol=1e-5)
        for skip, kept in single.kept.items():
            np.testing.assert_array_equal(other.kept[skip], kept)
        for e, features in single.features.items():
            np.testing.assert_allclose(other.features[e], features, rtol=0, atol=2e-5)


def test_shared_prefixes_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: counted by hand. 5 layers of full depth, and after each single skip of layer l the n - 1 - l behind it.
    scorer, blocks = scorer_for(), []
    load = scorer.load
    monkeypatch.setattr(scorer, "load", lambda encoded: blocks.append(load(encoded)) or blocks[-1])
    observe(scorer, tiny_samples("train", 3), EACH, batch_samples=2)
    assert [[block.executed(i) for i in range(len(block.samples))] for block in blocks] == [[5 + 3 + 2 + 1] * 2, [11]]


def test_chain_without_layers() -> None:
    # Oracle: written out.
    assert without((1, 3), 5).layers == (0, 2, 4)
    assert without((4,), 5).layers == (0, 1, 2, 3)


def test_confidence_by_hand() -> None:
    # Oracle: exp and products in the head; a generated answer has no scores.
    choice = Sample("t", "train", "Which?", ("a", "b", "c"), 0)
    free = Sample("t", "train", "How many?", (), "12")
    scores = (math.log(0.2), math.log(0.5), math.log(0.1))
    assert confidence_of(choice, ChainResult.from_scores(FULL, scores, 0)) == pytest.approx(0.5 / 0.8, abs=1e-5)
    tokens = ChainResult.from_tokens(FULL, [math.log(0.5), math.log(0.25)], [1.0, 2.0], True, "12")
    assert confidence_of(free, tokens) == pytest.approx(0.125, abs=1e-5)
    assert math.isnan(confidence_of(free, ChainResult.from_answer(FULL, "12", True)))


def test_bad_input_is_refused() -> None:
    # Oracle: a sample of a task that the scorer does not know.
    with pytest.raises(InputError, match="data: sample"):
        observe(scorer_for(), [Sample("another", "train", "Which?", ("a", "b"), 0)], EACH)


def test_observations_that_do_not_fit_are_refused() -> None:
    # Oracle: two samples, three layers.
    parts = {"num_layers": 3, "features": {1: np.zeros((2, 4), np.float32)}, "confidence": np.array([0.5, np.nan])}
    right, wrong = np.array([True, False]), np.array([1, 0])
    Observations(**parts, correct=right, kept={(1,): right, (1, 2): right})
    with pytest.raises(ValueError, match=r"correct: expected 2 booleans, got int64 \[2\]"):
        Observations(**parts, correct=wrong, kept={})
    with pytest.raises(ValueError, match=r"kept\[\(2,\)\]: expected 2 booleans"):
        Observations(**parts, correct=right, kept={(2,): right[:1]})
    for features, message in (
        ({1: np.zeros((3, 4), np.float32)}, r"expected \[2, features\], got \[3, 4\]"),
        ({1: np.full((2, 4), np.inf, np.float32)}, "expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            Observations(**{**parts, "features": features}, correct=right, kept={})
