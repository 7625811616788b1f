"""A router's files, and what it decides at each operation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from router.chain import Chain
from router.decision import Guarantee, OperatingPoint, Operation, Router, RouterConfig
from router.fingerprint import Fingerprints
from router.heads.head import pad_states
from router.heads.layerwise import LayerwiseHead
from router.storage import load_router, save_router, weights_sha256, write_guarantee
from router.validation import InputError
from tests.tiny import edit_json

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


def test_a_saved_router_routes_as_before_and_knows_its_model(tmp_path: Path) -> None:
    router = make_router()
    router.head.calibrate(router.head(*pad_states(states())))
    config = RouterConfig(**{**vars(router.config), "budget_points": router.head.budget_points})
    save_router(tmp_path / "r", Router(config, router.head))
    loaded = load_router(tmp_path / "r", PRINTS)
    assert loaded.config == config
    assert loaded.decide(states()) == router.decide(states())
    save_router(tmp_path / "r", make_router(seed=5))  # over the old one
    assert load_router(tmp_path / "r").decide(states()) == make_router(seed=5).decide(states())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
    with pytest.raises(InputError, match="made for the tokenizer x, got bbbbbbbbbbbb"):
        load_router(tmp_path / "r", Fingerprints("a" * 64, "x", "c" * 64))


def test_a_folder_of_schema_2_is_read(tmp_path: Path) -> None:
    # Oracle: the router; `read_layer` was called `prefix_layers` then.
    router = make_router()
    save_router(tmp_path, router)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["schema"] == 3
    old = {"prefix_layers" if name == "read_layer" else name: value for name, value in config.items()}
    path.write_text(json.dumps(old | {"schema": 2}))
    assert load_router(tmp_path).config == router.config
    assert load_router(tmp_path).decide(states()) == router.decide(states())


def test_a_guarantee_belongs_to_its_weights(tmp_path: Path) -> None:
    # Oracle: what was written; of other weights it promises nothing.
    given = Guarantee(0.02, 0.1, "disagreement", 0.3, -1.5, 500, 0.004, 4.25, 0.011)
    save_router(tmp_path, make_router())
    write_guarantee(tmp_path, given, weights_sha256(make_router()), {"command": "calibrate"})
    assert load_router(tmp_path).guarantee == given
    save_router(tmp_path, make_router(seed=2))
    assert load_router(tmp_path).guarantee is None
    write_guarantee(tmp_path, given, weights_sha256(make_router(seed=2)), {})
    path = tmp_path / "guarantee.json"
    path.write_text(path.read_text().replace("0.02", "2.0"))
    with pytest.raises(InputError, match=r"epsilon: expected at most 1, got 2\.0"):
        load_router(tmp_path)


def test_every_sample_may_have_an_operation_of_its_own() -> None:
    # Oracle: all samples at each operation.
    made = make_router()
    made.head.calibrate(made.head(*pad_states(states(40))))
    full = Guarantee(0.1, 0.1, "accuracy", None, None, 10, 0.0, 6.0, None)
    router, many = Router(made.config, made.head, full), states(4)
    wished = [Operation(), Operation(budget=3.0), Operation(guaranteed=True), Operation(point=OperatingPoint(0.5))]
    each = [router.decide(many, one) for one in wished]
    assert router.decide(many, wished) == [decided[row] for row, decided in enumerate(each)]
    assert {one.chain for one in each[2]} == {Chain.full(6)}
    # All scores are below 0, so with that least score all run at full depth.
    sure = router.decide(many, Operation(point=OperatingPoint(0.0, least_score=0.0)))
    assert {one.chain for one in sure} == {Chain.full(6)}
    with pytest.raises(ValueError, match="expected 4 operations, one a sample, got 1"):
        router.decide(many, wished[:1])
    with pytest.raises(ValueError, match="guaranteed: expected a router with a guarantee"):
        made.decide(many, Operation(guaranteed=True))
    with pytest.raises(ValueError, match="expected one of budget, guaranteed and point"):
        Operation(budget=3.0, guaranteed=True)


@pytest.mark.parametrize(
    "damage",
    ["no directory", "no weights", "other weights", "other schema", "unknown field", "corrupt", "unknown head"],
)
def test_a_damaged_router_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "r"
    save_router(folder, make_router())
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
        edit_json(folder / "config.json", **changes[damage])
    with pytest.raises(InputError, match="expected"):
        load_router(folder)
