"""Baselines: the mixture of static chains, early exit and the pruned chain."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from data.sample import Sample
from data.scoring import ChainScorer, confidences
from data.tasks import load_task
from eval.arms import EarlyExitArm, MixtureArm, exit_chain
from eval.baselines import (
    MIXTURE_FILE,
    Candidate,
    MixtureChoice,
    choose_early_exit,
    choose_mixture,
    choose_pruned,
    kept,
)
from router.chain import Chain
from router.files import write_json
from router.validation import InputError
from tests.tiny import NUM_LAYERS, tiny_model, tiny_samples, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)


@pytest.fixture(scope="module")
def scorer() -> ChainScorer:
    return ChainScorer(tiny_model("llama"), tiny_tokenizer(), load_task("arc_easy"))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return tiny_samples("validation", 24)


def test_the_mixture_is_the_best_of_its_mean_depth(tmp_path: Path) -> None:
    # By hand: 3 layers are right on 4 of 20, 4 on 12, 5 on 14. At most 4.5 layers: half of 4 and 5 gives 13 of 20,
    # a quarter of 3 and the rest 5 only 11.5.
    chains = [exit_chain(3, NUM_LAYERS), exit_chain(4, NUM_LAYERS), FULL]
    candidates = [Candidate(chain, right, 20) for chain, right in zip(chains, (4, 12, 14), strict=True)]
    choice = kept(tmp_path / MIXTURE_FILE, MixtureChoice, NUM_LAYERS, lambda: choose_mixture(candidates, 4.5))
    assert (choice.share, choice.mean_depth, choice.accuracy) == (0.5, 4.5, pytest.approx(0.65))
    assert (choice.first, choice.second) == (chains[1], FULL)


def test_each_sample_draws_for_itself(scorer: ChainScorer, samples: list[Sample]) -> None:
    # Oracle: the batch does not matter, another seed draws otherwise, the share is met.
    many = tiny_samples("test", 200)
    short = exit_chain(3, NUM_LAYERS)
    arm = MixtureArm(short, FULL, 0.3, 0)
    whole = arm.chains(scorer.load(scorer.encode_all(many)))
    parts = [arm.chains(scorer.load([scorer.encode(one)]))[0] for one in many]
    assert whole == parts
    assert 0.2 < sum(chain == short for chain in whole) / 200 < 0.4
    assert dataclasses.replace(arm, seed=1).chains(scorer.load(scorer.encode_all(many))) != whole


def test_confidence_is_the_softmax_over_choices_and_needs_no_answer(scorer: ChainScorer, samples: list[Sample]) -> None:
    block = scorer.load(scorer.encode_all(samples))
    chain = exit_chain(3, NUM_LAYERS)
    found = confidences(scorer, block, chain)
    for i, value in enumerate(found):
        (result,) = scorer.score(block, [(i, chain)])
        weights = [math.exp(score) for score in result.scores]
        assert value == pytest.approx(max(weights) / sum(weights), abs=1e-6)
    others = [dataclasses.replace(one, answer=(one.answer + 1) % len(one.choices)) for one in samples]
    assert confidences(scorer, scorer.load(scorer.encode_all(others)), chain) == pytest.approx(found, abs=1e-6)


def test_confidence_of_a_free_answer_is_its_first_tokens(samples: list[Sample]) -> None:
    # Oracle: the stock model cut after three layers, its logits after the prompt.
    task = dataclasses.replace(load_task("gsm8k"), name="arc_easy", mode="exact")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    scorer = ChainScorer(model, tokenizer, task)
    free = [Sample("arc_easy", "test", one.question, (), "ice") for one in samples[:5]]
    block = scorer.load(scorer.encode_all(free))
    found = confidences(scorer, block, exit_chain(3, NUM_LAYERS))
    model.model.layers = model.model.layers[:3]
    for one, value in zip(block.samples, found, strict=True):
        logits = model(torch.tensor([one.prompt]), use_cache=False).logits[0, -1]
        assert value == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)


def test_early_exit_is_the_most_accurate_one_within_the_depth(scorer: ChainScorer, samples: list[Sample]) -> None:
    # Oracle: every layer and threshold tried here, one sample at a time.
    choice = choose_early_exit(scorer, samples, 2, 4.3, 5)
    block = scorer.load(scorer.encode_all(samples))
    best = -1.0
    for layer in range(2, NUM_LAYERS):
        chain = exit_chain(layer, NUM_LAYERS)
        sure = confidences(scorer, block, chain)
        for threshold in [*sure, 2.0]:
            arm = EarlyExitArm(scorer, layer, threshold)
            chains = arm.chains(block)
            if sum(one.depth for one in chains) / len(chains) <= 4.3:
                results = scorer.score(block, list(enumerate(chains)))
                best = max(best, sum(one.correct for one in results) / len(samples))
    assert choice.accuracy == pytest.approx(best)
    assert choice.mean_depth <= 4.3
    chains = EarlyExitArm(scorer, choice.layer, choice.threshold).chains(block)
    assert sum(one.depth for one in chains) / len(chains) == pytest.approx(choice.mean_depth)
    assert sum(one.correct for one in scorer.score(block, list(enumerate(chains)))) == round(best * len(samples))


def test_where_no_exit_is_so_shallow_the_first_layer_allowed_is_taken(
    scorer: ChainScorer, samples: list[Sample]
) -> None:
    choice = choose_early_exit(scorer, samples, 3, 2.5, 5)
    assert (choice.layer, choice.threshold, choice.mean_depth) == (3, 0.0, 3.0)


def test_pruning_leaves_out_the_layers_that_change_the_states_least(scorer: ChainScorer, samples: list[Sample]) -> None:
    # Oracle: the library's own hidden states, one sample at a time.
    choice = choose_pruned(scorer, samples, 3.9, 5)
    model = tiny_model("llama")
    similar, tokens = [0.0] * NUM_LAYERS, 0
    for one in scorer.encode_all(samples):
        seen = scorer.load([one])
        states = [scorer.states(seen, layer)[0] for layer in range(1, NUM_LAYERS + 1)]
        prompt = model(torch.tensor([one.prompt]), output_hidden_states=True).hidden_states
        for layer in range(1, NUM_LAYERS - 1):  # the library norms its last states
            torch.testing.assert_close(states[layer][: len(one.prompt)], prompt[layer + 1][0], atol=1e-4, rtol=1e-4)
        tokens += len(states[0])
        for layer in range(1, NUM_LAYERS):
            similar[layer] += float(cosine_similarity(states[layer - 1], states[layer], dim=-1).sum())
    influence = {layer: 1 - similar[layer] / tokens for layer in range(1, NUM_LAYERS)}
    assert {int(key): value for key, value in choice.influence.items()} == pytest.approx(influence, abs=1e-5)
    least = sorted(influence, key=lambda layer: influence[layer])[: NUM_LAYERS - 3]
    assert choice.chain.layers == tuple(layer for layer in range(NUM_LAYERS) if layer not in least)
    assert choose_pruned(scorer, samples, NUM_LAYERS + 0.5, 5).chain.is_full


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / MIXTURE_FILE, {"first": [0]})
    with pytest.raises(InputError, match=r"mixture\.json"):
        read_mixture_again(tmp_path)


def read_mixture_again(folder: Path) -> MixtureChoice:
    candidates = [Candidate(FULL, 1, 1)]
    return kept(folder / MIXTURE_FILE, MixtureChoice, NUM_LAYERS, lambda: choose_mixture(candidates, NUM_LAYERS))
