"""The worker without a server: what shares a batch comes out as if alone, and what fails fails alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from router.routed import RoutedModel
from router.serving.batcher import Batcher, BatchLimits, LoadBudget
from router.serving.protocol import ApiError
from router.serving.rows import Picks, Piece, Progress, Row, Sampling, TextStream
from tests.serving import BUDGET, END, Alone, Brake, Oracle, tiny_routed, until
from tests.tiny import EACH

BAD = 77
"""A token that the failures below lie in wait for."""


@contextmanager
def working(routed: RoutedModel, **options: Any) -> Iterator[Batcher]:
    batcher = Batcher(routed, **{"load": LoadBudget(BUDGET)} | options)
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.close()
        assert batcher.join(60.0)


class Asked:
    """A row with what it has said."""

    def __init__(self, oracle: Oracle, prompt: Sequence[int], new_tokens: int = 8, **asked: Any) -> None:
        self.oracle, self.prompt, self.new_tokens, self.asked = oracle, tuple(prompt), new_tokens, asked
        self.pieces: list[str] = []
        self.ends = 0
        sampling = Sampling.of(asked.get("temperature", 0.0), asked.get("top_p", 1.0), asked.get("seed"), 0)
        text = TextStream(oracle.tokenizer, asked.get("stop", ()))
        self.row = Row(0, self.prompt, new_tokens, sampling, text, asked.get("budget"), True, self._take)

    def _take(self, piece: Piece) -> None:
        if piece.text is None:
            self.ends += 1
        else:
            self.pieces.append(piece.text)

    def check(self) -> None:
        """It is what it would be alone, said once."""
        row, chain = self.row, self.row.chain
        assert chain is not None
        assert Alone(chain, row.answer, row.reason or "", tuple(row.tokens)) == self.alone()
        assert "".join(self.pieces) == row.answer
        assert self.ends == 1

    def alone(self) -> Alone:
        return self.oracle.alone(self.prompt, self.new_tokens, **self.asked)


def many(oracle: Oracle, count: int, new_tokens: int = 8, **asked: Any) -> list[Asked]:
    """Prompts of different lengths and settings."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(80, 250, (4 + 3 * (i % 5),), generator=generator).tolist() for i in range(count)]
    more = [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 9}]
    return [Asked(oracle, prompt, new_tokens + i % 3, **more[i % 3], **asked) for i, prompt in enumerate(prompts)]


def serve(batcher: Batcher, asked: Sequence[Asked]) -> None:
    batcher.submit([one.row for one in asked])
    until(lambda: all(one.ends for one in asked))


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_rows_that_share_a_batch_come_out_as_alone(variant: tuple[str, str]) -> None:
    # Oracle: each prompt alone, without cache, batch or padding; all families and attentions.
    oracle = Oracle(tiny_routed(*variant))
    asked = many(oracle, 6)
    with working(tiny_routed(*variant)) as batcher:
        serve(batcher, asked)
    assert len({one.row.chain for one in asked}) > 1
    for one in asked:
        one.check()


def test_settings_of_the_model_itself_do_not_count() -> None:
    # Oracle: as above, with a model whose own settings would change every token.
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    own = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=9.0, max_length=5, suppress_tokens=list(range(8, 200)),
        no_repeat_ngram_size=1, min_new_tokens=6, forced_eos_token_id=7, eos_token_id=[END, 250], bos_token_id=1,
    )  # fmt: skip
    routed.generation_config = own
    asked = many(oracle, 6)
    with working(routed) as batcher:
        serve(batcher, asked)
    assert routed.generation_config is own
    for one in asked:
        if 250 not in one.row.tokens:  # the model's other end
            one.check()
    assert not all(250 in one.row.tokens for one in asked)


def test_each_of_the_models_ends_ends_a_text() -> None:
    # Oracle: the same prompt without the other end.
    oracle = Oracle(tiny_routed())
    (free,), (asked,) = many(oracle, 1, 12), many(oracle, 1, 12)
    with working(tiny_routed()) as batcher:
        serve(batcher, [free])
    routed, tokens = tiny_routed(), free.row.tokens
    routed.generation_config.eos_token_id = [END, tokens[3]]
    with working(routed) as batcher:
        serve(batcher, [asked])
    place = tokens.index(tokens[3]) + 1
    assert (asked.row.reason, asked.row.tokens) == ("stop", tokens[:place])
    assert asked.row.answer == oracle.text(tokens[: place - 1])


