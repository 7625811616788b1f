"""The example of routing and generating, on the real SmolLM2."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.route_and_generate import CHOICES, PROMPTS, main
from router.routed import RoutedModel
from router.strip import BLOCKS, draw_strip
from tests.smol import PREFIX, write_smol_router


def test_it_shows_what_the_routed_model_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Oracle: the routed model, prompt by prompt.
    folder = write_smol_router(tmp_path / "router")
    main(["--router", str(folder), "--budget", "24", "--new-tokens", "6"])
    shown = capsys.readouterr().out
    routed = RoutedModel.from_pretrained(folder, budget=24.0)
    assert routed.tokenizer is not None
    for prompt in PROMPTS:
        ids = routed.tokenizer(prompt, return_tensors="pt").input_ids
        (one,) = routed.route(ids)
        assert f"{draw_strip(one.chain, PREFIX, BLOCKS)}  {one.chain.depth} of 30 layers  {prompt!r}" in shown
        assert f"\n{prompt}" in shown
    assert shown.count("<- best") == 1
    assert all(choice in shown for choice in CHOICES)
