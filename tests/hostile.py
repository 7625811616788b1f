"""Hostile clients, written on a bare socket: what each sends, how, and how long a server let it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from router.serving.protocol import ChatAsked, CompletionAsked

PATHS = ("/v1/completions", "/v1/chat/completions")
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        parts: what it sends, one part after the other.
        pause: between two parts, in units of the time that a server waits for a client.
        end: what it does then: waits for the server to close; closes; resets; closes its own direction and waits.
        deaf: how long it does not read, in the same unit.
        statuses: what it may be answered with, 0 being a reset before the answer is read; empty: anything but a fault.
        most: most bytes that it may get; None: any number.
    """

    parts: tuple[bytes, ...]
    pause: float = 0.0
    end: Literal["waits", "leaves", "resets", "half"] = "waits"
    deaf: float = 0.0
    statuses: frozenset[int] = field(default_factory=frozenset)
    most: int | None = None


@dataclass(frozen=True)
class Seen:
    """What a client saw.

    Attributes:
        got: all that it was sent.
        seconds: from its connection to the connection's end.
    """

    got: bytes
    seconds: float

    @property
    def statuses(self) -> list[int]:
        """The statuses of all answers."""
        return [int(one) for one in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.got) if one != b"100"]


def one(*parts: bytes, statuses: Iterable[int] = (), **options: Any) -> Client:
    """A client that sends some parts."""
    return Client(parts, statuses=frozenset(statuses), **options)


def head(*headers: str, method: str = "POST", path: str = PATHS[0], json_type: bool = True) -> bytes:
    """A request without its body."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        *(["Content-Type: application/json"] if json_type else []),
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(body: bytes, *headers: str, path: str = PATHS[0]) -> bytes:
    """A request whose length is told."""
    return head(f"Content-Length: {len(body)}", *headers, path=path) + body


def chunks(body: bytes, size: int = 2**16) -> bytes:
    """A body in chunks, with its end."""
    cut = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cut) + b"0\r\n\r\n"


def good(name: str, **fields: Any) -> bytes:
    """A good request's body."""
    return json.dumps({"model": name, "prompt": "Which?", "max_tokens": 2, "temperature": 0} | fields).encode()


def large_bodies(name: str) -> list[Client]:
    body, no = good(name).ljust(2 * MEBIBYTE), {413}
    return [
        one(post(body), statuses=no),
        one(head("Transfer-Encoding: chunked") + chunks(body), statuses=no),
        one(head("Transfer-Encoding: chunked") + chunks(body, 7 * 2**15), statuses=no),
        one(head(f"Content-Length: {10**9}", "Expect: 100-continue"), statuses=no),
        one(head(f"Content-Length: {10**19}"), body, statuses=no),
        one(head(f"Content-Length: {10**300}"), statuses={400}),
        one(head("Transfer-Encoding: chunked") + b"FFFFFFFFFFFFFFF\r\n" + body, statuses=no),
        one(head("Transfer-Encoding: chunked") + b"1\r\n \r\n" * 30_000, statuses={400, 408}),
        one(post(good(name).ljust(MEBIBYTE)), statuses={200}),
        *(one(post(body, path=path), statuses=no) for path in (*PATHS, "/none", "/v1/models")),
        *(one(post(b" " * (MEBIBYTE + extra)), statuses=no) for extra in range(1, 20)),
    ]


def no_json(name: str) -> list[Client]:
    draw, whole = random.Random(0), good(name)
    bodies = [whole[:cut] for cut in range(len(whole))]
    bodies += [draw.randbytes(draw.randint(1, 300)) for _ in range(60)]
    for sign, end in ((b"[", b"]"), (b'{"a":', b"}")):
        bodies += [sign * deep + b"1" + end * deep for deep in (100, 1000, 10_000, 100_000)]
    bodies += [b"null", b"[]", b'"x"', b"1e999", b"NaN", b"-", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"\x00" * 99]
    bodies += [b'{"model": "\xc3\x28"}', b'{"model": "\\ud800"}', b'{"seed": ' + b"9" * 10**6 + b"}", b'{"n": 1,}']
    # Of what is JSON the proxy reads the model's name alone, and misses it.
    return [one(post(body, path=draw.choice(PATHS)), statuses={400, 404}) for body in bodies]


WRONG = (-1, 0, 2**63, 10**40, 1e308, 5e-324, True, "", "\x00", "\ufffe" * 9, {}, [[]], [None], {"": {}}, [1, "x"])


