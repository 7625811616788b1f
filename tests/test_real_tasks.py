"""Tasks on real weights: exact answers against greedy decoding, and the real chat templates around a question."""

from __future__ import annotations

import dataclasses
import random

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encoding import Encoder
from data.generation import Generator, Request
from data.prompts import Prompt
from data.sample import Sample
from data.scoring import ChainScorer
from data.sources import Columns
from data.tasks import Task, TaskSet
from router.chain import Chain
from router.engine.load import load_model
from tests.test_real_models import QWEN2, SMOLLM2

WORDS = ("river", "copper", "lantern", "seven bees", "winter", "paper boat", "granite", "a fox", "salt", "thunder")
COPY = Task("copy", Columns("q", "a"), answer_kind="text", mode="exact", grading="text", max_new_tokens=12)


def copies(split: str, count: int) -> list[Sample]:
    """Return questions that name their answer: half of them ask for it, half for its second word among others."""
    rng = random.Random(split)
    samples = []
    for i in range(count):
        words = rng.sample(WORDS, 3)
        place = i % 3
        which = ("first", "second", "third")[place]
        samples.append(Sample("copy", split, f"{', '.join(words)}. Which is the {which}?", (), words[place]))
    return samples


@pytest.fixture(scope="module")
def smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_model(SMOLLM2, dtype="float32", device="cpu")


@pytest.mark.parametrize("prompt", [Prompt(), Prompt(opening="\\boxed{"), Prompt(style="chat")], ids=str)
def test_exact_is_greedy_decoding_in_smollm2(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase], prompt: Prompt
) -> None:
    # Oracle: the library's own greedy generation under the chain's view, compared token by token.
    model, tokenizer = smollm2
    task = dataclasses.replace(COPY, prompt=prompt, examples=tuple(copies("train", 3)))
    scorer = ChainScorer(model, tokenizer, task)
    full = Chain.full(scorer.num_layers)
    chains = [full, full.skip(25, 2).repeat(10, 2, 1)]
    block = scorer.load([scorer.encode(sample) for sample in copies("test", 6)])
    jobs = [(i, chain) for chain in chains for i in range(6)]
    requests = []
    for i, chain in jobs:
        one = block.samples[i]
        requests.append(Request(one.prompt, chain, len(one.continuations[0]), lambda text: None))  # noqa: ARG005
    answers = Generator(model, tokenizer).generate(requests)
    outcomes = []
    results = scorer.score(block, jobs)
    for (i, _), result, answer in zip(jobs, results, answers, strict=True):
        (wanted,) = block.samples[i].continuations
        ends = wanted[-1] == tokenizer.eos_token_id
        emitted = (*answer.tokens, tokenizer.eos_token_id) if ends and answer.complete else answer.tokens
        assert result.correct == (emitted == wanted)
        outcomes.append(result.correct)
    assert min(sum(outcomes), len(outcomes) - sum(outcomes)) >= 3
    right = [job for job, result in zip(jobs, results, strict=True) if result.correct]
    assert all(judged.correct for judged in scorer.judge(block, right))  # what is emitted to the letter is graded right


def test_an_answers_end_is_tokenised_as_the_examples_show_it(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    # Oracle: the tokens between the first example's answer and the next question, in the prompt itself.
    model, tokenizer = smollm2
    task = dataclasses.replace(COPY, examples=tuple(copies("train", 2)))
    encoded = Encoder(model, tokenizer, TaskSet.of(task)).encode(copies("test", 1)[0])
    shown = tokenizer.convert_ids_to_tokens(encoded.prompt)
    answer = tokenizer.convert_ids_to_tokens(encoded.continuations[0])
    assert answer[-2:] == ["\u010a", "\u010a"]  # two line ends in front of a word, not the one token of both
    assert "\u010a\u010a" not in shown
    assert tokenizer.decode(encoded.continuations[0]) == f" {copies('test', 1)[0].answer}\n\n"


CHAT = {
    SMOLLM2: (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nQuestion: Four and four?\nGive the final answer only, in \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n\\boxed{"
    ),
    QWEN2: (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nQuestion: Four and four?\nGive the final answer only, in \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n\\boxed{"
    ),
}


@pytest.mark.parametrize("name", [SMOLLM2, pytest.param(QWEN2, marks=pytest.mark.slow)])
def test_the_real_chat_template_is_put_around_the_question(name: str, request: pytest.FixtureRequest) -> None:
    # Oracle: written by hand after the models' published templates; each special token is one token.
    known = name == SMOLLM2
    model, tokenizer = request.getfixturevalue("smollm2") if known else load_model(name, dtype="bfloat16", device="cpu")
    task = dataclasses.replace(COPY, prompt=Prompt(style="chat", opening="\\boxed{"))
    encoded = Encoder(model, tokenizer, TaskSet.of(task)).encode(Sample("copy", "test", "Four and four?", (), "8"))
    assert task.prompt.text(encoded.query, tokenizer) == CHAT[name]
    assert tokenizer.decode(encoded.prompt) == CHAT[name]
    assert encoded.prompt.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert tokenizer.decode(encoded.continuations[0]) == "8}"
