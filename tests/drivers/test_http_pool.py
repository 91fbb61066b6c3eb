"""Requests over connections of our own: what is sent, what is kept, and what happens when servers and proxies misbehave."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from stores.drivers.base import MiB, PartSource
from stores.drivers.http_pool import (
    ERROR_BODY,
    MAX_BODY,
    BadAddress,
    BrokenOff,
    ConnectFailed,
    ConnectTimedOut,
    HttpError,
    HttpPool,
    NotHttp,
    ProxyFailed,
    TimedOut,
    TooLong,
    Untrusted,
)
from tests.drivers.http_cases import OK, Script, Scripted, answering, make_certificate, scripted_server

pytestmark = pytest.mark.unit


@pytest.fixture
def pools() -> Iterator[Callable[..., HttpPool]]:
    made: list[HttpPool] = []

    def make(**options: Any) -> HttpPool:
        made.append(HttpPool(**{"connect_timeout": 5.0, "read_timeout": 10.0, **options}))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def pool(pools: Callable[..., HttpPool]) -> HttpPool:
    return pools()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """(a server's side, the bundle that trusts it)."""
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder / "certificate.pem", folder / "key.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context, str(folder / "certificate.pem")


class Source(PartSource):
    """Blocks as they are given; an error among them is raised in its turn."""

    def __init__(self, *blocks: bytes | Exception, announced: int = 0) -> None:
        self._blocks = blocks
        content = b"".join(block for block in blocks if isinstance(block, bytes))
        self._size = announced or len(content)
        self.sha256 = self.digest = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        return self._size

    def blocks(self) -> Iterator[bytes]:
        for block in self._blocks:
            if isinstance(block, Exception):
                raise block
            yield block


# --- what is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [b"", b"small", memoryview(b"seen"), os.urandom(70_000), os.urandom(3 * MiB + 1), Source(b"one", b"", b"two" * MiB)],
    ids=["empty", "small", "view", "large", "larger than a block", "source"],
)
@pytest.mark.parametrize("ask_first", [False, True])
def test_body_arrives_whole(pool: HttpPool, body: Any, ask_first: bool) -> None:
    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        size = server.read_head(reader)
        if ask_first:
            stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.bodies.append(reader.read(size))
        stream.sendall(OK)

    with scripted_server(script) as server:
        answer = pool.request(server.url, "PUT", "/a%20b?c=d", {"X-Name": "ü"}, body, ask_first=ask_first)
        pool.close()
    sent = b"".join(body.blocks()) if isinstance(body, PartSource) else bytes(body)
    assert (answer.status, answer.body) == (200, b"ok")
    assert server.bodies == [sent]
    expected = ["PUT /a%20b?c=d HTTP/1.1", f"Host: {server.url.removeprefix('http://')}", "User-Agent: cloudstorage", "X-Name: ü"]
    assert server.heads == [expected + [f"Content-Length: {len(sent)}"] + ["Expect: 100-continue"] * ask_first]


