"""What is not exported: chains that a family cannot say, checkpoints that differ, and what stops in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)

from router.chain import Chain
from router.engine.layer_config import chain_config
from router.engine.view import chain_view
from router.routed.export import Exported, check_checkpoint, export_chain
from router.validation import InputError
from tests.tiny import NUM_LAYERS, VOCABULARY, tiny_model, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)
SKIP = FULL.skip(1, 1)
WINDOW = 80


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama")


def refused(model: PreTrainedModel, chain: Chain, folder: Path) -> str:
    """Return the one line with which an export is refused; nothing may be left of it."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(InputError) as caught:
        export_chain(model, None, chain, folder)
    assert sorted(folder.parent.iterdir()) == before
    return str(caught.value)


def test_a_family_whose_layers_scale_by_their_number_is_refused(tmp_path: Path) -> None:
    # Oracle: GPT-2's own rule, 1 / sqrt(width) / (number + 1): layer 2 keeps a third in the view, and would get a half.
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=NUM_LAYERS, n_head=4, n_positions=512,
        scale_attn_by_inverse_layer_idx=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(config).eval()
    for parameter in gpt2.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.5)
    line = refused(gpt2, SKIP, tmp_path / "chain")
    assert line.startswith("chain 0,2-4: expected a checkpoint equal to the chain, got a largest difference")
    assert float(line.split("largest difference of ")[1].split()[0]) > 0.01
    scaled = 8**-0.5
    assert f"(transformer.h.1.attn.scaling: {scaled / 3} in the chain, {scaled / 2} in the checkpoint)" in line
    export_chain(gpt2, None, FULL, tmp_path / "full")  # in their own places they are right


_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": NUM_LAYERS}
WORDLESS: dict[str, tuple[Callable[[], PreTrainedConfig], Chain, str]] = {
    "deepseek_v3": (
        lambda: DeepseekV3Config(**_SMALL, first_k_dense_replace=2),
        FULL.move(0, 1, 3),
        "expected layers 0..1, which have no experts, before all others",
    ),
    "ernie": (
        lambda: Ernie4_5_MoeConfig(**_SMALL, moe_layer_start_index=1),
        FULL.move(0, 1, 3),
        "expected all layers with experts in one block",
    ),
    "recurrent_gemma": (
        lambda: RecurrentGemmaConfig(**_SMALL),
        FULL.skip(0, 1),
        "expected a family that lists its layer_types, got recurrent_gemma",
    ),
}


@pytest.mark.parametrize("family", WORDLESS)
def test_a_chain_that_a_configuration_cannot_say_is_refused(family: str) -> None:
    # Oracle: the families' rules: leading layers are counted, layers with experts are a range, kinds are a cycle.
    make, chain, wanted = WORDLESS[family]
    with pytest.raises(InputError, match=wanted):
        chain_config(make(), chain)


def test_a_configuration_is_copied_and_counted_anew() -> None:
    # Oracle: worked out by hand from the rules of Qwen: windows from layer 2 on, every other layer with experts.
    config = tiny_model("qwen2").config
    kinds = {True: "sliding_attention", False: "full_attention"}
    for chain, windows, first in (
        (FULL.skip(0, 1), [False, True, True, True], 1),
        (FULL.repeat(1, 1, 1), [False, False, False, True, True, True], 3),
        (Chain((0, 4, 1), NUM_LAYERS), [False, True, False], 2),  # no number says it: the old one stays
    ):
        edited = chain_config(config, chain)
        assert edited.layer_types == [kinds[one] for one in windows]
        assert (edited.num_hidden_layers, edited.max_window_layers) == (chain.depth, first)
    assert (config.num_hidden_layers, config.max_window_layers) == (NUM_LAYERS, 2)


