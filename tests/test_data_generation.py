"""Generation: greedy under the chain's view, batched by chain; what ends an answer; judged answers."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator

import pytest

from data.generation import Answer, Generator, Request, end_tokens
from data.grading import Grader
from data.prompts import Prompt
from data.records import ChainResult, agrees
from data.sample import Sample
from data.scoring import ChainScorer, delivered, judge
from data.sources import Columns
from data.tasks import Task, load_task
from router.chain import Chain
from router.validation import InputError
from tests.test_data_scoring import CHAINS, family_model, greedy
from tests.tiny import FAMILIES, FULL, tiny_model, tiny_tokenizer

PROMPTS = ["Why?", "A much longer question, of which nobody knows the answer.", "Is it so, or is it not?"]


def never(text: str) -> None:
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_and_cached_generation_is_greedy_decoding(family: str) -> None:
    # Oracle: uncached argmax decoding, one row; prompts of several lengths and chains share the call.
    model, tokenizer = family_model(family), tiny_tokenizer()
    generator = Generator(model, tokenizer, batch_tokens=60 if list(FAMILIES).index(family) % 2 else 4096)
    ends = end_tokens(model, tokenizer)
    requests = [
        Request(tuple(tokenizer(text)["input_ids"]), chain, limit, never)
        for chain in CHAINS
        for text, limit in zip(PROMPTS, (5, 3, 7), strict=True)
    ]
    random.Random(0).shuffle(requests)
    for request, answer in zip(requests, generator.generate(requests), strict=True):
        wanted = greedy(model, request.prompt, request.chain, request.max_new_tokens)
        end = next((i for i, token in enumerate(wanted) if token in ends), None)
        assert list(answer.tokens) == wanted[:end]
        assert answer.complete == (end is not None)
        assert answer.text == tokenizer.decode(wanted[:end], skip_special_tokens=True)


def test_the_models_own_generation_settings_do_not_matter() -> None:
    # Oracle: the answers of the same model without them.
    model, tokenizer = family_model("llama"), tiny_tokenizer()
    requests = [Request(tuple(tokenizer(text)["input_ids"]), FULL, 12, never) for text in PROMPTS]
    plain = Generator(model, tokenizer).generate(requests)
    other = tiny_model("llama")
    settings = {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "min_length": 90,
        "suppress_tokens": list(range(3, 200)),
        "bad_words_ids": [[5]],
        "forced_eos_token_id": 7,
        "num_return_sequences": 2,
        "return_dict_in_generate": True,
        "stop_strings": ["a"],
        "max_time": 1e-6,
        "do_sample": True,
        "temperature": 9.0,
    }
    for name, value in settings.items():
        setattr(other.generation_config, name, value)
    assert Generator(other, tokenizer).generate(requests) == plain


def test_a_row_stops_where_its_text_is_whole_and_others_go_on() -> None:
    # Oracle: the unstopped text, cut by hand after the characters asked for.
    model, tokenizer = family_model("llama"), tiny_tokenizer()
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in PROMPTS]
    generator = Generator(model, tokenizer)
    whole = generator.generate([Request(prompt, FULL, 20, never) for prompt in prompts])
    stopped = generator.generate(
        [
            Request(prompt, FULL, 20, lambda text, n=n: text if len(text) >= n else None)
            for n, prompt in zip((3, 99, 6), prompts, strict=True)
        ]
    )
    assert stopped[1] == whole[1]
    for i, n in ((0, 3), (2, 6)):
        assert stopped[i].complete
        assert len(stopped[i].tokens) < len(whole[i].tokens)
        assert len(stopped[i].text) >= n
        assert whole[i].tokens[: len(stopped[i].tokens)] == stopped[i].tokens


SUMS = Task("sums", Columns("q", "a"), answer_kind="text", mode="exact")
BOXED = dataclasses.replace(SUMS, prompt=Prompt(opening="\\boxed{"))
FREE = dataclasses.replace(SUMS, mode="generate", free_form=True)
WORDS = dataclasses.replace(SUMS, mode="generate", grading="text")
SUM = Sample("sums", "test", "A half?", (), "\\frac{1}{2}")
LETTERS = load_task("arc_easy", "letter")
CHOICE = Sample("arc_easy", "test", "Which is wet?", ("sand", "water", "iron"), 1)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("task", "text", "complete", "prediction", "correct"),
    [
        (SUMS, " 0.5\nQuestion:", True, "0.5", True),
        (SUMS, " 1/3\n", True, "1/3", False),
        (SUMS, " 0.5", False, None, False),  # cut off at the limit
        (SUMS, " 0.5", True, "0.5", True),  # ended by the end of sequence
        (SUMS, "\n", True, None, False),
        (BOXED, "\\frac{1}{2}} and", True, "\\frac{1}{2}", True),
        (BOXED, "\\frac{1}{2", True, None, False),  # never closed
        (BOXED, "}", True, None, False),
        (FREE, " Half of one is one half. The answer is 0.5.\nQuestion: next", True, "0.5", True),
        (FREE, " I think \\boxed{\\frac{1}{3}} or \\boxed{\\frac12}", True, "\\frac12", True),
        (FREE, " no idea", True, None, False),
        (dataclasses.replace(SUMS, prompt=Prompt(style="chat")), "1/3\n\nmore", True, "1/3\n\nmore", False),
        (WORDS, " \\frac{1}{2}.\n", True, "\\frac{1}{2}.", True),
        (WORDS, " 0.5\n", True, "0.5", False),
    ],
)
def test_free_answers_are_read_and_graded(
    task: Task, text: str, complete: bool, prediction: str | None, correct: bool, grader: Grader
) -> None:
    # Oracle: written by hand.
    answer = Answer(text, complete, ())
    assert judge(task, SUM, task.query(SUM), SUM.gold, answer, grader) == (prediction, correct)


def test_a_letter_means_the_choice_that_the_prompt_lists_under_it(grader: Grader) -> None:
    # Oracle: the prompt's own lines.
    query = LETTERS.query(CHOICE)
    lines = {line[4:]: line[1] for line in query.asked.splitlines()[1:]}
    for index, choice in enumerate(CHOICE.choices):
        answer = Answer(f" {lines[choice]}\n", True, ())
        assert judge(LETTERS, CHOICE, query, 1, answer, grader) == (index, index == 1)
        assert judge(LETTERS, CHOICE, query, 2, answer, grader) == (index, index == 2)
    for text in (" water", "", " D", " a", " A or B"):
        assert judge(LETTERS, CHOICE, query, 1, Answer(text, True, ()), grader) == (None, False)


def test_an_alias_means_the_same_as_the_answer() -> None:
    # Oracle: what `judge` calls right; so a search for a wrong answer is never told an alias.
    scorer = ChainScorer(family_model("llama"), tiny_tokenizer(), SUMS)
    assert not scorer.means_the_same(SUM, "7")
    assert scorer.means_the_same(dataclasses.replace(SUM, aliases=("6", "7")), "7.0")


def test_logits_that_are_no_numbers_are_refused() -> None:
    # Oracle: a model one of whose weights overflows, as in float16.
    model = tiny_model("llama")
    model.model.layers[2].mlp.down_proj.weight.data[:] = math.inf
    scorer = ChainScorer(model, tiny_tokenizer(), WORDS)
    block = scorer.load([scorer.encode(SUM)])
    with pytest.raises(InputError, match="dtype: expected logits that are numbers, got others in float32"):
        scorer.judge(block, [(0, FULL)])


def test_the_scorer_judges_in_both_modes() -> None:
    # Oracle: greedy decoding, read by hand: the answer is what the model emits, so both modes must call it right.
    model, tokenizer = family_model("llama"), tiny_tokenizer()
    task = dataclasses.replace(WORDS, mode="exact", real_mode="generate", max_new_tokens=4, prompt=Prompt(end=None))
    scorer = ChainScorer(model, tokenizer, task)
    chain = Chain((0, 1, 2, 4), FULL.num_layers)
    sample = Sample("sums", "test", "What now?", (), "this")
    block = scorer.load([scorer.encode(sample)])
    exact, generated = scorer.score(block, [(0, chain)])[0], scorer.judge(block, [(0, chain)])[0]
    assert (exact.correct, generated.correct) == (False, False)
    assert len(exact.scores) == len(" this") + 1
    assert generated.scores == ()
    assert generated.margin == -1
    assert generated.chain == exact.chain == chain


def test_a_free_answer_of_which_one_token_is_delivered_is_wrong() -> None:
    # Oracle: written by hand; compared choices are delivered by their first token as they are judged.
    right = ChainResult.from_answer(FULL, "0.5", correct=True)
    for task in (SUMS, FREE, dataclasses.replace(LETTERS, real_mode="generate")):
        assert delivered(right, task, one_token=False) == right
        cut = delivered(right, task, one_token=True)
        assert cut == ChainResult(FULL, (), "", False, -1.0)
        for other in (right, ChainResult.from_answer(FULL, None, correct=False)):
            assert not agrees(cut, other)
    chosen = ChainResult.from_scores(FULL, (-1.0, -0.5, -2.0), 1)
    assert delivered(chosen, LETTERS, one_token=True) == delivered(chosen, LETTERS, one_token=False) == chosen


def test_an_answer_that_holds_its_own_end_is_no_question() -> None:
    # Oracle: what the grader would read of it, by hand: a line, or less than the box.
    for task, answer in ((SUMS, "a\nb"), (BOXED, "1}{2")):
        with pytest.raises(ValueError, match="answer: expected one without its end"):
            task.query(dataclasses.replace(SUM, answer=answer))
    assert BOXED.query(SUM).continuations == ("\\frac{1}{2}}",)


def test_reasoning_of_a_base_model_ends_where_it_asks_its_next_question(grader: Grader) -> None:
    # Oracle: written by hand.
    problems = dataclasses.replace(FREE, prompt=Prompt(ask="Problem: {question}"))
    answer = Answer(" The answer is 0.5.\n\nProblem: other\nAnswer: The answer is 7", True, ())
    assert judge(problems, SUM, problems.query(SUM), SUM.gold, answer, grader) == ("0.5", True)
    with pytest.raises(ValueError, match=r"prompt\.end: expected a text where free_form meets an ask"):
        dataclasses.replace(FREE, prompt=Prompt(ask="{question}"))
