"""Scoring: how samples become tokens, scores of choices, exact answers; oracles: the stock model, greedy decoding."""

from __future__ import annotations

import dataclasses
import pickle
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel

from data.encoding import EncodedSample, Encoder, batches_by_length
from data.prompts import Prompt
from data.sample import Sample
from data.scoring import ChainScorer, base_model
from data.sources import Columns
from data.tasks import Task, TaskSet, load_task
from router.chain import Chain
from router.engine.load import ModelSettings, fast_dtype
from router.engine.view import chain_view
from router.validation import InputError
from tests.tiny import FAMILIES, FULL, NUM_LAYERS, random_router, save_tiny, tiny_model, tiny_tokenizer

CHAINS = [FULL, FULL.skip(2, 2), Chain((0, 2, 1, 2, 1, 3, 4), NUM_LAYERS)]
SAMPLES = [
    Sample("arc_easy", "train", "What falls from clouds?", ("rain", "sand", "a very old piano"), 0),
    Sample("arc_easy", "train", "Which of these is a metal?", ("wood", "iron"), 1),
    Sample("arc_easy", "train", "How many legs has a spider?", ("six", "eight", "two", "none", "ten"), 1),
]
TOKENIZER = tiny_tokenizer()
family_model = cache(tiny_model)
"""One model a family, which no test here changes."""
view_of = cache(chain_view)


