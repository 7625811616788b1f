"""A router's files: written beside nothing else, published and fetched with the hub's real client from a stand-in."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from router.files import sha256_file, write_json
from router.fingerprint import Fingerprints
from router.heads.head import pad_states
from router.routed.hub import ROUTER_FILES, published_files, push_router, router_folder, write_router_folder
from router.storage import (
    CONFIG_FILE,
    GUARANTEE_FILE,
    TRAINED_ON_FILE,
    WEIGHTS_FILE,
    Guarantee,
    Router,
    RouterConfig,
    load_router,
    save_router,
    write_guarantee,
)
from router.validation import InputError
from tests.hub_stand_in import TOKEN, StandIn, ask

PRINTS = Fingerprints("a" * 64, "b" * 64, "c" * 64)
PROMISED = Guarantee(0.02, 0.1, "accuracy", 0.3, None, 200, 0.01, 5.25, 0.015)
CARD = "---\nlibrary_name: cola-router\n---\n\n# A router\n"
SECRET = "/home/somebody/secret"


def states() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3 + 2 * i, 16, generator=generator) for i in range(5)]


def make_router(seed: int = 0, **changed: Any) -> Router:
    """A random layerwise head for 6 layers with operating points, trained with settings full of absolute paths."""
    settings = {"data": f"{SECRET}/data", "records": "runs/x", "more": [f"{SECRET}/a", {"home": "~/b"}], "epochs": 3}
    config = RouterConfig(
        "layerwise", {"hidden": 8, "windows": 2, "dropout": 0.0}, 6, 2, 16, "arc_easy", "letter",
        "us/base", None, "float32", PRINTS, training={"settings": settings},
    )  # fmt: skip
    torch.manual_seed(seed)
    head = config.build().eval()
    for parameter in head.parameters():
        parameter.data.normal_(0, 1)
    with torch.inference_mode():
        head.calibrate(head(*pad_states(states())))
    return Router(dataclasses.replace(config, budget_points=head.budget_points, **changed), head)


def outputs(router: Router) -> torch.Tensor:
    return router.head(*pad_states(states()))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A router's folder as training and calibration leave it, with more in it than a router."""
    folder = tmp_path / "trained"
    save_router(folder, make_router())
    write_json(folder / TRAINED_ON_FILE, {"split_hashes": ["0" * 16, "1" * 16]})
    more = {"settings": {"router": f"{SECRET}/router"}, "certificate": {"chosen": 3}}
    write_guarantee(folder, PROMISED, sha256_file(folder / WEIGHTS_FILE), more)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"not for others")
    (folder / "train.json").write_text("{}")
    return folder


@pytest.fixture
def hub() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_loaded_router_is_written_with_its_guarantee_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    # Oracle: the files of the source, byte for byte; the outputs of the head that was saved.
    router = load_router(trained)
    folder = write_router_folder(tmp_path / "a" / "copy", router, source=trained, card=CARD)
    assert files_in(folder) == sorted(ROUTER_FILES)
    for name in (CONFIG_FILE, WEIGHTS_FILE, TRAINED_ON_FILE, GUARANTEE_FILE):
        assert (folder / name).read_bytes() == (trained / name).read_bytes()
    again = load_router(folder, PRINTS)
    assert (again.config, again.guarantee) == (router.config, PROMISED)
    assert torch.equal(outputs(again), outputs(make_router()))
    write_router_folder(folder, again, source=folder, card=CARD)  # over itself
    assert load_router(folder).guarantee == PROMISED
    assert files_in(folder) == sorted(ROUTER_FILES)


def test_a_router_without_a_source_keeps_the_guarantee_that_it_carries(trained: Path, tmp_path: Path) -> None:
    # Oracle: the guarantee in memory; of trained questions nothing is known.
    folder = write_router_folder(tmp_path / "copy", load_router(trained), source=None, card=CARD)
    assert load_router(folder).guarantee == PROMISED
    assert files_in(folder) == sorted(set(ROUTER_FILES) - {TRAINED_ON_FILE})


def test_what_belonged_to_the_router_before_does_not_stay(trained: Path) -> None:
    # Oracle: another router, never calibrated and with no list of questions; what is no router's file is left alone.
    write_router_folder(trained, make_router(seed=1), source=None, card=CARD)
    assert files_in(trained) == sorted([CONFIG_FILE, WEIGHTS_FILE, "README.md", "checkpoints", "train.json"])
    assert load_router(trained).guarantee is None


