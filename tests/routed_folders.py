"""A tiny base model and a router for it, as folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from data.scoring import ChainScorer
from data.tasks import load_task
from router.storage import save_router
from tests.test_router_routed import router_for
from tests.tiny import tiny_model, tiny_tokenizer


def write_routed(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write a tiny model to `model/` and a router for it, with measured budgets, to `router/`; returns the latter."""
    model, tokenizer = tiny_model("llama"), tokenizer or tiny_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    made = router_for(model)
    config = dataclasses.replace(
        made.config,
        base_model=str(folder / "model"),
        budget_points=made.head.budget_points,
        fingerprints=ChainScorer(model, tokenizer, load_task("arc_easy")).fingerprints,
        dtype="float32",
    )
    save_router(folder / "router", dataclasses.replace(made, config=config))
    return folder / "router"
