"""A chain exported as a checkpoint: stock transformers loads it, it is the chain to the bit, or it is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AfmoeConfig,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BartConfig,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    GPT2Config,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
)
from transformers.utils.quantization_config import GgufConfig

from router.chain import Chain
from router.command import run_command
from router.engine.layer_config import chain_config
from router.engine.load import load_model
from router.engine.view import chain_view
from router.fingerprint import model_fingerprint
from router.routed import RoutedModel
from router.routed.commands import export as main
from router.routed.export import Exported, check_checkpoint, export_chain
from router.validation import InputError
from tests.conftest import Refusal
from tests.families import VOCABULARY, small_config
from tests.pictures import pictured_prompts
from tests.routed_folders import router_for, write_routed
from tests.tiny import EACH, NUM_LAYERS, edit_json, save_tiny, tiny_model, tiny_tokenizer

FULL = Chain.full(NUM_LAYERS)
CHAINS = {
    "full": FULL,
    "layer 0 skipped": FULL.skip(0, 1),
    "skip": FULL.skip(2, 2),
    "repeat": FULL.repeat(1, 2, 1),
    "reorder": FULL.move(0, 1, 3),
    "everything": Chain((4, 1, 1, 3, 2, 1), NUM_LAYERS),
}
INDEXED: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    # Layers differ by their number, in each family said in other words.
    "qwen3_moe": (Qwen3MoeConfig, {"decoder_sparse_step": 2}),
    "smollm3": (SmolLM3Config, {"no_rope_layer_interval": 2, "use_sliding_window": True}),
    "deepseek_v3": (DeepseekV3Config, {"num_key_value_heads": 4, "first_k_dense_replace": 1}),
    "afmoe": (AfmoeConfig, {"num_dense_layers": 1}),
    "ernie": (Ernie4_5_MoeConfig, {"moe_layer_start_index": 1}),
    "bart": (BartConfig, {"encoder_layers": NUM_LAYERS}),
}


def made_of(config: PreTrainedConfig, spread: float = 0.2) -> PreTrainedModel:
    """Return a model with random weights of that spread."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, spread)
    return model


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


@pytest.mark.parametrize("number", range(len(EACH)), ids=lambda number: "-".join(EACH[number]))
def test_chains_of_every_family_are_loaded_by_stock_transformers(tmp_path: Path, number: int) -> None:
    # Oracle: the chain view of the base model, whose own oracle is in test_router_view.py. Every family has the chain
    # that does everything at once, and one of the others in turn.
    family, attention = EACH[number]
    model = tiny_model(family, attention)
    read = batch()["attention_mask"].bool()
    before, logits = json.dumps(model.config.to_dict(), default=str), model(**batch()).logits[read]
    names = ["everything", [name for name in CHAINS if name != "everything"][number % (len(CHAINS) - 1)]]
    for name in names:
        folder = export_chain(model, None, CHAINS[name], tmp_path / name)
        loaded = load(folder, attn_implementation=attention)
        assert type(loaded) is type(model)
        assert AutoConfig.from_pretrained(folder).num_hidden_layers == CHAINS[name].depth
        require_equal(loaded, chain_view(model, CHAINS[name]))
    assert json.dumps(model.config.to_dict(), default=str) == before
    assert torch.equal(model(**batch()).logits[read], logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)  # nothing is left beside them


@pytest.mark.parametrize("family", [*INDEXED, "gpt_neox_japanese", "minimax"])
def test_what_a_family_says_by_layer_number_follows_the_chain(tmp_path: Path, family: str) -> None:
    # Oracle: the chain view. Skipping layer 0 changes every number; chains that end with it cannot be said (below). The
    # layers of the last two families keep their number, or the model's number of layers: that is no difference.
    model = made_of(small_config(*INDEXED[family])) if family in INDEXED else tiny_model(family)
    for name in ("layer 0 skipped", "repeat", "everything" if family in INDEXED else "skip"):
        require_equal(load(export_chain(model, None, CHAINS[name], tmp_path / name)), chain_view(model, CHAINS[name]))


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


