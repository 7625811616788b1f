"""Views that share one model: threads, accelerate's dispatch hooks, bfloat16."""

from __future__ import annotations

import threading

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules

from router.chain import Chain
from router.engine.executor import ChainExecutor, Job
from router.engine.rows import plain_row
from router.engine.view import chain_view
from tests.routed_folders import in_threads
from tests.tiny import EACH, NUM_LAYERS, tiny_model

FULL = Chain.full(NUM_LAYERS)
CHAINS = (FULL, FULL.skip(2, 1), FULL.repeat(1, 2, 2), FULL.move(0, 1, 3))
OPTIONS = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


every_family = pytest.mark.parametrize("variant", EACH, ids="-".join)


def prompt() -> torch.Tensor:
    return torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(4))


@every_family
def test_two_chains_generate_in_two_threads(variant: tuple[str, str]) -> None:
    # Oracle: each chain alone.
    model, chains = tiny_model(*variant), CHAINS[1:3]
    alone = {chain: chain_view(model, chain).generate(prompt(), **OPTIONS) for chain in chains}
    found: dict[tuple[int, Chain], torch.Tensor] = {}
    start = threading.Barrier(2)

    def work(number: int) -> None:
        start.wait()
        for chain in chains[number:] + chains[:number]:
            found[number, chain] = chain_view(model, chain).generate(prompt(), **OPTIONS)

    in_threads(work)
    assert len(found) == 2 * len(chains)
    for (_, chain), text in found.items():
        assert torch.equal(text, alone[chain])


@every_family
def test_a_model_with_accelerates_hooks_runs_the_chain_and_not_itself(variant: tuple[str, str]) -> None:
    # Oracle: the same chains before the hooks were there; families are dispatched and offloaded in turns.
    model = tiny_model(*variant)
    views = {chain: chain_view(model, chain)(prompt()).logits for chain in CHAINS[2:]}
    if EACH.index(variant) % 2:
        dispatch_model(model, {"": "cpu"}, force_hooks=True)
    else:
        cpu_offload(model, torch.device("cpu"))
    for chain, logits in views.items():
        torch.testing.assert_close(chain_view(model, chain)(prompt()).logits, logits)
    executor = ChainExecutor(model)
    rows = [plain_row(row.tolist()) for row in prompt()]
    jobs = [Job(i, chain) for chain in views for i in range(2)]
    for job, logits in zip(jobs, executor.logits(executor.load(rows), jobs), strict=True):
        torch.testing.assert_close(logits, views[job.chain][job.row], rtol=0, atol=2e-5)
    remove_hook_from_submodules(model)


@every_family
def test_bfloat16_runs_the_same_chains_within_its_precision(variant: tuple[str, str]) -> None:
    # Oracle: the view in bfloat16 on each row alone; and float32 within bfloat16's rounding (8 bits of mantissa).
    model = tiny_model(*variant)
    single = {chain: chain_view(model, chain)(prompt()).logits for chain in CHAINS}
    half = model.to(torch.bfloat16)
    executor = ChainExecutor(half)
    rows = [plain_row(row.tolist()) for row in prompt()]
    jobs = [Job(i, chain) for chain in CHAINS for i in range(2)]
    for job, logits in zip(jobs, executor.logits(executor.load(rows), jobs), strict=True):
        assert logits.dtype == torch.bfloat16
        view = chain_view(half, job.chain)(prompt()[job.row : job.row + 1]).logits[0]
        scale = single[job.chain].abs().max().item()
        torch.testing.assert_close(logits.float(), view.float(), rtol=0, atol=0.05 * scale)
        error = (logits.float() - single[job.chain][job.row]).abs().mean().item()
        assert error < 0.05 * scale
