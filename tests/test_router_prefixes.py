"""Layers run on part of a row's tokens, against the same executor made to run whole layers, and against the view."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedModel

import router.engine.executor
from router.chain import Chain
from router.engine.block import StateNode
from router.engine.executor import ChainExecutor, Job
from router.engine.rows import (
    LEAST_SHARE,
    LEAST_TOKENS,
    Row,
    Target,
    pack_row,
    plain_row,
    separate_rows,
    shared_prefixes,
)
from router.engine.sharing import _lengths
from router.engine.view import chain_view
from tests.tiny import FAMILIES, NUM_LAYERS, VARIANTS, model, tiny_model, variant  # noqa: F401

TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
FULL = Chain.full(NUM_LAYERS)
CHAINS = (FULL, FULL.skip(2, 2), FULL.skip(4, 1), FULL.repeat(1, 1, 2), FULL.repeat(3, 2, 1), FULL.move(1, 2, 2))
EXAMPLES = [(11 * i) % 190 + 3 for i in range(22)]
"""Tokens that rows begin with; the families' sliding windows (4) are far shorter."""


def expected_support(variant: tuple[str, str]) -> list[bool]:
    """Attention layers, but for those with a bias or a mask by the key's place; a convolution has no keys."""
    config = FAMILIES[variant[0]].config()
    if variant in (("falcon_alibi", "eager"), ("gpt_neo", "eager")):
        return [False] * NUM_LAYERS
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * NUM_LAYERS
    return ["attention" in kind for kind in kinds]


def questions(count: int, *, packed: bool, start: list[int]) -> list[Row]:
    """Return rows of several lengths after the same tokens."""
    rng = random.Random(count)
    rows = []
    for i in range(count):
        prompt = [*start, *(rng.randint(3, 200) for _ in range(2 + 3 * i))]
        choices = [[rng.randint(3, 200) for _ in range(rng.randint(1, 3))] for _ in range(3)]
        rows += [pack_row(prompt, choices)] if packed else separate_rows(prompt, choices)[:2]
    return rows


def held(node: StateNode) -> int:
    """Return the bytes below a root."""
    return sum(child.nbytes + held(child) for child in node.children.values())


@pytest.fixture(scope="module")
def executor(model: PreTrainedModel) -> ChainExecutor:
    return ChainExecutor(model)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
def test_shared_tokens_run_once_and_change_nothing(
    variant: tuple[str, str], model: PreTrainedModel, executor: ChainExecutor, packed: bool
) -> None:
    # Oracle: the same executor with every row whole; two groups of rows that share, and one row that does not. How much
    # may be kept changes from variant to variant.
    if packed and not FAMILIES[variant[0]].packs:
        return
    rows = questions(3, packed=packed, start=EXAMPLES) + questions(2, packed=packed, start=[201, *EXAMPLES[:17]])
    rows.append(plain_row(range(40, 52), [Target(11, 7, 0)]))
    rng = random.Random(0)
    rounds = [[Job(rng.randrange(len(rows)), rng.choice(CHAINS)) for _ in range(9)] for _ in range(2)]
    block = executor.load(rows, share=False)
    wanted = [(executor.target_readings(block, jobs), executor.states(block, jobs)) for jobs in rounds]
    state_bytes = (0, 30_000, 2**30)[(VARIANTS.index(variant) + packed) % 3]
    shared = ChainExecutor(model, batch_tokens=60, state_bytes=state_bytes)
    block = shared.load(rows)
    assert len(block.parts) - len(rows) == (2 if shared.can_share else 0)
    for jobs, (readings, states) in zip(rounds, wanted, strict=True):
        torch.testing.assert_close(shared.target_readings(block, jobs), readings, **TOLERANCE)
        torch.testing.assert_close(shared.states(block, jobs), states, **TOLERANCE)
        assert shared.state_bytes_held <= state_bytes
        assert shared.state_bytes_held == sum(held(root) for root in block.roots)


def test_shared_tokens_equal_the_view(
    variant: tuple[str, str], model: PreTrainedModel, executor: ChainExecutor
) -> None:
    # Oracle: the chain view on each row alone; what is supported is what the layers are, by configuration.
    rows = questions(2, packed=False, start=EXAMPLES)
    block = executor.load(rows)
    assert executor.can_share == (len(block.parts) > len(rows)) == all(expected_support(variant))
    jobs = [Job(i, chain) for chain in CHAINS for i in range(len(rows))]
    for job, logits in zip(jobs, executor.logits(block, jobs), strict=True):
        view = chain_view(model, job.chain)(torch.tensor([rows[job.row].tokens])).logits[0]
        torch.testing.assert_close(logits, view, **TOLERANCE)


def test_shared_tokens_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Oracle: counting by hand: 22 shared tokens once a layer, and what follows them once a row and layer.
    rows = questions(4, packed=True, start=EXAMPLES)
    executor = ChainExecutor(tiny_model("llama"))
    block, step, ran = executor.load(rows), executor._step, []

    def counted(block, layer, batch):
        ran.extend(block.parts[one.part].length for one in batch)
        step(block, layer, batch)

    monkeypatch.setattr(executor, "_step", counted)
    executor.states(block, [Job(i, FULL) for i in range(4)])
    own = sum(len(row.tokens) - len(EXAMPLES) for row in rows)
    assert sum(ran) == NUM_LAYERS * (len(EXAMPLES) + own)


