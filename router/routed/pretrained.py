"""A routed model's folders: a router and its base model are loaded and joined, the router is saved and published."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from router.decision import ALLOWED_LOSS, Router
from router.engine.load import HUB_OPTIONS, load_model, load_processor
from router.files import read_json
from router.fingerprint import model_fingerprint, tokenizer_fingerprint
from router.routed.card import model_card
from router.routed.hub import push_router, router_folder, write_router_folder
from router.storage import load_router
from router.validation import InputError


class Pretrained:
    """What `RoutedModel` has to do with folders and the hub.

    Attributes:
        router: the router.
        router_folder: where the router was read from; None where it was made here.
        join: joins a base model and its router.
    """

    router: Router
    router_folder: Path | None
    join: ClassVar[Callable[..., Any]]
    _processor_source: Mapping[str, Any] | None  # arguments of `load_processor`; None: the model was joined
    _processor: ProcessorMixin | None  # what they gave; None: it was not asked for yet

    @classmethod
    def from_pretrained(
        cls,
        router: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        base_model: str | None = None,
        base_revision: str | None = None,
        budget: float | None = None,
        guaranteed: bool = False,
        allow_loss: float = ALLOWED_LOSS,
        scope: bool = True,
        dtype: str | None = None,
        device: str = "auto",
        verify: bool = True,
        **options: Any,
    ) -> Self:
        """Load a router, its base model and tokenizer, and join them.

        Safetensors only, and no code from either repository runs, unless `options` say so.

        Args:
            router: a router's folder, or its hub id.
            revision: the router's hub revision.
            token: hub token, for the base model too; None: the one that the hub's own tools have stored, if any.
            base_model: name or path of the base model; None: the one that the router was trained with.
            base_revision: its hub revision; None: the router's, where the base model is.
            budget: mean depth wanted, layers; None: what `Router.default_operation` says: what was certified, else
                the least budget that lost no more than `allow_loss` in validation.
            guaranteed: take the certified operating point.
            allow_loss: accuracy that a budget may have lost against full depth on the router's validation split.
            scope: run prompts unlike those of training at full depth, where the router has a scope.
            dtype: "float32", "bfloat16" or "float16"; None: that of the states which the router was trained on.
            device: torch device, or "auto": CUDA where there is one. A `device_map` goes before it.
            verify: whether model and tokenizer must be those that the router was trained for.
            options: passed on to the base model's `from_pretrained` (`attn_implementation`, `device_map`, ...).

        Raises:
            InputError: where one of them cannot be loaded, or they do not fit each other.
            ValueError: as in `join`, or where the budget lost more accuracy than is allowed.
        """
        folder = router_folder(router, revision=revision, token=token)
        if token is not None:
            options["token"] = token
        loaded = load_router(folder)
        if budget is not None:
            loaded.require_accuracy(budget, allow_loss)
        elif not guaranteed:
            operation = loaded.default_operation(allow_loss, scope=scope)
            budget, guaranteed = operation.budget, operation.guaranteed
        name, base_revision = loaded.config.base(base_model, base_revision)
        try:
            model, tokenizer = load_model(
                name, dtype=dtype or loaded.config.dtype, device=device, revision=base_revision, **options
            )
        except InputError as error:
            if base_model is not None:
                raise
            raise InputError(
                f"base_model: expected the model that the router names, {name!r}, to load; got {error}"
            ) from error
        if verify:
            require_pair(model, tokenizer, loaded, f"router {str(router)!r}")
        routed: Self = cls.join(model, loaded, tokenizer=tokenizer, budget=budget, guaranteed=guaranteed, scope=scope)
        tokenizer.padding_side = "left"  # as generation needs it
        routed.router_folder = folder
        where = {option: options[option] for option in (*HUB_OPTIONS, "trust_remote_code") if option in options}
        routed._processor_source = {"name": name, "revision": base_revision, **where}
        return routed

    @property
    def processor(self) -> ProcessorMixin:
        """What makes inputs of pictures and text: the base model's processor, read when it is first asked for.

        Raises:
            InputError: where the base model has none, or was not loaded by `from_pretrained`.
        """
        if self._processor_source is None:
            raise InputError("processor: expected a model of from_pretrained, got a joined one; load its own processor")
        if self._processor is None:
            self._processor = load_processor(**self._processor_source)
            self._processor.tokenizer.padding_side = "left"  # as generation needs it
        return self._processor

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


def require_pair(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, router: Router, what: str) -> None:
    """Check that a router was trained for a model and a tokenizer.

    Raises:
        InputError: where it was trained for others, or the model's weights are not there to be compared, or so rounded
            that they cannot be.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(f"{what}: expected weights in memory to compare, got some on disk (verify=False trusts them)")
    made_for, method = router.config.fingerprints, quantisation_of(model)
    try:
        found = model_fingerprint(model)
    except NotImplementedError:  # some quantised tensors know no other operation than their product
        found, method = "", method or "an unknown method"
    rounded = None if method is None else f"weights quantised by {method}"
    if model.dtype == torch.float16:
        rounded = rounded or "float16"
    if rounded is not None and found != made_for.model:
        raise InputError(
            f"{what}: expected the weights that it was made for, got {rounded}, which cannot be compared with them "
            "(verify=False trusts them)"
        )
    given = replace(made_for, model=found, tokenizer=tokenizer_fingerprint(tokenizer))
    made_for.require(given, what)


def quantisation_of(model: PreTrainedModel) -> str | None:
    """Return by what a model's weights are quantised; None: by nothing."""
    given = getattr(model.config, "quantization_config", None)
    if given is None and getattr(model, "hf_quantizer", None) is None:
        return None
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    return str(getattr(method, "value", method))
