"""The server's parts one by one: text, sampling, load, which rows run together, what a request may say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, PreTrainedTokenizerFast, TopPLogitsWarper

from router.chain import Chain
from router.serving.answers import Answer
from router.serving.app import RowMaker
from router.serving.batcher import BatchLimits, LoadBudget, batch_of, partners_matter, within
from router.serving.protocol import MOST_CHARACTERS, ApiError, Budgets, ChatAsked, CompletionAsked, parse
from router.serving.rows import Row, Sampling, TextStream, TokenScore, bytes_of, draw
from tests.serving import pick, tiny_routed
from tests.tiny import tiny_model, tiny_tokenizer


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the other kind: spaces inside tokens, the first one stripped, bytes for rare characters."""
    words = ["<s>", "</s>", "\u2581", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc", "\u2581a", "\u2581b", "ab"]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {"bytes": tiny_tokenizer(), "spaces": spaced_tokenizer()}


@given(tokens=st.lists(st.integers(0, len(TOKENIZERS["bytes"]) - 1), max_size=24), text=st.text("aé€😀 \ufffd\x00"))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pieces_add_up_to_the_text(tokens: list[int], text: str) -> None:
    # Oracle: the library's decoding of all tokens at once: random bytes, then characters that take several.
    tokenizer = TOKENIZERS["bytes"]
    tokens += encoded("bytes", text)
    assert "".join(pieces("bytes", tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


@given(
    words=st.lists(st.sampled_from(["<s>", "\u2581a", "\u2581b", "ab", "\u2581", "é", "€", "😀", "\x00"]), max_size=12)
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pieces_keep_spaces_that_are_inside_tokens(words: list[str]) -> None:
    # Oracle: as above. Broken bytes are left out: this decoder breaks what was right before them, too.
    tokenizer, vocabulary = TOKENIZERS["spaces"], TOKENIZERS["spaces"].get_vocab()
    tokens = [
        token for word in words for token in ([vocabulary[word]] if word in vocabulary else encoded("spaces", word))
    ]
    assert "".join(pieces("spaces", tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_what_was_shown_stays_where_a_decoder_would_break_it() -> None:
    # Oracle: by hand. "€", two bytes of another one, then a letter.
    tokens = [*encoded("spaces", "€€")[:-1], TOKENIZERS["spaces"].convert_tokens_to_ids("a")]
    assert TOKENIZERS["spaces"].decode(tokens) == "\ufffd" * 5 + "a"
    assert pieces("spaces", tokens) == ["", "", "€", "", "", "\ufffd\ufffda", ""]
    assert pieces("spaces", tokens[:-1]) == ["", "", "€", "", "", "\ufffd\ufffd"]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_tokens_bytes_are_those_of_the_text(kind: str) -> None:
    # Oracle: the text in UTF-8, whose characters take several tokens.
    tokenizer = TOKENIZERS[kind]

    def found(token: int) -> bytes | None:
        return bytes_of(tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token]))

    text = "abé€😀"
    tokens = encoded(kind, text)
    assert len(tokens) > len(text)
    assert b"".join(found(token) or b"?" for token in tokens) == text.encode()
    assert bytes_of("<unknown>", "\ufffd") is None  # a name that says nothing of bytes
    assert bytes_of("\u2581\ufffd", " \ufffd") is None


def test_tokens_keep_their_spaces_and_of_two_of_one_text_the_likeliest_is_named() -> None:
    # Oracle: by hand. The decoder takes a text's first space away, and writes a letter's byte as the letter.
    routed, asked = tiny_routed(), parse(CompletionAsked, said(logprobs=2))
    routed.tokenizer = TOKENIZERS["spaces"]
    maker = RowMaker(routed, max_tokens=1, max_rows=1, budgets=Budgets(routed.router, 1.0))
    space, letter, byte, part = routed.tokenizer.convert_tokens_to_ids(["\u2581a", "a", "<0x61>", "<0xC3>"])
    one = row(1)
    one.chain, one.tokens, one.reason = Chain.full(3), [space, letter, part], "length"
    one.scores = [TokenScore(token, -0.1, ((token, -0.1), (byte, -3.0))) for token in one.tokens]
    found = Answer("m", asked, maker.token_text, maker.token_bytes).whole([one])["choices"][0]["logprobs"]
    assert (found["tokens"], found["text_offset"]) == ([" a", "a", "<0xC3>"], [0, 2, 3])
    assert found["top_logprobs"] == [{" a": -0.1, "a": -3.0}, {"a": -0.1}, {"<0xC3>": -0.1, "a": -3.0}]
    assert [maker.token_bytes(token) for token in one.tokens] == [[32, 97], [97], [0xC3]]


def pieces(kind: str, tokens: list[int]) -> list[str]:
    stream = TextStream(TOKENIZERS[kind])
    found = [stream.push(token) for token in tokens]
    assert not stream.stopped
    return [*found, stream.flush()]


def encoded(kind: str, text: str) -> list[int]:
    tokenizer = TOKENIZERS[kind]
    if kind == "bytes":
        return list(tokenizer(text)["input_ids"])
    return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_no_piece_holds_a_part_of_a_character(kind: str) -> None:
    # Oracle: each character comes whole, with its last byte.
    stream, found = TextStream(TOKENIZERS[kind]), []
    for character in "é€😀":
        tokens = encoded(kind, character)
        assert len(tokens) == len(character.encode())
        found.append([stream.push(token) for token in tokens])
    assert found == [["", "é"], ["", "", "€"], ["", "", "", "😀"]]
    assert stream.push(encoded(kind, "€")[0]) == ""
    assert stream.flush() == "\ufffd"


@given(
    text=st.text("ab€", max_size=12),
    stops=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    # Oracle: brute force over the text's beginnings: the first that ends with a stop string, the longest such.
    expected, stopped = text, False
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            expected, stopped = text[: end - max(map(len, found))], True
            break
    stream, got = TextStream(TOKENIZERS["bytes"], stops), ""
    for token in encoded("bytes", text):
        got += stream.push(token)
        assert expected.startswith(got)  # nothing is shown that would have to be taken back
        if stream.stopped:
            break
    else:
        got += stream.flush()
    assert (got, stream.stopped) == (expected, stopped)


def test_what_may_become_a_stop_string_is_held_back_and_then_let_go() -> None:
    stream = TextStream(TOKENIZERS["bytes"], ["END"])
    assert [stream.push(token) for token in encoded("bytes", "xENE")] == ["x", "", "", "EN"]
    assert stream.flush() == "E"


def drawn(scores: torch.Tensor, temperature: float, top_p: float, draws: int) -> torch.Tensor:
    """How often each token is drawn."""
    one = Sampling.of(temperature, top_p, 5, 0)
    counts = torch.zeros(scores.shape[-1])
    for step in range(draws):
        counts[draw(scores[None], [one], [step])] += 1
    return counts


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.9])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    # Oracle: the softmax; four standard errors.
    scores, draws = torch.tensor([1.0, -2.0, 0.5, 1.2, -30.0]), 4000
    expected = torch.softmax(scores / temperature, 0)
    error = 4 * (expected * (1 - expected) / draws).sqrt() + 1e-9
    assert ((drawn(scores, temperature, 1.0, draws) / draws - expected).abs() <= error).all()


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_top_p_draws_from_the_librarys_nucleus(top_p: float) -> None:
    # Oracle: the library's own filter; with top_p 0 it leaves the likeliest alone, as with a very small one.
    scores = torch.tensor([1.0, -2.0, 0.5, 1.2, 0.1])
    kept = TopPLogitsWarper(max(top_p, 1e-9))(torch.zeros(1, 1), scores[None].clone())[0].isfinite()
    assert torch.equal(drawn(scores, 1.0, top_p, 800) > 0, kept)


def test_a_row_is_drawn_as_if_it_were_alone() -> None:
    # Oracle: each row by itself, and the definition in numpy.
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    rows = [Sampling.of(0.2 + i / 3, 1 - i / 8, i, i) for i in range(6)]
    for step in range(20):
        together = draw(scores, rows, [step] * len(rows)).tolist()
        assert together == [int(draw(scores[i : i + 1], [one], [step])) for i, one in enumerate(rows)]
        assert together == [pick(scores[i].double().numpy(), one, step) for i, one in enumerate(rows)]


def test_extreme_temperatures_and_logits_give_a_token() -> None:
    scores = torch.tensor([[3.0e38, -3.0e38, 1.0], [-torch.inf, 0.0, -torch.inf]])
    for temperature in (1e-300, 2.0):
        assert draw(scores, [Sampling.of(temperature, 0.5, 0, 0)] * 2, [0, 0]).tolist() == [0, 1]


def test_random_numbers_are_those_of_seed_choice_and_step() -> None:
    numbers = [Sampling.of(1, 1, seed, choice).uniform(step) for seed in (1, 2) for choice in (0, 1) for step in (0, 1)]
    assert numbers == [Sampling.of(1, 1, s, c).uniform(t) for s in (1, 2) for c in (0, 1) for t in (0, 1)]
    assert len(set(numbers)) == 8
    assert all(0 <= number < 1 for number in numbers)
    assert Sampling.of(1, 1, None, 0).uniform(0) != Sampling.of(1, 1, None, 0).uniform(0)


def test_the_budget_falls_linearly_with_the_queue() -> None:
    # Oracle: by hand.
    load = LoadBudget(calm=28.0, busy=20.0, busy_queue=4)
    assert [load.at(waiting) for waiting in (0, 1, 2, 3, 4, 99)] == [28, 26, 24, 22, 20, 20]
    assert LoadBudget(calm=28.0).at(99) == 28
    assert LoadBudget().at(99) is None
    for calm in (None, 19.0):
        with pytest.raises(ValueError, match=f"busy_budget: expected at most the budget of {calm}, got 20.0"):
            LoadBudget(calm=calm, busy=20.0)


def row(length: int, new_tokens: int = 8) -> Row:
    return Row(0, (5,) * length, new_tokens, Sampling.of(0, 1, 0, 0), TextStream(TOKENIZERS["bytes"]))


def lengths(rows: list[Row]) -> list[int]:
    return [len(one.prompt) for one in rows]


def test_the_oldest_row_leads_and_others_of_its_length_follow() -> None:
    waiting = [row(n) for n in (100, 10, 200, 201, 90, 50, 64)]
    assert lengths(batch_of(waiting, BatchLimits())) == [100, 200, 90, 50, 64]
    assert lengths(batch_of(waiting, BatchLimits(rows=2))) == [100, 200]
    assert lengths(batch_of(waiting, BatchLimits(prompt_tokens=300))) == [100, 90, 50]
    assert lengths(batch_of(waiting, BatchLimits(prompt_tokens=1))) == [100]
    assert lengths(batch_of([row(1), row(64), row(65)], BatchLimits())) == [1, 64]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), max_size=12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_no_row_carries_another_past_the_positions(wanted: list[tuple[int, int]]) -> None:
    rows = [row(*one) for one in wanted]
    parts = within(rows, 100)
    assert sorted(id(one) for part in parts for one in part) == sorted(map(id, rows))
    assert all(max(lengths(part)) + max(one.new_tokens for one in part) <= 100 for part in parts)
    assert [part[0] for part in parts] == [one for one in rows if any(part[0] is one for part in parts)]
    assert within(rows, None) == ([rows] if rows else [])


def test_models_whose_positions_scale_with_the_longest_row_run_row_by_row() -> None:
    model = tiny_model("llama")
    assert not partners_matter(model)
    for kind in ("dynamic", "longrope"):
        model.config = LlamaConfig()
        model.config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4}
        assert partners_matter(model)
        model.config.rope_parameters = {"full_attention": {"rope_type": kind}}
        assert partners_matter(model)


def said(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "p"} | fields).encode()


