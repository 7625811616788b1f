"""Real generation as a control: what chains write is read and graded, whatever mode the task is in."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from data.sample import Sample
from data.scoring import ChainScorer
from data.tasks import load_task
from eval.controls import GenerationJudge, choice_of
from router.engine.view import chain_view
from tests.evaluation import TRIED
from tests.sums import digit_model
from tests.test_eval_control_runs import LETTER, questions
from tests.tiny import tiny_model, tiny_tokenizer


def test_a_letter_is_generated_as_a_task_does_that_is_judged_so() -> None:
    # Oracle: the same task with real_mode generate.
    model, samples = tiny_model("llama", seed=2), questions(6)
    jobs = [*itertools.product(range(6), TRIED[:4])]
    found = []
    for task in (LETTER, load_task("arc_easy", "letter", max_new_tokens=2, real_mode="generate")):
        scorer = ChainScorer(model, tiny_tokenizer(), task)
        judge = GenerationJudge.of(model, scorer) if task is LETTER else scorer.judge
        found.append(judge(scorer.load(scorer.encode_all(samples)), jobs))
    assert found[0] == found[1]
    assert [one.chain for one in found[0]] == [chain for _, chain in jobs]


def test_an_answer_ends_where_the_models_positions_do() -> None:
    # Oracle: GPT2 has no embedding for a 513th position, so that a longer answer would end in an IndexError.
    model, sample = tiny_model("gpt2"), Sample("arc_easy", "test", f"Which {'is ' * 155}it?", ("ice", "tea"), 0)
    scorer = ChainScorer(model, tiny_tokenizer(), load_task("arc_easy", "letter", max_new_tokens=32))
    encoded = scorer.encode(sample)
    assert 512 - 32 < len(encoded.prompt) < 512
    (result,) = GenerationJudge.of(model, scorer)(scorer.load([encoded]), [(0, TRIED[0])])
    assert result.prediction is None


def test_a_choice_is_generated_as_text() -> None:
    # Oracle: the library's greedy decoding of each chain's view, cut at the end of the line and compared by hand.
    model, tokenizer = digit_model(1), tiny_tokenizer()
    scorer = ChainScorer(model, tokenizer, load_task("arc_easy", prompt={"cue": ""}, max_new_tokens=1))
    samples = questions(8, ("1", "2", "22", "11"))
    judge = GenerationJudge.of(model, scorer)
    jobs = [*itertools.product(range(8), TRIED)]
    said = set()
    for (i, chain), result in zip(jobs, judge(scorer.load(scorer.encode_all(samples)), jobs), strict=True):
        sample = samples[i]
        ids = torch.tensor([tokenizer(f"Question: {sample.question}\n").input_ids])
        longest = max(map(len, sample.choices)) + 1
        view = chain_view(model, chain, fresh=True)
        new = view.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False, pad_token_id=0
        )[0, ids.shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        ended = "\n" in text or tokenizer.eos_token_id in new
        text = text.partition("\n")[0]
        expected = sample.choices.index(text) if ended and text in sample.choices else None
        assert (result.chain, result.prediction, result.correct) == (chain, expected, expected == sample.answer)
        said.add(expected)
    assert len(said) >= 4


@pytest.mark.parametrize(
    ("text", "listed", "expected"),
    [
        (" Tea.", True, 1), ("tea", False, 1), ("B", True, 2), ("B. oil", True, 2), ("B", False, None),
        ("D", True, None), ("a tea", True, None), ("A", True, 0), ("", True, None),
    ],
)  # fmt: skip
def test_a_choice_is_named_by_its_text_or_its_listed_letter(text: str, listed: bool, expected: int | None) -> None:
    # Oracle: by hand; the second and third of three choices are listed the other way round.
    task = load_task("arc_easy", list_choices=listed)
    encoded = ChainScorer(tiny_model("llama"), tiny_tokenizer(), task).encode(questions(2)[1])
    turned = dataclasses.replace(encoded, query=dataclasses.replace(encoded.query, order=(0, 2, 1)))
    assert choice_of(text, turned) == expected
