"""Encoding: chat templates, few-shot examples, prompts that are too long."""

from __future__ import annotations

import dataclasses

import pytest

from data.prompts import Prompt
from data.sample import Sample
from data.scoring import EncodedSample, Encoder
from data.sources import Columns
from data.tasks import Task, TaskSet, load_task
from router.validation import InputError
from tests.tiny import tiny_model, tiny_tokenizer

SUMS = Task("sums", Columns("q", "a"), answer_kind="text", mode="exact", max_new_tokens=8)
LONG = Sample("sums", "train", "and then one more " * 20 + "makes how many?", (), "21")
ABOUT = Sample("sums", "train", "How many?", (), "21", {}, "They came one by one. " * 20)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def encode(task: Task, sample: Sample, template: str | None = None) -> EncodedSample:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Encoder(tiny_model("llama"), tokenizer, TaskSet.of(task)).encode(sample)


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


def test_the_date_in_a_template_is_always_the_same() -> None:
    # Oracle: Llama 3's default date, which its template writes where it is told none and has no clock.
    task = dataclasses.replace(SUMS, prompt=Prompt(style="chat"))
    shown = text(encode(task, LONG, "{{ date_string }}|{{ messages[0].content }}").prompt)
    assert shown.startswith("26 Jul 2024|")


def test_a_clock_in_a_template_stands_still() -> None:
    # Oracle: the fixed date, from a template that asks the library's clock without any condition.
    task = dataclasses.replace(SUMS, prompt=Prompt(style="chat"))
    shown = text(encode(task, LONG, "{{ strftime_now('%Y-%m-%d') }}|{{ messages[0].content }}").prompt)
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
    encoder = Encoder(tiny_model("llama"), tiny_tokenizer(), TaskSet.of(SUMS))
    samples = [Sample("sums", "train", "Hm?", (), answer) for answer in ("123456", "1234567")]
    for sample in samples:
        encoder.encode(sample)
    assert encoder.unreachable == {samples[1].id}


@pytest.mark.parametrize("sample", [LONG, ABOUT], ids=["question", "context"])
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
    encoder = Encoder(tiny_model("llama"), tiny_tokenizer(), TaskSet.of(task))
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
