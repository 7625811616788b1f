"""A router's files: found in a folder or on the hub, written to a folder, published. Never a base model's.

The names that are downloaded and uploaded are `ROUTER_FILES` and no others: no pickle, no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: httpx's or httpx2's, as the client is
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from router.command import one_line, without_places
from router.decision import Router
from router.files import json_text, read_json, replacing, writable_directory, write_text
from router.routed.card import model_card, place_of, refused_id
from router.storage import (
    CONFIG_FILE,
    GUARANTEE_FILE,
    TRAINED_ON_FILE,
    WEIGHTS_FILE,
    load_router,
    read_guarantee,
    save_router,
    trained_questions,
    weights_sha256,
    write_guarantee,
)
from router.validation import InputError

CARD_FILE = "README.md"
ROUTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, TRAINED_ON_FILE, GUARANTEE_FILE, CARD_FILE)
"""All files that a router may have."""
HUB_ERRORS = (OSError, ValueError, RuntimeError, EntryNotFoundError, HTTPError)
"""What the hub's client raises: its own errors, those of HTTP, and of the upload of large files."""


def router_folder(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Return a router's local folder; one on the hub is downloaded first, or taken from the hub's cache.

    Args:
        source: a local folder, or a hub id. A `Path`, and what begins with `.`, `/` or `~`, is a folder; so is any
            other name where there is one, as for base models (`router.engine.load`).
        revision: hub revision; None: the default. A local folder has none.
        token: hub token; None: the one that the hub's own tools have stored, if any.

    Raises:
        InputError: where there is no such folder or repository, or it holds no router.
    """
    local = _local(source)
    if local is not None:
        if not (local / CONFIG_FILE).is_file():
            inside = local / "router"  # where a run's settings put it
            hint = f" ({inside} holds one)" if (inside / CONFIG_FILE).is_file() else ""
            raise InputError(f"router: expected a directory with {CONFIG_FILE}, got {str(source)!r}{hint}")
        return local
    name = str(source)
    wanted = f"router: expected a local folder or a hub id, got {name!r}: there is no such folder"
    if (refusal := refused_id(name)) is not None:
        raise InputError(f"{wanted}, and the hub takes no such id ({refusal})")
    with _hub(f"{wanted}, and ", name, revision, token):
        folder = Path(
            snapshot_download(
                name, revision=revision, token=token, allow_patterns=list(ROUTER_FILES), library_name="cola-router"
            )
        )
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InputError(f"router: expected a router on the hub, got {name!r}, which has no {file}")
    return folder


def write_router_folder(folder: Path, router: Router, *, source: Path | None, card: str) -> Path:
    """Write a router's files and its card into a folder, which is made if need be; each is complete or absent.

    Args:
        folder: absent, empty or a router's, which is replaced; whatever else lies beside a router stays.
        router: the router.
        source: folder that it was loaded from, whose list of trained questions and guarantee go along; None: none.
        card: the model card.

    Returns:
        The folder.

    Raises:
        InputError: where the folder holds something else or cannot be written, the weights are not those that were
            certified, or the source holds a router of another training by now.
    """
    beside = _beside(router, source)
    _require_free(folder)
    writable_directory(folder, "folder")
    # A list or guarantee of another router goes first: if we are killed, none is better than a wrong one.
    for name, content in beside.items():
        path = folder / name
        if path.is_file() and path.read_bytes() != content:
            path.unlink()
    save_router(folder, router)
    for name, content in beside.items():
        if content is not None:
            with replacing(folder / name) as aside:
                aside.write_bytes(content)
    if router.guarantee is not None and beside[GUARANTEE_FILE] is None:
        write_guarantee(folder, router.guarantee, weights_sha256(router), {})
    write_text(folder / CARD_FILE, card)
    return folder


def push_router(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Add the router",
) -> str:
    """Upload a router's files to the hub, in one commit, and remove those of an earlier router that it does not have.

    Absolute paths of this machine, in the settings that config and guarantee tell, are cut down to their last part.

    Arguments and result are those of `RoutedModel.push_to_hub`, but for the router's folder; what else lies there stays
    here.

    Raises:
        InputError: where the folder holds no router, the hub refuses, or a private repository was asked for and there
            is a public one.
    """
    if (refusal := refused_id(repo_id)) is not None:
        raise InputError(f"repo_id: expected a hub id, got {repo_id!r} ({refusal})")
    files = published_files(folder)
    with _hub("repo_id: expected a repository that can be written, ", repo_id, revision, token):
        api = HfApi(token=token, library_name="cola-router")
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise InputError(f"private: expected a new or private repository, got {url.repo_id}, which is public")
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(url.repo_id, revision=revision))
        gone = [name for name in ROUTER_FILES if name in there and name not in files]
        api.create_commit(
            url.repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message=commit_message,
            revision=revision,
        )
    return str(url)


def published_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a router as they are published, by name: without the absolute paths of this machine.

    A base model that was loaded from a folder is named `./NAME`: no hub id, so that nobody gets another model by it.

    Raises:
        InputError: where the folder holds no router.
    """
    router = load_router(folder)
    config = read_json(folder / CONFIG_FILE)
    base = config["base_model"]
    config = without_places(config)
    if place_of(router.config.base_model) == "local":
        config["base_model"] = f"./{Path(base).expanduser().name or 'model'}"
    files = {CONFIG_FILE: json_text(config).encode(), WEIGHTS_FILE: (folder / WEIGHTS_FILE).read_bytes()}
    if trained_questions(folder) is not None:
        files[TRAINED_ON_FILE] = (folder / TRAINED_ON_FILE).read_bytes()
    if router.guarantee is not None:
        files[GUARANTEE_FILE] = json_text(without_places(read_json(folder / GUARANTEE_FILE))).encode()
    card = folder / CARD_FILE
    files[CARD_FILE] = card.read_bytes() if card.is_file() else model_card(router).encode()
    return files


def _local(source: str | Path) -> Path | None:
    """Return the folder that a source names, whether it is there or not; None: it can be a hub id only."""
    text = str(source)
    try:
        if text and (isinstance(source, Path) or text.startswith((".", "/", "~")) or Path(text).exists()):
            return Path(text).expanduser()
    except (OSError, RuntimeError) as error:  # a name that is too long, or the home of nobody
        raise InputError(f"router: expected a local folder or a hub id, got {text!r} ({one_line(error)})") from error
    return None


def _beside(router: Router, source: Path | None) -> dict[str, bytes | None]:
    """Return what goes along from the source: the trained questions, and the guarantee with how it was found."""
    content: dict[str, bytes | None] = {TRAINED_ON_FILE: None, GUARANTEE_FILE: None}
    if source is None:
        return content
    if trained_questions(source) is not None:
        if read_json(source / CONFIG_FILE).get("training", {}) != router.config.training:
            raise InputError(f"router: expected the training of the one in {source} now, got another: load it anew")
        content[TRAINED_ON_FILE] = (source / TRAINED_ON_FILE).read_bytes()
    if router.guarantee is not None:
        if read_guarantee(source, weights_sha256(router)) != router.guarantee:
            raise InputError(
                f"guarantee: expected the weights and the guarantee in {source}, got others: load the router anew, or "
                "save it without one"
            )
        content[GUARANTEE_FILE] = (source / GUARANTEE_FILE).read_bytes()
    return content


def _require_free(folder: Path) -> None:
    """Refuse a folder of something else, such as a base model: its `config.json` would be lost."""
    wanted = f"folder: expected an empty folder or a router's, got {str(folder)!r}"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{wanted}, a file")
    if (folder / CONFIG_FILE).exists():
        if not {"schema", "head", "fingerprints"} <= read_json(folder / CONFIG_FILE).keys():
            raise InputError(f"{wanted} with another {CONFIG_FILE}")
        return
    # Without a config: what a save that was killed left, and hidden files, such as git's.
    left = (WEIGHTS_FILE, TRAINED_ON_FILE, GUARANTEE_FILE)
    others = sorted(path.name for path in folder.iterdir() if path.name not in left and path.name[0] != ".")
    if others:
        raise InputError(f"{wanted} with {others[0]}")


@contextmanager
def _hub(wanted: str, name: str, revision: str | None, token: str | None) -> Iterator[None]:
    """Turn an error of the hub's client into one line without the token."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise InputError("token: expected letters, digits and marks without spaces, got something else")
    try:
        yield
    except InputError:
        raise
    except RevisionNotFoundError as error:
        raise InputError(
            f"revision: expected a branch, tag or commit of {name} on the hub, got {revision!r}"
        ) from error
    except HUB_ERRORS as error:
        raise InputError(wanted + _said(name, error, token)) from error


def _said(name: str, error: Exception, token: str | None) -> str:
    """Return what the hub, or the way there, said."""
    if isinstance(error, GatedRepoError):
        return f"the hub wants its terms accepted first, on the page of {name}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub shows no repository {name}: it is not there, or private and the token may not read it"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"the hub refuses {name} to this token ({error.response.status_code})"
    if isinstance(error, OfflineModeIsEnabled) or isinstance(error.__cause__, OfflineModeIsEnabled):
        return "the hub is switched off (HF_HUB_OFFLINE) and its cache has no such repository or revision"
    told = (
        error.__cause__ if isinstance(error, EntryNotFoundError) and isinstance(error.__cause__, Exception) else error
    )
    text = f"the hub could not be used for {name} ({type(told).__name__}: {one_line(told)})"
    for secret in (token, get_token()):
        text = text.replace(secret, "***") if secret else text
    return text
