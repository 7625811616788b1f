"""A router loaded with its base model: found by name, checked, and given what the library takes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from data.scoring import ChainScorer
from data.tasks import load_task
from router.engine.load import load_model
from router.routed import RoutedModel
from router.storage import load_router, save_router
from router.validation import InputError
from tests.routed_folders import write_routed
from tests.test_router_routed import GREEDY, prompts
from tests.tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in `model/` and a router for it in `router/`."""
    return write_routed(tmp_path_factory.mktemp("pretrained")).parent


def test_three_lines_are_enough(project: Path) -> None:
    # Oracle: the same model and router, joined by hand.
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    by_hand = RoutedModel.join(load_model(str(project / "model"))[0], load_router(project / "router"), budget=4.0)
    ids, mask = prompts()
    assert [one.chain for one in routed.route(ids, mask)] == [one.chain for one in by_hand.route(ids, mask)]
    options = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    assert torch.equal(routed.generate(**options), by_hand.generate(**options))
    assert routed.tokenizer is not None
    assert routed.score("Which?", [" A", " B"]).routed.chain.num_layers == 5


def test_a_loaded_model_works_in_a_pipeline(project: Path) -> None:
    routed = RoutedModel.from_pretrained(str(project / "router"), budget=4.0)
    made = pipeline("text-generation", model=routed, tokenizer=routed.tokenizer)
    (answer,) = made("Which of these", max_new_tokens=3, do_sample=False)
    assert answer["generated_text"].startswith("Which of these")


def test_what_the_library_takes_passes_through(project: Path) -> None:
    routed = RoutedModel.from_pretrained(project / "router", dtype="bfloat16", attn_implementation="eager")
    assert routed.dtype == torch.bfloat16
    assert routed.config._attn_implementation == "eager"


def test_layers_placed_by_accelerate_run_the_same(project: Path, tmp_path: Path) -> None:
    # Oracle: the model in one place. One layer lies on the disk, so its weights cannot be compared.
    places = {"model": "cpu", "lm_head": "cpu"} | {f"model.layers.{i}": "cpu" for i in range(5)}
    places = {name: place for name, place in places.items() if name != "model"}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "model.layers.3": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path), "budget": 4.0}
    with pytest.raises(InputError, match="expected weights in memory to compare"):
        RoutedModel.from_pretrained(project / "router", **options)
    placed = RoutedModel.from_pretrained(project / "router", verify=False, **options)
    plain = RoutedModel.from_pretrained(project / "router", budget=4.0, device_map={"": "cpu"})
    ids, mask = prompts()
    assert any(3 in one.chain.layers for one in plain.route(ids, mask))
    call = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    assert torch.equal(placed.generate(**call), plain.generate(**call))
    assert placed.score("Which?", [" A", " B"]) == plain.score("Which?", [" A", " B"])


def test_a_router_of_another_model_is_refused(project: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="expected it to be made for the model"):
        RoutedModel.from_pretrained(project / "router", base_model=str(tmp_path / "other"))
    trusted = RoutedModel.from_pretrained(project / "router", base_model=str(tmp_path / "other"), verify=False)
    assert trusted.router.config.num_layers == 5


def test_a_router_of_another_tokenizer_is_refused(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "model", tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="expected it to be made for the tokenizer"):
        RoutedModel.from_pretrained(project / "router", base_model=str(tmp_path / "model"))


def test_a_base_model_that_is_gone_is_named(project: Path, tmp_path: Path) -> None:
    made = load_router(project / "router")
    save_router(
        tmp_path / "router", dataclasses.replace(made, config=dataclasses.replace(made.config, base_model="./gone"))
    )
    with pytest.raises(InputError, match=r"base_model: expected the model that the router names, '\./gone'"):
        RoutedModel.from_pretrained(tmp_path / "router")


def test_depth_that_was_not_measured_is_refused(project: Path) -> None:
    with pytest.raises(ValueError, match="budget: expected a mean depth in"):
        RoutedModel.from_pretrained(project / "router", budget=40.0)
    with pytest.raises(ValueError, match="expected a router with a guarantee"):
        RoutedModel.from_pretrained(project / "router", guaranteed=True)


def test_the_router_alone_is_saved(project: Path, tmp_path: Path) -> None:
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    routed.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "router.safetensors", "README.md"}
    again = RoutedModel.from_pretrained(tmp_path / "saved", base_model=str(project / "model"), budget=4.0)
    ids, mask = prompts()
    assert again.route(ids, mask) == routed.route(ids, mask)


def test_padding_stands_on_the_left(project: Path) -> None:
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    assert routed.tokenizer is not None
    batch = routed.tokenizer(["Which of these?", "A"], return_tensors="pt", padding=True)
    assert batch.attention_mask[1].tolist() == [0] * 14 + [1]
    assert len(routed.generate(**batch, **GREEDY)) == 2
    with pytest.raises(ValueError, match="expected padding on the left"):
        routed.generate(input_ids=batch.input_ids.flip(1), attention_mask=batch.attention_mask.flip(1))


def test_budgets_by_row(project: Path) -> None:
    # Oracle: the whole batch at each budget.
    routed = RoutedModel.from_pretrained(project / "router", budget=4.0)
    reading = routed.read(*prompts())
    low, high = (routed.decide(reading, [budget] * 6) for budget in (3.2, 4.8))
    own = routed.decide(reading)
    mixed = routed.decide(reading, [3.2, None, 4.8, 3.2, None, 4.8])
    assert mixed == [low[0], own[1], high[2], low[3], own[4], high[5]]
    assert routed.decide(reading.select([4, 0]), [None, 3.2]) == [own[4], low[0]]
    with pytest.raises(ValueError, match="budgets: expected 6 entries"):
        routed.decide(reading, [3.2])


def test_scorer_and_router_agree_on_fingerprints(project: Path) -> None:
    # Oracle: the fingerprints that search and training use.
    model, tokenizer = load_model(str(project / "model"))
    prints = ChainScorer(model, tokenizer, load_task("arc_easy")).fingerprints
    assert load_router(project / "router").config.fingerprints == prints
