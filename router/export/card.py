"""What stands beside an exported chain: `chain.json` for programs, and a model card for readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from router.chain import Chain
from router.routed.card import place_of, plain_text
from router.strip import BLOCKS, draw_strip, ruler

SCHEMA = 1
"""Version of `chain.json`."""
_STRIP = 60
"""Layers in a line of the drawing."""


def describe_export(
    chain: Chain,
    written: PreTrainedModel,
    *,
    base_model: str | None,
    revision: str | None,
    fingerprint: str,
    verified: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of `chain.json`.

    Args:
        chain: the chain.
        written: the model that was written.
        base_model: name of the base model; of a local folder the last part alone goes in.
        revision: its hub revision.
        fingerprint: `router.fingerprint.model_fingerprint` of the base model.
        verified: what was compared before the checkpoint got its name.
    """
    on_hub = base_model is not None and place_of(base_model) == "hub"
    kinds = getattr(written.config.get_text_config(decoder=True), "layer_types", None)
    return {
        "schema": SCHEMA,
        "note": "A plain checkpoint: the layers of one chain of the base model, each written out. It needs no router.",
        "chain": str(chain),
        "layers": chain.to_json(),
        "depth": chain.depth,
        "base_model": {
            "name": base_model if base_model is None or on_hub else Path(base_model).name,
            "on_hub": on_hub,
            "revision": revision,
            "num_layers": chain.num_layers,
            "fingerprint": fingerprint,
        },
        "layer_types": list(kinds) if kinds and len(set(kinds)) > 1 else None,
        "dtype": str(written.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "verified": verified,
    }


def export_card(chain: Chain, about: dict[str, Any], loader: str, *, has_tokenizer: bool) -> str:
    """Return the model card, Markdown with front matter.

    Args:
        chain: the chain.
        about: the content of `chain.json`.
        loader: the library's class that loads the checkpoint.
        has_tokenizer: whether a tokenizer lies beside it.
    """
    base = about["base_model"]
    data = ModelCardData(library_name="transformers", tags=["layer-skipping"])
    if base["on_hub"]:
        data["base_model"] = base["name"]
        # Layers of one model put together anew, nothing trained; without this the hub would say "finetuned".
        data["base_model_relation"] = "merge"
    name = "A model" if base["name"] is None else plain_text(base["name"])
    parts = [
        f"# Chain {chain}",
        f"{name} with its decoder layers run as the chain `{chain}`: {chain.depth} layers in place of "
        f"{chain.num_layers}. This is a plain checkpoint: every layer of the chain is written out, a repeated one each "
        "time. The weights are the base model's, and so is the licence.",
        "\n".join(["```", *_drawing(chain), "```"]),
        "\n".join(["```python", *_use(about, loader, has_tokenizer), "```"]),
    ]
    if about["layer_types"] is not None and not chain.is_full:
        parts.append(
            "Its layers are of several kinds, in the order of `layer_types` in `config.json`. A program that takes the "
            "order from the name of the architecture, not from that list, runs another model."
        )
    parts.append(
        f"Written with transformers {about['transformers']}. `chain.json` holds the chain, the base model's "
        "fingerprint, and what was compared with the chain before this folder got its name."
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _drawing(chain: Chain) -> list[str]:
    """Return the chain as a strip of layers, in lines."""
    strip, numbers = draw_strip(chain, 0), ruler(chain.num_layers)
    lines = []
    for start in range(0, chain.num_layers, _STRIP):
        lines += [strip[start : start + _STRIP], numbers[start : start + _STRIP].rstrip()]
    marks = f"{BLOCKS.run} runs   {BLOCKS.skipped} skipped   2-9 runs so often   {BLOCKS.moved} runs in another place"
    return [*lines, "", marks]


def _use(about: dict[str, Any], loader: str, has_tokenizer: bool) -> list[str]:
    names = sorted([loader, *(["AutoTokenizer"] if has_tokenizer else [])])
    lines = [
        f"from transformers import {', '.join(names)}",
        "",
        f'model = {loader}.from_pretrained("FOLDER", dtype="{about["dtype"]}")',
    ]
    return [*lines, 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'] if has_tokenizer else lines
