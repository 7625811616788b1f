"""Tiny random models of several families and a tiny tokenizer, built from configurations, nothing downloaded."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, cast

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data.sample import Sample, write_samples
from data.scoring import ChainScorer
from data.tasks import Task, TaskSet, load_task, write_tasks
from router.chain import Chain
from router.decision import Router, RouterConfig
from router.engine.copies import PLACES
from router.engine.load import load_model
from router.heads.head import pad_states
from tests.families import ALL, NUM_LAYERS, Family

FULL = Chain.full(NUM_LAYERS)
FAMILIES: dict[str, Family] = {name: family for name, family in ALL.items() if family.quick}
VARIANTS = [(name, attention) for name, family in FAMILIES.items() for attention in family.attentions]
EACH = [(name, family.attentions[i % len(family.attentions)]) for i, (name, family) in enumerate(FAMILIES.items())]
"""Every family once, its attentions in turn: for what does not hang on how attention is computed."""


def tiny_model(family: str, attention: str | None = None, seed: int = 0) -> PreTrainedModel:
    """Return a random model of a family in float32; weights wide enough that predictions differ between chains."""
    torch.manual_seed(seed)
    model = ALL[family].model(attention or ALL[family].attentions[0]).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2, generator=generator)
    return model.requires_grad_(False)


def held(model: PreTrainedModel) -> dict[str, object]:
    """Return all that a model holds, by name: settings; modules with mode, hooks and place; weights with identity."""
    found: dict[str, object] = {"config": repr(model.config), "generation": repr(model.generation_config)}
    for name, module in model.named_modules():
        own = vars(module)
        hooks, places = [len(own[key]) for key in own if "hooks" in key], [own.get(key) for key in PLACES]
        found[name] = (id(module), module.training, sorted(own), hooks, places)
    for name, tensor in model.state_dict(keep_vars=True).items():
        found[name] = (id(tensor), tensor.dtype, tensor.requires_grad, tensor.double().sum().item())
    return found


@pytest.fixture(params=VARIANTS, ids="-".join, scope="module")
def variant(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each family, under each attention."""
    return cast(tuple[str, str], request.param)


@pytest.fixture(scope="module")
def model(variant: tuple[str, str]) -> PreTrainedModel:
    return tiny_model(*variant)


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


def edit_json(path: Path, **changed: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


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


def scorer_of(project: Path, tasks: Task | TaskSet | None = None, **options: Any) -> ChainScorer:
    """Return a scorer of a project's model, on the CPU in float32, for some tasks; arc_easy unless others are given."""
    return ChainScorer(*load_model(str(project / "model"), device="cpu"), tasks or load_task("arc_easy"), **options)


def random_router(scorer: ChainScorer, read_layer: int) -> Router:
    """Return an untrained router for a tiny model, its weights wide enough that chains of several depths come out."""
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
    return untrained(config)


def untrained(config: RouterConfig, states: Sequence[Tensor] = (), seed: int = 0) -> Router:
    """Return a router of random weights, its operating points measured on some prompts' states."""
    torch.manual_seed(seed)
    head = config.build().eval()
    for parameter in head.parameters():
        parameter.data.normal_(0, 1)
    if not states:
        return Router(config, head)
    with torch.inference_mode():
        head.calibrate(head(*pad_states(states)))
    return Router(dataclasses.replace(config, budget_points=head.budget_points), head)
