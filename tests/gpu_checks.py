"""The invariants of views and executor on an accelerator: `make test-gpu`. Not part of `make test`.

Tolerances, on logits: float32 with TF32 off 1e-3 of the largest logit; bfloat16 5 % of the largest logit (8 bits of
mantissa through five layers). COLA_ROUTER_TEST_DEVICE names another device than cuda.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from data.scoring import ChainScorer
from data.tasks import TaskSet, load_task
from eval.__main__ import main as evaluate
from eval.latency import main as latency
from eval.results import RESULTS_FILE, read_results
from router.chain import Chain
from router.engine.executor import ChainExecutor, Job
from router.engine.rows import pack_row, plain_row, separate_rows
from router.engine.view import chain_view
from router.files import read_json
from router.routed import RoutedModel
from tests.evaluation import make_samples, prepared
from tests.routed_folders import GREEDY, prompts, router_for
from tests.serving import chat_tokenizer, running
from tests.tiny import FAMILIES, NUM_LAYERS, VARIANTS, save_tiny, tiny_model, tiny_samples, tiny_tokenizer

DEVICE = os.environ.get("COLA_ROUTER_TEST_DEVICE", "cuda")
FULL = Chain.full(NUM_LAYERS)
CHAINS = (FULL, FULL.skip(0, 1), FULL.skip(2, 2), FULL.repeat(2, 1, 1), FULL.repeat(1, 3, 2), FULL.move(0, 2, 3))
SHARE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(params=SHARE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=VARIANTS, ids="-".join)
def variant(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def model(variant: tuple[str, str], dtype: torch.dtype) -> PreTrainedModel:
    return tiny_model(*variant).to(DEVICE, dtype)


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    share = SHARE[wanted.dtype] if wanted.dtype in SHARE else SHARE[torch.float32]
    torch.testing.assert_close(got, wanted, rtol=0, atol=share * wanted.abs().max().item())


def tokens() -> torch.Tensor:
    return torch.randint(3, 200, (3, 11), generator=torch.Generator().manual_seed(1)).to(DEVICE)


def test_the_full_chain_is_the_stock_model(model: PreTrainedModel) -> None:
    assert torch.equal(chain_view(model, FULL)(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_cached_generation_equals_uncached(model: PreTrainedModel, dtype: torch.dtype, chain: Chain) -> None:
    # In bfloat16 a tie between two tokens may fall differently, so there the first token is compared only.
    count = 12 if dtype == torch.float32 else 1
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
    prompt, mask = tokens(), torch.ones(3, 11, dtype=torch.long, device=DEVICE)
    prompt[1, :4], mask[1, :4] = 0, 0
    view = chain_view(model, chain)
    cached = view.generate(prompt, attention_mask=mask, **options)
    assert torch.equal(cached, view.generate(prompt, attention_mask=mask, use_cache=False, **options))
    alone = view.generate(prompt[1:2, 4:], attention_mask=mask[1:2, 4:], **options)
    if dtype == torch.float32:
        assert torch.equal(cached[1, 4:], alone[0])


def test_the_executor_equals_the_view(model: PreTrainedModel) -> None:
    rows = [plain_row(row[: 11 - 3 * i].tolist()) for i, row in enumerate(tokens())]
    executor = ChainExecutor(model)
    jobs = [Job(i, chain) for chain in CHAINS for i in range(3)]
    for job, logits in zip(jobs, executor.logits(executor.load(rows), jobs), strict=True):
        close(logits, chain_view(model, job.chain)(torch.tensor([rows[job.row].tokens], device=DEVICE)).logits[0])


def test_packed_rows_equal_separate_ones(variant: tuple[str, str], model: PreTrainedModel) -> None:
    executor = ChainExecutor(model)
    assert executor.can_pack == FAMILIES[variant[0]].packs
    if not executor.can_pack:
        return
    prompt, continuations = [7, 8, 9, 10, 11, 12], [[20, 21, 22, 23, 24], [30], [40, 41]]
    packed = executor.target_logprobs(executor.load([pack_row(prompt, continuations)]), [Job(0, c) for c in CHAINS])
    block = executor.load(separate_rows(prompt, continuations))
    for chain, together in zip(CHAINS, packed, strict=True):
        apart = torch.cat(executor.target_logprobs(block, [Job(i, chain) for i in range(3)]))
        share = SHARE[model.dtype]
        torch.testing.assert_close(together, apart, rtol=0, atol=share * apart.abs().max().item())


def test_samples_score_alike_packed_and_separate(model: PreTrainedModel) -> None:
    results = []
    for packed in (True, False):
        scorer = ChainScorer(model, tiny_tokenizer(), load_task("arc_easy"), packed=packed)
        block = scorer.load([scorer.encode(sample) for sample in tiny_samples("test", 4)])
        results.append(scorer.score(block, [(i, chain) for chain in CHAINS for i in range(4)]))
    for one, other in zip(*results, strict=True):
        scale = max(map(abs, other.scores))
        assert one.scores == pytest.approx(other.scores, abs=SHARE[model.dtype] * scale)


if is_flash_attn_2_available():

    @pytest.mark.parametrize("chain", CHAINS, ids=str)
    def test_flash_attention_runs_chains_as_sdpa_does(chain: Chain) -> None:
        models = [
            AutoModelForCausalLM.from_config(FAMILIES["llama"].config(), attn_implementation=name, dtype=torch.bfloat16)
            for name in ("sdpa", "flash_attention_2")
        ]
        models[1].load_state_dict(models[0].state_dict())
        first, second = (chain_view(model.to(DEVICE).eval(), chain)(tokens()).logits for model in models)
        close(second, first)


def test_a_small_evaluation_with_latency(tmp_path: Path) -> None:
    """Every arm, the controls and the page on the device; the same answers as on the CPU but for ties."""
    save_tiny(tmp_path / "model")
    world = prepared(tmp_path, TaskSet.of(load_task("arc_easy")), make_samples())
    answers = {}
    for device in (DEVICE, "cpu"):
        out = tmp_path / device.replace(":", "-")
        evaluate(world.arguments(device=device, out=out))
        answers[device] = {(r.arm, r.sample_id): r.prediction for r in read_results(out / RESULTS_FILE, NUM_LAYERS)}
        assert (out / "report.html").exists()
        flags = [f"--evaluation={out}", f"--router={tmp_path / 'router'}", f"--device={device}", "--rounds=3"]
        latency(flags)
        cell = read_json(out / "latency.json")["cells"][0]
        assert (cell["peak_bytes"] is not None) == device.startswith("cuda")
        assert min(arm["prefill_ms"]["median"] for arm in cell["arms"]) > 0
    assert answers[DEVICE] == answers["cpu"]


def test_a_routed_model_generates_what_its_views_do(variant: tuple[str, str]) -> None:
    # Oracle: the view of each row's chain, the row alone; float32, so that no greedy choice is a near tie.
    model = tiny_model(*variant)
    router = router_for(model)
    routed = RoutedModel.join(model.to(DEVICE), router, tokenizer=tiny_tokenizer(), budget=4.0)
    ids, mask = (tensor.to(DEVICE) for tensor in prompts())
    got = routed.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for row, one in enumerate(routed.route(ids, mask)):
        own = ids[row][mask[row].bool()][None]
        alone = chain_view(model, one.chain).generate(input_ids=own, attention_mask=torch.ones_like(own), **GREEDY)
        assert torch.equal(got[row][mask[row].logical_not().sum() :], alone[0])
    scored = routed.score("Which of these?", [" A", " the moon"])
    on_cpu = RoutedModel.join(tiny_model(*variant), router, tokenizer=tiny_tokenizer(), budget=4.0)
    wanted = on_cpu.score("Which of these?", [" A", " the moon"])
    assert scored.routed.chain == wanted.routed.chain
    close(torch.tensor(scored.logprobs), torch.tensor(wanted.logprobs))


def test_a_server_answers_from_the_device() -> None:
    # Oracle: the prompt alone on the CPU, without cache and batch; drawn and greedy.
    model = tiny_model("llama")
    router = router_for(model)
    routed = RoutedModel.join(model.to(DEVICE), router, tokenizer=chat_tokenizer(), budget=4.0)
    with running(routed) as server:
        server.check_answers()
        for seed in range(4):
            answer = server.post(prompt="Which?", max_tokens=12, temperature=1, top_p=0.9, seed=seed).json()
            alone = server.oracle.alone(server.oracle.tokens("Which?"), 12, temperature=1.0, top_p=0.9, seed=seed)
            assert answer["choices"][0]["text"] == alone.text
