"""Training that starts from another task's router (`--warm_start`), for every kind of head."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from data.records import read_records
from data.sample import read_samples, write_samples
from data.tasks import TaskSet, load_task, write_tasks
from router.decision import Router
from router.heads.menu import MenuHead
from router.storage import load_router, save_router
from search.__main__ import main as search
from tests.conftest import Refusal
from tests.test_search_run import arguments as search_arguments
from tests.test_train_command import arguments
from tests.tiny import NUM_LAYERS, tiny_samples, write_project
from train.__main__ import main as train

PREFIX = 2
MENU = ("0-4", "0-2,4", "0-3", "0-2,3*2,4", "0,1,3,4")
OTHER_MENU = ("0-4", "0,1,3,4", "0-1", "0-3")
HEADS = ("layerwise", "menu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, samples, their menu table and routers; and another task: other questions, asked otherwise."""
    folder = write_project(tmp_path_factory.mktemp("project"), train=20)
    (folder / "other").mkdir()
    write_tasks(folder / "other", TaskSet.of(load_task("arc_easy", "letter")))
    for split, count in (("train", 12), ("validation", 4)):
        write_samples(folder / "other" / f"{split}.jsonl", tiny_samples(split, 60)[-count:])
    for name, chains in (("menu", MENU), ("other_menu", OTHER_MENU)):
        value = {"schema": 2, "num_layers": NUM_LAYERS, "first_editable": PREFIX, "chains": chains}
        (folder / f"{name}.json").write_text(json.dumps(value))
    for data, out, menu in (("data", "table", "menu"), ("other", "other_table", "other_menu")):
        search(run_arguments(folder, folder / out, data=data, menu=folder / f"{menu}.json", verify="false"))
    for kind in HEADS:
        train(train_arguments(folder, folder / kind, kind))
    return folder


def run_arguments(project: Path, out: Path, data: str = "data", **changes: object) -> list[str]:
    own = {"data": project / data, "splits": "[train,validation]", "first_editable": PREFIX, "search__simulations": 8}
    return search_arguments(project, out, **(own | changes))


def train_arguments(project: Path, out: Path, kind: str, **changes: object) -> list[str]:
    own = {"out": out, "records": project / "table", "head.kind": kind, "head.hidden": 8}
    return arguments(project, **(own | changes))


@pytest.mark.parametrize("kind", HEADS)
def test_training_starts_from_another_routers_weights(project: Path, tmp_path: Path, kind: str) -> None:
    # Oracle: with next to no learning rate the new router is the old one; the hashes of both tasks' questions.
    changes: dict[str, object] = {"data": project / "other", "records": project / "other_table"}
    if kind != "menu":
        search(run_arguments(project, tmp_path / "records", data="other", search__simulations=16))
        changes["records"] = tmp_path / "records"
    still = {**changes, "head__learning_rate": 1e-12, "warm_start": project / kind}
    train(train_arguments(project, tmp_path / "new", kind, **still))
    old, new = (load_router(folder).head for folder in (project / kind, tmp_path / "new"))
    one, other = old.state_dict(), new.state_dict()
    if isinstance(new, MenuHead):
        rows = [[*(2 * MENU.index(c) + k for c in ("0-4", "0,1,3,4", "0-3") for k in (0, 1)), 10, 11],
                [*(2 * OTHER_MENU.index(c) + k for c in ("0-4", "0,1,3,4", "0-3") for k in (0, 1)), 8, 9]]  # fmt: skip
        fresh = 2 * OTHER_MENU.index("0-1")
        assert other["predict.weight"][fresh : fresh + 2].abs().max() < 1e-6  # its rates, whatever it reads
        table = read_records(project / "other_table" / "train.jsonl")
        right = sum(r.correct for record in table for r in record.results if str(r.chain) == "0-1")
        rate = (right + 1) / (len(table) + 2)
        assert other["predict.bias"][fresh].sigmoid() == pytest.approx(rate, abs=1e-4)
        for name in ("predict.weight", "predict.bias"):
            one[name], other[name] = one[name][rows[0]], other[name][rows[1]]
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-6), name
    before, after = (
        set(json.loads((folder / "trained_on.json").read_text())["split_hashes"])
        for folder in (project / kind, tmp_path / "new")
    )
    own = {
        s.split_hash for split in ("train", "validation") for s in read_samples(project / "other" / f"{split}.jsonl")
    }
    assert after == before | own
    assert own - before


def test_the_weights_to_start_from_belong_to_the_trainings_key(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Oracle: what the command says, and the routers' files.
    train(train_arguments(project, tmp_path / "other", "menu", seed_everything=1, trainer__max_epochs=1))
    shutil.copytree(project / "menu", tmp_path / "copy")

    def trained(**changes: object) -> bytes:
        train(train_arguments(project, tmp_path / "new", "menu", **changes))
        return (tmp_path / "new" / "router.safetensors").read_bytes()

    first = trained(warm_start=project / "menu")
    capsys.readouterr()
    assert trained(warm_start=tmp_path / "copy") == first
    assert "already" in capsys.readouterr().out
    assert trained(warm_start=tmp_path / "other") != first
    # Without one again: as if nothing had been in the folder.
    assert trained() == (project / "menu" / "router.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other head", "warm_start: expected a router with head layerwise, as set here, got menu"),
        ("other width", "warm_start: expected a router with hidden 9, as set here, got 8"),
        ("other model", "warm_start: expected it to be made for the model"),
        ("other read layer", "warm_start: expected a router with read_layer 3, as set here, got 2"),
        ("no questions", "warm_start: expected a router with trained_on.json"),
        ("itself", "warm_start: expected another folder than out"),
        ("nowhere", "router: expected an existing directory"),
    ],
)
def test_a_router_that_training_cannot_start_from_is_refused_in_one_line(
    project: Path, tmp_path: Path, refusal: Refusal, name: str, said: str
) -> None:
    old = Path(shutil.copytree(project / "menu", tmp_path / "old"))
    changes: dict[str, dict[str, object]] = {
        "other width": {"head__hidden": 9},
        "other read layer": {"read_layer": 3},
        "nowhere": {"warm_start": tmp_path / "nowhere"},
        "itself": {"out": old},
    }
    if name == "other model":
        router = load_router(old)
        prints = dataclasses.replace(router.config.fingerprints, model="d" * 64)
        save_router(old, Router(dataclasses.replace(router.config, fingerprints=prints), router.head))
    if name == "no questions":
        (old / "trained_on.json").unlink()
    kind = "layerwise" if name == "other head" else "menu"
    named = {"warm_start": old, **changes.get(name, {})}
    out = Path(str(named.pop("out", tmp_path / "new")))
    assert said in refusal(train, train_arguments(project, out, kind, **named))
