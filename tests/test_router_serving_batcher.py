"""The worker without a server: what shares a batch comes out as if alone, and what fails fails alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from router.chain import Chain
from router.engine.load import left_padded
from router.routed import RoutedModel
from router.serving.batcher import TURN, Batcher, BatchLimits, LoadBudget
from router.serving.groups import Group, can_pause
from router.serving.rows import Picks, Piece, Progress, Row, Sampling, TextStream, TokenScore
from tests.serving import BUDGET, END, Alone, Brake, Oracle, pick, tiny_oracle, tiny_routed, until
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


def test_settings_of_the_model_itself_do_not_count() -> None:
    # Oracle: as above, with a model whose own settings would change every token.
    routed, oracle = tiny_routed(), tiny_oracle()
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
    oracle = tiny_oracle()
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
    # Oracle: by hand, the calls of the embedding: one reads all prompts, one begins each chain, then one for each token
    # of a chain.
    routed, oracle = tiny_routed(), tiny_oracle()
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
    turns = [*[(3, 1)] * TURN, *[(1, 1)] * TURN]
    assert shapes == [(2, 9), (3, 9), (1, 9), *turns * (4 // TURN)]


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
    routed, oracle = tiny_routed(), tiny_oracle()
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
    routed, oracle = tiny_routed(), tiny_oracle()
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


def test_a_token_that_is_drawn_again_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: the tokens. Memory ends between the scores of two rows of a batch, which is read again in halves.
    oracle, score, calls = tiny_oracle(), TokenScore.of, itertools.count()

    def full(*given: Any) -> TokenScore:
        if next(calls) == 5:
            raise torch.OutOfMemoryError("full")
        return score(*given)

    monkeypatch.setattr(TokenScore, "of", full)
    asked = [Asked(oracle, [90, 91, 92 + i], 9, temperature=1.0, seed=i, budget=oracle.most) for i in range(6)]
    chains = [oracle.chain(one.prompt, oracle.most) for one in asked]
    same = [one for one, chain in zip(asked, chains, strict=True) if chain == max(chains, key=chains.count)][:4]
    assert len(same) == 4
    for one in same:
        one.row.alternatives = 2
    with working(tiny_routed()) as batcher:
        serve(batcher, same)
    assert next(calls) > 6
    for one in same:
        one.check()
        assert [scored.token for scored in one.row.scores] == [token for token in one.row.tokens if token != END]


def test_groups_too_large_to_join_are_read_again_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: each alone. Memory ends in the middle of a join, when one of the groups has lost what it had.
    routed, oracle = tiny_routed(), tiny_oracle()
    brake, join, failed = Brake(routed), Group.join, list[int]()

    def full(group: Group, other: Group) -> None:
        if not failed:
            failed.append(len(group.rows) + len(other.rows))
            group.rows += other.rows
            del group.cache
            raise torch.OutOfMemoryError("full")
        join(group, other)

    monkeypatch.setattr(Group, "join", full)
    asked = [Asked(oracle, [90, 91, 92 + i], 12, temperature=1.0, seed=i, budget=oracle.most) for i in range(6)]
    chains = [oracle.chain(one.prompt, oracle.most) for one in asked]
    same = [one for one, chain in zip(asked, chains, strict=True) if chain == max(chains, key=chains.count)]
    assert len(same) > 2
    with working(routed) as batcher:
        brake.hold()
        batcher.submit([one.row for one in same[:2]])
        until(lambda: batcher.running == 2)
        brake.step(4)
        until(lambda: brake.passes == 5)
        batcher.submit([one.row for one in same[2:]])
        brake.release()
        until(lambda: all(one.ends for one in same))
    assert failed == [len(same)]
    for one in same:
        one.check()


def test_a_row_too_large_for_memory_alone_is_told_so() -> None:
    routed, oracle = tiny_routed(), tiny_oracle()
    fail_on(routed, lambda ids: ids.shape[1] > 20, torch.OutOfMemoryError("full"))
    large, small = Asked(oracle, [90] * 30), Asked(oracle, [90] * 4)
    with working(routed) as batcher:
        serve(batcher, [large, small])
    small.check()
    assert large.row.error is not None
    assert (large.row.error.status, large.row.error.code) == (503, "out_of_memory")


def test_logits_that_are_no_numbers_fail_their_row_alone() -> None:
    # Oracle: by hand.
    oracle = tiny_oracle()
    rows = [Asked(oracle, [90], 3, **more).row for more in ({}, {}, {"temperature": 1.0}, {"temperature": 1.0}, {})]
    progress, scores = Progress(rows, {END}), torch.zeros(5, 300)
    scores[:, 100] = 50.0
    scores[1, 7], scores[2, 7], scores[4] = torch.nan, torch.inf, -torch.inf
    tokens = Picks(rows)(torch.zeros(5, 1).long(), scores).argmax(1)
    ended = progress(torch.cat([torch.zeros(5, 1).long(), tokens[:, None]], 1), None)
    assert ended.tolist() == [False, True, True, False, True]
    assert [row.tokens for row in rows] == [[100], [], [], [100], []]
    assert [row.error and row.error.code for row in rows] == [None, "overflow", "overflow", None, "overflow"]


def test_rows_of_different_ages_draw_each_at_its_own_step() -> None:
    # Oracle: the definition of a draw, one row at a time.
    oracle = tiny_oracle()
    rows = [Asked(oracle, [90], 9, temperature=1.0, seed=4).row for _ in range(2)]
    rows[1].tokens = [91, 92, 93]
    scores = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    tokens = Picks(rows)(torch.zeros(2, 1).long(), scores.clone()).argmax(1).tolist()
    wanted = [pick(scores[i].double().numpy(), row.sampling, len(row.tokens)) for i, row in enumerate(rows)]
    assert tokens == wanted


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_rows_join_and_leave_a_batch_that_runs(variant: tuple[str, str]) -> None:
    # Oracle: each prompt alone; by hand, that those who come late do not wait for those who run.
    routed, oracle = tiny_routed(*variant), tiny_oracle(*variant)
    brake = Brake(routed)
    running, late = many(oracle, 3, 20), many(oracle, 6, 4)[3:]
    with working(routed) as batcher:
        brake.hold()
        batcher.submit([one.row for one in running])
        until(lambda: batcher.running == 3)
        brake.step(8)
        until(lambda: brake.passes == 9)
        batcher.submit([one.row for one in late])
        brake.release()
        until(lambda: all(one.ends for one in running + late))
    assert len({one.row.chain for one in running + late}) > 1
    for one in running + late:
        one.check()
    if can_pause(routed):
        assert max(one.row.last_token for one in late) < max(one.row.last_token for one in running)


FREE: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}


def begun(oracle: Oracle, prompts: Sequence[list[int]], new_tokens: int) -> Group:
    """Prompts at full depth, some tokens long."""
    routed, rows = oracle.routed, [Asked(oracle, prompt, 99).row for prompt in prompts]
    chain = Chain.full(routed.router.config.num_layers)
    reading = routed.read(*left_padded([row.prompt for row in rows], "cpu"))
    out = routed.generate_as(chain, reading, max_new_tokens=new_tokens, **FREE)
    group = Group(chain, rows, reading.run.ids, reading.run.mask, out.past_key_values)
    group.grow(out.sequences)
    return group


def go_on(oracle: Oracle, group: Group, new_tokens: int) -> None:
    state = (group.chain, group.ids, group.mask, group.cache)
    group.grow(oracle.routed.continue_as(*state, max_new_tokens=new_tokens, **FREE).sequences)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_groups_join_and_rows_leave_with_what_they_have_computed(family: str) -> None:
    # Oracle: each row by itself, without cache. Gemma's window of few tokens is passed on the way.
    oracle = tiny_oracle(family)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(80, 250, (length,), generator=generator).tolist() for length in (14, 3, 9, 5)]
    group = begun(oracle, prompts[:2], 2)
    group.join(begun(oracle, prompts[2:], 1))
    go_on(oracle, group, 3)
    group.keep([3, 1])
    assert group.ids.shape[1] == max(5 + 1 + 3, 3 + 2 + 3)  # no padding that both rows have
    go_on(oracle, group, 6)
    late = begun(oracle, prompts[:1], 1)
    assert group.takes(late)
    late.join(group)
    go_on(oracle, late, 2)
    assert [row.prompt for row in late.rows] == [tuple(prompts[place]) for place in (0, 3, 1)]
    for row, ids, mask, new_tokens in zip(
        late.rows, late.ids, late.mask, (1 + 2, 1 + 3 + 6 + 2, 2 + 3 + 6 + 2), strict=True
    ):
        text = ids[mask.bool()].tolist()
        assert tuple(text) == (*row.prompt, *oracle.alone(row.prompt, new_tokens, chain=late.chain).ids)


def test_a_long_generation_carries_no_other_row_past_the_positions(caplog: pytest.LogCaptureFixture) -> None:
    # Oracle: each alone. GPT-2 looks positions up in a table of 512, and past it fails.
    routed, oracle = tiny_routed("gpt2"), tiny_oracle("gpt2")
    asked = [Asked(oracle, [90] * 320, 4), Asked(oracle, [90] * 300, 212)]
    assert len({oracle.chain(one.prompt) for one in asked}) == 1
    with working(routed) as batcher, caplog.at_level(logging.WARNING):
        serve(batcher, asked)
    assert not [record for record in caplog.records if record.name == "router.serving"]
    asked[0].check()
    assert len(asked[1].row.tokens) == 212 or asked[1].row.reason == "stop"


def test_rows_given_up_leave_the_queue_and_stop_generating() -> None:
    routed, oracle = tiny_routed(), tiny_oracle()
    brake = Brake(routed)
    asked = many(oracle, 4, 30)
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
