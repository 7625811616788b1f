"""A small real HTTP server that speaks as much of the hub's protocol as repositories of a few files need.

The real client talks to it:

    with StandIn() as hub:
        ask(hub, home, [{"do": "push", "folder": "r", "repo_id": "us/r"}, {"do": "router_folder", "source": "us/r"}])

As on the hub, `*.safetensors` go through Git LFS, and what a visitor may not see is "not there" for him.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

import router.routed.hub
from router.validation import InputError

TOKEN = "hf_recognisable" + "0123456789" * 2
"""The one account's token."""


@dataclasses.dataclass
class Repository:
    """A repository: the files of each commit, and the commit of each branch."""

    private: bool = False
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class StandIn:
    """The server; `repositories` by id, `asked` has method and path of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(private)
        repository.commit("main", files)
        return repository


class _RefusedError(Exception):
    """An answer that is an error: status, and the hub's own code."""

    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            answer = self._route([part for part in path.split("/") if part])
        except _RefusedError as refused:
            self._send(refused.status, json.dumps({"error": refused.code}).encode(), {"X-Error-Code": refused.code})
        else:
            if isinstance(answer, tuple):
                self._send(200, *answer)
            else:
                self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815  (the names that the library looks for)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, owner: str, name: str) -> Repository:
        found = self.hub.repositories.get(f"{owner}/{name}")
        if found is None or (found.private and not self._known()):
            raise _RefusedError(404 if self._known() else 401, "RepoNotFound")
        if self.command in ("POST", "PUT") and not self._known():
            raise _RefusedError(401)
        return found

    def _route(self, parts: list[str]) -> Any:
        match parts:
            case ["api", "repos", "create"]:
                return self._create()
            case ["api", "validate-yaml"]:
                return {"errors": [], "warnings": []}
            case ["api", "models", owner, name, *rest]:
                return self._api(f"{owner}/{name}", self._repository(owner, name), rest)
            case [owner, name, "resolve", revision, *path]:
                return self._resolve(self._repository(owner, name), revision, "/".join(path))
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = json.loads(self.body)["objects"]
                return {"transfer": "basic", "objects": [self._action(one) for one in objects]}
            case ["large", oid]:
                assert hashlib.sha256(self.body).hexdigest() == oid
                self.hub.large[oid] = self.body
                return {}
        raise _RefusedError(404)

    def _action(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}}

    def _create(self) -> Any:
        if not self._known():
            raise _RefusedError(401)
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'us'}/{asked['name']}"
        if name == "us/echo":  # a careless server
            raise _RefusedError(418, str(self.headers.get("Authorization")))
        if not name.startswith("us/"):
            raise _RefusedError(403)
        if name not in self.hub.repositories:
            self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, asked.get("visibility") == "private")
        return {"url": f"{self.hub.address}/{name}"}

    def _sha(self, repository: Repository, revision: str) -> str:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return sha

    def _api(self, name: str, repository: Repository, rest: list[str]) -> Any:
        match rest:
            case [] | ["revision", _]:
                sha = self._sha(repository, rest[1] if rest else "main")
                siblings = [{"rfilename": path} for path in repository.commits[sha]]
                return {"id": name, "sha": sha, "private": repository.private, "siblings": siblings}
            case ["tree", revision]:
                files = repository.commits[self._sha(repository, revision)]
                return [{"type": "file", "path": path, "size": len(b), "oid": _oid(b)} for path, b in files.items()]
            case ["branch", branch]:
                if branch in repository.branches:
                    raise _RefusedError(409)
                repository.commit(branch, repository.files())
                return {}
            case ["preupload", revision]:
                self._sha(repository, revision)
                return {"files": [_mode(one["path"]) for one in json.loads(self.body)["files"]]}
            case ["commit", revision]:
                return self._commit(name, repository, revision)
        raise _RefusedError(404)

    def _commit(self, name: str, repository: Repository, revision: str) -> Any:
        files = dict(repository.commits[self._sha(repository, revision)])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(revision, files)
        return {"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha}

    def _resolve(self, repository: Repository, revision: str, path: str) -> Any:
        sha = self._sha(repository, revision)
        if path not in repository.commits[sha]:
            raise _RefusedError(404, "EntryNotFound")
        content = repository.commits[sha][path]
        return content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": sha}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(".safetensors") else "regular", "shouldIgnore": False}


def ask(
    hub: StandIn, home: Path, calls: list[dict[str, Any]], *, token: str | None = None, offline: bool = False
) -> list[str]:
    """Make calls of `router.routed.hub`; an answer is the result, or `error: ` and the message.

    Args:
        hub: the server.
        home: folder of the client's cache, its working folder and home folder.
        calls: function (`do`) and arguments of each.
        token: token that the hub's own tools have stored; None: none.
        offline: whether the hub is switched off.
    """
    home.mkdir(exist_ok=True)
    # The client reads its settings as it is imported, and looks them up in this module at each call.
    settings = {"ENDPOINT": hub.address, "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": True}
    settings["HUGGINGFACE_CO_URL_TEMPLATE"] = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    settings |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    answers, printed = list[str](), io.StringIO()
    quiet = warnings.catch_warnings(action="ignore")  # the client's own
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed), quiet:
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        patch.setenv("HOME", str(home))
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.chdir(home)
        for call in calls:
            arguments = {name: Path(value) if name == "folder" else value for name, value in call.items()}
            try:
                answers.append(str(getattr(router.routed.hub, arguments.pop("do"))(**arguments)))
            except InputError as error:  # anything else ends the test
                answers.append(f"error: {error}")
        close_session()
    assert TOKEN not in printed.getvalue() + "".join(answers)
    return answers