@torch.inference_mode()
def reference(model: PreTrainedModel, prompt: str, continuation: str, chain: Chain) -> float:
    """Sum of log-probabilities of the continuation's tokens, one row, no packing, the view's own forward."""
    ids = TOKENIZER(prompt + continuation)["input_ids"]
    start = len(TOKENIZER(prompt)["input_ids"])
    logprobs = view_of(model, chain)(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.parametrize(
    ("mode", "family"),
    [*(("continuation", family) for family in FAMILIES), *(("letter", one) for one in ("llama", "gemma2", "gpt_neo"))],
)
def test_scores_are_the_log_probabilities_of_the_choices(mode: str, family: str) -> None:
    # Oracle: each continuation alone through the chain view; in one packed row and in rows of their own.
    model, task = family_model(family), load_task("arc_easy", mode)
    jobs = [(i, chain) for chain in CHAINS for i in range(len(SAMPLES))]
    expected: list[list[float]] = []
    for packed in (True, False):
        scorer = ChainScorer(model, TOKENIZER, task, packed=packed)
        block = scorer.load([scorer.encode(sample) for sample in SAMPLES])
        for place, ((i, chain), result) in enumerate(zip(jobs, scorer.score(block, jobs), strict=True)):
            sample, query = SAMPLES[i], block.samples[i].query
            if packed:
                prompt = task.prompt.text(query, TOKENIZER)
                divisors = query.normaliser or [len(tokens) for tokens in block.samples[i].continuations]
                expected.append([0.0] * len(sample.choices))
                for choice, text, divisor in zip(query.order, query.continuations, divisors, strict=True):
                    expected[-1][choice] = reference(model, prompt, text, chain) / divisor
            wanted = expected[place]
            assert result.scores == pytest.approx(wanted, abs=1e-4)
            best = max(range(len(wanted)), key=wanted.__getitem__)
            assert (result.chain, result.prediction, result.correct) == (chain, best, best == sample.answer)
            others = [value for choice, value in enumerate(wanted) if choice != sample.answer]
            assert result.margin == pytest.approx(wanted[sample.answer] - max(others), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_same_packed_and_separate(family: str) -> None:
    # Oracle: prompt tokens are `hidden_states[e]` of the stock model; packed = separate for the rest.
    model, task = family_model(family), load_task("arc_easy")
    states = {}
    for packed in (True, False):
        scorer = ChainScorer(model, TOKENIZER, task, packed=packed)
        encoded = [scorer.encode(sample) for sample in SAMPLES]
        states[packed] = scorer.states(scorer.load(encoded), 3)
    for one, other, sample in zip(states[True], states[False], encoded, strict=True):
        assert one.shape == (sample.length, scorer.d_model)
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
        stock = model(torch.tensor([sample.prompt]), output_hidden_states=True).hidden_states[3][0]
        torch.testing.assert_close(one[: len(stock)], stock, rtol=0, atol=2e-5)


SUMS = Task("sums", Columns("q", "a"), answer_kind="text", mode="exact", max_new_tokens=8)
QUESTIONS = [
    Sample("sums", "train", "What is two and two?", (), "4"),
    Sample("sums", "train", "And seven times eight, if that is not too much to ask?", (), "56"),
    Sample("sums", "train", "One?", (), "one"),
]


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: tuple[int, ...], chain: Chain, count: int) -> list[int]:
    """Argmax after argmax, each from a whole forward pass of the chain's view without any cache."""
    ids, view = list(prompt), view_of(model, chain)
    for _ in range(count):
        ids.append(int(view(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_right_exactly_where_greedy_decoding_emits_the_answer(family: str) -> None:
    # Oracle: uncached greedy decoding under the view; answers are what it emits, and that with one token changed.
    model, tokenizer = family_model(family), tiny_tokenizer()
    scorer = ChainScorer(model, tokenizer, SUMS)
    rng = random.Random(family)
    outcomes = []
    for chain in CHAINS:
        encoded, expected, texts = [], [], []
        for sample in QUESTIONS:
            one = scorer.encode(sample)
            path = greedy(model, one.prompt, chain, 5)
            emitted = path[: rng.randint(1, 5)]
            spoilt = list(emitted)
            place = rng.randrange(len(spoilt))
            spoilt[place] = rng.choice([token for token in range(len(tokenizer)) if token != spoilt[place]])
            for tokens in (emitted, spoilt, list(one.continuations[0])):
                encoded.append(dataclasses.replace(one, continuations=(tuple(tokens),)))
                expected.append(path[: len(tokens)] == tokens)
                first = next((i for i, token in enumerate(tokens) if path[i] != token), len(tokens) - 1)
                texts.append(tokenizer.decode(path[: first + 1], skip_special_tokens=True))
        block = scorer.load(encoded)
        results = scorer.score(block, [(i, chain) for i in range(len(encoded))])
        assert [result.correct for result in results] == expected
        assert [result.margin > 0 for result in results] == expected
        assert [result.prediction for result in results] == texts
        outcomes += expected
    assert len(outcomes) == len(CHAINS) * len(QUESTIONS) * 3
    assert sum(outcomes) >= len(outcomes) // 3 > 0
    assert sum(not one for one in outcomes) >= len(outcomes) // 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_token_scores_are_the_log_probabilities_of_the_answer(family: str) -> None:
    # Oracle: log_softmax of the view's logits; the margin is the least lead over any other token's logit.
    model = family_model(family)
    scorer = ChainScorer(model, tiny_tokenizer(), SUMS)
    block = scorer.load([scorer.encode(sample) for sample in QUESTIONS])
    jobs = [(i, chain) for chain in CHAINS for i in range(len(QUESTIONS))]
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


def test_argmax_decides_between_equal_logits() -> None:
    # Oracle: greedy decoding of a model in which every token has a twin of the same logit; argmax takes the first.
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    rows = model.get_output_embeddings().weight.data
    half = len(rows) // 2
    rows[half : 2 * half] = rows[:half]
    scorer = ChainScorer(model, tokenizer, SUMS)
    one = scorer.encode(QUESTIONS[0])
    first = greedy(model, one.prompt, FULL, 3)
    assert max(first) < half
    twins = [first, [first[0], first[1] + half, first[2]], [token + half for token in first]]
    block = scorer.load([dataclasses.replace(one, continuations=(tuple(tokens),)) for tokens in twins])
    # The twins' embeddings differ, but no token before the changed one does.
    right, *wrong = scorer.score(block, [(i, FULL) for i in range(3)])
    assert (right.correct, right.margin) == (True, 1e-6)
    assert [(result.correct, result.margin <= 0) for result in wrong] == [(False, True)] * 2


def test_the_answer_is_followed_by_its_end() -> None:
    # Oracle: the tokens of the text written by hand; the byte-level tokenizer has one token a byte.
    def answer(prompt: Prompt) -> list[int]:
        task = dataclasses.replace(SUMS, prompt=prompt)
        return list(ChainScorer(family_model("llama"), tokenizer, task).encode(QUESTIONS[1]).continuations[0])

    tokenizer = tiny_tokenizer()
    assert answer(Prompt()) == tokenizer(" 56\n")["input_ids"]
    assert answer(Prompt(opening="\\boxed{")) == tokenizer("56}")["input_ids"]
    assert answer(Prompt(end=" that is all.")) == tokenizer(" 56 that is all.")["input_ids"]
    assert answer(Prompt(end=None)) == [*tokenizer(" 56")["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
def test_special_tokens_open_the_prompt_and_never_close_it(template: str) -> None:
    # Oracle: the tokens without specials, after the template's opening ones.
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    scorer = ChainScorer(family_model("llama"), tokenizer, load_task("arc_easy"))
    encoded = scorer.encode(SAMPLES[0])
    opening = [1] if template.startswith("<s>") else []
    plain = load_task("arc_easy").prompt.text(encoded.query, tokenizer)
    assert list(encoded.prompt) == opening + tiny_tokenizer()(plain)["input_ids"]
    for text, ids in zip(encoded.query.continuations, encoded.continuations, strict=True):
        assert list(ids) == tiny_tokenizer()(text)["input_ids"]


LONG = Sample("sums", "train", "and then one more " * 20 + "makes how many?", (), "21")
ABOUT = Sample("sums", "train", "How many?", (), "21", {}, "They came one by one. " * 20)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def encode(task: Task, sample: Sample, template: str | None = None) -> EncodedSample:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Encoder(family_model("llama"), tokenizer, TaskSet.of(task)).encode(sample)


def text(tokens: tuple[int, ...]) -> str:
    return str(tiny_tokenizer().decode(list(tokens)))


def test_a_chat_is_the_template_around_the_turns_and_the_forced_opening() -> None:
    # Oracle: written by hand.
    examples = (Sample("sums", "train", "One?", (), "1"), Sample("sums", "train", "Two?", (), "2"))
    prompt = Prompt(style="chat", system="Be brief.", opening="\\boxed{", instruction="Just the number.")
    encoded = encode(dataclasses.replace(SUMS, prompt=prompt, examples=examples), ABOUT, TEMPLATE)
    assert text(encoded.prompt) == (
        "<system>Be brief.</system>"
        "<user>Question: One?\nJust the number.</user><assistant>\\boxed{1}</assistant>"
        "<user>Question: Two?\nJust the number.</user><assistant>\\boxed{2}</assistant>"
        "<user>Question: How many?\nJust the number.</user><assistant>\\boxed{"
    )
    assert [text(tokens) for tokens in encoded.continuations] == ["21}"]


def test_examples_stand_before_a_base_prompt() -> None:
    # Oracle: written by hand; a blank line ends an answer where examples show so.
    examples = (Sample("sums", "train", "One?", (), "1"),)
    encoded = encode(dataclasses.replace(SUMS, examples=examples), Sample("sums", "test", "Two?", (), "2"))
    assert text(encoded.prompt) == "Question: One?\nAnswer: 1\n\nQuestion: Two?\nAnswer:"
    assert text(encoded.continuations[0]) == " 2\n\n"


def test_a_chat_needs_a_template_that_takes_it() -> None:
    task = dataclasses.replace(SUMS, prompt=Prompt(style="chat"))
    with pytest.raises(InputError, match=r"prompt\.style: expected base for a tokenizer without a chat template"):
        encode(task, ABOUT)
    with pytest.raises(InputError, match=r"prompt\.style: expected turns .* no, thank you"):
        encode(task, ABOUT, "{{ raise_exception('no, thank you') }}")


@pytest.mark.parametrize("date", ["{{ date_string }}", "{{ strftime_now('%Y-%m-%d') }}"])
def test_the_date_in_a_template_is_always_the_same(date: str) -> None:
    # Oracle: Llama 3's default date, which its template writes where it is told none and has no clock; and the same
    # where a template asks the library's clock without any condition.
    task = dataclasses.replace(SUMS, prompt=Prompt(style="chat"))
    shown = text(encode(task, LONG, date + "|{{ messages[0].content }}").prompt)
    assert shown.startswith("26 Jul 2024|")


def test_the_prompt_does_not_depend_on_the_answer() -> None:
    # Oracle: the prompt of the same question with another answer; an answer beyond the positions is refused.
    task = dataclasses.replace(SUMS, over_long="truncate")
    one, other = (Sample("sums", "train", "x" * 600, (), answer) for answer in ("5", "123456"))
    assert encode(task, one).prompt == encode(task, other).prompt
    with pytest.raises(ValueError, match="expected prompt and answer within the model's 512 positions"):
        encode(task, Sample("sums", "train", "x" * 600, (), "1" * 30))


def test_answers_that_generation_cannot_reach_are_noted() -> None:
    # Oracle: 8 tokens at most, the space and the line end among them.
    encoder = Encoder(family_model("llama"), tiny_tokenizer(), TaskSet.of(SUMS))
    samples = [Sample("sums", "train", "Hm?", (), answer) for answer in ("123456", "1234567")]
    for sample in samples:
        encoder.encode(sample)
    assert encoder.unreachable == {samples[1].id}


PARTED = Sample("sums", "train", "\u00e9" * 200 + "?", (), "21")
"""Two tokens a letter: cutting as many tokens as are too many would part one."""


@pytest.mark.parametrize("sample", [LONG, ABOUT, PARTED], ids=["question", "context", "parted"])
def test_a_long_prompt_is_refused_or_loses_its_start(sample: Sample) -> None:
    # Oracle: the end of the full prompt, of as many tokens as are allowed (one token a byte here).
    ask = "{context}\nQ: {question}" if sample.context else "{question}"
    columns = Columns("q", "a", context="c" if sample.context else None)
    task = dataclasses.replace(SUMS, columns=columns, prompt=Prompt(ask=ask), max_prompt_tokens=60)
    with pytest.raises(ValueError, match=r"max_prompt_tokens: expected a prompt of at most 60 tokens, got \d+ "):
        encode(task, sample)
    whole = text(encode(dataclasses.replace(task, max_prompt_tokens=None), sample).prompt)
    cut = encode(dataclasses.replace(task, over_long="truncate"), sample)
    assert cut.truncated
    assert 55 <= len(cut.prompt) <= 60
    assert whole.endswith(text(cut.prompt))
    assert cut.sample == sample
    short = encode(dataclasses.replace(task, over_long="truncate", max_prompt_tokens=9999), sample)
    assert (text(short.prompt), short.truncated) == (whole, False)


def test_what_cannot_be_cut_is_refused() -> None:
    short = Sample("sums", "train", "Hm?", (), "21")
    task = dataclasses.replace(SUMS, prompt=Prompt(ask="A very long instruction: {question}"))
    with pytest.raises(ValueError, match="its question has only 3 to cut"):
        encode(dataclasses.replace(task, max_prompt_tokens=10, over_long="truncate"), short)


def test_prompt_and_answer_fit_the_models_positions() -> None:
    # Oracle: the tiny models have 512 positions.
    sample = Sample("sums", "train", "x" * 600, (), "21")
    with pytest.raises(ValueError, match="expected a prompt of at most"):
        encode(SUMS, sample)
    cut = encode(dataclasses.replace(SUMS, over_long="truncate"), sample)
    assert len(cut.prompt) + SUMS.max_new_tokens == 512


def test_truncated_prompts_are_counted_once() -> None:
    # Oracle: two long samples, one of them encoded twice, and a short one.
    task = dataclasses.replace(SUMS, max_prompt_tokens=60, over_long="truncate")
    encoder = Encoder(family_model("llama"), tiny_tokenizer(), TaskSet.of(task))
    other = dataclasses.replace(LONG, question=LONG.question + " And more?")
    for sample in (LONG, other, LONG, Sample("sums", "train", "Hm?", (), "21")):
        encoder.encode(sample)
    assert encoder.truncated == {LONG.id, other.id}


def test_truncation_keeps_the_order_of_the_choices() -> None:
    # Oracle: the order of the sample that was not cut.
    sample = Sample("arc_easy", "train", "why " * 40 + "so?", ("one", "two", "three", "four"), 2)
    task = load_task("arc_easy", "letter", max_prompt_tokens=90, over_long="truncate")
    cut, whole = encode(task, sample), encode(load_task("arc_easy", "letter"), sample)
    assert cut.truncated
    assert (cut.query.order, cut.target) == (whole.query.order, whole.target)
    assert cut.query.asked.splitlines()[1:] == whole.query.asked.splitlines()[1:]


def test_all_samples_are_encoded_or_one_is_named() -> None:
    # Oracle: `encode` one by one; a sample of no task and one whose prompt is too long.
    scorer = ChainScorer(family_model("llama"), tiny_tokenizer(), load_task("arc_easy"))
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


def test_batches_by_length_hold_everything_once() -> None:
    assert batches_by_length([5, 1, 4, 1, 9], 2) == [[1, 3], [2, 0], [4]]
    assert batches_by_length([], 2) == []


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


@pytest.mark.parametrize(
    ("has", "wanted"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"neon": True, "bf16": True}, "bfloat16"),
        ({"neon": True}, "float32"),
    ],
)
def test_the_fast_dtype_is_the_one_that_the_processor_multiplies_fastest(
    has: dict[str, bool], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert fast_dtype("cpu") == wanted


def test_a_model_without_a_dtype_has_the_fast_one_and_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    save_tiny(tmp_path)
    scorer = ChainScorer.open(ModelSettings(model=str(tmp_path), device="cpu"), load_task("arc_easy"))
    assert scorer.dtype == "bfloat16"
    # A worker on another machine loads what the driver has; what was trained keeps the dtype of its states.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert pickle.loads(pickle.dumps(scorer)).dtype == "bfloat16"
    given = {"dtype": "bfloat16", "base_model": str(tmp_path), "revision": "r"}
    known = dataclasses.replace(random_router(scorer, 2).config, **given)
    assert base_model(ModelSettings(), known) == ModelSettings(model=str(tmp_path), revision="r", dtype="bfloat16")
    other = ModelSettings(model="other", dtype="float16")
    assert base_model(other, known) == other
    with pytest.raises(InputError, match="router: dtype: expected one of float32, bfloat16, float16, got 'int3'"):
        base_model(ModelSettings(), dataclasses.replace(known, dtype="int3"))
