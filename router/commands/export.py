"""Write one chain of a base model as a standard checkpoint, which stock transformers loads without this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from router.base_model import DTYPES
from router.chain import Chain
from router.command import InputError, parse_settings
from router.durable import read_json, require_file
from router.export.checkpoint import export_chain, free_folder
from router.models import dtype_of, layers_of, load_model
from router.routed.hub import router_folder
from router.routed.pretrained import require_pair
from router.storage import Router, load_router
from router.strip import draw_strip, marks_for, ruler


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `python -m router export`.

    Attributes:
        out: folder for the checkpoint, absent or empty.
        model: base model: an offline asset, a local directory or a hub id; unset: the router's.
        router: a router's folder or its hub id; says which base model and dtype, and checks the model's weights.
        chain: the chain, such as 0-24,28-29.
        static: in place of a chain, `static.json` of an evaluation: its best single chain.
        dtype: float32, bfloat16 or float16; unset: the router's, or what the base model is stored in.
        revision: the base model's hub revision; unset: the router's, where the base model is.
        device: torch device on which the checkpoint is checked, or auto.
    """

    out: Path
    model: str | None = None
    router: str | None = None
    chain: str | None = None
    static: Path | None = None
    dtype: str | None = None
    revision: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse settings that leave the chain or the base model open."""
        if (self.chain is None) == (self.static is None):
            got = "neither" if self.chain is None else "both"
            raise ValueError(f"chain: expected exactly one of chain and static, got {got}")
        if self.model is None and self.router is None:
            raise ValueError("model: expected a base model, or a router that names one, got neither")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")


def main(argv: Sequence[str]) -> None:
    """Export a chain, and say how to load it.

    Raises:
        InputError: at bad input, or where the checkpoint would not be the chain.
    """
    description = "Write one chain as a standard checkpoint that stock transformers loads."
    settings, _ = parse_settings(ExportSettings, argv, "router export", description)
    free_folder(settings.out)
    router = None if settings.router is None else load_router(router_folder(settings.router))
    name, revision = _base_model(settings, router)
    chain = read_chain(settings, layers_of(name, revision) if router is None else router.config.num_layers)
    dtype = settings.dtype or (dtype_of(name, revision) if router is None else router.config.dtype)
    model, tokenizer = load_model(name, dtype=dtype, device=settings.device, revision=revision)
    if router is not None:
        require_pair(model, tokenizer, router, f"router {settings.router!r}")
    folder = export_chain(model, tokenizer, chain, settings.out, base_model=name, revision=revision)
    print(f"chain {chain}: {chain.depth} layers in place of {chain.num_layers}, {dtype}")
    print(f"  {draw_strip(chain, 0, marks_for(sys.stdout.encoding))}\n  {ruler(chain.num_layers)}")
    print("equal to the bit to the base model under this chain, loaded by stock transformers")
    print(f"written to {folder}")
    print(f'load it: transformers.AutoModelForCausalLM.from_pretrained("{folder}", dtype="{dtype}")')


def _base_model(settings: ExportSettings, router: Router | None) -> tuple[str, str | None]:
    """Return the base model's name and hub revision."""
    if router is None:
        assert settings.model is not None  # the settings refuse that
        return settings.model, settings.revision
    config = router.config
    name = settings.model or config.base_model
    own = config.revision if name == config.base_model else None
    return name, settings.revision or own


def read_chain(settings: ExportSettings, num_layers: int) -> Chain:
    """Return the chain that the settings name.

    Raises:
        InputError: where it is no chain over that many layers; the message names its file, where it has one.
    """
    try:
        if settings.static is None:
            assert settings.chain is not None  # the settings refuse that
            return Chain.parse(settings.chain, num_layers)
        return Chain.from_json(read_json(require_file(settings.static, "static")).get("chain"), num_layers)
    except InputError:
        raise
    except ValueError as error:
        where = f"chain {settings.chain}" if settings.static is None else f"static: {settings.static}"
        told = str(error)
        raise InputError(
            told if told.startswith("chain: ") and settings.static is None else f"{where}: {told}"
        ) from error