@pytest.mark.parametrize("manner", ["ignores the cache", "keeps a copy", "refuses it"])
def test_a_layer_that_uses_its_cache_otherwise_runs_whole(monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    # Oracle: layer 2's attention does not go on with what the cache returns; the view knows nothing of it.
    model = tiny_model("llama")
    rows = questions(2, packed=False, start=EXAMPLES)
    jobs = [Job(i, chain) for chain in CHAINS for i in range(len(rows))]
    plain = ChainExecutor(model)
    wanted = plain.target_logprobs(plain.load(rows, share=False), jobs)
    attention = model.model.layers[2].self_attn
    forward = attention.forward

    def other(*args, past_key_values=None, cache=None, **kwargs):
        cache = cache if past_key_values is None else past_key_values  # the name is another since transformers 5.24
        if manner == "keeps a copy" and cache is not None:
            cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 2)
        if manner == "refuses it" and cache is not None:
            raise TypeError("no such cache")
        return forward(*args, **kwargs)

    attention.forward = other
    monkeypatch.setattr(router.engine.executor, "require_chains", lambda *_: None)  # a trial would refuse it
    executor = ChainExecutor(model)
    assert not executor.can_share
    torch.testing.assert_close(executor.target_logprobs(executor.load(rows), jobs), wanted, **TOLERANCE)


@given(st.data())
def test_shared_prefixes_are_those_found_by_trying(data: st.DataObject) -> None:
    # Oracle: the properties that define them, tried on every group.
    starts = [tuple(range(LEAST_TOKENS + extra)) for extra in (-1, 0, 5)]
    ends = st.lists(st.integers(0, 2), min_size=1, max_size=6)
    texts = data.draw(st.lists(st.tuples(st.sampled_from(starts), ends), min_size=1, max_size=6))
    rows = []
    for start, end in texts:
        tokens = (*start, *end)
        rows.append(plain_row(tokens, [Target(data.draw(st.integers(LEAST_TOKENS - 2, len(tokens) - 1)), 0, 0)]))
    for group in shared_prefixes(rows):
        members = [rows[i] for i in group.rows]
        assert len(members) > 1
        assert group.length >= LEAST_TOKENS
        assert group.length >= LEAST_SHARE * sum(len(row.tokens) for row in members) / len(members)
        assert len({row.tokens[: group.length] for row in members}) == 1
        assert all(group.length <= row.readout[0] and group.length < len(row.tokens) for row in members)
        longer = group.length + 1
        assert len({row.tokens[:longer] for row in members}) > 1 or any(longer > row.readout[0] for row in members)


def test_packed_choices_and_odd_positions_are_not_shared() -> None:
    # Oracle: only plain prompt tokens at their own positions can be shared; nothing is read from them.
    tokens = tuple(range(3, 30))
    odd = Row(tokens, (1, *range(1, 27)), (0,) * 27)
    short = pack_row(tokens[:10], [tokens[10:20], tokens[20:]])
    read = plain_row(tokens, [Target(4, 1, 0)])
    for row in (odd, short, read):
        assert shared_prefixes([row, row]) == []
    assert [(one.rows, one.length) for one in shared_prefixes([plain_row(tokens), odd, plain_row(tokens)])] == [
        ((0, 2), 26)
    ]


def test_layers_with_masks_of_their_own_run_whole() -> None:
    # Oracle: the chain view. GPT-Neo cuts its masks by places among the keys, as if the queries were the last tokens;
    # on rows shorter than its window nothing of that shows.
    config = GPTNeoConfig(
        vocab_size=211, hidden_size=32, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]],
        window_size=32, max_position_embeddings=128, intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    rng = random.Random(0)
    start = [rng.randint(3, 200) for _ in range(60)]
    rows = [plain_row([*start, *(rng.randint(3, 200) for _ in range(30))]) for _ in range(2)]
    full = Chain.full(4)
    jobs = [Job(i, chain) for chain in (full, full.skip(2, 1), full.repeat(1, 1, 1)) for i in range(2)]
    executor = ChainExecutor(model)
    assert not executor.can_share
    for job, logits in zip(jobs, executor.logits(executor.load(rows), jobs), strict=True):
        view = chain_view(model, job.chain)(torch.tensor([rows[job.row].tokens])).logits[0]
        torch.testing.assert_close(logits, view, rtol=0, atol=1e-3)


def test_a_window_too_long_to_be_tried_bounds_the_rows() -> None:
    # Oracle: by hand; 1,100 tokens are tried at most.
    assert _lengths([]) == (9, None)
    assert _lengths([32, 512]) == (520, None)
    assert _lengths([32, 4096, 2048]) == (40, 2048)


def test_rows_that_share_little_do_not_undo_what_others_share() -> None:
    # Oracle: by hand. Two tasks behind one preamble of 20 tokens, 8 rows each; the first shares 420 tokens, the second
    # 60; one short row has the preamble alone.
    rng = random.Random(0)

    def made(*parts: list[int]) -> Row:
        return plain_row([token for part in parts for token in part])

    preamble, first, second = ([rng.randint(3, 200) for _ in range(size)] for size in (20, 400, 40))
    ends = [[201 + i, 5, 6 + i] for i in range(8)]
    rows = [made(preamble, first, end) for end in ends] + [made(preamble, second, end) for end in ends]
    rows.append(made(preamble, [4, 4]))
    found = {group.rows: group.length for group in shared_prefixes(rows)}
    assert found == {tuple(range(8)): 420, tuple(range(8, 16)): 60}