def test_a_body_is_read() -> None:
    asked = parse(CompletionAsked, said(prompt=[[1, 2], [3]], stop="x", temperature=0, seed=-4, n=None, logprobs=None))
    assert (asked.prompt, asked.stop, asked.temperature, asked.seed, asked.n) == ([[1, 2], [3]], ["x"], 0.0, -4, 1)
    assert parse(CompletionAsked, said(prompt=[1, 2])).prompt == [[1, 2]]
    assert parse(CompletionAsked, said(frequency_penalty=0.0, best_of=1, echo=False, user="me")).n == 1
    chat = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]}
    read = parse(ChatAsked, json.dumps(chat | {"max_completion_tokens": 7}).encode())
    assert (read.messages[0].text, read.new_tokens) == ("ab", 7)


def test_what_asks_for_nothing_is_taken() -> None:
    nothing: dict[str, Any] = {
        "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "user": "me", "frequency_penalty": 0,
        "presence_penalty": 0.0, "logit_bias": {}, "safety_identifier": "x", "prompt_cache_key": "y",
    }  # fmt: skip
    parse(CompletionAsked, said(**nothing, suffix="", best_of=1))
    of_chat: dict[str, Any] = {
        "parallel_tool_calls": False, "tools": [], "tool_choice": "auto", "functions": [], "function_call": "none",
        "modalities": ["text"], "response_format": {"type": "text", "json_schema": None}, "logprobs": False,
        "top_logprobs": 0, "audio": None, "prediction": None, "web_search_options": None,
    }  # fmt: skip
    # As the official client returns an assistant's message.
    message = ChatCompletionMessage(role="assistant", content="yes").model_dump()
    turns = [{"role": "developer", "content": "be"}, {"role": "user", "content": "x"}, message]
    refused = {"role": "assistant", "content": None, "refusal": "no"}
    body = json.dumps({"model": "m", "messages": [*turns, refused], **nothing, **of_chat}).encode()
    read = parse(ChatAsked, body).messages
    assert [(one.speaker, one.text) for one in read] == [
        ("system", "be"), ("user", "x"), ("assistant", "yes"), ("assistant", "no"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: expected JSON"),
        (b"{} {}", "body: expected JSON"),
        (b"[1]", "body: expected a JSON object, got "),
        (b"[" * 100_000, "body: expected JSON.*recursion"),
        (b'{"model": "m", "prompt": "\\ud800"}', "body: expected JSON"),
        (b'{"model": "m", "prompt": "\xff"}', "body: expected JSON"),
        (b'{"model": "m", "prompt": "p", "temperature": NaN}', "body: expected JSON"),
        (b'{"model": "m", "prompt": "p", "temperature": 1e999}', "temperature: expected a finite number, got inf"),
        (b'{"prompt": "p"}', "expected the field model, got none"),
        (said(wrong=1), "wrong: expected no field of this name"),
        (said(prompt=[]), "prompt: expected at least 1 entries"),
        (said(prompt=["a", 1]), r"prompt\[1\]: expected text, got 1"),
        (said(prompt=[True]), "prompt"),
        (said(prompt=None), "expected the field prompt, got none"),
        (said(temperature="1"), "temperature: expected a number, got '1'"),
        (said(max_tokens=0), "max_tokens: expected at least 1, got 0"),
        (said(max_tokens=True), "max_tokens: expected an integer, got True"),
        (said(seed=2**63), "seed: expected below 9223372036854775808"),
        (said(stop=["a"] * 5), "stop: expected at most 4 entries"),
        (said(stop=""), r"stop\[0\]: expected"),
        (said(stop="x" * 257), r"stop\[0\]: expected"),
        (said(logprobs=21), "logprobs: expected at most 20, got 21"),
        (said(logprobs=True), "logprobs: expected an integer, got True"),
        (said(store=True), "store: expected false, got true"),
        (said(service_tier="flex"), "service_tier: expected"),
        (said(presence_penalty=0.5), "presence_penalty: expected at most 0, got 0.5"),
        (said(budget=3, latency_factor=0.5), "budget: expected a budget or a latency_factor, got both"),
        (said(stream_options={}), "stream_options: expected none without stream, got some"),
        (said(stream=True, stream_options={"x": 1}), "stream_options.x: expected no field of this name"),
        (said(**{"x" * 100: 1}), f"{'x' * 60}: expected no field of this name"),
    ],
)
def test_what_a_body_may_not_say(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=f"^{message}") as caught:
        parse(CompletionAsked, body)
    assert caught.value.status == 400
    assert (caught.value.code == "invalid_json") == caught.value.message.startswith("body: ")
    assert len(caught.value.message) <= MOST_CHARACTERS


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "refusal": "no"}]}, "messages"),
    ],
)
def test_what_a_chat_may_not_say(fields: dict[str, Any], param: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    with pytest.raises(ApiError) as caught:
        parse(ChatAsked, json.dumps(body).encode())
    assert (caught.value.status, caught.value.param) == (400, param)