@pytest.fixture
def windowed() -> PreTrainedModel:
    """A model whose window (80 tokens) is longer than most rows of the check."""
    config = MistralConfig(
        **_SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=WINDOW,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def saved(model: PreTrainedModel, chain: Chain, folder: Path) -> Exported:
    """Export a chain, and return what its check compares."""
    export_chain(model, None, chain, folder)
    written = chain_view(model, chain, fresh=True)
    written.config = chain_config(model.config, chain)
    return Exported(chain, chain_view(model, chain), written, "model.layers")


def edit_config(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NAME = "model.layers.1.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "one weight": (
        lambda folder: edit_weights(folder, lambda weights: weights[NAME][0, :1].mul_(1 + 2**-20)),
        f"{NAME}: other values in the checkpoint",
    ),
    "a tensor is missing": (
        lambda folder: edit_weights(folder, lambda weights: weights.pop(NAME)),
        f"{NAME}: other values in the checkpoint",
    ),
    "a narrower window": (
        lambda folder: edit_config(folder, sliding_window=WINDOW - 1),
        "(sliding_window: 80 written, 79 loaded)",
    ),
    "another base of the rotations": (
        lambda folder: edit_config(folder, rope_parameters={"rope_theta": 9999.0, "rope_type": "default"}),
        "9999.0",
    ),
    "a layer less": (
        lambda folder: edit_config(folder, num_hidden_layers=NUM_LAYERS - 2),
        "model.layers.3: MistralDecoderLayer in the chain, nothing in the checkpoint",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "also from a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_check_sees_a_checkpoint_that_is_not_the_chain(
    tmp_path: Path, windowed: PreTrainedModel, damage: str
) -> None:
    # Oracle: one thing is changed on the disk after an export that passed; the first line checks it unchanged.
    spoil, wanted = DAMAGE[damage]
    exported = saved(windowed, SKIP, tmp_path / "chain")
    verified = check_checkpoint(exported, AutoModelForCausalLM, tmp_path / "chain")
    assert verified["row_tokens"] == [64, 45, WINDOW + 8]
    spoil(tmp_path / "chain")
    with pytest.raises(InputError) as caught:
        check_checkpoint(exported, AutoModelForCausalLM, tmp_path / "chain")
    assert str(caught.value).startswith("chain 0,2-4: expected ")
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


class OwnLlama(LlamaForCausalLM):
    """A class that no configuration names."""


def test_a_model_that_cannot_be_written_as_it_is_is_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    # Oracle: the words of each refusal.
    folder = tmp_path / "chain"
    assert "AutoModelForCausalLM" in refused(OwnLlama(model.config).eval(), SKIP, folder)
    assert "evaluation mode" in refused(tiny_model("llama").train(), SKIP, folder)
    assert "num_layers=5" in refused(model, Chain.full(4), folder)
    assert "attention layer" in refused(tiny_model("lfm2"), Chain((0, 2), NUM_LAYERS), folder)
    assert "got torch.float64" in refused(tiny_model("llama").double(), SKIP, folder)
    quantised = tiny_model("llama")
    quantised.config.quantization_config = {"quant_method": "fp8"}
    assert "got quantisation by fp8" in refused(quantised, SKIP, folder)
    split = tiny_model("llama")
    split.model.layers[3].to("meta")
    assert "on one device, got cpu, meta" in refused(split, SKIP, folder)


@pytest.mark.parametrize("kind", ["file", "full folder", "link"])
def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, model: PreTrainedModel, kind: str) -> None:
    # Oracle: what lay there before.
    folder = tmp_path / "chain"
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        (folder / "mine").write_text("mine")
    line = refused(model, SKIP, folder)
    assert line.startswith("out: expected a folder that is absent or empty, got ")
    assert folder.is_symlink() or (folder if kind == "file" else folder / "mine").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path, model: PreTrainedModel) -> None:
    # Oracle: it loads.
    (tmp_path / "chain").mkdir()
    assert AutoModelForCausalLM.from_pretrained(export_chain(model, None, SKIP, tmp_path / "chain"))


def test_an_export_that_is_stopped_in_its_check_leaves_nothing(tmp_path: Path, model: PreTrainedModel) -> None:
    # Oracle: the folder's parent before. The check runs the base model's own modules, so a hook there stops it.
    def stop(module: nn.Module, given: object) -> None:
        assert list(tmp_path.glob(".chain.*.partial/model.safetensors"))  # it is written by now
        raise KeyboardInterrupt

    hook = model.model.layers[2].mlp.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        export_chain(model, None, SKIP, tmp_path / "chain")
    assert not list(tmp_path.iterdir())
    hook.remove()
    export_chain(model, None, SKIP, tmp_path / "chain")


def test_a_killed_export_leaves_no_folder_of_its_name(tmp_path: Path) -> None:
    # Oracle: the folder is absent after SIGKILL in the check, and the next export is as whole as any.
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom router.chain import Chain\n"
        "from router.routed.export import export_chain\nfrom tests.tiny import tiny_model\n"
        "model = tiny_model('llama')\n"
        "kill = lambda module, given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "model.model.layers[2].mlp.register_forward_pre_hook(kill)\n"
        "export_chain(model, None, Chain.full(5), Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "chain")], cwd=os.getcwd(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    folder = export_chain(tiny_model("llama"), tiny_tokenizer(), FULL, tmp_path / "chain")
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == NUM_LAYERS