@pytest.mark.parametrize("family", ["llava", "gemma3_vision"])
def test_an_image_text_model_keeps_its_eyes(tmp_path: Path, family: str) -> None:
    # Oracle: the chain view, on an image; another image gives other logits.
    model = tiny_model(family)
    given = pictured_prompts(model, family, (1,))
    for name in ("layer 0 skipped", "everything"):
        loaded = load(export_chain(model, None, CHAINS[name], tmp_path / name), AutoModelForImageTextToText)
        logits = loaded(**given).logits
        assert torch.equal(logits, chain_view(model, CHAINS[name])(**given).logits)
        assert not torch.equal(logits, loaded(**given | {"pixel_values": -given["pixel_values"]}).logits)


def test_a_routed_model_is_exported_as_its_base_model_and_large_weights_in_several_files(tmp_path: Path) -> None:
    # Oracle: the chain view of the base model; the routed model would route instead of running the chain.
    model = tiny_model("llama")
    routed = RoutedModel.join(model, router_for(model))
    folder = export_chain(routed, None, CHAINS["skip"], tmp_path / "chain", max_shard_size="100KB")
    assert not (folder / "router.safetensors").exists()
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    require_equal(load(folder), chain_view(model, CHAINS["skip"]))


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


def test_an_unpacked_gguf_model_is_exported_without_its_marks(tmp_path: Path) -> None:
    # Oracle: the chain view; the marks are those that transformers 5.23 leaves on a model from a GGUF file.
    model = tiny_model("llama")
    model.config.quantization_config = GgufConfig(dequantize=True)
    model.is_quantized, model.quantization_method = True, "gguf"
    folder = export_chain(model, None, CHAINS["skip"], tmp_path / "chain")
    assert "quant" not in (folder / "config.json").read_text()
    require_equal(load(folder), chain_view(model, CHAINS["skip"]))
    assert model.config.quantization_config.dequantize


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
    gpt2 = made_of(small_config(GPT2Config, {"scale_attn_by_inverse_layer_idx": True}), 0.5)
    line = refused(gpt2, SKIP, tmp_path / "chain")
    assert line.startswith("chain 0,2-4: expected a checkpoint equal to the chain, got a largest difference")
    assert float(line.split("largest difference of ")[1].split()[0]) > 0.01
    scaled = 8**-0.5
    assert f"(transformer.h.1.attn.scaling: {scaled / 3} in the chain, {scaled / 2} in the checkpoint)" in line
    export_chain(gpt2, None, FULL, tmp_path / "full")  # in their own places they are right


MOVED = FULL.move(0, 1, 3)


@pytest.mark.parametrize(
    ("kind", "settings", "chain", "wanted"),
    [
        (DeepseekV3Config, {"first_k_dense_replace": 2}, MOVED, r"layers 0\.\.1, which have no experts, before all"),
        (Ernie4_5_MoeConfig, {"moe_layer_start_index": 1}, MOVED, "all layers with experts in one block"),
        (RecurrentGemmaConfig, {}, FULL.skip(0, 1), "a family that lists its layer_types, got recurrent_gemma"),
    ],
)
def test_a_chain_that_a_configuration_cannot_say_is_refused(
    kind: type[PreTrainedConfig], settings: dict[str, Any], chain: Chain, wanted: str
) -> None:
    # Oracle: the families' rules: leading layers are counted, layers with experts are a range, kinds are a cycle.
    with pytest.raises(InputError, match=f"expected {wanted}"):
        chain_config(small_config(kind, settings), chain)


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
    return made_of(small_config(MistralConfig, {"sliding_window": WINDOW}), 0.02)


