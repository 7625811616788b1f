"""Hostile, broken and impatient clients: each is told why, none takes the server down."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from router.serving import app as gate
from tests.serving import NAME, Brake, Running, running, tiny_routed, until

LARGE = 2**16
OK: dict[str, Any] = {"model": NAME, "prompt": "x", "max_tokens": 1}
JSON = {"Content-Type": "application/json"}
CHAT = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server that still answers after all of this module's tests."""
    with running(max_body_bytes=LARGE, max_queue=64) as one:
        yield one
        one.check_answers()


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's form and says nothing of the server's inside."""
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert "router/" not in answer.text
    return dict(error)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["x", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": "x" * 513}, "prompt"),
        ({"prompt": "x" * 500, "max_tokens": 13}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [5, -1]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 401}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**300}, "max_tokens"),
        ({"n": 65}, "n"),
        ({"prompt": ["x"] * 33, "n": 2}, "n"),
        ({"budget": 0.01}, "budget"),
        ({"budget": 1e300}, "budget"),
        ({"latency_factor": 0.5}, "latency_factor"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"system": "rm"}, "system"),
        ({"model": 5}, "model"),
    ],
)
def test_a_bad_field_is_named(server: Running, fields: dict[str, Any], param: str) -> None:
    answer = server.post(**OK | fields)
    error = refusal(answer)
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert re.match(rf"{param}[^ ]*: expected", error["message"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": "tiny", "prompt": "\\ud83d"}',
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": -Infinity}',
        b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 60_000 + b"}",
    ],
    ids=range(11),
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_is_no_json_is_refused(server: Running, path: str, body: bytes) -> None:
    with server.http() as client:
        answer = client.post(path, content=body, headers=JSON)
    error = refusal(answer)
    assert (answer.status_code, error["code"]) == (400, "invalid_json")


def test_strange_text_is_text(server: Running) -> None:
    # Oracle: the prompt alone.
    for prompt in ("\x00", "a\x00b", "\ufffe\uffff", "\u202e\u200b", "<s></s><pad>", "\r\n" * 9, "e\u0301" * 30):
        answer = server.post(**OK | {"prompt": prompt, "max_tokens": 3, "temperature": 0}).json()
        alone = server.oracle.alone(server.oracle.tokens(prompt), 3)
        assert answer["choices"][0]["text"] == alone.text


def test_routes_methods_and_models_that_are_not_there(server: Running) -> None:
    with server.http() as client:
        for method, path, status in (
            ("GET", "/", 404),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1/models/", 404),
            ("GET", "/v1/models/../../etc/passwd", 404),
            ("GET", "/docs", 404),
            ("GET", "/openapi.json", 404),
            ("GET", "/v1/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("PUT", "/v1/chat/completions", 405),
        ):
            answer = client.request(method, path)
            assert (answer.status_code, refusal(answer)["type"]) == (status, "invalid_request_error")
        assert client.get("/v1/completions").headers["allow"] == "POST"
        assert client.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    answer = server.post(**OK | {"model": "other"})
    assert (answer.status_code, refusal(answer)["code"]) == (404, "model_not_found")


def test_what_fails_inside_is_told_without_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.service.batcher, "submit", lambda _: {}["inside"])
            answer = server.post(**OK)
        assert (answer.status_code, refusal(answer)["code"]) == (500, "internal_error")
        assert "inside" not in answer.text
        server.check_answers()


def test_a_template_that_refuses_a_chat_is_the_clients_matter(server: Running) -> None:
    answer = server.post("/v1/chat/completions", messages=[{"role": "assistant", "content": "x"}])
    assert answer.status_code == 400
    assert refusal(answer)["message"] == "messages: the chat template refuses them: a user begins"


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(server: Running) -> None:
    large = b"x" * 10_000_000

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 50_000):
            yield large[start : start + 50_000]

    for content in (large, chunks()):
        with server.http() as client:
            answer = client.post("/v1/completions", content=content, headers=JSON)
        assert (answer.status_code, refusal(answer)["code"]) == (413, "body_too_large")
    exact = json.dumps(OK).encode().ljust(LARGE)
    with server.http() as client:
        assert client.post("/v1/completions", content=exact, headers=JSON).status_code == 200
        assert client.post("/v1/completions", content=exact + b" ", headers=JSON).status_code == 413


def test_a_client_that_waits_to_be_told_is_told_at_once(server: Running) -> None:
    # As curl does with large bodies: it sends none before the server says that it may.
    with connection(server, {"Content-Length": str(10**9), "Expect": "100-continue"}) as one:
        assert read(one).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "DRAIN_BYTES", 2**20)
    with connection(server, {"Transfer-Encoding": "chunked"}) as one, pytest.raises(ConnectionError):
        send_for_ever(one)


def send_for_ever(one: socket.socket) -> None:
    while True:
        one.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def connection(server: Running, headers: dict[str, str]) -> socket.socket:
    """A request whose body is still to come."""
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=60)
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    made.sendall("\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode())
    return made


def asked(server: Running, **fields: Any) -> socket.socket:
    """A request that waits for its answer."""
    body = json.dumps(OK | fields).encode()
    made = connection(server, {"Content-Length": str(len(body))})
    made.sendall(body)
    return made


def read(one: socket.socket) -> bytes:
    """All that a server sends before it closes."""
    got = b""
    while part := one.recv(2**16):
        got += part
    return got


def test_clients_that_talk_nonsense_or_leave_early(server: Running) -> None:
    for sent in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n", b""):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as one:
            one.sendall(sent)
    with connection(server, {"Content-Length": "100"}) as one:
        one.sendall(b'{"model"')
    server.check_answers()


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with running(request_timeout=0.2) as server, connection(server, {"Content-Length": "100"}) as one:
        one.sendall(b'{"model"')
        assert read(one).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(stream: bool) -> None:
    # Oracle: the model's passes; all four hundred tokens would take as many.
    routed = tiny_routed()
    brake = Brake(routed)
    with running(routed) as server:
        brake.hold()
        brake.step(20)
        with asked(server, max_tokens=400, temperature=1, stream=stream, n=3) as one:
            until(lambda: brake.passes > 20)
            if stream:
                assert b"data: {" in one.recv(2**16)
        until(lambda: server.service.batcher.running == 0)
        brake.release()
        server.check_answers()
        assert brake.passes < 50


def test_a_request_that_takes_too_long_is_given_up() -> None:
    routed = tiny_routed()
    brake = Brake(routed)
    with running(routed, request_timeout=0.5) as server:
        brake.hold()
        brake.step(1)
        answer = server.post(**OK)
        assert (answer.status_code, refusal(answer)["code"]) == (504, "timeout")
        brake.step(3)
        with pytest.raises(openai.APIError, match="took too long"):
            list(server.openai().completions.create(model=NAME, prompt="x", max_tokens=400, stream=True))
        brake.release()
        until(lambda: server.service.batcher.running == 0)
        server.check_answers()


def test_a_full_queue_says_so_and_when_to_come_back() -> None:
    routed = tiny_routed()
    brake = Brake(routed)
    with running(routed, max_batch=1, max_queue=3) as server:
        brake.hold()
        first = asked(server)
        until(lambda: server.service.batcher.running == 1)
        others = asked(server, n=3)
        until(lambda: server.service.batcher.waiting == 3)
        answer = server.post(**OK)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert refusal(answer)["code"] == "queue_full"
        with server.http() as client:
            health = client.get("/health").json()
        assert (health["waiting"], health["running"]) == (3, 1)
        brake.release()
        for one in (first, others):
            assert one.recv(2**16).startswith(b"HTTP/1.1 200 ")
            one.close()
        server.check_answers()


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each piece of the answer holds the model's name; together they are more than any buffer on the way.
    monkeypatch.setattr("router.serving.app.SPARE_SECONDS", 0.5)
    name = "m" * 200_000
    with running(request_timeout=1.5, name=name, max_tokens=400) as server:
        with asked(server, model=name, max_tokens=400, n=16, temperature=1, stream=True) as one:
            until(lambda: bool(server.server.server_state.tasks))
            until(lambda: not server.server.server_state.tasks)
            got = read(one)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert not got.endswith(b"0\r\n\r\n")  # how a whole answer ends
        assert server.service.batcher.running == 0