def test_body_is_sent_when_the_server_knows_nothing_of_being_asked_first(pool: HttpPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.drivers.http_pool.CONTINUE_WAIT", 0.01)
    with scripted_server(answering()) as server:
        assert pool.request(server.url, "PUT", "/", {}, b"x" * 100, ask_first=True).status == 200
        pool.close()
    assert server.bodies == [b"x" * 100]


def test_permission_that_comes_late_is_not_taken_for_the_answer(pool: HttpPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.drivers.http_pool.CONTINUE_WAIT", 0.01)
    body = os.urandom(8 * MiB)

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        size = server.read_head(reader)
        half = reader.read(4 * MiB)
        stream.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.bodies.append(half + reader.read(size - 4 * MiB))
        stream.sendall(b"HTTP/1.1 102 Processing\r\n\r\n" + OK)

    with scripted_server(script) as server:
        assert pool.request(server.url, "PUT", "/", {}, body, ask_first=True).body == b"ok"
        pool.close()
    assert server.bodies == [body]


def test_head_and_small_body_leave_together(pool: HttpPool) -> None:
    seen: list[bytes] = []

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        seen.append(stream.recv(100_000))
        stream.sendall(OK)

    with scripted_server(script) as server:
        pool.request(server.url, "PUT", "/", {}, b"the body")
        pool.close()
    assert seen[0].endswith(b"\r\n\r\nthe body")


@pytest.mark.parametrize(
    ("target", "headers"),
    [("/a b", {}), ("/a\r\nX: y", {}), ("/", {"X": "a\r\nY: b"}), ("/", {"X": "a\nb"}), ("/", {"X": "a\rb"})],
)
def test_nothing_is_sent_when_it_would_be_read_as_something_else(pool: HttpPool, target: str, headers: dict[str, str]) -> None:
    with scripted_server(answering()) as server:
        with pytest.raises(ValueError, match="read as something else"):
            pool.request(server.url, "PUT", target, headers)
        pool.close()
    assert server.heads == []


@pytest.mark.parametrize("error", [OSError("the disk"), TimeoutError("the filer"), ValueError("changed"), StopIteration()])
def test_what_goes_wrong_with_the_source_comes_out_as_it_is(pool: HttpPool, error: Exception) -> None:
    with scripted_server(answering()) as server:
        with pytest.raises(type(error) if not isinstance(error, StopIteration) else RuntimeError):
            pool.request(server.url, "PUT", "/", {}, Source(b"begun", error, announced=100))
        assert pool.request(server.url, "GET", "/", {}).status == 200
        pool.close()
    assert server.connections == 2


# --- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status", "headers", "body", "kept"),
    [
        (b'HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag:  "x" \r\n\r\n', 201, {"etag": '"x"'}, b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, {}, b"", True),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", 200, {}, b"x", True),
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx", 200, {}, b"x", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Close\r\n\r\nx", 200, {}, b"x", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, {}, b"x", False),
        (b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\nContent-Length: 0\r\n\r\n", 200, {"a": "1, 2"}, b"", True),
        (b"HTTP/1.1 200 OK\r\nX: \xc3\xbc\r\nContent-Length: 0\r\n\r\n", 200, {"x": "ü"}, b"", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA;x=y\r\n0123456789\r\n1\r\na\r\n0\r\nTrailer: t\r\n\r\n",
            200,
            {},
            b"0123456789a",
            True,
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", 302, {}, b"", True),
    ],
)
def test_answer_is_read_to_its_end(
    pool: HttpPool, raw: bytes, status: int, headers: dict[str, str], body: bytes, kept: bool
) -> None:
    with scripted_server(answering(raw, times=1000 if kept else 1)) as server:
        for _ in range(2):
            answer = pool.request(server.url, "PUT", "/", {}, b"x")
            assert (answer.status, answer.body) == (status, body)
            assert headers.items() <= answer.headers.items()
        pool.close()
    assert server.connections == (1 if kept else 2)


def test_answer_without_a_length_ends_with_its_connection(pool: HttpPool) -> None:
    with scripted_server(answering(b"HTTP/1.1 200 OK\r\n\r\nall of it", times=1)) as server:
        assert [pool.request(server.url, "GET", "/", {}).body for _ in range(2)] == [b"all of it"] * 2


def test_head_has_no_body_whatever_its_length(pool: HttpPool) -> None:
    with scripted_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")) as server:
        for _ in range(2):
            answer = pool.request(server.url, "HEAD", "/", {})
            assert (answer.headers["content-length"], answer.body) == ("1000000", b"")
        pool.close()
    assert server.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_error_is_read_to_its_limit(pool: HttpPool, chunked: bool) -> None:
    block = b"x" * 1000
    framed = b"Transfer-Encoding: chunked\r\n\r\n" + (b"3e8\r\n" + block + b"\r\n") * 1000 + b"0\r\n\r\n"
    raw = b"HTTP/1.1 500 No\r\n" + (framed if chunked else b"Content-Length: 1000000\r\n\r\n" + block * 1000)
    with scripted_server(answering(raw)) as server:
        content = pool.request(server.url, "GET", "/", {}).body
        assert ERROR_BODY - 1000 <= len(content) <= ERROR_BODY
        assert set(content) == {ord("x")}
        assert pool.request(server.url, "GET", "/", {}).status == 500
        pool.close()
    assert server.connections == 2


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", BrokenOff),
        (b"HTTP/1.1 200 OK\r\nContent-Le", BrokenOff),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", BrokenOff),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx", BrokenOff),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", BrokenOff),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotHttp),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", NotHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", NotHttp),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 5000 + b"\r\n", NotHttp),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 2000 + OK, NotHttp),
    ],
)
def test_answer_that_is_none_is_never_believed(pool: HttpPool, raw: bytes, error: type[HttpError]) -> None:
    with scripted_server(answering(raw, times=1)) as server, pytest.raises(error):
        pool.request(server.url, "PUT", "/", {}, b"x")


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 9999999999999", b"Transfer-Encoding: chunked", b"Connection: close"],
    ids=["length", "chunked", "to the end"],
)
def test_answer_longer_than_anybody_asks_for_is_not_taken_into_memory(pool: HttpPool, framing: bytes) -> None:
    """A proxy that ignores ranges answers with all of an object."""
    block = bytes(MiB)

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        server.read(reader)
        stream.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        with suppress(OSError):
            for _ in range(2 * MAX_BODY // MiB):
                stream.sendall(b"100000\r\n" + block + b"\r\n" if b"chunked" in framing else block)
            server.bodies.append(b"all was read")

    with scripted_server(script) as server, pytest.raises(TooLong):
        pool.request(server.url, "GET", "/", {})
    assert server.bodies == [b""]


# --- refused while sending ---------------------------------------------------------------------------------------------

REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"


def refusing(answer: bytes, *, closes: bool) -> Script:
    """Answers once a head is there; closes at once, with a reset for what it did not read, or only when the client does."""

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        server.read_head(reader)
        stream.sendall(answer)
        if not closes:
            server.bodies.append(reader.read())

    return script


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("encrypted", [False, True])
def test_refusal_is_heard_while_the_body_is_sent(
    pools: Callable[..., HttpPool], tls: tuple[ssl.SSLContext, str], closes: bool, encrypted: bool
) -> None:
    context, bundle = tls
    pool = pools(ca_bundle=bundle)
    body = Source(*[bytes(MiB)] * 64)
    with scripted_server(refusing(REFUSAL, closes=closes), context if encrypted else None) as server:
        answer = pool.request(server.url, "PUT", "/", {}, body)
        assert (answer.status, answer.body) == (413, b"big")
    assert sum(map(len, server.bodies)) < len(body), "the rest is not sent in vain"


def test_body_stays_here_when_the_server_refuses_before(pool: HttpPool) -> None:
    with scripted_server(refusing(REFUSAL, closes=False)) as server:
        assert pool.request(server.url, "PUT", "/", {}, b"x" * 1000, ask_first=True).status == 413
    assert server.bodies == [b""]


def test_success_is_not_believed_before_all_is_sent(pool: HttpPool) -> None:
    with scripted_server(refusing(OK, closes=False)) as server, pytest.raises(BrokenOff):
        pool.request(server.url, "PUT", "/", {}, Source(*[bytes(MiB)] * 64))
    with scripted_server(refusing(OK, closes=False)) as server, pytest.raises(BrokenOff):
        pool.request(server.url, "PUT", "/", {}, b"x" * 1000, ask_first=True)


def test_reset_in_the_middle_of_a_body_is_told(pool: HttpPool) -> None:
    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        server.read_head(reader)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with scripted_server(script) as server, pytest.raises(BrokenOff):
        pool.request(server.url, "PUT", "/", {}, bytes(32 * MiB))


# --- connections that are kept -----------------------------------------------------------------------------------------


def test_connection_serves_request_after_request(pool: HttpPool) -> None:
    with scripted_server(answering()) as server:
        for number in range(10):
            pool.request(server.url, "PUT", "/", {}, bytes(number))
        pool.close()
    assert server.connections == 1
    assert [len(body) for body in server.bodies] == list(range(10))


def test_kept_connection_that_the_server_closed_is_noticed(pool: HttpPool) -> None:
    with scripted_server(answering(times=1)) as server:
        for number in range(5):
            if number:
                # The end of the connection has to have arrived for the client to see it.
                (idle,) = pool._idle[server.url]
                assert idle._stream.recv(1, socket.MSG_PEEK) == b""  # type: ignore[attr-defined]
            assert pool.request(server.url, "PUT", "/", {}, b"x").status == 200
    assert server.connections == 5


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("method", "answer"),
    [("PUT", OK), ("PUT", b"HTTP/1.1 204 No Content\r\n\r\n"), ("HEAD", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")],
)
def test_what_follows_an_answer_is_never_taken_for_the_next_one(
    pools: Callable[..., HttpPool], tls: tuple[ssl.SSLContext, str], encrypted: bool, method: str, answer: bytes
) -> None:
    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        if server.read(reader):
            stream.sendall(answer + b"HTTP/1.1 201 Believed\r\nContent-Length: 0\r\n\r\n")
            server.read(reader)

    context, bundle = tls
    pool = pools(ca_bundle=bundle)
    with scripted_server(script, context if encrypted else None) as server:
        first, second = (pool.request(server.url, method, "/", {}).status for _ in range(2))
        pool.close()
    assert first == second != 201
    assert server.connections == 2


def test_other_idle_connections_go_when_one_broke(pool: HttpPool) -> None:
    together = threading.Barrier(3)

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        server.read(reader)
        together.wait(10)
        stream.sendall(OK)
        server.read(reader)  # and says no more

    with scripted_server(script) as server:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda _: pool.request(server.url, "GET", "/", {}), range(3)))
        with pytest.raises(BrokenOff):
            pool.request(server.url, "GET", "/", {})
        assert pool._idle.get(server.url, []) == []
    assert server.connections == 3