def saved(model: PreTrainedModel, chain: Chain, folder: Path) -> Exported:
    """Export a chain, and return what its check compares."""
    export_chain(model, None, chain, folder)
    written = chain_view(model, chain)
    written.config = chain_config(model.config, chain)
    return Exported(chain, chain_view(model, chain), written, "model.layers")


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
        lambda folder: edit_json(folder / "config.json", sliding_window=WINDOW - 1),
        "(sliding_window: 80 written, 79 loaded)",
    ),
    "another base of the rotations": (
        lambda folder: edit_json(
            folder / "config.json", rope_parameters={"rope_theta": 9999.0, "rope_type": "default"}
        ),
        "9999.0",
    ),
    "a layer less": (
        lambda folder: edit_json(folder / "config.json", num_hidden_layers=NUM_LAYERS - 2),
        "model.layers.3: MistralDecoderLayer in the chain, nothing in the checkpoint",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "also from a checkpoint"),
}


def test_the_check_sees_a_checkpoint_that_is_not_the_chain(tmp_path: Path, windowed: PreTrainedModel) -> None:
    # Oracle: one thing is changed on the disk after an export that passed; unchanged, it passes again.
    exported = saved(windowed, SKIP, tmp_path / "chain")
    verified = check_checkpoint(exported, AutoModelForCausalLM, tmp_path / "chain")
    assert verified["row_tokens"] == [64, 45, WINDOW + 8]
    for damage, (spoil, wanted) in DAMAGE.items():
        folder = shutil.copytree(tmp_path / "chain", tmp_path / damage)
        spoil(folder)
        with pytest.raises(InputError) as caught:
            check_checkpoint(exported, AutoModelForCausalLM, folder)
        line = str(caught.value)
        assert line.startswith("chain 0,2-4: expected "), damage
        assert wanted in line
        assert "\n" not in line


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


def test_a_folder_that_holds_something_is_left_alone_and_an_empty_one_is_filled(
    tmp_path: Path, model: PreTrainedModel
) -> None:
    # Oracle: what lay there before.
    file, link, full, empty = (tmp_path / name for name in ("file", "link", "full", "empty"))
    file.write_text("mine")
    link.symlink_to(tmp_path / "elsewhere")
    full.mkdir()
    (full / "mine").write_text("mine")
    for folder in (file, link, full):
        line = refused(model, SKIP, folder)
        assert line.startswith("out: expected a folder that is absent or empty, got ")
    assert link.is_symlink()
    assert file.read_text() == (full / "mine").read_text() == "mine"
    empty.mkdir()
    assert AutoModelForCausalLM.from_pretrained(export_chain(model, None, SKIP, empty))


def test_an_export_that_is_stopped_in_its_check_leaves_nothing(tmp_path: Path, model: PreTrainedModel) -> None:
    # Oracle: the folder's parent before. The check runs the base model's own modules, so a hook there stops it.
    def stop(module: nn.Module, given: object) -> None:
        if list(tmp_path.glob(".chain.*.partial/model.safetensors")):  # it is written by now
            raise KeyboardInterrupt

    hook = model.model.layers[2].mlp.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        export_chain(model, None, SKIP, tmp_path / "chain")
    assert not list(tmp_path.iterdir())
    hook.remove()
    export_chain(model, None, SKIP, tmp_path / "chain")