def test_rows_of_one_chain_generate_together_and_equal_prompts_are_read_once() -> None:
    # Oracle: by hand, the calls of the embedding: one reads all prompts, then one a token, a chain at a time.
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    first, second = [90, 91], next([n] * 9 for n in range(92, 250) if oracle.chain([n] * 9) != oracle.chain([90, 91]))
    asked = [Asked(oracle, prompt, 5, temperature=1.0, seed=i) for i, prompt in enumerate([first] * 3 + [second])]
    shapes: list[tuple[int, ...]] = []
    routed.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    with working(routed) as batcher:
        routed.read(torch.tensor([first]))  # the hook is a change, after which the model is tried anew
        shapes.clear()
        serve(batcher, asked)
    for one in asked:
        one.check()
        assert len(one.row.tokens) == 5
    assert shapes == [(2, 9), (3, 9), *[(3, 1)] * 4, (1, 9), *[(1, 1)] * 4]


def fail_on(routed: RoutedModel, fails: Any, error: BaseException) -> None:
    """Make the model fail at some batches of token ids."""

    armed: list[bool] = []

    def check(_: object, inputs: tuple[Tensor, ...]) -> None:
        if armed and fails(inputs[0]):
            raise error

    routed.get_input_embeddings().register_forward_pre_hook(check)
    routed.read(torch.tensor([[90]]))  # the hook is a change, after which the model is tried anew
    armed.append(True)


def test_a_row_that_fails_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    # Oracle: the others alone.
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    fail_on(routed, lambda ids: bool((ids == BAD).any()), RuntimeError("here"))
    bad, good = Asked(oracle, [90, BAD, 91], 8), many(oracle, 6)
    with working(routed) as batcher:
        serve(batcher, [*good[:3], bad, *good[3:]])
        later = many(oracle, 1)
        serve(batcher, later)
    for one in good + later:
        one.check()
    assert bad.row.error is not None
    assert (bad.row.error.status, bad.row.error.code, bad.ends, bad.pieces) == (500, "internal_error", 1, [])
    assert "here" not in bad.row.error.message
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("width", [1, 2])
def test_a_batch_too_large_for_memory_goes_on_in_halves(width: int) -> None:
    # Oracle: each alone; what was said before the failure is not said again. Width 2: prompts; 1: further tokens.
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    calls = [0]

    def full(ids: Tensor) -> bool:
        calls[0] += 1
        return len(ids) > 2 and calls[0] > 4 and (ids.shape[1] == 1) == (width == 1)

    fail_on(routed, full, torch.OutOfMemoryError("full"))
    calls[0] = 99 if width == 2 else 0
    asked = [Asked(oracle, [90, 91, 92 + i], 9, temperature=1.0, seed=i, budget=oracle.most) for i in range(7)]
    assert len({oracle.chain(one.prompt, oracle.most) for one in asked}) < len(asked) - 2
    with working(routed) as batcher:
        serve(batcher, asked)
    for one in asked:
        one.check()


def test_a_row_too_large_for_memory_alone_is_told_so() -> None:
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    fail_on(routed, lambda ids: ids.shape[1] > 20, torch.OutOfMemoryError("full"))
    large, small = Asked(oracle, [90] * 30), Asked(oracle, [90] * 4)
    with working(routed) as batcher:
        serve(batcher, [large, small])
    small.check()
    assert large.row.error is not None
    assert (large.row.error.status, large.row.error.code) == (503, "out_of_memory")


def test_logits_that_are_no_numbers_fail_their_row_alone() -> None:
    # Oracle: by hand.
    oracle = Oracle(tiny_routed())
    rows = [Asked(oracle, [90], 3, **more).row for more in ({}, {}, {"temperature": 1.0}, {"temperature": 1.0}, {})]
    progress, scores = Progress(rows, {END}), torch.zeros(5, 300)
    scores[:, 100] = 50.0
    scores[1, 7], scores[2, 7], scores[4] = torch.nan, torch.inf, -torch.inf
    tokens = Picks(progress)(torch.zeros(5, 1).long(), scores).argmax(1)
    ended = progress(torch.cat([torch.zeros(5, 1).long(), tokens[:, None]], 1), None)
    assert ended.tolist() == [False, True, True, False, True]
    assert [row.tokens for row in rows] == [[100], [], [], [100], []]
    assert [row.error and row.error.code for row in rows] == [None, "overflow", "overflow", None, "overflow"]