def test_a_guarantee_does_not_go_over_to_other_weights(trained: Path, tmp_path: Path) -> None:
    # Oracle: a head that changed after it was loaded.
    router = load_router(trained)
    with torch.no_grad():
        next(router.head.parameters()).add_(1)
    with pytest.raises(InputError, match="guarantee: expected the weights and the guarantee in"):
        write_router_folder(tmp_path / "copy", router, source=trained, card=CARD)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", ["base model", "corrupt config", "other files", "card alone", "file"])
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    # Oracle: every byte below the folder, before and after.
    folder = tmp_path / "there"
    if kind == "file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        named = {"base model": CONFIG_FILE, "corrupt config": CONFIG_FILE, "other files": "notes.txt"}
        content = {"base model": '{"model_type": "llama"}', "corrupt config": "{"}
        (folder / named.get(kind, "README.md")).write_text(content.get(kind, "mine"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="expected"):
        write_router_folder(folder, make_router(), source=None, card=CARD)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_links_is_read_and_written_over_without_a_change_to_what_they_point_to(
    trained: Path, tmp_path: Path
) -> None:
    # Oracle: the hub's cache keeps files so; the files behind the links stay.
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE, GUARANTEE_FILE):
        (linked / name).symlink_to(trained / name)
    assert load_router(linked).guarantee == PROMISED
    before = sha256_file(trained / WEIGHTS_FILE)
    write_router_folder(linked, make_router(seed=1), source=None, card=CARD)
    assert not (linked / WEIGHTS_FILE).is_symlink()
    assert sha256_file(trained / WEIGHTS_FILE) == before


