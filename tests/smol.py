"""An untrained router for the real SmolLM2, from which chains of several depths come out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from router.decision import Router, RouterConfig
from router.engine.load import load_model
from router.fingerprint import Fingerprints, model_fingerprint, tokenizer_fingerprint
from router.heads.head import pad_states
from router.heads.layerwise import LayerwiseHead
from router.storage import save_router

NAME = "smollm2-135m-instruct"
PREFIX = 12
PROMPTS = [
    "Plants make their food",
    "Who wrote the play about the prince of Denmark?",
    "One, two, three,",
    "What is heavier, a pound of iron or a stone of wool? The answer is",
    "Iron",
    "It was a dark and stormy night in the north of the island, and nobody wanted to go",
]


def write_smol_router(folder: Path) -> Path:
    """Write a router with measured budgets to a folder."""
    model, tokenizer = load_model(NAME, dtype="bfloat16", device="cpu")
    torch.manual_seed(0)
    settings = {"hidden": 16, "windows": 4, "dropout": 0.0}
    head = LayerwiseHead(30, PREFIX, 576, **settings).eval()
    head.classify.weight.data.normal_(0, 2)
    states = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            states.append(model(ids, output_hidden_states=True).hidden_states[PREFIX][0])
        head.calibrate(head(*pad_states(states)))
    prints = Fingerprints(model_fingerprint(model), tokenizer_fingerprint(tokenizer), "0" * 64)
    config = RouterConfig(
        "layerwise", settings, 30, PREFIX, 576, "arc_easy", "continuation", NAME, None, "bfloat16", prints
    )
    save_router(folder, Router(dataclasses.replace(config, budget_points=head.budget_points), head))
    return folder
