"""Which rows run together: the oldest first, with others of about its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from router.serving.decoding import Row

SHORT = 64
"""Prompts of up to so many tokens go together whatever their lengths: padding costs little there."""
ALIKE = 2.0
"""Longer prompts go together up to this ratio of their lengths: at worst half of a batch is padding."""


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch may be.

    Attributes:
        rows: most rows.
        prompt_tokens: most tokens of its prompts, padding included; a single prompt may be longer.
    """

    rows: int = 16
    prompt_tokens: int = 16384

    def __post_init__(self) -> None:
        """Refuse empty batches."""
        for name, value in (("max_batch", self.rows), ("max_batch_tokens", self.prompt_tokens)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")


def batch_of(waiting: Sequence[Row], limits: BatchLimits) -> list[Row]:
    """Return the rows to run next, of those that wait, the oldest first.

    The oldest leads; those behind it go with it where their prompts are about as long. One that is passed over is the
    oldest at the latest after as many batches as rows were before it.
    """
    lead = waiting[0]
    taken, width = [lead], len(lead.prompt)
    for row in waiting[1:]:
        wider = max(width, len(row.prompt))
        if len(taken) >= limits.rows:
            break
        if _alike(len(lead.prompt), len(row.prompt)) and (len(taken) + 1) * wider <= limits.prompt_tokens:
            taken.append(row)
            width = wider
    return taken


def _alike(one: int, other: int) -> bool:
    return max(one, other) <= max(SHORT, ALIKE * min(one, other))


def within(rows: Sequence[Row], positions: int | None) -> list[list[Row]]:
    """Split rows so that none is carried past the model's positions by another that generates longer.

    A row that has ended stays in its batch until all have, and its position grows on.

    Args:
        rows: rows that each fit alone.
        positions: the model's positions; None: without limit.
    """
    parts: list[list[Row]] = []
    for row in rows:
        for part in parts:
            together = [*part, row]
            longest, most = max(len(one.prompt) for one in together), max(one.new_tokens for one in together)
            if positions is None or longest + most <= positions:
                part.append(row)
                break
        else:
            parts.append([row])
    return parts


def partners_matter(model: PreTrainedModel) -> bool:
    """Whether a row's result depends on how long its batch's others are: positions scaled by the longest row."""
    parameters: dict[str, Any] = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [one.get("rope_type") for one in (parameters, *parameters.values()) if isinstance(one, dict)]
    return any("dynamic" in str(kind) or kind == "longrope" for kind in kinds)
