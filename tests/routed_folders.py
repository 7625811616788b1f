"""A tiny routed model: prompts for it, a random router of measured budgets, and both as folders; a router alone."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data.scoring import ChainScorer
from data.tasks import load_task
from router.chain import Chain
from router.decision import Guarantee, HeadSettings, LateConfig, Router, RouterConfig
from router.engine.view import chain_view
from router.fingerprint import Fingerprints
from router.heads.budget import operating_points
from router.heads.head import pad_states
from router.heads.menu import MenuHead
from router.scope import pooled
from router.storage import save_router
from tests.tiny import random_router, tiny_model, tiny_tokenizer, untrained
from train.scope import scope_of

PREFIX = 2
PADDING = 0
CHOICES = [" the moon", " a fox", " glass", " seven bees"]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": PADDING}


PRINTS = Fingerprints("a" * 64, "b" * 64, "c" * 64)


def small_states(count: int = 5, seed: int = 1) -> list[Tensor]:
    """States that `small_router` reads."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3 + 2 * i, 16, generator=generator) for i in range(count)]


def small_router(seed: int = 0, **changed: Any) -> Router:
    """A random layerwise head for 6 layers of no model, with operating points."""
    config = RouterConfig(
        "layerwise", {"hidden": 8, "windows": 2, "dropout": 0.1}, 6, 2, 16, "arc_easy", "letter",
        "us/base", None, "float32", PRINTS,
    )  # fmt: skip
    return untrained(dataclasses.replace(config, **changed), small_states(), seed)


def prompts(rows: int = 6) -> tuple[Tensor, Tensor]:
    """Token ids and mask of prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    lengths = [5 + 2 * (i % 4) for i in range(rows)]
    ids, mask = torch.full((rows, max(lengths)), PADDING), torch.zeros(rows, max(lengths), dtype=torch.long)
    for i, length in enumerate(lengths):
        ids[i, -length:] = torch.randint(3, 90, (length,), generator=generator)
        mask[i, -length:] = 1
    return ids, mask


def router_for(model: PreTrainedModel) -> Router:
    """A random router with a measured budget, and a guarantee that certifies full depth alone."""
    router = random_router(ChainScorer(model, tiny_tokenizer(), load_task("arc_easy")), PREFIX)
    ids, mask = prompts(24)
    hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[PREFIX]
    states = [row[kept.bool()] for row, kept in zip(hidden, mask, strict=True)]
    with torch.inference_mode():
        router.head.calibrate(router.head(*pad_states(states)))
    return Router(router.config, router.head, Guarantee(0.1, 0.1, "accuracy", None, None, 10, 0.0, 5.0, None))


LATE = 3
"""Where `late_router` reads once more."""
EARLY_CHAINS = ("0-1,3-4", "0-1,2*2,3-4")
"""What its first head decides alone."""
LATE_CHAINS = ("0-4", "0-3", "0-2,4", "0-2")
"""What its second one picks of."""


def late_router(model: PreTrainedModel, seed: int = 0) -> Router:
    """A random router of two menu heads, with a measured budget: each decides some of the rows."""
    scorer = ChainScorer(model, tiny_tokenizer(), load_task("arc_easy"))
    settings: HeadSettings = {"hidden": 8, "dropout": 0.0, "agreement": 0.0, "chains": [*LATE_CHAINS, *EARLY_CHAINS]}
    config = dataclasses.replace(
        random_router(scorer, PREFIX).config,
        head="menu",
        head_settings=settings,
        late=LateConfig(LATE, {**settings, "chains": [*LATE_CHAINS]}),
    )
    torch.manual_seed(seed)
    head, late = config.build().eval(), config.build_late()
    assert isinstance(head, MenuHead)
    assert late is not None
    for parameter in (*head.parameters(), *late.parameters()):
        parameter.data.normal_(0, 0.3)
    ids, mask = prompts(24)
    read = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    first, second = (
        pad_states([row[kept.bool()] for row, kept in zip(read[layer], mask, strict=True)]) for layer in (PREFIX, LATE)
    )
    with torch.inference_mode():
        values = head.values(head(*first))
        open_values = late.eval().scores_of(late(*second), head.chains)
        head.budget_points = operating_points(values, head.depths.expand_as(values), open_values)
    return Router(dataclasses.replace(config, budget_points=head.budget_points), head, late=late)


def scoped(router: Router, states: Sequence[Tensor], share: float = 0.0, *, one_token: bool = False) -> Router:
    """The router with a scope around prompts' states, and a share of them outside; `one_token`: that all so answer."""
    known = pooled(*pad_states(states))
    return dataclasses.replace(router, scope=scope_of(known, known, share, [one_token] * len(known)))


def alone(model: PreTrainedModel, chain: Chain, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    """What a chain's view generates of the model, greedily, given prompts and masks."""
    view = chain_view(model, chain)
    return view.generate(input_ids=ids, attention_mask=mask, **GREEDY | options)


def in_threads(work: Callable[[int], None]) -> None:
    """Do two things at once."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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
