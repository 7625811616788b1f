"""A router and its base model, loaded together: found by the names that they carry, and checked to fit each other."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from router.engine.load import load_model
from router.files import read_json
from router.fingerprint import model_fingerprint, tokenizer_fingerprint
from router.latency import budget_for
from router.routed.card import model_card
from router.routed.hub import push_router, router_folder, write_router_folder
from router.routed.model import RoutedModel
from router.storage import Router, load_router
from router.validation import InputError


def load_pair(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    verify: bool = True,
    **options: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Router, Path]:
    """Load a router, its base model and tokenizer.

    Args:
        source: a router's folder, or its hub id.
        revision: the router's hub revision.
        token: hub token, for the base model too; None: the one that the hub's own tools have stored, if any.
        base_model: name or path of the base model; None: the one that the router was trained with.
        base_revision: its hub revision; None: the router's, where the base model is.
        dtype: dtype of the base model; None: the one whose states the router was trained on.
        device: torch device, or "auto"; a `device_map` among the options goes before it.
        verify: whether model and tokenizer must be those that the router was trained for.
        options: passed on to the base model's `from_pretrained`.

    Returns:
        Model, tokenizer, router, and the folder that the router was read from.

    Raises:
        InputError: where one of them cannot be loaded, or they do not fit each other.
    """
    folder = router_folder(source, revision=revision, token=token)
    if token is not None:
        options["token"] = token
    router = load_router(folder)
    config = router.config
    name = base_model if base_model is not None else config.base_model
    if base_revision is None and base_model in (None, config.base_model):
        base_revision = config.revision
    try:
        model, tokenizer = load_model(
            name, dtype=dtype or config.dtype, device=device, revision=base_revision, **options
        )
    except InputError as error:
        if base_model is not None:
            raise
        raise InputError(
            f"base_model: expected the model that the router names, {name!r}, to load; got {error}"
        ) from error
    if verify:
        require_pair(model, tokenizer, router, f"router {str(source)!r}")
    return model, tokenizer, router, folder


def require_pair(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, router: Router, what: str) -> None:
    """Check that a router was trained for a model and a tokenizer.

    Raises:
        InputError: where it was trained for others, or the model's weights are not there to be compared.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(f"{what}: expected weights in memory to compare, got some on disk (verify=False trusts them)")
    made_for = router.config.fingerprints
    given = replace(made_for, model=model_fingerprint(model), tokenizer=tokenizer_fingerprint(tokenizer))
    made_for.require(given, what)


# Settings that every command with a routed model shares, and the model that they name.


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


# How a routed model is written and published: the router alone, with its model card.


class SavesRouter:
    """What stands in for the base model's `save_pretrained` and `push_to_hub`: the base model is never written.

    Attributes:
        router: the router.
        router_folder: where the router was read from; None where it was made here.
    """

    router: Router
    router_folder: Path | None

    def save_pretrained(self, save_directory: str | Path, *, report: str | Path | None = None) -> None:
        """Write the router, not the base model, and a model card.

        Args:
            save_directory: folder for it, which is made if need be.
            report: `report.json` of an evaluation of it, whose table goes into the card.

        Raises:
            InputError: where the folder holds something else or cannot be written, or the report cannot be read.
        """
        measured = None if report is None else read_json(Path(report))
        card = model_card(self.router, report=measured)
        write_router_folder(Path(save_directory), self.router, source=self.router_folder, card=card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: str | Path | None = None,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Add the router",
    ) -> str:
        """Upload what `save_pretrained` writes to the hub.

        Args:
            repo_id: repository, which is made if need be.
            report: as in `save_pretrained`.
            private: whether a new repository is private; None: as the account has it.
            token: hub token; None: the one that the hub's own tools have stored.
            revision: branch to write to.
            commit_message: message of the commit.

        Returns:
            The repository's address.

        Raises:
            InputError: where the hub refuses it, or as in `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "router", report=report)
            return push_router(
                Path(folder) / "router",
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
            )