def test_a_killed_export_leaves_no_folder_of_its_name(tmp_path: Path) -> None:
    # Oracle: the folder is absent after SIGKILL in the check, and the next export is as whole as any.
    model = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of other tests' libraries do nothing that matters here
        child = os.fork()
    if child == 0:
        try:
            model.model.layers[2].mlp.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            export_chain(model, None, FULL, tmp_path / "chain")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    folder = export_chain(model, tiny_tokenizer(), FULL, tmp_path / "chain")
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == NUM_LAYERS


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in `model/`, a router for it in `router/`, and a chain in `static.json`."""
    tmp_path = tmp_path_factory.mktemp("export")
    write_routed(tmp_path)
    (tmp_path / "static.json").write_text(json.dumps({"chain": [0, 1, 3, 4, 4], "depth": 5}))
    return tmp_path


def export(*words: str) -> int:
    return run_command(lambda argv: main(list(argv or ())), words)


def test_a_chain_of_a_named_model(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the chain view of the base model; the lines that are printed.
    out = tmp_path / "runs" / "short"  # the folder above is made as well
    assert export(f"--model={project / 'model'}", "--chain=0-1,3*2", f"--out={out}") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "chain 0-1,3*2: 4 layers in place of 5, float32"
    assert f"written to {out}" in printed
    assert printed[-1] == f'load it: transformers.AutoModelForCausalLM.from_pretrained("{out}", dtype="float32")'
    model, tokenizer = load_model(str(project / "model"), device="cpu")
    ids = AutoTokenizer.from_pretrained(out)("a fox", return_tensors="pt").input_ids
    assert ids.tolist() == tokenizer("a fox", return_tensors="pt").input_ids.tolist()
    wanted = chain_view(model, Chain((0, 1, 3, 3), NUM_LAYERS))(ids).logits
    loaded = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(loaded(ids).logits.detach(), wanted, rtol=0, atol=1e-5)


def test_a_routers_base_model_under_the_chain_of_an_evaluation(project: Path, tmp_path: Path) -> None:
    # Oracle: what the router's config and static.json say.
    static = project / "static.json"
    assert export(f"--router={project / 'router'}", f"--static={static}", f"--out={tmp_path / 'out'}") == 0
    about = json.loads((tmp_path / "out" / "chain.json").read_text())
    assert (about["layers"], about["dtype"]) == ([0, 1, 3, 4, 4], "float32")
    assert about["base_model"]["name"] == "model"  # of a local path the last part alone is told


def test_the_dtype_is_the_stored_one_or_the_given_one(project: Path, tmp_path: Path) -> None:
    # Oracle: the dtype of the base model's files, and of the word given.
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    for words, wanted in (((), "bfloat16"), (("--dtype=float16",), "float16")):
        out = tmp_path / wanted
        assert export(f"--model={tmp_path / 'half'}", "--chain=0,4", f"--out={out}", *words) == 0
        assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, wanted)


BAD: dict[str, tuple[list[str], str]] = {
    "no chain": (["--model=MODEL"], "chain: expected exactly one of chain and static"),
    "a chain that is none": (["--model=MODEL", "--chain=0-2;4"], "chain: expected items such as 4, 0-3 or 5*2"),
    "a layer too many": (["--model=MODEL", "--chain=0-5"], "chain 0-5: layers[5]: expected an integer in 0..4, got 5"),
    "an unknown dtype": (["--model=MODEL", "--chain=0", "--dtype=int8"], "dtype: expected one of float32, bfloat16"),
    "nobody's chain": (["--static=MODEL/config.json"], "static: expected the router or the model that the chain is of"),
    "another file": (
        ["--model=MODEL", "--static=MODEL/config.json"],
        "chain: expected a list of layer indices, got None",
    ),
    "no router": (["--router=MODEL", "--chain=0"], "expected a router's schema"),
    "a router for another model": (["--router=ROUTER", "--model=OTHER", "--chain=0"], "to be made for the model"),
    "a folder that holds something": (["--model=MODEL", "--chain=0", "--out=MODEL"], "out: expected a folder that is"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_line_and_status_2(project: Path, tmp_path: Path, refusal: Refusal, bad: str) -> None:
    # Oracle: the line of each refusal; no folder is made.
    given, wanted = BAD[bad]
    if bad == "a router for another model":
        save_tiny(tmp_path / "other", seed=1)
    for name, place in (("MODEL", project / "model"), ("ROUTER", project / "router"), ("OTHER", tmp_path / "other")):
        given = [word.replace(name, str(place)) for word in given]
    assert wanted in refusal(main, [f"--out={tmp_path / 'out'}", *given], alone=True)
    assert not (tmp_path / "out").exists()
