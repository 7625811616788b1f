"""The router's network and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from router.chain import Chain
from router.fingerprint import Fingerprints
from router.heads.head import pad_states, pool_windows
from router.heads.layerwise import REPEAT, RUN, SKIP, LayerwiseHead
from router.storage import Router, RouterConfig, load_router, save_router
from router.validation import InputError

PRINTS = Fingerprints("a" * 64, "b" * 64, "c" * 64)


def make_head(seed: int = 0) -> LayerwiseHead:
    torch.manual_seed(seed)
    head = LayerwiseHead(6, 2, 16, hidden=8, windows=4).eval()
    head.classify.weight.data.normal_(0, 2)
    return head


def make_router(seed: int = 0) -> Router:
    settings = {"hidden": 8, "windows": 4, "dropout": 0.1}
    config = RouterConfig("layerwise", settings, 6, 2, 16, "arc_easy", "continuation", "m", None, "float32", PRINTS)
    return Router(config, make_head(seed))


def states(count: int = 5, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3 + 2 * i, 16, generator=generator) for i in range(count)]


def test_windows_are_means_of_equal_parts_and_ignore_padding() -> None:
    # Oracle: numpy-style slices by hand; 6 tokens in 3 windows, and 2 tokens that fill 2 of 3.
    values = torch.arange(24.0).reshape(2, 6, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    pooled, filled = pool_windows(values, mask, 3)
    assert torch.equal(pooled[0], torch.stack([values[0, i : i + 2].mean(0) for i in (0, 2, 4)]))
    assert filled.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert torch.equal(pooled[1][:2], values[1, :2])


def test_a_row_is_routed_the_same_alone_and_in_any_batch() -> None:
    # Oracle: each sample alone.
    router, many = make_router(), states()
    alone = [router.route([state])[0] for state in many]
    together = router.route(many)
    assert [one.chain for one in together] == [one.chain for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-5)
    assert [one.chain for one in router.route(many[::-1])] == [one.chain for one in alone[::-1]]


def test_decoding_runs_each_layer_as_often_as_its_class_says() -> None:
    # Oracle: by hand; layers 2..5 get repeat, skip, run, run; the score is the sum of the log-probabilities.
    output = torch.full((1, 4, 3), -5.0)
    for layer, cls in enumerate((REPEAT, SKIP, RUN, RUN)):
        output[0, layer, cls] = 5.0
    (ranked,) = make_head().decode(output)
    assert ranked[0].chain == Chain((0, 1, 2, 2, 4, 5), 6)
    assert ranked[0].score == pytest.approx(output.log_softmax(-1).max(-1).values.sum().item(), abs=1e-6)


def test_the_budget_moves_the_mean_depth_from_the_prefix_upwards() -> None:
    # Oracle: the decoded chains' own depths at budgets between the calibrated extremes.
    head = make_head()
    output = head(*pad_states(states(40)))
    head.calibrate(output)
    depths = [point.mean_depth for point in head.budget_points]
    assert depths == sorted(depths)
    assert depths[0] == 2
    for point in head.budget_points:
        chains = [ranked[0].chain for ranked in head.decode(output, point.mean_depth)]
        assert sum(chain.depth for chain in chains) / len(chains) == pytest.approx(point.mean_depth, abs=0.11)
    with pytest.raises(ValueError, match=r"budget: expected a mean depth in 2\.00"):
        head.decode(output, 1.0)
    with pytest.raises(ValueError, match="expected a calibrated head"):
        make_head().decode(output, 4.0)


def test_a_saved_router_routes_as_before_and_knows_its_model(tmp_path: Path) -> None:
    router = make_router()
    router.head.calibrate(router.head(*pad_states(states())))
    config = RouterConfig(**{**vars(router.config), "budget_points": router.head.budget_points})
    save_router(tmp_path / "r", Router(config, router.head))
    loaded = load_router(tmp_path / "r", PRINTS)
    assert loaded.config == config
    assert loaded.route(states()) == router.route(states())
    save_router(tmp_path / "r", make_router(seed=5))  # over the old one
    assert load_router(tmp_path / "r").route(states()) == make_router(seed=5).route(states())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
    with pytest.raises(InputError, match="made for the tokenizer x, got bbbbbbbbbbbb"):
        load_router(tmp_path / "r", Fingerprints("a" * 64, "x", "c" * 64))


@pytest.mark.parametrize(
    "damage",
    ["no directory", "no weights", "other weights", "other schema", "unknown field", "corrupt", "unknown head"],
)
def test_a_damaged_router_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "r"
    save_router(folder, make_router())
    config = json.loads((folder / "config.json").read_text())
    if damage == "no directory":
        folder = tmp_path / "none"
    elif damage == "no weights":
        (folder / "router.safetensors").unlink()
    elif damage == "other weights":
        save_router(tmp_path / "other", make_router(seed=2))
        (tmp_path / "other" / "router.safetensors").replace(folder / "router.safetensors")
    elif damage == "corrupt":
        (folder / "config.json").write_text("{")
    else:
        changes = {"other schema": {"schema": 99}, "unknown field": {"extra": 1}, "unknown head": {"head": "oracle"}}
        (folder / "config.json").write_text(json.dumps(config | changes[damage]))
    with pytest.raises(InputError, match="expected"):
        load_router(folder)


def test_a_head_for_no_layers_or_bad_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"read_layer: expected 1\.\.5, got 6"):
        LayerwiseHead(6, 6, 16)
    with pytest.raises(ValueError, match="hidden: expected at least 1, got 0"):
        LayerwiseHead(6, 2, 16, hidden=0)
