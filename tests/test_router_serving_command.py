"""`python -m router serve`: settings, the socket, and how it stops."""

from __future__ import annotations

import json
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from router.__main__ import main
from router.command import run_command
from router.routed import RoutedModel
from router.serving.app import make_app
from router.serving.protocol import ApiError
from router.serving.server import KEY_VARIABLE, Served, Server, ServeSettings, bind, make_service, serve, url_of
from tests.conftest import Refusal
from tests.serving import NAME, Oracle, braked, running, tiny_routed, until, write_served


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served(tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--busy_budget=3"], "busy_budget: expected a budget or latency_factor beside it, got none"),
        (["--budget=3", "--busy_budget=4"], "busy_budget: expected at most the budget of 3.0, got 4.0"),
        (["--budget=4", "--busy_budget=0.5"], "budget: expected a mean depth in"),
        (["--budget=4", "--guaranteed=true"], "expected one of budget, guaranteed and latency_factor"),
        (["--port=65536"], "port: expected at most 65535, got 65536"),
        (["--request_timeout=1e9"], "request_timeout: expected at most 86400, got 1000000000"),
        (["--host=203.0.113.7"], "host: expected an address of this machine, got '203.0.113.7'"),
        (["--host=no such host"], "host: expected a name or address of this machine, got 'no such host'"),
        (["--chat_template=gone.jinja"], "chat_template: expected a text file, got 'gone.jinja'"),
        (["--latency_profile=gone.json"], "latency_profile: expected a file of python -m eval latency, got none"),
    ],
)
def test_bad_settings_are_one_line(router: Path, words: list[str], message: str, refusal: Refusal) -> None:
    assert message in refusal(main, ["serve", router, "--port=0", *words], alone=True)


def test_a_port_in_use_is_told_before_the_model_is_loaded(refusal: Refusal) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(main, ["serve", "no/router/here", f"--port={port}"])
    assert f"port: expected a free one at 127.0.0.1, got {port} (Address already in use)" in line


def test_an_open_server_without_a_key_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "no/router/here", "--port=0"]
    assert run_command(main, [*words, "--host=0.0.0.0"]) == 2
    assert f"there is no key; set {KEY_VARIABLE}" in capsys.readouterr().err
    assert run_command(main, words) == 2
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    assert run_command(main, [*words, "--host=0.0.0.0"]) == 2
    shown = capsys.readouterr().err
    assert "warning" not in shown
    assert "secret" not in shown
    monkeypatch.setenv(KEY_VARIABLE, " ")
    assert run_command(main, words) == 2
    assert f"{KEY_VARIABLE}: expected a key, or the variable unset, got an empty one" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("router.serving")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("uvicorn", "fastapi"):
        monkeypatch.setitem(sys.modules, name, None)
        assert run_command(main, ["serve", "x"]) == 2
        told = f"serve: expected {name}, got an installation without it: pip install -c constraints.txt -e '.[serve]'"
        assert capsys.readouterr().err == f"error: {told}\n"


def test_addresses_of_both_kinds() -> None:
    for host, url in (("127.0.0.1", "http://127.0.0.1:"), ("localhost", "http://"), ("::1", "http://[::1]:")):
        if host == "::1" and not socket.has_ipv6:
            continue
        with bind(host, 0) as bound:
            assert url_of(bound).startswith(url)