def test_threads_share_connections_and_no_more_than_so_many_are_kept(pools: Callable[..., HttpPool]) -> None:
    pool = pools(size=3)

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        while server.read(reader):
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: " + server.bodies[-1][:0] + b"\r\n\r\n")

    with scripted_server(script) as server:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda number: pool.request(server.url, "PUT", f"/{number}", {}, b"x"), range(200)))
        assert {answer.status for answer in answers} == {200}
        assert len(pool._idle[server.url]) <= 3
        pool.close()
    assert sorted(head[0] for head in server.heads) == sorted(f"PUT /{number} HTTP/1.1" for number in range(200))


def test_forked_process_uses_connections_of_its_own(pool: HttpPool) -> None:
    with scripted_server(answering()) as server:
        pool.request(server.url, "GET", "/parent", {})
        with pool._lock:  # as a thread of the parent may hold it
            child = os.fork()
            if child == 0:
                try:
                    os._exit(0 if pool.request(server.url, "GET", "/child", {}).status == 200 else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pool.request(server.url, "GET", "/parent", {}).status == 200
        pool.close()
    assert server.connections == 2


# --- connecting --------------------------------------------------------------------------------------------------------


def test_options_of_the_connection_are_set(pools: Callable[..., HttpPool]) -> None:
    for keepalive in (False, True):
        pool = pools(keepalive=keepalive)
        with scripted_server(answering()) as server:
            pool.request(server.url, "GET", "/", {})
            stream: Any = pool._idle[server.url][0]._stream
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert bool(stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is keepalive
            pool.close()


def test_refused_connection_and_bad_address_are_told_apart(pool: HttpPool) -> None:
    with scripted_server(answering()) as server:
        pass
    with pytest.raises(ConnectFailed) as raised:
        pool.request(server.url, "GET", "/", {})
    assert type(raised.value) is ConnectFailed
    for origin in ("http://" + "x" * 64 + ".example", "http://:80", "http://h:99999"):
        with pytest.raises(BadAddress):
            pool.request(origin, "GET", "/", {})


def test_silence_is_told_by_where_it_began(pools: Callable[..., HttpPool], tls: tuple[ssl.SSLContext, str]) -> None:
    pool = pools(connect_timeout=0.05, read_timeout=0.05)

    def silent(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        reader.read()

    with scripted_server(silent) as server:
        with pytest.raises(TimedOut):
            pool.request(server.url, "GET", "/", {})
        with pytest.raises(ConnectTimedOut):
            pool.request(server.url.replace("http", "https"), "GET", "/", {})

    def not_reading(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        server.read_head(reader)
        over.wait(10)

    over = threading.Event()
    with scripted_server(not_reading) as server:
        with pytest.raises(TimedOut):
            pool.request(server.url, "PUT", "/", {}, bytes(32 * MiB))
        over.set()


def test_timeout_is_for_each_block_and_not_for_the_body(pools: Callable[..., HttpPool]) -> None:
    pool = pools(read_timeout=5.0)
    deadlines: list[float | None] = []

    class Watched:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def sendall(self, data: bytes) -> None:
            deadlines.append(self._stream.gettimeout())
            assert len(data) <= MiB
            self._stream.sendall(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    with scripted_server(answering()) as server:
        pool.request(server.url, "GET", "/", {})
        connection = pool._idle[server.url][0]
        connection._stream = Watched(connection._stream)
        pool.request(server.url, "PUT", "/", {}, memoryview(bytes(5 * MiB)))
        pool.request(server.url, "PUT", "/", {}, Source(bytes(3 * MiB)))
        pool.close()
    assert deadlines == [5.0] * (1 + 5 + 1 + 3)


def test_certificate_must_be_trusted_and_name_the_host(
    pools: Callable[..., HttpPool], tls: tuple[ssl.SSLContext, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, bundle = tls
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with scripted_server(answering(), context) as server:
        friend = pools(ca_bundle=bundle)
        assert [friend.request(server.url, "PUT", "/", {}, bytes(3 * MiB)).status for _ in range(2)] == [200, 200]
        friend.close()
        for pool, origin in ((pools(), server.url), (friend, server.url.replace("127.0.0.1", "localhost"))):
            with pytest.raises(Untrusted):
                pool.request(origin, "GET", "/", {})
    assert server.connections == 3
    broken = tmp_path / "no.pem"
    broken.write_text("no certificate")
    with scripted_server(answering(), context) as server, pytest.raises(Untrusted):
        pools(ca_bundle=str(broken)).request(server.url, "GET", "/", {})


def test_plain_server_is_no_encrypted_one(pools: Callable[..., HttpPool]) -> None:
    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        stream.recv(100)
        stream.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

    with scripted_server(script) as server, pytest.raises(Untrusted):
        pools().request(server.url.replace("http", "https"), "GET", "/", {})


# --- proxies -----------------------------------------------------------------------------------------------------------


def tunnelling(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
    """A proxy that lets through to the port it is asked for, on this machine."""
    server.read_head(reader)
    port = int(server.heads[-1][0].split()[1].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as upstream:
        stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")

        def back() -> None:
            with suppress(OSError):  # the client may be gone
                while block := upstream.recv(65536):
                    stream.sendall(block)

        thread = threading.Thread(target=back, daemon=True)
        thread.start()
        while block := stream.recv(65536):
            upstream.sendall(block)
        upstream.shutdown(socket.SHUT_WR)
        thread.join(10)


@pytest.mark.parametrize("encrypted_proxy", [False, True])
def test_tunnel_is_dug_through_a_proxy_to_an_encrypted_server(
    pools: Callable[..., HttpPool], tls: tuple[ssl.SSLContext, str], encrypted_proxy: bool
) -> None:
    context, bundle = tls
    body = os.urandom(3 * MiB)
    with (
        scripted_server(answering(), context) as server,
        scripted_server(tunnelling, context if encrypted_proxy else None) as proxy,
    ):
        pool = pools(ca_bundle=bundle, proxy=proxy.url.replace("://", "://us%40er:p%3Aw@"))
        for _ in range(2):
            assert pool.request(server.url, "PUT", "/x", {"A": "b"}, body).body == b"ok"
        pool.close()
    place = server.url.removeprefix("https://")
    # "us@er:p:w"
    assert proxy.heads == [[f"CONNECT {place} HTTP/1.1", f"Host: {place}", "Proxy-Authorization: Basic dXNAZXI6cDp3"]]
    assert server.bodies == [body, body]
    assert all("proxy" not in line.lower() for head in server.heads for line in head), "the password is the proxy's alone"


@pytest.mark.parametrize("encrypted_proxy", [False, True])
def test_proxy_is_asked_for_whole_urls_of_plain_servers(
    pools: Callable[..., HttpPool], tls: tuple[ssl.SSLContext, str], encrypted_proxy: bool
) -> None:
    context, bundle = tls
    with scripted_server(answering(), context if encrypted_proxy else None) as proxy:
        pool = pools(ca_bundle=bundle, proxy=proxy.url.replace("://", "://u:p@"))
        pool.request("http://store.invalid:81", "PUT", "/x?y", {}, b"z")
        pool.close()
    first, *more = proxy.heads[0]
    assert first == "PUT http://store.invalid:81/x?y HTTP/1.1"
    assert {"Host: store.invalid:81", "Proxy-Authorization: Basic dTpw"} <= set(more)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 Who?\r\n\r\n", b"HTTP/1.1 200", b"garbage\r\n", b""])
def test_proxy_is_blamed_when_it_does_not_let_us_through(pools: Callable[..., HttpPool], answer: bytes) -> None:
    with scripted_server(answering(answer, times=1)) as proxy, pytest.raises(ProxyFailed):
        pools(proxy=proxy.url).request("https://store.invalid", "GET", "/", {})
    with pytest.raises(ProxyFailed):
        pools(proxy=proxy.url).request("http://store.invalid", "GET", "/", {})
