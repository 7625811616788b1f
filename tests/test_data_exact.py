"""Mode "exact": right exactly where greedy decoding emits the right answer's tokens and its end."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from transformers import PreTrainedModel

from data.prompts import Prompt
from data.sample import Sample
from data.scoring import ChainScorer
from data.sources import Columns
from data.tasks import Task
from router.chain import Chain
from router.engine.view import chain_view
from tests.tiny import FAMILIES, NUM_LAYERS, tiny_model, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)
CHAINS = [FULL, FULL.skip(2, 2), FULL.repeat(1, 2, 1), Chain((0, 2, 1, 3, 4), NUM_LAYERS)]
TASK = Task("sums", Columns("q", "a"), answer_kind="text", mode="exact")
SAMPLES = [
    Sample("sums", "train", "What is two and two?", (), "4"),
    Sample("sums", "train", "And seven times eight, if that is not too much to ask?", (), "56"),
    Sample("sums", "train", "One?", (), "one"),
]


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: tuple[int, ...], chain: Chain, count: int) -> list[int]:
    """Argmax after argmax, each from a whole forward pass of the chain's view without any cache."""
    ids, view = list(prompt), chain_view(model, chain)
    for _ in range(count):
        ids.append(int(view(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_right_exactly_where_greedy_decoding_emits_the_answer(family: str) -> None:
    # Oracle: uncached greedy decoding under the view; answers are what it emits, and that with one token changed.
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    scorer = ChainScorer(model, tokenizer, TASK)
    rng = random.Random(family)
    outcomes = []
    for chain in CHAINS:
        encoded, expected = [], []
        for sample in SAMPLES:
            one = scorer.encode(sample)
            emitted = greedy(model, one.prompt, chain, rng.randint(1, 6))
            spoilt = list(emitted)
            place = rng.randrange(len(spoilt))
            spoilt[place] = rng.choice([token for token in range(len(tokenizer)) if token != spoilt[place]])
            for tokens in (emitted, spoilt, one.continuations[0]):
                encoded.append(dataclasses.replace(one, continuations=(tuple(tokens),)))
                expected.append(greedy(model, one.prompt, chain, len(tokens)) == list(tokens))
        block = scorer.load(encoded)
        results = scorer.score(block, [(i, chain) for i in range(len(encoded))])
        assert [result.correct for result in results] == expected
        assert [result.margin > 0 for result in results] == expected
        outcomes += expected
        for one, result in zip(encoded, results, strict=True):
            wanted = list(one.continuations[0])
            emitted = greedy(model, one.prompt, chain, len(wanted))
            same = next(
                (i for i, pair in enumerate(zip(emitted, wanted, strict=True)) if len(set(pair)) > 1), len(wanted)
            )
            assert result.prediction == tokenizer.decode(emitted[: same + 1], skip_special_tokens=True)
    assert len(outcomes) == len(CHAINS) * len(SAMPLES) * 3
    assert sum(outcomes) >= len(outcomes) // 3 > 0
    assert sum(not one for one in outcomes) >= len(outcomes) // 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_token_scores_are_the_log_probabilities_of_the_answer(family: str) -> None:
    # Oracle: log_softmax of the view's logits; the margin is the least lead over any other token's logit.
    model = tiny_model(family)
    scorer = ChainScorer(model, tiny_tokenizer(), TASK)
    block = scorer.load([scorer.encode(sample) for sample in SAMPLES])
    jobs = [(i, chain) for chain in CHAINS for i in range(len(SAMPLES))]
    for (i, chain), result in zip(jobs, scorer.score(block, jobs), strict=True):
        one = block.samples[i]
        (tokens,) = one.continuations
        logits = chain_view(model, chain)(torch.tensor([[*one.prompt, *tokens]])).logits[0]
        logits = logits[len(one.prompt) - 1 : -1]
        chosen = logits[range(len(tokens)), list(tokens)]
        others = logits.clone()
        others[range(len(tokens)), list(tokens)] = -torch.inf
        logprobs = logits.log_softmax(-1)[range(len(tokens)), list(tokens)]
        assert result.scores == pytest.approx(logprobs.tolist(), abs=1e-4)
        assert result.margin == pytest.approx((chosen - others.amax(-1)).min().item(), abs=1e-4)


def test_the_answer_is_followed_by_its_end() -> None:
    # Oracle: the tokens of the text written by hand; the byte-level tokenizer has one token a byte.
    def answer(prompt: Prompt) -> list[int]:
        task = dataclasses.replace(TASK, prompt=prompt)
        return list(ChainScorer(tiny_model("llama"), tokenizer, task).encode(SAMPLES[1]).continuations[0])

    tokenizer = tiny_tokenizer()
    assert answer(Prompt()) == tokenizer(" 56\n")["input_ids"]
    assert answer(Prompt(opening="\\boxed{")) == tokenizer("56}")["input_ids"]
    assert answer(Prompt(end=" that is all.")) == tokenizer(" 56 that is all.")["input_ids"]
    assert answer(Prompt(end=None)) == [*tokenizer(" 56")["input_ids"], tokenizer.eos_token_id]


def test_the_router_never_reads_the_answer() -> None:
    # Oracle: the stock model's hidden states of the prompt alone; another answer changes nothing.
    model = tiny_model("llama")
    scorer = ChainScorer(model, tiny_tokenizer(), TASK)
    other = [dataclasses.replace(sample, answer="a long answer of other words") for sample in SAMPLES]
    read = [scorer.states(scorer.load([scorer.encode(s) for s in of]), 3) for of in (SAMPLES, other)]
    for sample, one, two in zip(SAMPLES, *read, strict=True):
        prompt = scorer.encode(sample).prompt
        stock = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[3][0]
        torch.testing.assert_close(one, stock, rtol=0, atol=2e-5)
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


def test_argmax_decides_between_equal_logits() -> None:
    # Oracle: greedy decoding of a model in which every token has a twin of the same logit; argmax takes the first.
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    rows = model.get_output_embeddings().weight.data
    half = len(rows) // 2
    rows[half : 2 * half] = rows[:half]
    scorer = ChainScorer(model, tokenizer, TASK)
    one = scorer.encode(SAMPLES[0])
    first = greedy(model, one.prompt, FULL, 3)
    assert max(first) < half
    twins = [first, [first[0], first[1] + half, first[2]], [token + half for token in first]]
    block = scorer.load([dataclasses.replace(one, continuations=(tuple(tokens),)) for tokens in twins])
    # The twins' embeddings differ, but no token before the changed one does.
    right, *wrong = scorer.score(block, [(i, FULL) for i in range(3)])
    assert (right.correct, right.margin) == (True, 1e-6)
    assert [(result.correct, result.margin <= 0) for result in wrong] == [(False, True)] * 2