def test_what_a_row_has_said_is_repeated_whatever_the_numbers_say_now() -> None:
    # Oracle: by hand. A batch that goes on may round otherwise; what was sent cannot be taken back.
    oracle = Oracle(tiny_routed())
    asked = [Asked(oracle, [90], 4), Asked(oracle, [90], 4, temperature=1.0, seed=1)]
    rows, scores, (said, likely) = [one.row for one in asked], torch.zeros(2, 300), oracle.tokens("ab")
    scores[:, likely] = 50.0
    for row in rows:
        row.take(said, {END})
    progress = Progress(rows, {END})
    picks = Picks(progress)
    for expected in (said, likely):
        tokens = picks(torch.zeros(2, 1).long(), scores.clone()).argmax(1)
        assert tokens.tolist() == [expected] * 2
        assert progress(tokens[:, None], None).tolist() == [False] * 2
    assert [row.tokens for row in rows] == [[said, likely]] * 2
    assert ["".join(one.pieces) for one in asked] == ["ab"] * 2


def test_a_long_generation_carries_no_other_row_past_the_positions(caplog: pytest.LogCaptureFixture) -> None:
    # Oracle: each alone. GPT-2 looks positions up in a table of 512, and past it fails.
    routed, oracle = tiny_routed("gpt2"), Oracle(tiny_routed("gpt2"))
    asked = [Asked(oracle, [90] * 320, 4), Asked(oracle, [90] * 300, 212)]
    assert len({oracle.chain(one.prompt) for one in asked}) == 1
    with working(routed) as batcher, caplog.at_level(logging.WARNING):
        serve(batcher, asked)
    assert not [record for record in caplog.records if record.name == "router.serving"]
    asked[0].check()
    assert len(asked[1].row.tokens) == 212 or asked[1].row.reason == "stop"


def test_rows_given_up_leave_the_queue_and_stop_generating() -> None:
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    brake = Brake(routed)
    asked = many(oracle, 4, 400)
    with working(routed, limits=BatchLimits(rows=2)) as batcher:
        brake.hold()
        batcher.submit([one.row for one in asked])
        until(lambda: batcher.waiting == 2)
        brake.step(5)
        until(lambda: brake.passes == 6)
        batcher.abandon([one.row for one in asked[:3]])
        assert (batcher.waiting, batcher.running) == (1, 0)
        brake.release()
        until(lambda: bool(asked[3].ends))
    asked[3].check()
    assert not asked[2].row.tokens
    assert all(len(one.row.tokens) < 10 for one in asked[:2])


def test_a_full_queue_and_a_closed_one_take_no_more() -> None:
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    brake = Brake(routed)
    asked = many(oracle, 5, 400)
    with working(routed, limits=BatchLimits(rows=1), max_queue=2) as batcher:
        brake.hold()
        for one in asked[:1]:
            batcher.submit([one.row])
        until(lambda: batcher.running == 1 and batcher.waiting == 0)
        batcher.submit([one.row for one in asked[1:3]])
        with pytest.raises(ApiError, match="expected at most 2 choices that wait") as caught:
            batcher.submit([asked[3].row])
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
        batcher.close()
        assert not batcher.alive
        with pytest.raises(ApiError, match="the server stops"):
            batcher.submit([asked[4].row])
        brake.release()
        until(lambda: all(one.ends for one in asked[:3]))
    assert [one.row.error.code for one in asked[:3] if one.row.error] == ["stopping"] * 3


def test_the_budget_falls_while_rows_wait_and_rises_again() -> None:
    # Oracle: the load's own line, by the rows that each batch leaves behind.
    routed, oracle = tiny_routed(), Oracle(tiny_routed())
    brake, load = Brake(routed), LoadBudget(BUDGET, oracle.least, 8)
    first, asked = Asked(oracle, [90] * 3), [Asked(oracle, [91 + i] * 5, 2) for i in range(12)]
    asked[0].row.budget = own = oracle.most
    with working(routed, limits=BatchLimits(rows=4), load=load) as batcher:
        brake.hold()
        batcher.submit([first.row])
        until(lambda: batcher.running == 1)
        batcher.submit([one.row for one in asked])
        assert batcher.budget == load.busy
        brake.release()
        until(lambda: all(one.ends for one in asked))
    assert first.row.budget == BUDGET
    budgets = [one.row.budget for one in asked]
    assert budgets == [own, *[load.at(8)] * 3, *[load.at(4)] * 4, *[BUDGET] * 4]
    assert [one.row.chain for one in asked] == [
        oracle.chain(one.prompt, budget) for one, budget in zip(asked, budgets, strict=True)
    ]


def test_budgets_that_were_not_measured_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        Batcher(tiny_routed(), load=LoadBudget(99.0))
