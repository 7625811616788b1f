"""Export one chain of a model, load it with plain transformers, and see that both say the same.

    python -m examples.export_chain --out runs/short
    python -m examples.export_chain --out runs/looped --chain 0-11,10-29 --prompt "Once upon a time"

The folder is a standard checkpoint: what takes the base model takes it too. `python -m router export` does the same
from the command line, also for the best single chain of an evaluation (`--static`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from transformers import AutoTokenizer, PreTrainedModel

from router.chain import Chain
from router.command import parse_settings, run_command
from router.engine.decoder import find_decoder
from router.engine.load import load_model
from router.engine.view import chain_view
from router.routed.export import export_chain
from router.validation import SETTINGS, InputError, Positive


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Example:
    """Settings of the example.

    Attributes:
        out: folder for the checkpoint, absent or empty.
        model: base model: an offline asset, a local directory or a hub id.
        chain: the chain; the default skips three of SmolLM2's 30 layers.
        prompt: what both go on from.
        max_new_tokens: tokens to generate.
        dtype: of the checkpoint.
    """

    out: Path
    model: str = "smollm2-135m-instruct"
    chain: str = "0-24,28-29"
    prompt: str = "The capital of France is"
    max_new_tokens: Positive = 12
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    example, _ = parse_settings(Example, argv, "examples.export_chain", "Export a chain and load it again.")
    model, tokenizer = load_model(example.model, dtype=example.dtype, device="cpu")
    try:
        chain = Chain.parse(example.chain, find_decoder(model).num_layers)
    except ValueError as error:
        raise InputError(f"chain: {error}") from error
    folder = export_chain(model, tokenizer, chain, example.out, base_model=example.model)
    print(f"chain {chain}, {chain.depth} layers in place of {chain.num_layers}: {folder}")

    # From here on the checkpoint is used as any other; nothing of this package is needed for it.
    plain = type(model).from_pretrained(folder, dtype=example.dtype)  # or the library's Auto class for it
    ids = AutoTokenizer.from_pretrained(folder)(example.prompt, return_tensors="pt").input_ids
    from_checkpoint = greedy(plain, ids, example.max_new_tokens)

    view = chain_view(model, chain)
    from_view = greedy(view, ids, example.max_new_tokens)
    with torch.no_grad():
        gap = (plain(ids).logits - view(ids).logits).abs().max()
    print(f"checkpoint: {tokenizer.decode(from_checkpoint)!r}")
    print(f"view:       {tokenizer.decode(from_view)!r}")
    print(f"the same tokens: {torch.equal(from_checkpoint, from_view)}; largest difference of logits: {gap:.2g}")


def greedy(model: PreTrainedModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Return a prompt, `[1, tokens]`, and the most likely tokens after it, `[tokens + count]` at most."""
    mask, padding = torch.ones_like(ids), model.generation_config.pad_token_id
    out: torch.Tensor = model.generate(
        ids, attention_mask=mask, pad_token_id=padding, do_sample=False, max_new_tokens=count
    )
    return out[0]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
