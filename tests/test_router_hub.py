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

from router.decision import Guarantee, Router
from router.files import sha256_file, write_json
from router.heads.head import pad_states
from router.routed.hub import ROUTER_FILES, published_files, push_router, router_folder, write_router_folder
from router.storage import (
    CONFIG_FILE,
    GUARANTEE_FILE,
    TRAINED_ON_FILE,
    WEIGHTS_FILE,
    load_router,
    save_router,
    write_guarantee,
)
from router.validation import InputError
from tests.hub_stand_in import TOKEN, StandIn, ask
from tests.routed_folders import PRINTS, small_router, small_states

PROMISED = Guarantee(0.02, 0.1, "accuracy", 0.3, None, 200, 0.01, 5.25, 0.015)
CARD = "---\nlibrary_name: cola-router\n---\n\n# A router\n"
SECRET = "/home/somebody/secret"


def make_router(seed: int = 0, **changed: Any) -> Router:
    """A random router, trained with settings full of absolute paths."""
    settings = {"data": f"{SECRET}/data", "records": "runs/x", "more": [f"{SECRET}/a", {"home": "~/b"}], "epochs": 3}
    return small_router(seed, training={"settings": settings}, **changed)


def outputs(router: Router) -> torch.Tensor:
    return router.head(*pad_states(small_states()))


def write_trained(folder: Path) -> Path:
    """A router's folder as training and calibration leave it, with more in it than a router."""
    save_router(folder, make_router())
    write_json(folder / TRAINED_ON_FILE, {"split_hashes": ["0" * 16, "1" * 16]})
    more = {"settings": {"router": f"{SECRET}/router"}, "certificate": {"chosen": 3}}
    write_guarantee(folder, PROMISED, sha256_file(folder / WEIGHTS_FILE), more)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"not for others")
    (folder / "train.json").write_text("{}")
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return write_trained(tmp_path / "trained")


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


def test_the_questions_of_a_later_training_do_not_go_over_to_a_router(trained: Path, tmp_path: Path) -> None:
    # Oracle: a router of another training, with its questions, in the folder that this one was loaded from.
    router = dataclasses.replace(load_router(trained), guarantee=None)
    save_router(trained, small_router(seed=1, training={"settings": {"epochs": 4}}))
    write_json(trained / TRAINED_ON_FILE, {"split_hashes": ["2" * 16]})
    with pytest.raises(InputError, match="router: expected the training of the one in"):
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
    with pytest.raises(InputError, match=r"got 'us' \(us/router holds one\)$"):
        router_folder("us")
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


