"""The chain executor, against the chain view run on one row at a time."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from router.chain import Chain
from router.engine.executor import ChainExecutor, Job
from router.engine.rows import Row, pack_row, plain_row, separate_rows
from router.engine.view import chain_view
from tests.tiny import EACH, FAMILIES, NUM_LAYERS, VARIANTS, model, tiny_model, variant  # noqa: F401

TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
FULL = Chain.full(NUM_LAYERS)


def random_chains(count: int, seed: int) -> list[Chain]:
    rng = random.Random(seed)
    chains = [FULL]
    while len(chains) < count:
        chain = rng.choice(chains)
        k = rng.randint(1, min(3, chain.depth))
        position = rng.randint(0, chain.depth - k)
        kind = rng.choice(["skip", "repeat", "move"])
        if kind == "skip" and k < chain.depth:
            chain = chain.skip(position, k)
        elif kind == "repeat" and chain.depth < 15:
            chain = chain.repeat(position, k, rng.randint(1, 2))
        else:
            chain = chain.move(position, k, rng.randint(0, chain.depth - k))
        if 1 in chain.layers:  # an attention layer in every family: hybrids need one for their cache
            chains.append(chain)
    return chains


def random_rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [plain_row([rng.randint(3, 200) for _ in range(rng.randint(1, 14))]) for _ in range(count)]


def view_logits(model: PreTrainedModel, row: Row, chain: Chain) -> torch.Tensor:
    return chain_view(model, chain)(torch.tensor([row.tokens])).logits[0]


@pytest.fixture(scope="module")
def executor(model: PreTrainedModel) -> ChainExecutor:
    return ChainExecutor(model)


def test_mixed_chains_and_lengths_equal_the_view_row_by_row(variant: tuple[str, str], model: PreTrainedModel) -> None:
    # Oracle: the chain view on each row alone, whatever the batches' size, which changes from variant to variant.
    rows = random_rows(3)
    jobs = [Job(i, chain) for i in range(len(rows)) for chain in random_chains(6, seed=i)]
    wanted = [view_logits(model, rows[job.row], job.chain) for job in jobs]
    executor = ChainExecutor(model, batch_tokens=(1, 40, 10_000)[VARIANTS.index(variant) % 3])
    torch.testing.assert_close(executor.logits(executor.load(rows), jobs), wanted, **TOLERANCE)


def test_the_full_chain_and_its_beginnings_equal_the_stock_model(
    model: PreTrainedModel, executor: ChainExecutor
) -> None:
    # Oracle: the stock forward on each row alone, its logits and `hidden_states[e]`.
    rows = random_rows(3)
    block = executor.load(rows)
    for i, logits in enumerate(executor.logits(block, [Job(i, FULL) for i in range(3)])):
        stock = model(torch.tensor([rows[i].tokens]), output_hidden_states=True)
        torch.testing.assert_close(logits, stock.logits[0], **TOLERANCE)
        for e in range(1, NUM_LAYERS):
            (state,) = executor.states(block, [Job(i, Chain(tuple(range(e)), NUM_LAYERS))])
            torch.testing.assert_close(state, stock.hidden_states[e][0], **TOLERANCE)


def test_packed_rows_score_as_separate_rows_and_as_the_view(
    variant: tuple[str, str], model: PreTrainedModel, executor: ChainExecutor
) -> None:
    # Oracle: each continuation after its prompt in a row of its own; and log_softmax of the view's logits.
    prompt, continuations = [7, 8, 9, 10, 11, 12], [[20, 21, 22, 23, 24], [30], [40, 41]]
    chains = random_chains(8, seed=3)
    assert executor.can_pack == FAMILIES[variant[0]].packs
    if not executor.can_pack:
        with pytest.raises(ValueError, match="expected plain rows, this model's attention masks cannot be rebuilt"):
            executor.load([pack_row(prompt, continuations)])
        return
    block = executor.load([pack_row(prompt, continuations), pack_row(prompt[:2], continuations[:2])])
    packed = executor.target_logprobs(block, [Job(0, chain) for chain in chains])
    short = executor.target_logprobs(block, [Job(1, chain) for chain in chains])
    rows = separate_rows(prompt, continuations)
    block = executor.load(rows + separate_rows(prompt[:2], continuations[:2]))
    for chain, together, other in zip(chains, packed, short, strict=True):
        apart = executor.target_logprobs(block, [Job(i, chain) for i in range(5)])
        torch.testing.assert_close(together, torch.cat(apart[:3]), **TOLERANCE)
        torch.testing.assert_close(other, torch.cat(apart[3:]), **TOLERANCE)
        logprobs = view_logits(model, rows[0], chain).log_softmax(-1)
        wanted = torch.stack([logprobs[target.index, target.token] for target in rows[0].targets])
        torch.testing.assert_close(apart[0], wanted, **TOLERANCE)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3"])
@pytest.mark.parametrize("window", [4, 6, 16])
def test_windows_shorter_and_longer_than_the_rows(window: int, family: str) -> None:
    # Oracle: the chain view on each row alone. Without padding the library makes a mask only for rows that are
    # longer than the window, one for all rows, so its presence and shape change with the batch.
    config = FAMILIES[family].config()
    config.sliding_window = window
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    executor = ChainExecutor(model)
    for lengths in ((3, 2), (4, 4), (6, 3, 5), (20, 9)):
        rows = [plain_row([(7 * i + j) % 190 + 3 for j in range(length)]) for i, length in enumerate(lengths)]
        jobs = [Job(i, chain) for i in range(len(rows)) for chain in random_chains(4, seed=2)]
        for job, logits in zip(jobs, executor.logits(executor.load(rows), jobs), strict=True):
            torch.testing.assert_close(logits, view_logits(model, rows[job.row], job.chain), **TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_may_be_used_to_the_last(family: str) -> None:
    # Oracle: the chain view; 24 positions, rows of up to 24 tokens, the packed one with the last position too.
    config = FAMILIES[family].config()
    setattr(config, "n_positions" if family == "gpt2" else "max_position_embeddings", 24)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    executor = ChainExecutor(model)
    rows = [plain_row(range(3, 27)), plain_row(range(3, 20))]
    for job, logits in zip(
        jobs := [Job(0, FULL), Job(1, FULL)], executor.logits(executor.load(rows), jobs), strict=True
    ):
        torch.testing.assert_close(logits, view_logits(model, rows[job.row], FULL), **TOLERANCE)
    prompt, continuations = list(range(3, 22)), [[30, 31, 32, 33, 34, 35], [40]]
    packed = executor.target_logprobs(executor.load([pack_row(prompt, continuations)]), [Job(0, FULL)])[0]
    apart = executor.target_logprobs(executor.load(separate_rows(prompt, continuations)), [Job(0, FULL), Job(1, FULL)])
    torch.testing.assert_close(packed, torch.cat(apart), **TOLERANCE)


def test_reuse_of_states_changes_nothing_and_the_budget_is_kept() -> None:
    # Oracle: the chain view on each row alone; the budget is checked after every call.
    model, rows = tiny_model("llama"), random_rows(2, seed=5)
    jobs = [Job(i % 2, chain) for i, chain in enumerate(random_chains(8, seed=6))]
    wanted = [view_logits(model, rows[job.row], job.chain) for job in jobs]
    for state_bytes in (0, 3_000, 2**30):
        executor = ChainExecutor(model, state_bytes=state_bytes)
        block = executor.load(rows)
        for job, view in zip(jobs, wanted, strict=True):
            torch.testing.assert_close(executor.logits(block, [job])[0], view, **TOLERANCE)
            assert executor.state_bytes_held <= state_bytes


def test_shared_prefixes_run_once() -> None:
    # Oracle: counting by hand. Full: 5 layers. 0,1,2,4 shares 0-2: one more. The same chain again: none.
    executor = ChainExecutor(tiny_model("llama"))
    block = executor.load(random_rows(1))
    executor.states(block, [Job(0, FULL), Job(0, FULL.skip(3, 1)), Job(0, FULL)])
    assert block.executed == [6]
    executor.states(block, [Job(0, FULL.skip(3, 1)), Job(0, FULL.repeat(4, 1, 2))])
    assert block.executed == [8]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    # Oracle: the same jobs with memory enough, their first tokens shared. The error is injected where a batch or the
    # head's input is too large.
    model = tiny_model("llama")
    rows = [pack_row([*range(50, 70), 10 + i], [[20, 21], [30], [40, 41, 42]]) for i in range(6)]
    jobs = [Job(i, chain) for chain in random_chains(4, seed=1) for i in range(6)]
    calm = ChainExecutor(model)
    wanted = calm.target_logprobs(calm.load(rows), jobs)
    executor = ChainExecutor(model)
    run_layer, head, failures = executor._capture.run_layer, executor._capture.head, []

    def scarce(function, size):
        def call(*args):
            if size(args) > limit:
                failures.append(function)
                raise torch.OutOfMemoryError("injected")
            return function(*args)

        return call

    monkeypatch.setattr(executor._capture, "run_layer", scarce(run_layer, lambda args: len(args[1])))
    monkeypatch.setattr(executor._capture, "head", scarce(head, lambda args: len(args[0])))
    block = executor.load(rows)
    assert len(block.parts) == len(rows) + 1
    torch.testing.assert_close(executor.target_logprobs(block, jobs), wanted, **TOLERANCE)
    assert {run_layer, head} <= set(failures)
    # It stays at the smaller size: no further failure.
    failures.clear()
    executor.target_logprobs(executor.load(rows), jobs)
    assert not failures


def test_out_of_memory_for_a_single_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = ChainExecutor(tiny_model("llama"))
    block = executor.load(random_rows(1))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(executor._capture, "run_layer", full)
    with pytest.raises(torch.OutOfMemoryError):
        executor.states(block, [Job(0, FULL)])
    monkeypatch.undo()
    # The failed run leaves nothing behind that would make the next one wrong.
    logits = executor.logits(block, [Job(0, FULL)])[0]
    torch.testing.assert_close(logits, view_logits(tiny_model("llama"), block.rows[0], FULL), **TOLERANCE)


def test_bad_jobs_and_training_mode_are_refused() -> None:
    model = tiny_model("llama")
    executor = ChainExecutor(model)
    block = executor.load(random_rows(1))
    with pytest.raises(ValueError, match="expected a row below 1, got 1"):
        executor.states(block, [Job(1, FULL)])
    with pytest.raises(ValueError, match="expected num_layers=5, got 6"):
        executor.states(block, [Job(0, Chain.full(6))])
    with pytest.raises(ValueError, match="expected evaluation mode"):
        ChainExecutor(model.train())
    with pytest.raises(ValueError, match="expected at least one token, got none"):
        pack_row([1], [[2], []])
    with pytest.raises(ValueError, match="positions: expected 2 entries, got 1"):
        Row((1, 2), (0,), (0, 0))


@pytest.mark.parametrize("variant", EACH, ids="-".join)
def test_the_model_is_left_alone_and_loading_rows_makes_no_logits(variant: tuple[str, str]) -> None:
    # Oracle: the calls of the output embedding, counted by a hook; the model's logits and states before and after.
    model = tiny_model(*variant)
    head, ids = model.get_output_embeddings(), torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    calls: list[int] = []
    handle = head.register_forward_hook(lambda *_: calls.append(1))
    executor = ChainExecutor(model)  # it tries the model, and would again after another hook
    calls.clear()
    block = executor.load([plain_row([5, 6, 7]), plain_row([8, 9])])
    handle.remove()
    assert not calls
    executor.logits(block, [Job(0, FULL.skip(2, 2)), Job(1, FULL)])
    assert model.get_output_embeddings() is head
    assert not head._forward_pre_hooks
    after = model(ids, output_hidden_states=True)
    assert torch.equal(after.logits, before)
    assert len(after.hidden_states) == NUM_LAYERS + 1
