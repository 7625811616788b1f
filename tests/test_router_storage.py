"""A router's files, and what it decides at each operation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.chain import Chain
from router.decision import Guarantee, OperatingPoint, Operation, Router
from router.files import write_json
from router.fingerprint import Fingerprints
from router.storage import load_router, save_router, trained_questions, weights_sha256, write_guarantee
from router.validation import InputError
from tests.routed_folders import PRINTS, small_router, small_states
from tests.tiny import edit_json


def test_a_saved_router_routes_as_before_and_knows_its_model(tmp_path: Path) -> None:
    router = small_router()
    save_router(tmp_path / "r", router)
    loaded = load_router(tmp_path / "r", PRINTS)
    assert loaded.config == router.config
    assert loaded.decide(small_states()) == router.decide(small_states())
    save_router(tmp_path / "r", small_router(seed=5))  # over the old one
    assert load_router(tmp_path / "r").decide(small_states()) == small_router(seed=5).decide(small_states())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
    with pytest.raises(InputError, match="made for the tokenizer x, got bbbbbbbbbbbb"):
        load_router(tmp_path / "r", Fingerprints("a" * 64, "x", "c" * 64))


def test_a_folder_of_schema_2_is_read(tmp_path: Path) -> None:
    # Oracle: the router; `read_layer` was called `prefix_layers` then.
    router = small_router()
    save_router(tmp_path, router)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["schema"] == 3
    old = {"prefix_layers" if name == "read_layer" else name: value for name, value in config.items()}
    path.write_text(json.dumps(old | {"schema": 2}))
    assert load_router(tmp_path).config == router.config
    assert load_router(tmp_path).decide(small_states()) == router.decide(small_states())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "read_layer"} | {"schema": 2}))
    with pytest.raises(InputError, match="expected the field read_layer, got none"):
        load_router(tmp_path)


def test_a_guarantee_belongs_to_its_weights(tmp_path: Path) -> None:
    # Oracle: what was written; of other weights it promises nothing.
    given = Guarantee(0.02, 0.1, "disagreement", 0.3, -1.5, 500, 0.004, 4.25, 0.011)
    save_router(tmp_path, small_router())
    write_guarantee(tmp_path, given, weights_sha256(small_router()), {"command": "calibrate"})
    assert load_router(tmp_path).guarantee == given
    save_router(tmp_path, small_router(seed=2))
    assert load_router(tmp_path).guarantee is None
    write_guarantee(tmp_path, given, weights_sha256(small_router(seed=2)), {})
    path = tmp_path / "guarantee.json"
    path.write_text(path.read_text().replace("0.02", "2.0"))
    with pytest.raises(InputError, match=r"epsilon: expected at most 1, got 2\.0"):
        load_router(tmp_path)


def test_what_is_not_sure_or_not_certified_runs_at_full_depth() -> None:
    made = small_router()
    full = Guarantee(0.1, 0.1, "accuracy", None, None, 10, 0.0, 6.0, None)
    router, many = Router(made.config, made.head, full), small_states(4)
    assert {one.chain for one in router.decide(many, Operation(guaranteed=True))} == {Chain.full(6)}
    # All scores are below 0, so with that least score all run at full depth.
    sure = router.decide(many, Operation(point=OperatingPoint(0.0, least_score=0.0)))
    assert {one.chain for one in sure} == {Chain.full(6)}
    with pytest.raises(ValueError, match="expected 4 operations, one a sample, got 1"):
        router.decide(many, [Operation()])
    with pytest.raises(ValueError, match="guaranteed: expected a router with a guarantee"):
        made.decide(many, Operation(guaranteed=True))
    with pytest.raises(ValueError, match="expected one of budget, guaranteed and point"):
        Operation(budget=3.0, guaranteed=True)


@pytest.mark.parametrize("seen", [None, 3, [1], [["a"]]])
def test_questions_that_are_no_hashes_are_refused(tmp_path: Path, seen: object) -> None:
    # Oracle: a list of texts is read; who publishes a router, or fetches one, meets a line and no traceback.
    write_json(tmp_path / "trained_on.json", {"split_hashes": ["0" * 16]})
    assert trained_questions(tmp_path) == {"0" * 16}
    write_json(tmp_path / "trained_on.json", {"split_hashes": seen})
    with pytest.raises(InputError, match=r"router: expected split_hashes in .*, a list of texts, got"):
        trained_questions(tmp_path)


@pytest.mark.parametrize(
    "damage",
    ["no directory", "no weights", "other weights", "other schema", "unknown field", "corrupt", "unknown head"],
)
def test_a_damaged_router_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "r"
    save_router(folder, small_router())
    if damage == "no directory":
        folder = tmp_path / "none"
    elif damage == "no weights":
        (folder / "router.safetensors").unlink()
    elif damage == "other weights":
        save_router(tmp_path / "other", small_router(seed=2))
        (tmp_path / "other" / "router.safetensors").replace(folder / "router.safetensors")
    elif damage == "corrupt":
        (folder / "config.json").write_text("{")
    else:
        changes = {"other schema": {"schema": 99}, "unknown field": {"extra": 1}, "unknown head": {"head": "oracle"}}
        edit_json(folder / "config.json", **changes[damage])
    with pytest.raises(InputError, match="expected"):
        load_router(folder)