def wrong_types(name: str) -> list[Client]:
    """Each field with values of which most are not its own; where one is, the request is served."""
    made = []
    for path, kind in zip(PATHS, (CompletionAsked, ChatAsked), strict=True):
        full = json.loads(good(name))
        if kind is ChatAsked:
            full["messages"] = [{"role": "user", "content": full.pop("prompt")}]
        for field_name in (*kind.model_fields, "unknown", "", "\x00"):
            made += [post(json.dumps(full | {field_name: value}).encode(), path=path) for value in WRONG]
    return [one(sent, statuses={200, 400, 404, 429}) for sent in made]


def many_errors(name: str) -> list[Client]:
    """Bodies just below the limit that are wrong in as many places as they hold."""
    items = (
        b"[],",
        b'"",',
        b"-1,",
        b"[-1],",
        b"{},",
        b"[[]],",
        b"null,",
        b"1e9,",
        b"9,",
        b"[9],",
        b'{"": 0},',
        b'["x"],',
    )
    filled = [(b'[%b"x", 0]' % (item * (1_000_000 // len(item)))) for item in items]
    parts = (b'[{"role": "user", "content": %b}]' % one for one in filled)
    keys = b", ".join(b'"k%d": 0' % i for i in range(70_000))
    made = [post(b'{"model": "%b", "prompt": %b}' % (name.encode(), one)) for one in filled]
    made += [
        post(b'{"model": "%b", "messages": %b}' % (name.encode(), one), path=PATHS[1]) for one in (*filled, *parts)
    ]
    made += [
        post(b'{"model": "%b", "prompt": "x", %b: %b}' % (name.encode(), field_name, filled[0]))
        for field_name in (b'"stop"', b'"modalities"', b'"logit_bias"')
    ]
    made += [post(b"{%b, %b" % (keys, good(name)[1:])), post(b'{"metadata": {%b}, %b' % (keys, good(name)[1:]))]
    # The proxy's JSON of them is longer; on a busy machine a megabyte may come too late.
    return [one(sent, statuses={400, 408, 413}) for sent in made]


def contradictory_headers(name: str) -> list[Client]:
    body = good(name)
    length, chunked, refused = f"Content-Length: {len(body)}", "Transfer-Encoding: chunked", {400}
    bad_lines = ("no colon", "space : x", ": x", "x\x00: y", "x: a\x00b", "\xe9: y", "Host: y", "x: \x7f\x01", " x: y")
    bad_lengths = ("-1", "+9", "0x9", "9 9", "9, 8", "", "9.0", "\xb2", "9;", "nine", "1e1", "\xd9\xa9")
    return [
        one(head(length, chunked) + body, statuses=refused),
        one(head(chunked, length) + chunks(body), statuses=refused),
        one(head(length, "Transfer-Encoding: identity") + body, statuses={400, 501}),
        one(head(length, f"Content-Length: {len(body) + 1}") + body, statuses=refused),
        one(head(length, length) + body, statuses={200, 400}),
        one(head(chunked, chunked) + chunks(body), statuses={400, 501}),
        one(head("Transfer-Encoding: gzip, chunked") + chunks(body), statuses={400, 501}),
        one(head("Transfer-Encoding: chunked, gzip") + chunks(body), statuses={400, 501}),
        one(head("Transfer-Encoding : chunked") + chunks(body), statuses=refused),
        one(head(length + "\n") + body),
        one(b"POST /v1/completions HTTP/1.1\r\n" + length.encode() + b"\r\n\r\n" + body, statuses=refused),
        one(b"POST /v1/completions HTTP/1.0\r\n" + length.encode() + b"\r\n\r\n" + body, statuses={415}),
        one(post(body).replace(b"\r\n", b"\n"), statuses={200, 400}),
        one(post(body).replace(b"\r\n", b"\r"), statuses={0, 400}),
        one(head("Content-Type: text/plain", length) + body, statuses={200, 400, 415}),
        one(head(length, json_type=False) + body, statuses={415}),
        one(head(chunked) + b"zz\r\n" + body, statuses=refused),
        one(head(chunked) + b"-1\r\n" + body, statuses=refused),
        one(head(chunked) + b"3\r\nabcd\r\n", statuses=refused),
        one(head(chunked) + b"3;" + b"x=y;" * 50_000 + b"\r\nabc\r\n0\r\n\r\n", statuses={400}),
        one(head(chunked) + b"0\r\n" + b"Trailer: x\r\n" * 50_000 + b"\r\n", statuses={400}),
        *(one(head(f"Content-Length: {text}") + body, statuses=refused) for text in bad_lengths),
        *(one(post(body, line)) for line in bad_lines),
        *(
            one(post(body, f"Authorization: {text}"), statuses={200})
            for text in ("\xff", "Bearer", "Basic eA==", "x" * 999)
        ),
        *(one(post(body, f"Connection: {text}")) for text in ("close, keep-alive", "x" * 999, "\xff", "upgrade", "TE")),
        *(one(post(body, f"Expect: {text}")) for text in ("200-ok", "100-continue, 100-continue", "\xff")),
        *(one(post(body, f"Content-Encoding: {text}")) for text in ("gzip", "br", "chunked")),
    ]


def floods(name: str) -> list[Client]:
    body, no = good(name), {0, 400}
    many = [f"x-{i}: {i}" for i in range(50_000)]
    return [
        one(post(body, *many), statuses=no),
        one(post(body, "x: " + "y" * MEBIBYTE), statuses=no),
        one(post(body, *["x: y"] * 100_000), statuses=no),
        one(head(path="/" + "a" * MEBIBYTE, method="GET"), statuses=no),
        one(head(path="/?" + "a=b&" * 200_000, method="GET"), statuses=no),
        one(head(method="A" * MEBIBYTE), statuses=no),
        one(b"GET " * 300_000, statuses=no),
        one(b"\r\n" * 600_000),
        one(b"\x00" * MEBIBYTE, statuses=no),
        one(*[b"x: y\r\n" * 10_000] * 100, statuses=no),
        *(one(post(body, "x: " + "y" * size)) for size in range(16_000, 17_000, 50)),
        *(one(head(path="/" + "%" * size, method="GET")) for size in (1, 2, 3, 100, 10_000)),
    ]


def no_http(name: str) -> list[Client]:
    body, draw = good(name), random.Random(1)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500)
    upgrade = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    methods = ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "QUERY", "get", "\x7f", "POST\t", "A B")
    paths = ("//", "/..", "/v1/../v1/completions", "/%00", "/%ff", "/%", "/v1/models/%2e%2e%2fetc", "*", "x", "/\xe9")
    return [
        one(hello, statuses={400}),
        one(hello[:5], statuses={400}),
        one(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", statuses={400, 404, 405}),
        one(b"GET /\r\n"),
        one(b"GET /\r\n\r\n", statuses={400}),
        one(b"GET / HTTP/9.9\r\n\r\n"),
        one(b"SSH-2.0-OpenSSH_9.9\r\n"),
        one(b""),
        one(b"\r\n\r\n\r\n"),
        one(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n" + hello),
        one(b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        one(head(path="http://example.org/v1/models", method="GET"), statuses={404}),
        one(head(path="https://user:pass@[::1]:1/", method="GET"), statuses={404}),
        one(head("Upgrade: websocket", *upgrade, path="/", method="GET"), statuses={200, 404}),
        one(head("Upgrade: websocket", *upgrade, method="GET"), b"\x81\x85" + draw.randbytes(9)),
        one(head("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Connection: Upgrade", path="/", method="GET")),
        *(one(post(body).replace(b"POST", method.encode("latin-1"), 1)) for method in methods),
        *(one(head(path=path, method="GET")) for path in paths),
        *(one(draw.randbytes(draw.randint(1, 2000))) for _ in range(40)),
        *(one(post(body)[:cut] + draw.randbytes(9) + post(body)[cut:]) for cut in range(0, 120, 4)),
    ]


def slow(name: str) -> list[Client]:
    """Clients that send a byte now and then, or nothing more."""
    body, third = good(name), 1 / 3
    request = post(body)
    letters = [request[i : i + 1] for i in range(len(request))][:60]
    late = {408}
    return [
        one(*letters, pause=third),
        one(head()[:-2], *[b"x: y\r\n"] * 60, pause=third),
        one(head(f"Content-Length: {len(body)}"), *letters, pause=third, statuses=late),
        one(head("Transfer-Encoding: chunked"), *[b"1\r\n \r\n"] * 60, pause=third, statuses=late),
        one(head("Transfer-Encoding: chunked"), b"5", statuses=late),
        one(head("Transfer-Encoding: chunked"), b"5\r\nab", statuses=late),
        one(head("Content-Length: 9", "Expect: 100-continue"), statuses=late),
        one(head("Transfer-Encoding: chunked", "Expect: 100-continue"), statuses=late),
        one(head("Content-Length: 99", path="/health", method="GET"), *letters, pause=third, statuses={200}),
        one(head("Content-Length: 99", path="/none"), *letters, pause=third, statuses={404}),
        one(head("Content-Length: 99", json_type=False), *letters, pause=third, statuses={415}),
        one(head("Content-Length: 9999999"), *letters, pause=third, statuses={413}),
        one(post(body) + b"POST", statuses={200}),
        one(post(body), *letters, pause=third),
        one(post(body), *[b"\r\n"] * 60, pause=third, statuses={200, 400}),
        *(one(request[:cut]) for cut in range(0, len(request) - 1, 9)),
    ]


def leaves(name: str) -> list[Client]:
    """Clients that go at each stage: before, in and after a request, and in mid-stream."""
    long = post(good(name, max_tokens=200, temperature=1, seed=1, n=2))
    stream = post(good(name, max_tokens=200, temperature=1, seed=1, stream=True))
    cuts = [long[:cut] for cut in range(0, len(long), 40)]
    wholes = [long, stream, long + stream, stream + b"\x00" * 99, stream * 5]
    made = []
    for end in ("leaves", "resets", "half"):
        made += [one(sent, end=end) for sent in (*cuts, *wholes)]
        made += [one(sent, b"", b"", pause=late, end=end) for sent in wholes for late in (0.005, 0.02, 0.1)]
    return made


def pipelined(name: str) -> list[Client]:
    body = good(name)
    request, stream = post(body), post(good(name, stream=True))
    health, page = head(path="/health", method="GET"), head(path="/", method="GET")
    bad_chunk = head("Transfer-Encoding: chunked", path="/none") + b"zz\r\n"
    return [
        one(request * 20, statuses={200}),
        one((request + stream + health) * 5, statuses={200}),
        one(stream + b"\x16\x03\x01garbage\r\n\r\n", statuses={200, 400}),
        one(request + b"garbage\r\n\r\n" * 999, statuses={200, 400}),
        one(bad_chunk, statuses={400, 404}),
        one(head("Transfer-Encoding: chunked", path="/none"), b"zz\r\n", pause=0.2, statuses={404}),
        one(head("Transfer-Encoding: chunked", json_type=False), b"zz\r\n", pause=0.2, statuses={415}),
        one(head("Content-Length: 5", path="/health", method="GET") + b"12345" + health, statuses={200}),
        one(post(b"{") * 50, statuses={400}),
        one(request, request, request, pause=0.1, statuses={200}),
        one(health * 3000, end="leaves"),
        one(health * 3000, end="resets"),
        # Answers of ten thousand bytes and more each; what no buffer holds is thrown away with the connection.
        one(page * 3000, deaf=4, most=20 * MEBIBYTE),
        one(page * 3000, deaf=4, end="half", most=20 * MEBIBYTE),
    ]


KINDS = (
    *(large_bodies, no_json, wrong_types, many_errors, contradictory_headers),
    *(floods, no_http, slow, leaves, pipelined),
)


async def meet(address: tuple[str, int], client: Client, unit: float) -> Seen:
    """Be a client, until the connection ends; `unit`: how long the server waits for a client, seconds."""
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection(*address)
    got = bytearray()

    async def read() -> None:
        await asyncio.sleep(client.deaf * unit)
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(2**16):
                got.extend(part)

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            for number, part in enumerate(client.parts):
                await asyncio.sleep(client.pause * unit * (number > 0))
                writer.write(part)
                if not client.deaf:
                    await writer.drain()
            if client.end == "half":
                writer.write_eof()

    reading, sending = asyncio.ensure_future(read()), asyncio.ensure_future(send())
    try:
        if client.end in ("leaves", "resets"):
            await sending
        else:
            await reading
        if client.end == "resets":
            # A time of zero to linger: closing throws away what is under way, and says so.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    finally:
        for task in (reading, sending):
            task.cancel()
        await asyncio.gather(reading, sending, return_exceptions=True)
        writer.transport.abort()
    return Seen(bytes(got), time.monotonic() - begin)