def test_a_signal_lets_running_requests_end(router: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Oracle: the prompt alone, with a seed that draws no early end. The signal comes with the first text.
    oracle, asked = Oracle(RoutedModel.from_pretrained(router, budget=4.0)), {"temperature": 1, "seed": 0}
    prompt = oracle.tokens("Which?")
    asked["seed"] = next(one for one in range(99) if oracle.alone(prompt, 60, temperature=1, seed=one).tokens == 60)
    body = asked | {"model": "model", "prompt": "Which?", "max_tokens": 100, "stream": True}
    with bind("127.0.0.1", 0) as free:
        url = url_of(free)

    def ask() -> str:
        until(lambda: answers(f"{url}/status"))
        try:
            assert httpx.get(f"{url}/status/").status_code == 404
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
                lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
                text = str(json.loads(next(lines)[6:])["choices"][0]["text"])
                signal.raise_signal(signal.SIGTERM)
                return text + "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines)
        except BaseException:
            signal.raise_signal(signal.SIGTERM)
            raise

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        assert run_command(main, ["serve", str(router), "--budget=4", f"--port={url.rpartition(':')[2]}"]) == 0
        assert asking.result() == oracle.alone(prompt, 100, **asked).text
    out, err = capfd.readouterr()
    assert out == f"serving model at {url}/v1 (a mean depth of 4 of 5 layers)\n"
    assert "Traceback" not in err
    assert '"POST /v1/completions HTTP/1.1" 200' in err
    assert '"GET /status/ HTTP/1.1" 404' in err
    assert '"GET /status HTTP/1.1"' not in err
    assert "Which?" not in err
    assert not answers(f"{url}/v1/models")


def answers(url: str) -> bool:
    """Whether something answers there."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    service = make_service(ServeSettings(router="tiny", budget=4.0), tiny_routed(), None)
    server, before = (
        Server(make_app(service), service.batcher.close, shutdown_seconds=9.0, client_seconds=9.0),
        signal.getsignal(number),
    )
    with server.capture_signals():
        signal.raise_signal(number)
        assert (server.should_exit, server.force_exit) == (True, False)
        signal.raise_signal(number)
        assert server.force_exit
    assert signal.getsignal(number) is before


def test_requests_that_do_not_end_in_time_are_told_that_the_server_stops() -> None:
    with braked(shutdown_timeout=0.2, max_batch=1) as (server, brake), ThreadPoolExecutor(1) as pool:
        brake.step(12)
        # A seed: random bytes may for long be no text, and the brake would hold for ever.
        body = {"model": NAME, "prompt": "x", "max_tokens": 300, "temperature": 1, "seed": 0}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: {")
            waiting = pool.submit(server.post, prompt="x")
            until(lambda: server.service.batcher.waiting == 1)
            server.server.should_exit = True
            until(lambda: not server.service.batcher.alive)
            told = waiting.result()
            assert (told.status_code, told.json()["error"]["code"]) == (503, "stopping")
            with pytest.raises(ApiError, match="the server stops"):
                server.service.batcher.submit([])
            brake.release()
            rest = [json.loads(line[6:]) for line in lines if line]
        assert rest[-1]["error"]["code"] == "stopping"
    assert brake.passes < 50


def test_a_chat_template_of_ones_own(router: Path, tmp_path: Path) -> None:
    # Oracle: what the template says, as a plain prompt.
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}, is it")
    routed = RoutedModel.from_pretrained(router, budget=4.0)
    with running(routed, chat_template=tmp_path / "chat.jinja") as server:
        options = {"max_tokens": 5, "temperature": 0}
        chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "Ice"}], **options).json()
        plain = server.post(prompt="Ice, is it", **options).json()
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]


def test_a_chat_template_that_is_none_is_told_at_once(router: Path, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "bad.jinja").write_text("{% for message in messages %}{{ message.content }}")
    line = refusal(main, ["serve", router, "--port=0", f"--chat_template={tmp_path / 'bad.jinja'}"], alone=True)
    assert f"chat_template: expected Jinja, got an error in {tmp_path / 'bad.jinja'}: Unexpected end" in line


def test_a_model_in_the_working_directory_has_its_name(router: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(router.parent / "model")
    for base in (".", "../model/", str(router.parent / "model")):
        assert ServeSettings(router="tiny", model=base).guard("", None).name == "model"
    assert ServeSettings(router="tiny").guard("some/model", None).name == "some/model"


def test_two_servers_that_start_at_once_on_one_port(router: Path, refusal: Refusal) -> None:
    # The first has bound the port and loads its model when the second binds it, and listens before it.
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]

        def made(*_: object) -> Served:
            first.listen()
            return Served("tiny", "", FastAPI(), lambda: None)

        line = refusal(lambda words: serve("serve", "", ServeSettings, words, made), [router, f"--port={port}"])
    assert f"port: expected a free one at 127.0.0.1, got {port} (Address already in use)" in line