def test_names_are_folders_or_hub_ids_and_never_both(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Oracle: by hand, without a network: the tests' environment has the hub switched off.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "us" / "router")
    assert router_folder("us/router") == Path("us/router")  # a directory here goes before the hub
    assert router_folder(trained) == router_folder(str(trained)) == trained
    for name in ("./us/none", "/us/none", "~/none", Path("us/other"), "us"):
        with pytest.raises(InputError, match=r"router: expected a directory with config\.json, got"):
            router_folder(name)
    for name in ("runs/demo/roter", "us/--", "", "a" * 300, "~nobody-here/x"):
        with pytest.raises(InputError, match="router: expected a local folder or a hub id, got '"):
            router_folder(name)
    with pytest.raises(InputError, match=r"no such folder, and the hub takes no such id \(Repo id must be in the form"):
        router_folder("runs/demo/roter")
    with pytest.raises(InputError, match=r"no such folder, and the hub is switched off \(HF_HUB_OFFLINE\)"):
        router_folder("us/other")
    with pytest.raises(InputError, match="token: expected letters") as caught:
        router_folder("us/other", token="hf_with\nbreak")
    assert "break" not in str(caught.value)


def test_what_is_published_names_no_place_on_this_machine(trained: Path, tmp_path: Path) -> None:
    # Oracle: the absolute paths that settings and guarantee were made with; all else is as it was.
    files = published_files(trained)
    assert sorted(files) == sorted(ROUTER_FILES)
    assert not [name for name, content in files.items() if SECRET.encode() in content or b"~/" in content]
    told = json.loads(files[CONFIG_FILE])
    assert told["training"]["settings"] == {
        "data": "data",
        "records": "runs/x",
        "more": ["a", {"home": "b"}],
        "epochs": 3,
    }
    assert json.loads((trained / CONFIG_FILE).read_text()) == told | {"training": make_router().config.training}
    assert json.loads(files[GUARANTEE_FILE])["certificate"] == {"chosen": 3}
    assert b"us/base" in files["README.md"]


@pytest.mark.parametrize("name", [f"{SECRET}/llama", "~/llama", "../here/llama", "a/b/llama", "here/llama"])
def test_a_local_base_model_is_published_under_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Oracle: a name that begins with "." is a folder for all of the library, whatever the hub has.
    (tmp_path / "here" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    save_router(tmp_path / "r", make_router(base_model=name))
    files = published_files(tmp_path / "r")
    assert json.loads(files[CONFIG_FILE])["base_model"] == "./llama"
    assert b"a local model" in files["README.md"]
    assert b"llama" not in files["README.md"]


def test_a_router_goes_to_the_hub_and_comes_back(hub: StandIn, trained: Path, tmp_path: Path) -> None:
    # Oracle: the files in the stand-in; the outputs and the guarantee of the router here; a second push replaces.
    other = write_router_folder(tmp_path / "other", make_router(seed=1), source=None, card=CARD)
    push = {"do": "push_router", "folder": str(trained), "repo_id": "us/router", "token": TOKEN, "private": True}
    calls = [
        push,
        push | {"repo_id": "router", "revision": "trial", "commit_message": "One more"},
        push | {"repo_id": "us/twice", "private": None},
        push | {"repo_id": "us/twice", "private": None, "folder": str(other)},
    ]
    address = f"{hub.address}/us"
    assert ask(hub, tmp_path / "one", calls) == [f"{address}/router", f"{address}/router", *[f"{address}/twice"] * 2]
    repository, twice = hub.repositories["us/router"], hub.repositories["us/twice"]
    assert (repository.private, twice.private) == (True, False)
    for revision in ("main", "trial"):
        files = repository.files(revision)
        assert files == published_files(trained) | {".gitattributes": files[".gitattributes"]}
    # The questions and the guarantee of the router that was there before are gone.
    assert sorted(twice.files()) == sorted([".gitattributes", CONFIG_FILE, WEIGHTS_FILE, "README.md"])

    fetch = {"do": "router_folder", "source": "us/router"}
    by_token, by_branch = ask(hub, tmp_path / "two", [fetch, fetch | {"revision": "trial"}], HF_TOKEN=TOKEN)
    for folder in (Path(by_token), Path(by_branch)):
        assert files_in(folder) == sorted(ROUTER_FILES)
        again = load_router(folder, PRINTS)
        assert again.guarantee == PROMISED
        assert torch.equal(outputs(again), outputs(make_router()))
    # What was fetched once is there without a network.
    assert ask(hub, tmp_path / "two", [fetch], HF_HUB_OFFLINE="1") == [by_token]


def test_what_the_hub_refuses_is_one_line_without_the_token(hub: StandIn, trained: Path, tmp_path: Path) -> None:
    # Oracle: what is wrong with each call, by hand; `ask` looks for the token in everything that is printed.
    save_router(tmp_path / "bare", make_router())
    there = {path.name: path.read_bytes() for path in (tmp_path / "bare").iterdir()}
    hub.add("us/private", there, private=True)
    hub.add("us/public", there)
    hub.add("us/base", {"config.json": b"{}", "model.safetensors": b""})
    fetch = {"do": "router_folder"}
    push = {"do": "push_router", "folder": str(trained), "token": TOKEN}
    wanted = {
        "shows no repository us/private: it is not there, or private": fetch | {"source": "us/private"},
        "shows no repository us/private": fetch | {"source": "us/private", "token": "hf_of_somebody_else"},
        "got 'us/none': there is no such folder, and the hub shows no repository": fetch | {"source": "us/none"},
        "revision: expected a branch, tag or commit of us/public on the hub, got 'v9'": fetch
        | {"source": "us/public", "revision": "v9"},
        "expected a router on the hub, got 'us/base', which has no router.safetensors": fetch | {"source": "us/base"},
        "repo_id: expected a repository that can be written, the hub refuses us/public to this token (401)": push
        | {"repo_id": "us/public", "token": "hf_of_somebody_else"},
        "the hub refuses them/r to this token (403)": push | {"repo_id": "them/r"},
        "repo_id: expected a hub id, got 'a/b/c' (Repo id must be": push | {"repo_id": "a/b/c"},
        "private: expected a new or private repository, got us/public, which is public": push
        | {"repo_id": "us/public", "private": True},
        "the hub could not be used for us/echo (HfHubHTTPError: ": push | {"repo_id": "us/echo"},
        "config.json: expected an existing file": push | {"repo_id": "us/public", "folder": str(tmp_path)},
    }
    answers = ask(hub, tmp_path / "home", list(wanted.values()))
    for text, answer in zip(wanted, answers, strict=True):
        assert answer.startswith("error: ")
        assert text in answer
        assert "\n" not in answer
        assert "somebody_else" not in answer
    assert hub.repositories["us/public"].files() == there
    assert not any(b"somebody" in content for content in hub.large.values())

    with pytest.raises(InputError, match=r"the hub is switched off \(HF_HUB_OFFLINE\)"):
        push_router(trained, "us/public", token=TOKEN)  # the tests' own environment
    hub.__exit__(None, None, None)
    for answer in ask(hub, tmp_path / "fresh", [fetch | {"source": "us/public"}, push | {"repo_id": "us/public"}]):
        assert "the hub could not be used for us/public (ConnectError: " in answer


def test_of_a_hostile_repository_only_a_routers_files_are_fetched(hub: StandIn, trained: Path, tmp_path: Path) -> None:
    # Oracle: what was asked of the server, and every file below the client's home.
    evil = pickle.dumps({"evil": True})
    names = ["pytorch_model.bin", "evil.py", "../x", "../../config.json", "sub/config.json", "config.json.py"]
    names += ["model.pkl", "tokenizer.json", "model.safetensors", ".gitattributes", "/tmp/config.json"]
    good = {name: content for name, content in published_files(trained).items() if name != "README.md"}
    hub.add("them/evil", dict.fromkeys(names, evil) | good)
    (tmp_path / "a").mkdir()
    (answer,) = ask(hub, tmp_path / "a" / "b", [{"do": "router_folder", "source": "them/evil"}])
    assert files_in(Path(answer)) == sorted(good)
    fetched = {line.split("/")[-1] for line in hub.asked if "/resolve/" in line}
    assert fetched == set(good)
    assert all(line.count("/") == 5 for line in hub.asked if "/resolve/" in line)
    contents = [path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert evil not in contents
    assert load_router(Path(answer)).guarantee == PROMISED
