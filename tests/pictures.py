"""Prompts with pictures for tiny models of image-text families, as their processors would hand them over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedModel

from router.engine.load import left_padded
from tests.tiny import tiny_model, tiny_tokenizer

TOKENS = {"llava": 16, "paligemma": 16}
"""Tokens of a picture of 16 x 16 pixels, where they are not 4."""
PICTURED = (
    "llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3_vision",
    "paligemma",
    "idefics3",
    "smolvlm",
    "internvl",
    "mistral3",
)


def pictured_prompts(
    model: PreTrainedModel, family: str, pictures: Sequence[int] = (1, 1, 1, 1), seed: int = 2
) -> dict[str, Any]:
    """Return a batch: ids, mask and the pictures of each row, so many by row; rows differ in length."""
    generator, places = torch.Generator().manual_seed(3), TOKENS.get(family, 4)
    image = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    rows = []
    for row, count in enumerate(pictures):
        text = torch.randint(3, 90, (6 + 3 * (row % 3) + count,), generator=generator).tolist()
        for place in range(count):
            at = 2 + place * (places + 1)
            text[at:at] = [image] * places
        rows.append(text)
    ids, mask = left_padded(rows, torch.device("cpu"))
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | _pictures(model, family, ids == image, sum(pictures), torch.Generator().manual_seed(seed))


def _pictures(
    model: PreTrainedModel, family: str, where: Tensor, count: int, generator: torch.Generator
) -> dict[str, Any]:
    if family.startswith("qwen"):
        patches = torch.randn(16 * count, 96, generator=generator)
        grid = torch.tensor([[1, 4, 4]] * count)
        return {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": where.int()}
    pixels = torch.randn(count, 3, 16, 16, generator=generator)
    if family in ("idefics3", "smolvlm"):
        return {"pixel_values": pixels[:, None]}
    given: dict[str, Any] = {"pixel_values": pixels}
    if family == "gemma3_vision":
        given["token_type_ids"] = where.long()
    if family == "mistral3":
        given["image_sizes"] = torch.tensor([[16, 16]] * count)
    return given


def row_of(batch: dict[str, Any], row: int, pictures: Sequence[int]) -> dict[str, Any]:
    """Return one row of a batch, without padding, its pictures counted out by hand."""
    first, count = sum(pictures[:row]), pictures[row]
    kept = batch["attention_mask"][row].bool()
    alone = {}
    for name, value in batch.items():
        if value.shape == batch["input_ids"].shape:
            alone[name] = value[row][kept][None]
        elif count:
            each = len(value) // sum(pictures)
            alone[name] = value[first * each : (first + count) * each]
    return alone


CHAT = (
    "{% for turn in messages %}{{ turn['role'] }}: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_pictured(folder: Path) -> Path:
    """Write a tiny Llava, its tokenizer and its processor (pictures of 16 x 16 pixels, 16 tokens each) to a folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model = tiny_model("llava")
    model.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    return folder
