"""Tiny random models of several families and a tiny tokenizer, built from configurations, nothing downloaded."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteSWAConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from data.sample import Sample, write_samples
from data.scoring import ChainScorer
from data.tasks import TaskSet, load_task, write_tasks
from router.storage import Router, RouterConfig

NUM_LAYERS = 5
VOCABULARY = 300
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """An architecture, small and random.

    Attributes:
        config: makes its configuration.
        attentions: attention implementations that the library offers for it.
        packs: whether several choices can share a row: false with ALiBi (a bias by place in the row) and with layers
            that mix neighbouring tokens without a mask (convolutions).
        note: what is special about the configuration, for the README's table.
    """

    config: Callable[[], PreTrainedConfig]
    attentions: tuple[str, ...] = ("sdpa", "eager")
    packs: bool = True
    note: str = ""


# A family is one line here. The sliding windows (4 tokens) are shorter than every prompt of the tests.
_WIDTH = {name: _COMMON[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
_IDS = {name: _COMMON[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, Family] = {
    "llama": Family(lambda: LlamaConfig(**_COMMON)),
    "mistral": Family(lambda: MistralConfig(**_COMMON, sliding_window=4), note=" (sliding window)"),
    "qwen2": Family(
        lambda: Qwen2Config(**_COMMON, use_sliding_window=True, sliding_window=4, max_window_layers=2),
        note=" (sliding window in some layers)",
    ),
    "qwen3": Family(lambda: Qwen3Config(**_COMMON)),
    "gemma2": Family(
        lambda: Gemma2Config(**_COMMON, sliding_window=4, layer_types=_ALTERNATING, query_pre_attn_scalar=8),
        attentions=("eager",),
        note=" (sliding window in some layers)",
    ),
    "gemma3": Family(
        lambda: Gemma3TextConfig(**_COMMON, sliding_window=4, layer_types=_ALTERNATING),
        note=" (sliding window in some layers)",
    ),
    "phi3": Family(
        lambda: Phi3Config(**{**_COMMON, "num_key_value_heads": 4}, sliding_window=4), note=" (sliding window)"
    ),
    "olmo2": Family(lambda: Olmo2Config(**_COMMON)),
    "olmoe": Family(lambda: OlmoeConfig(**_COMMON, **_EXPERTS), note=" (mixture of experts)"),
    "qwen2_moe": Family(
        lambda: Qwen2MoeConfig(**_COMMON, **_EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=16),
        note=" (mixture of experts)",
    ),
    "gpt2": Family(
        lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=NUM_LAYERS, n_head=4, n_positions=512, **_IDS)
    ),
    "gpt_neo": Family(
        lambda: GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=NUM_LAYERS,
            num_heads=4,
            intermediate_size=48,
            attention_types=[[["global", "local"], 2], [["global"], 1]],
            window_size=4,
            max_position_embeddings=512,
            **_IDS,
        ),
        attentions=("eager",),
        packs=False,
        note=" (sliding window in some layers)",
    ),
    "gpt_neox": Family(lambda: GPTNeoXConfig(**_WIDTH, intermediate_size=48, max_position_embeddings=512, **_IDS)),
    "opt": Family(lambda: OPTConfig(**_WIDTH, ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=512, **_IDS)),
    "granite_swa": Family(
        lambda: GraniteSWAConfig(
            **_COMMON, sliding_window=4, layer_types=_ALTERNATING, layer_rope_theta=[1e4, 1e2, 1e3, 0, 50.0]
        ),
        attentions=("eager",),
        note=" (sliding window and rotary base by layer)",
    ),
    "falcon": Family(lambda: FalconConfig(**_WIDTH, alibi=False, **_IDS)),
    "falcon_alibi": Family(
        lambda: FalconConfig(**_WIDTH, alibi=True, multi_query=False, **_IDS), packs=False, note=" (ALiBi)"
    ),
    "lfm2": Family(
        lambda: Lfm2Config(**_COMMON, layer_types=["conv", "full_attention", "conv", "full_attention", "conv"]),
        packs=False,
        note=" (convolutions and attention)",
    ),
}
VARIANTS = [(name, attention) for name, family in FAMILIES.items() for attention in family.attentions]
EACH = [(name, family.attentions[i % len(family.attentions)]) for i, (name, family) in enumerate(FAMILIES.items())]
"""Every family once, its attentions in turn: for what does not hang on how attention is computed."""


def tiny_model(family: str, attention: str | None = None, seed: int = 0) -> PreTrainedModel:
    """Return a random model of a family in float32; weights wide enough that predictions differ between chains."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        FAMILIES[family].config(), attn_implementation=attention or FAMILIES[family].attentions[0]
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2, generator=generator)
    return model.requires_grad_(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: three special tokens, one for each byte, one for each letter after a space.

    The last make letters single tokens, as in real vocabularies, so that mode "letter" runs plain rows.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "\u0120"  # how byte-level vocabularies write a space
    tokens = ["<pad>", "<s>", "</s>", *alphabet, *(space + letter for letter in ascii_uppercase)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(space, letter) for letter in ascii_uppercase]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_tiny(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as a directory that `from_pretrained` loads."""
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


_THINGS = ("rain", "iron", "a fox", "the moon", "salt water", "glass", "a river", "wood", "ice", "seven bees")


def tiny_samples(split: str, count: int) -> list[Sample]:
    """Return questions that no data set holds, 2 to 4 choices each."""
    rng = random.Random(split)
    samples = []
    for i in range(count):
        choices = rng.sample(_THINGS, rng.randint(2, 4))
        question = f"Which of these belongs to {split} number {i}, {rng.choice(_THINGS)} aside?"
        samples.append(Sample("arc_easy", split, question, tuple(choices), rng.randrange(len(choices))))
    return samples


def write_project(folder: Path, train: int = 8, validation: int = 4, test: int = 4) -> Path:
    """Write a tiny model and the splits' sample files: `model/` and `data/` in `folder`."""
    save_tiny(folder / "model")
    (folder / "data").mkdir()
    write_tasks(folder / "data", TaskSet.of(load_task("arc_easy")))
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        write_samples(folder / "data" / f"{split}.jsonl", tiny_samples(split, count))
    return folder


def random_router(scorer: ChainScorer, read_layer: int) -> Router:
    """Return an untrained router for a tiny model, its weights wide enough that chains of several depths come out."""
    torch.manual_seed(0)
    config = RouterConfig(
        head="layerwise",
        head_settings={"hidden": 8, "windows": 2, "dropout": 0.0},
        num_layers=NUM_LAYERS,
        read_layer=read_layer,
        d_model=scorer.d_model,
        task="arc_easy",
        mode="continuation",
        base_model="tiny",
        revision=None,
        dtype="float32",
        fingerprints=scorer.fingerprints,
    )
    head = config.build()
    for parameter in head.parameters():
        parameter.data.normal_(0, 1)
    return Router(config, head.eval())