FETCH, PUSH = {"do": "router_folder"}, {"do": "push_router", "token": TOKEN}
PUSHED = [
    PUSH | {"repo_id": "us/router", "private": True},
    PUSH | {"repo_id": "router", "private": True, "revision": "trial", "commit_message": "One more"},
    PUSH | {"repo_id": "us/twice"},
    PUSH | {"repo_id": "us/twice", "folder": "other"},
]
"""Calls that succeed; without a folder of their own they push the trained router."""
REFUSED: dict[str, dict[str, Any]] = {
    "shows no repository us/private: it is not there, or private": FETCH | {"source": "us/private"},
    "shows no repository us/private": FETCH | {"source": "us/private", "token": "hf_of_somebody_else"},
    "got 'us/none': there is no such folder, and the hub shows no repository": FETCH | {"source": "us/none"},
    "revision: expected a branch, tag or commit of us/public on the hub, got 'v9'": FETCH
    | {"source": "us/public", "revision": "v9"},
    "expected a router on the hub, got 'us/base', which has no router.safetensors": FETCH | {"source": "us/base"},
    "repo_id: expected a repository that can be written, the hub refuses us/public to this token (401)": PUSH
    | {"repo_id": "us/public", "token": "hf_of_somebody_else"},
    "the hub refuses them/r to this token (403)": PUSH | {"repo_id": "them/r"},
    "repo_id: expected a hub id, got 'a/b/c' (Repo id must be": PUSH | {"repo_id": "a/b/c"},
    "private: expected a new or private repository, got us/public, which is public": PUSH
    | {"repo_id": "us/public", "private": True},
    "the hub could not be used for us/echo (HfHubHTTPError: ": PUSH | {"repo_id": "us/echo"},
    "config.json: expected an existing file": PUSH | {"repo_id": "us/public", "folder": "empty"},
}
"""Calls that are refused, by what their message says."""
EVIL = pickle.dumps({"evil": True})
EVIL_NAMES = (
    "pytorch_model.bin", "evil.py", "../x", "../../config.json", "sub/config.json", "config.json.py",
    "model.pkl", "tokenizer.json", "model.safetensors", ".gitattributes", "/tmp/config.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """A stand-in after all calls, and what clients were answered.

    Attributes:
        hub: the stand-in.
        home: the first client's home.
        trained: the router that was pushed.
        answers: of `PUSHED`, of `REFUSED`, and of a fetch of `them/evil`, by one client without a token of its own.
    """

    hub: StandIn
    home: Path
    trained: Path
    answers: list[str]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("hub")
    trained = write_trained(folder / "trained")
    write_router_folder(folder / "other", make_router(seed=1), source=None, card=CARD)
    (folder / "empty").mkdir()
    with StandIn() as hub:
        there = {path.name: path.read_bytes() for path in (folder / "other").iterdir()}
        hub.add("us/private", there, private=True)
        hub.add("us/public", there)
        hub.add("us/base", {"config.json": b"{}", "model.safetensors": b""})
        good = {name: content for name, content in published_files(trained).items() if name != "README.md"}
        hub.add("them/evil", dict.fromkeys(EVIL_NAMES, EVIL) | good)
        calls = [*PUSHED, *REFUSED.values(), FETCH | {"source": "them/evil"}]
        for i, call in enumerate(calls):
            if call["do"] == "push_router":
                calls[i] = call | {"folder": str(folder / call.get("folder", "trained"))}
        (folder / "a").mkdir()
        yield Asked(hub, folder / "a" / "home", trained, ask(hub, folder / "a" / "home", calls))


def test_a_router_goes_to_the_hub_and_comes_back(asked: Asked, tmp_path: Path) -> None:
    # Oracle: the files in the stand-in; the outputs and the guarantee of the router here; a second push replaces.
    address = f"{asked.hub.address}/us"
    assert asked.answers[:4] == [f"{address}/router", f"{address}/router", *[f"{address}/twice"] * 2]
    repository, twice = asked.hub.repositories["us/router"], asked.hub.repositories["us/twice"]
    assert (repository.private, twice.private) == (True, False)
    for revision in ("main", "trial"):
        files = repository.files(revision)
        assert files == published_files(asked.trained) | {".gitattributes": files[".gitattributes"]}
    # The questions and the guarantee of the router that was there before are gone.
    assert sorted(twice.files()) == sorted([".gitattributes", CONFIG_FILE, WEIGHTS_FILE, "README.md"])

    fetch = FETCH | {"source": "us/router"}
    fetched = ask(asked.hub, tmp_path, [fetch, fetch | {"revision": "trial"}], token=TOKEN)
    for folder in map(Path, fetched):
        assert files_in(folder) == sorted(ROUTER_FILES)
        again = load_router(folder, PRINTS)
        assert again.guarantee == PROMISED
        assert torch.equal(outputs(again), outputs(make_router()))
    # What was fetched once is there without a network.
    assert ask(asked.hub, tmp_path, [fetch], offline=True) == fetched[:1]


def test_what_the_hub_refuses_is_one_line_without_the_token(asked: Asked) -> None:
    # Oracle: what is wrong with each call, by hand; `ask` looks for the token in everything that is printed.
    for text, answer in zip(REFUSED, asked.answers[4:-1], strict=True):
        assert answer.startswith("error: ")
        assert text in answer
        assert "\n" not in answer
        assert "somebody_else" not in answer
    assert len(asked.hub.repositories["us/public"].commits) == 1
    assert not any(b"somebody" in content for content in asked.hub.large.values())
    with pytest.raises(InputError, match=r"the hub is switched off \(HF_HUB_OFFLINE\)"):
        push_router(asked.trained, "us/public", token=TOKEN)  # the tests' own environment


def test_a_hub_that_does_not_answer_is_told(trained: Path, tmp_path: Path) -> None:
    with StandIn() as hub:
        pass
    calls = [FETCH | {"source": "us/public"}, PUSH | {"repo_id": "us/public", "folder": str(trained)}]
    for answer in ask(hub, tmp_path / "home", calls):
        assert "the hub could not be used for us/public (ConnectError: " in answer


def test_of_a_hostile_repository_only_a_routers_files_are_fetched(asked: Asked) -> None:
    # Oracle: what was asked of the server, and every file below the client's home.
    good = sorted(set(ROUTER_FILES) - {"README.md"})
    folder = Path(asked.answers[-1])
    assert files_in(folder) == good
    lines = [line for line in asked.hub.asked if "/resolve/" in line and "them/evil" in line]
    assert sorted({line.split("/")[-1] for line in lines}) == good
    assert all(line.count("/") == 5 for line in lines)
    assert EVIL not in [path.read_bytes() for path in asked.home.parent.rglob("*") if path.is_file()]
    assert load_router(folder).guarantee == PROMISED
