"""Settings that every command with a routed model shares, and the model that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.command import InputError
from router.latency_file import budget_for
from router.routed.model import RoutedModel


@dataclass(frozen=True)
class RoutedSettings:
    """A router, its base model, and how much depth to spend.

    Attributes:
        router: a router's folder or its hub id; may stand alone, as the first word.
        revision: the router's hub revision.
        base_model: name or path of the base model; unset: the one that the router was trained with.
        base_revision: its hub revision.
        budget: mean depth wanted, layers; unset: the router's own choice.
        guaranteed: take the certified operating point instead (`python -m train.calibrate`).
        latency_factor: latency wanted, in units of full depth's, in place of a budget; needs latency_profile.
        latency_profile: `latency.json` that `python -m eval.latency` measured on this device.
        dtype: float32, bfloat16 or float16; unset: that of the states which the router was trained on.
        device: torch device, or auto: CUDA where there is one.
        device_map: places the layers on several devices (`auto`), in place of a device.
        attn_implementation: attention of the base model; unset: the library's choice.
        verify: whether model and tokenizer must be those that the router was trained for.
    """

    router: str
    revision: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    budget: float | None = None
    guaranteed: bool = False
    latency_factor: float | None = None
    latency_profile: Path | None = None
    dtype: str | None = None
    device: str = "auto"
    device_map: str | None = None
    attn_implementation: str | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that exclude each other."""
        wishes = {
            "budget": self.budget is not None,
            "guaranteed": self.guaranteed,
            "latency_factor": self.latency_factor is not None,
        }
        if sum(wishes.values()) > 1:
            given = " and ".join(name for name, is_given in wishes.items() if is_given)
            raise ValueError(f"budget: expected one of budget, guaranteed and latency_factor, got {given}")
        if self.latency_factor is not None and self.latency_profile is None:
            raise ValueError("latency_profile: expected a file of python -m eval.latency with latency_factor, got none")


def load_routed(settings: RoutedSettings) -> RoutedModel:
    """Load the router and its base model.

    Raises:
        InputError: where one cannot be loaded, they do not fit each other, or the depth cannot be spent as asked.
    """
    options: dict[str, Any] = {
        name: value for name in ("device_map", "attn_implementation") if (value := getattr(settings, name)) is not None
    }
    try:
        routed = RoutedModel.from_pretrained(
            settings.router,
            revision=settings.revision,
            base_model=settings.base_model,
            base_revision=settings.base_revision,
            budget=settings.budget,
            guaranteed=settings.guaranteed,
            dtype=settings.dtype,
            device=settings.device,
            verify=settings.verify,
            **options,
        )
        if settings.latency_factor is not None and settings.latency_profile is not None:
            prints, dtype = routed.router.config.fingerprints, str(routed.dtype).removeprefix("torch.")
            profile, factor = settings.latency_profile, settings.latency_factor
            routed.budget = budget_for(profile, factor, prints, routed.device.type, dtype)
            routed.router.head.offset_for(routed.budget)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error
    return routed
