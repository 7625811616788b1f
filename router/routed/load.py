"""A router and its base model, loaded together: found by the names that they carry, and checked to fit each other."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from router.engine.load import load_model
from router.files import read_json
from router.fingerprint import model_fingerprint, tokenizer_fingerprint
from router.routed.card import model_card
from router.routed.hub import push_router, router_folder, write_router_folder
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
