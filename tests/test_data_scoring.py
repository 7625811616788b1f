"""Scores of choices, against log_softmax of the stock model's logits."""

from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from data.sample import Sample
from data.scoring import ChainScorer, batches_by_length
from data.tasks import load_task
from router.chain import Chain
from router.engine.view import chain_view
from router.validation import InputError
from tests.tiny import FAMILIES, NUM_LAYERS, tiny_model, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)
CHAINS = [FULL, FULL.skip(2, 2), FULL.repeat(1, 2, 1), FULL.skip(0, 1)]
SAMPLES = [
    Sample("arc_easy", "train", "What falls from clouds?", ("rain", "sand", "a very old piano"), 0),
    Sample("arc_easy", "train", "Which of these is a metal?", ("wood", "iron"), 1),
    Sample("arc_easy", "train", "How many legs has a spider?", ("six", "eight", "two", "none", "ten"), 1),
]


def reference(model: torch.nn.Module, prompt: str, continuation: str, chain: Chain) -> float:
    """Sum of log-probabilities of the continuation's tokens, one row, no packing, the view's own forward."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(prompt + continuation)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    logprobs = chain_view(model, chain)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
@pytest.mark.parametrize("mode", ["continuation", "letter"])
def test_scores_are_the_log_probabilities_of_the_choices(family: str, packed: bool, mode: str) -> None:
    # Oracle: each continuation alone through the chain view.
    model, task = tiny_model(family), load_task("arc_easy", mode)
    scorer = ChainScorer(model, tiny_tokenizer(), task, packed=packed)
    block = scorer.load([scorer.encode(sample) for sample in SAMPLES])
    jobs = [(i, chain) for chain in CHAINS for i in range(len(SAMPLES))]
    for (i, chain), result in zip(jobs, scorer.score(block, jobs), strict=True):
        sample, query = SAMPLES[i], task.query(SAMPLES[i])
        prompt = task.prompt.text(query, tiny_tokenizer())
        divisors = query.normaliser or [len(tokens) for tokens in block.samples[i].continuations]
        wanted = [0.0] * len(sample.choices)
        for choice, text, divisor in zip(query.order, query.continuations, divisors, strict=True):
            wanted[choice] = reference(model, prompt, text, chain) / divisor
        assert result.scores == pytest.approx(wanted, abs=1e-4)
        best = max(range(len(wanted)), key=wanted.__getitem__)
        assert (result.prediction, result.correct) == (best, best == sample.answer)
        others = [value for choice, value in enumerate(wanted) if choice != sample.answer]
        assert result.margin == pytest.approx(wanted[sample.answer] - max(others), abs=1e-4)
        assert result.chain == chain


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_same_packed_and_separate(family: str) -> None:
    # Oracle: prompt tokens are `hidden_states[e]` of the stock model; packed = separate for the rest.
    model, task = tiny_model(family), load_task("arc_easy")
    states = {}
    for packed in (True, False):
        scorer = ChainScorer(model, tiny_tokenizer(), task, packed=packed)
        encoded = [scorer.encode(sample) for sample in SAMPLES]
        states[packed] = scorer.states(scorer.load(encoded), 3)
    for one, other, sample in zip(states[True], states[False], encoded, strict=True):
        assert one.shape == (sample.length, scorer.d_model)
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
        stock = model(torch.tensor([sample.prompt]), output_hidden_states=True).hidden_states[3][0]
        torch.testing.assert_close(one[: len(stock)], stock, rtol=0, atol=2e-5)


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
def test_special_tokens_open_the_prompt_and_never_close_it(template: str) -> None:
    # Oracle: the tokens without specials, after the template's opening ones.
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    scorer = ChainScorer(tiny_model("llama"), tokenizer, load_task("arc_easy"))
    encoded = scorer.encode(SAMPLES[0])
    opening = [1] if template.startswith("<s>") else []
    assert (
        list(encoded.prompt)
        == opening + tiny_tokenizer()(load_task("arc_easy").prompt.text(encoded.query, tokenizer))["input_ids"]
    )
    for text, ids in zip(encoded.query.continuations, encoded.continuations, strict=True):
        assert list(ids) == tiny_tokenizer()(text)["input_ids"]


def test_fingerprints_follow_model_tokenizer_and_prompt_but_not_dtype() -> None:
    tokenizer = tiny_tokenizer()

    def prints(seed: int, mode: str, dtype: torch.dtype = torch.float32):
        return ChainScorer(
            tiny_model("llama", seed=seed).to(dtype), tokenizer, load_task("arc_easy", mode)
        ).fingerprints

    base = prints(0, "continuation")
    assert prints(0, "continuation") == base
    assert prints(0, "continuation", torch.bfloat16) == base
    assert prints(1, "continuation").model != base.model
    assert prints(0, "letter").prompt != base.prompt
    tokenizer.add_tokens(["extra"])
    assert prints(0, "continuation").tokenizer != base.tokenizer


def test_batches_by_length_hold_everything_once() -> None:
    assert batches_by_length([5, 1, 4, 1, 9], 2) == [[1, 3], [2, 0], [4]]
    assert batches_by_length([], 2) == []


def test_all_samples_are_encoded_or_one_is_named() -> None:
    # Oracle: `encode` one by one; a sample of no task and one whose prompt is too long.
    scorer = ChainScorer(tiny_model("llama"), tiny_tokenizer(), load_task("arc_easy"))
    targets = {SAMPLES[1].id: 0}
    one_by_one = [scorer.encode(sample, targets.get(sample.id)) for sample in SAMPLES]
    assert scorer.encode_all(SAMPLES, targets) == one_by_one
    assert [one.target for one in scorer.encode_all(SAMPLES)] == [0, 1, 1]
    stranger = Sample("quiz", "train", "Which?", ("a", "b"), 0)
    with pytest.raises(InputError, match=f"^data: sample {stranger.id}: expected samples of the tasks arc_easy, got"):
        scorer.encode_all([*SAMPLES, stranger])
    endless = Sample("arc_easy", "train", "why? " * 500, ("a", "b"), 0)
    with pytest.raises(InputError, match=f"^data: sample {endless.id}: max_prompt_tokens: expected a prompt of at"):
        scorer.encode_all([endless])
