"""The example of routing and generating, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.route_and_generate import CHOICES, PROMPTS, main
from router.routed import RoutedModel
from router.strip import BLOCKS, draw_strip
from tests.conftest import Refusal
from tests.routed_folders import PREFIX, write_routed
from tests.tiny import tiny_tokenizer


def test_it_shows_what_the_routed_model_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    # Oracle: the routed model, prompt by prompt. Many tokenizers have no token for padding.
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    folder = write_routed(tmp_path, tokenizer)
    main([f"--router={folder}", "--budget=4", "--max_new_tokens=6"])
    shown = capsys.readouterr().out
    routed = RoutedModel.from_pretrained(folder, budget=4.0)
    assert routed.tokenizer is not None
    for prompt in PROMPTS:
        (one,) = routed.route(routed.tokenizer(prompt, return_tensors="pt").input_ids)
        assert f"{draw_strip(one.chain, PREFIX, BLOCKS)}  {one.chain.depth} of 5 layers  {prompt!r}" in shown
        assert f"\n{prompt}" in shown
    assert shown.count("<- best") == 1
    assert all(choice in shown for choice in CHOICES)
    assert "max_new_tokens: expected" in refusal(main, [f"--router={folder}", "--max_new_tokens=0"])
