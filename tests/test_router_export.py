"""A chain exported as a checkpoint: stock transformers loads it, and it is the chain to the bit, in every family."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AfmoeConfig,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BartConfig,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.utils.quantization_config import GgufConfig

from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.engine.view import chain_view
from router.fingerprint import model_fingerprint
from router.routed import RoutedModel
from router.routed.export import export_chain
from tests.test_router_vision import MODELS as IMAGE_MODELS
from tests.test_router_vision import inputs as image_inputs
from tests.tiny import NUM_LAYERS, VARIANTS, VOCABULARY, random_router, tiny_model, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)
CHAINS = {
    "full": FULL,
    "layer 0 skipped": FULL.skip(0, 1),
    "skip": FULL.skip(2, 2),
    "repeat": FULL.repeat(1, 2, 1),
    "reorder": FULL.move(0, 1, 3),
    "everything": Chain((4, 1, 1, 3, 2, 1), NUM_LAYERS),
}
_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
    "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_GROUPS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
INDEXED: dict[str, Callable[[], PreTrainedConfig]] = {
    # Layers differ by their number, in each family said in other words.
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SMALL, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=2),
    "smollm3": lambda: SmolLM3Config(**_SMALL, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=4),
    "deepseek_v3": lambda: DeepseekV3Config(**{**_SMALL, **_LATENT, **_GROUPS}, first_k_dense_replace=1),
    "afmoe": lambda: AfmoeConfig(**_SMALL, num_experts=4, num_experts_per_tok=2, num_dense_layers=1, sliding_window=4),
    "ernie": lambda: Ernie4_5_MoeConfig(**_SMALL, moe_num_experts=4, moe_k=2, moe_layer_start_index=1),
    "bart": lambda: BartConfig(
        vocab_size=VOCABULARY, d_model=32, decoder_layers=NUM_LAYERS, encoder_layers=NUM_LAYERS, decoder_ffn_dim=48,
        decoder_attention_heads=4, max_position_embeddings=512,
    ),
}  # fmt: skip


def batch() -> dict[str, Tensor]:
    """Return two rows longer than every sliding window of the tiny families, one padded on the left."""
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    ids[1, :6], mask[1, :6] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def load(folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> PreTrainedModel:
    """Load a checkpoint with stock transformers, its weights where torch would put new ones.

    Kernels round the last bit by where weights lie and by whether gradients are wanted; the tiny models' are new.
    """
    model = auto.from_pretrained(folder, **options).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def require_equal(loaded: PreTrainedModel, view: PreTrainedModel) -> None:
    """Check that logits and a cached generation are equal."""
    given, read = batch(), batch()["attention_mask"].bool()
    assert torch.equal(loaded(**given).logits[read], view(**given).logits[read])
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    assert torch.equal(loaded.generate(**given, **options), view.generate(**given, **options))


@pytest.mark.parametrize(("family", "attention"), VARIANTS)
def test_every_chain_of_every_family_is_loaded_by_stock_transformers(
    tmp_path: Path, family: str, attention: str
) -> None:
    # Oracle: the chain view of the base model, whose own oracle is in test_router_view.py.
    model = tiny_model(family, attention)
    for name, chain in CHAINS.items():
        folder = export_chain(model, None, chain, tmp_path / name)
        loaded = load(folder, attn_implementation=attention)
        assert type(loaded) is type(model)
        assert AutoConfig.from_pretrained(folder).num_hidden_layers == chain.depth
        require_equal(loaded, chain_view(model, chain))
    assert model.config.num_hidden_layers == NUM_LAYERS
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(CHAINS)  # nothing is left beside them


@pytest.mark.parametrize("family", INDEXED)
def test_what_a_family_says_by_layer_number_follows_the_chain(tmp_path: Path, family: str) -> None:
    # Oracle: the chain view. Skipping layer 0 changes every number; chains that end with it cannot be said (below).
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(INDEXED[family]()).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, 0.2)
    for name, chain in CHAINS.items():
        if name != "reorder":
            require_equal(load(export_chain(model, None, chain, tmp_path / name)), chain_view(model, chain))


def test_no_package_of_ours_is_needed(tmp_path: Path) -> None:
    # Oracle: the chain view. Another process may round the last bit otherwise, so logits are compared to 1e-5.
    model, chain = tiny_model("qwen2"), CHAINS["everything"]
    export_chain(model, tiny_tokenizer(), chain, tmp_path / "chain")
    script = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('chain')\n"
        "ids = AutoTokenizer.from_pretrained('chain')('seven bees', return_tensors='pt').input_ids\n"
        "with torch.no_grad(): print(model(ids).logits[0].tolist())\n"
        "assert not {name.partition('.')[0] for name in sys.modules} & {'router', 'data', 'search', 'train', 'eval'}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = tiny_tokenizer()("seven bees", return_tensors="pt").input_ids
    wanted = chain_view(model, chain)(ids).logits[0]
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_repeated_layers_are_stored_one_by_one_and_tied_embeddings_once(tmp_path: Path, family: str) -> None:
    # Oracle: the base model's own tensors, by the layer's number. GPT-2 ties its embeddings, this Llama does not.
    model, chain = tiny_model(family), Chain((0, 1, 1, 1, 4, 0), NUM_LAYERS)
    folder = export_chain(model, None, chain, tmp_path / "chain")
    base, stored = model.state_dict(), load_file(folder / "model.safetensors")
    place = "model.layers" if family == "llama" else "transformer.h"
    for i, layer in enumerate(chain.layers):
        own = {name: one for name, one in base.items() if name.startswith(f"{place}.{layer}.")}
        assert own
        for name, tensor in own.items():
            assert torch.equal(stored.pop(name.replace(f"{place}.{layer}.", f"{place}.{i}.")), tensor)
    assert not [name for name in stored if name.startswith(place)]
    assert ("lm_head.weight" in stored) == (family == "llama")
    loaded = load(folder)
    layers = loaded.get_submodule(place)
    assert len({parameter.data_ptr() for layer in layers for parameter in layer.parameters()}) == sum(
        1 for layer in layers for _ in layer.parameters()
    )
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == (family == "gpt2")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_keep_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    # Oracle: the chain view in that dtype.
    config = tiny_model("gemma3").config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    folder = export_chain(model, None, CHAINS["repeat"], tmp_path / "chain")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {dtype}
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    require_equal(load(folder, dtype="auto"), chain_view(model, CHAINS["repeat"]))


@pytest.mark.parametrize("family", IMAGE_MODELS)
def test_an_image_text_model_keeps_its_eyes(tmp_path: Path, family: str) -> None:
    # Oracle: the chain view, on an image; another image gives other logits.
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(IMAGE_MODELS[family]()).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 0.2)
    given = image_inputs(model)
    for name in ("layer 0 skipped", "everything"):
        loaded = load(export_chain(model, None, CHAINS[name], tmp_path / name), AutoModelForImageTextToText)
        logits = loaded(**given).logits
        assert torch.equal(logits, chain_view(model, CHAINS[name])(**given).logits)
        assert not torch.equal(logits, loaded(**given | {"pixel_values": -given["pixel_values"]}).logits)


def test_a_routed_model_is_exported_as_its_base_model(tmp_path: Path) -> None:
    # Oracle: the chain view of the base model; the routed model would route instead of running the chain.
    model = tiny_model("llama")
    router = random_router(ChainScorer(model, tiny_tokenizer(), load_task("arc_easy")), 2)
    folder = export_chain(RoutedModel.join(model, router), None, CHAINS["skip"], tmp_path / "chain")
    assert not (folder / "router.safetensors").exists()
    require_equal(load(folder), chain_view(model, CHAINS["skip"]))


def test_the_base_model_is_left_as_it_was(tmp_path: Path) -> None:
    # Oracle: configuration and logits from before.
    model = tiny_model("qwen2")
    before, logits = json.dumps(model.config.to_dict(), default=str), model(**batch()).logits
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    export_chain(model, None, CHAINS["everything"], tmp_path / "chain")
    assert json.dumps(model.config.to_dict(), default=str) == before
    assert torch.equal(model(**batch()).logits, logits)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted


def test_what_lies_in_the_folder(tmp_path: Path) -> None:
    # Oracle: a hand-written list; tokenizer and generation settings as they were given.
    model, tokenizer = tiny_model("gemma2"), tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    model.generation_config.max_new_tokens = 7
    chain = CHAINS["everything"]
    folder = export_chain(model, tokenizer, chain, tmp_path / "chain", base_model="some/model", revision="abc")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "chain.json", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.max_new_tokens == 7
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded.chat_template, loaded("a bee")) == (tokenizer.chat_template, tokenizer("a bee"))
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert "is_local" not in (folder / "tokenizer_config.json").read_text()
    about = json.loads((folder / "chain.json").read_text())
    assert (about["chain"], about["layers"], about["depth"]) == ("4,1*2,3,2,1", [4, 1, 1, 3, 2, 1], 6)
    base = about["base_model"]
    assert (base["name"], base["revision"], base["num_layers"]) == ("some/model", "abc", NUM_LAYERS)
    assert base["fingerprint"] == model_fingerprint(model)
    card = (folder / "README.md").read_text()
    assert "base_model: some/model\n" in card.split("---")[1]
    assert "\n·3↷↷↷\n0\n" in card


def test_large_weights_come_in_several_files(tmp_path: Path) -> None:
    # Oracle: the chain view.
    model = tiny_model("llama")
    folder = export_chain(model, None, CHAINS["repeat"], tmp_path / "chain", max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    require_equal(load(folder), chain_view(model, CHAINS["repeat"]))


def test_an_unpacked_gguf_model_is_exported_without_its_marks(tmp_path: Path) -> None:
    # Oracle: the chain view; the marks are those that transformers 5.23 leaves on a model from a GGUF file.
    model = tiny_model("llama")
    model.config.quantization_config = GgufConfig(dequantize=True)
    model.is_quantized, model.quantization_method = True, "gguf"
    folder = export_chain(model, None, CHAINS["skip"], tmp_path / "chain")
    assert "quant" not in (folder / "config.json").read_text()
    require_equal(load(folder), chain_view(model, CHAINS["skip"]))
    assert model.config.quantization_config.dequantize
