"""Proxies between a client under test and a real server: one breaks TCP connections, one logs and breaks HTTP requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from tests.servers.http_messages import (
    BLOCK,
    Framing,
    HttpRequest,
    body_blocks,
    framing_of,
    parse_request,
    parse_response,
    read_head,
)
from tests.servers.process import ServerError, free_ports

_HEAD_LIMIT = 256 * 1024

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """`reset`: with RST, what was not sent yet is lost, as when a host or a firewall gives up a connection."""
    with contextlib.suppress(OSError):
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        writer.close()
        await writer.wait_closed()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Proxy:
    """A listener on loopback with an event loop in a thread of its own; every public method may be called from any thread."""

    def __init__(self, upstream: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """`upstream` is a URL with host and port, of any scheme; `host` and `port` are where to listen (0: a free port)."""
        parts = urlsplit(upstream)
        if not parts.hostname or not parts.port:
            raise ValueError(f"{upstream!r} names no host and port to pass connections on to")
        self._upstream = (parts.hostname, parts.port)
        self._url = parts
        self.host = host
        self.port = port or free_ports(1)[0]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._listener: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.connections_made = 0

    @property
    def url(self) -> str:
        """The upstream's URL with this proxy's address in it."""
        user = f"{self._url.username}@" if self._url.username else ""
        return self._url._replace(netloc=f"{user}{self.host}:{self.port}").geturl()

    def start(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def stop(self) -> None:
        """Reset every connection, close the listener, end the thread. May be called twice."""
        if self._thread.is_alive():
            self._call(self._shut())
            self._call(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        if not self._loop.is_running():
            self._loop.close()

    def __enter__(self) -> Self:
        return self if self._thread.is_alive() else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reset_connections(self) -> None:
        """Break every open connection now (RST to both sides); new ones are taken."""
        self._call(self._reset())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._thread.is_alive():
            work.close()
            raise ServerError("the proxy is not running")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, self.host, self.port, limit=_HEAD_LIMIT)

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            await self._listener.wait_closed()
            self._listener = None

    async def _reset(self) -> None:
        await _cancel(*self._clients)

    async def _shut(self) -> None:
        await self._close_listener()
        await self._reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = writer
        self.connections_made += 1
        try:
            await self._serve(reader, writer)
            await _close(writer, reset=False)
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # Cancelled only by _reset(). Swallowed, for asyncio's own callback would report it as an error of the server.
            await _close(writer, reset=True)
        finally:
            del self._clients[task]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _connect(self) -> Streams:
        return await asyncio.open_connection(*self._upstream, limit=_HEAD_LIMIT)


Direction = Literal["up", "down"]


class TcpProxy(_Proxy):
    """Passes bytes until told otherwise; each of the fault methods replaces the fault before it. "up" is towards the server."""

    def __init__(self, upstream: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(upstream, host=host, port=port)
        self._open_gate = asyncio.Event()
        self._open_gate.set()
        self._rate: float | None = None
        self._next_free = 0.0
        self._limit: tuple[Direction, int] | None = None
        self._resets_left: int | None = None
        self._epoch = 0
        self.bytes_passed: dict[Direction, int] = {"up": 0, "down": 0}

    def pass_through(self) -> None:
        """No fault: everything passes, what was stalled goes on."""
        self._call(self._switch())

    def refuse(self) -> None:
        """The server is gone: open connections are reset, new ones refused."""
        self._call(self._switch(listen=False))

    def stall(self) -> None:
        """Connections open and stay open, and not a byte passes."""
        self._call(self._switch(stall=True))

    def throttle(self, bytes_per_second: float) -> None:
        """All connections together, both directions, pass this much."""
        self._call(self._switch(rate=bytes_per_second))

    def reset_after(self, count: int, direction: Direction = "up", *, times: int | None = None) -> None:
        """Reset each connection once `count` bytes more have passed on it; `times` such resets, then no fault."""
        self._call(self._switch(limit=(direction, count), times=times))

    async def _switch(
        self,
        *,
        listen: bool = True,
        stall: bool = False,
        rate: float | None = None,
        limit: tuple[Direction, int] | None = None,
        times: int | None = None,
    ) -> None:
        self._rate, self._limit, self._resets_left = rate, limit, times
        self._epoch += 1
        if stall:
            self._open_gate.clear()
        else:
            self._open_gate.set()
        if listen:
            await self._listen()
        else:
            await self._shut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await self._connect()
        pumps = [
            asyncio.create_task(self._pump("up", reader, upstream_writer)),
            asyncio.create_task(self._pump("down", upstream_reader, writer)),
        ]
        try:
            await asyncio.gather(*pumps)
            await _close(upstream_writer, reset=False)
        except BaseException:
            await _cancel(*pumps)
            await _close(upstream_writer, reset=True)
            raise

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        epoch, passed = self._epoch, 0
        while True:
            block = await reader.read(BLOCK if self._rate is None else max(1, min(BLOCK, int(self._rate / 20))))
            await self._open_gate.wait()
            if not block:
                writer.write_eof()
                return
            await self._keep_to_rate(len(block))
            if epoch != self._epoch:
                epoch, passed = self._epoch, 0
            limit = self._limit[1] if self._limit is not None and self._limit[0] == direction else None
            if limit is not None and passed + len(block) >= limit:
                block = block[: max(0, limit - passed)]
            passed += len(block)
            self.bytes_passed[direction] += len(block)
            writer.write(block)
            await writer.drain()
            if limit is not None and passed >= limit:
                if self._resets_left is not None:
                    self._resets_left -= 1
                    if self._resets_left <= 0:
                        self._limit = None
                raise ConnectionResetError("as asked for by reset_after")

    async def _keep_to_rate(self, count: int) -> None:
        if self._rate is not None:
            now = time.monotonic()
            self._next_free = max(now, self._next_free) + count / self._rate
            await asyncio.sleep(self._next_free - now)


@dataclass
class HttpRecord:
    """One request: target is path and query as sent; bytes are those of the bodies, without chunk framing.

    `status` is what the server answered, None when it did not; `outcome` what the client got.
    """

    method: str
    target: str
    started: float
    status: int | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    seconds: float = 0.0
    outcome: Literal["open", "passed", "answered", "cut"] = "open"


@dataclass(frozen=True)
class Answer:
    """Answer in the server's place, after reading the request's body; the server sees nothing."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Cut:
    """Reset both connections: before the server sees anything, after so many bytes of the request's body, or once the
    server has done its work and answered, so that only the answer is lost."""

    at: Literal["request", "body", "response"] = "request"
    after_bytes: int = 0


@dataclass(frozen=True)
class Corrupt:
    """Pass the request with one byte of a body changed."""

    body: Literal["request", "response"] = "request"
    offset: int = 0


@dataclass(frozen=True)
class Hold:
    """Set `arrived`, wait for `release`, then pass the request."""

    arrived: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


Action = Answer | Cut | Corrupt | Hold


@dataclass
class Rule:
    """What to do to requests that match; `times` left (None: always), `hits` so far."""

    matches: Callable[[HttpRequest], bool]
    action: Action
    times: int | None = None
    hits: int = 0


class _BodyCut(ConnectionResetError):
    """A rule ends the connection here."""


class LoggingHttpProxy(_Proxy):
    """Records every request, and passes heads and bodies on byte for byte, in bounded memory: signatures stay valid.

    A record is in `records` from the moment its request arrives; its status is there before the client sees the answer.
    """

    def __init__(self, upstream: str, *, host: str = "127.0.0.1", port: int = 0, log_file: Path | None = None) -> None:
        """`log_file` gets one JSON line per finished request."""
        super().__init__(upstream, host=host, port=port)
        self.records: list[HttpRecord] = []
        self._rules: list[Rule] = []
        self._log_file = log_file

    def add_rule(self, matches: Callable[[HttpRequest], bool], action: Action, *, times: int | None = None) -> Rule:
        """The first rule that matches and has times left is applied."""
        rule = Rule(matches, action, times)
        self._rules.append(rule)
        return rule

    def clear_rules(self) -> None:
        self._rules.clear()

    def clear_records(self) -> None:
        self.records = []

    def wait_until_idle(self, timeout: float = 10) -> None:
        """Return when no request is open; for reading sizes and times of the last records. TimeoutError."""
        deadline = time.monotonic() + timeout
        while any(record.outcome == "open" for record in self.records):
            if time.monotonic() > deadline:
                raise TimeoutError(f"requests are still open: {[r for r in self.records if r.outcome == 'open']}")
            time.sleep(0.005)

    def _action_for(self, request: HttpRequest) -> Action | None:
        for rule in list(self._rules):
            if (rule.times is None or rule.hits < rule.times) and rule.matches(request):
                rule.hits += 1
                return rule.action
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: Streams | None = None
        try:
            while True:
                head, upstream = await self._next_head(reader, upstream)
                if head is None:
                    break
                request = parse_request(head)
                record = HttpRecord(request.method, request.target, time.time())
                self.records.append(record)
                begun = time.monotonic()
                try:
                    action = self._action_for(request)
                    if isinstance(action, Hold):
                        action.arrived.set()
                        while not action.release.is_set():  # noqa: ASYNC110 - set by another thread
                            await asyncio.sleep(0.005)
                    if isinstance(action, Answer):
                        keep = await self._answer(action, request, record, reader, writer)
                    elif action == Cut("request"):
                        raise _BodyCut
                    else:
                        upstream = upstream or await self._connect()
                        keep = await self._pass(head, request, record, action, (reader, writer), upstream)
                except BaseException:
                    record.outcome = "cut"
                    raise
                finally:
                    record.seconds = time.monotonic() - begun
                    self._write_line(record)
                if not keep:
                    break
            if upstream is not None:
                await _close(upstream[1], reset=False)
        except BaseException:
            if upstream is not None:
                await _close(upstream[1], reset=True)
            raise

    async def _next_head(self, reader: asyncio.StreamReader, upstream: Streams | None) -> tuple[bytes | None, Streams | None]:
        """The next request's head, None when either side closes before it comes; and the upstream if that is still open."""
        head = asyncio.create_task(read_head(reader))
        # An idle server has nothing to say: any byte, or the end, means that the connection is over.
        over = asyncio.create_task(upstream[0].read(1)) if upstream is not None else None
        try:
            await asyncio.wait({head, over} if over else {head}, return_when=asyncio.FIRST_COMPLETED)
            if upstream is not None and over is not None and over.done():
                await _close(upstream[1], reset=False)
                upstream = None
            return (head.result() if head.done() else None), upstream
        finally:
            await _cancel(*[task for task in (head, over) if task is not None])

    async def _answer(
        self, answer: Answer, request: HttpRequest, record: HttpRecord, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        # A client that waits for "100 Continue" sends no body once it has the answer.
        waits = "expect" in request.headers
        if not waits:
            async for block in body_blocks(reader, *framing_of(request.headers)):
                record.request_bytes += len(block.data)
        lines = [f"HTTP/1.1 {answer.status} by rule", f"Content-Length: {len(answer.body)}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines += ["Connection: close"] if waits else []
        record.status = answer.status
        record.response_bytes = 0 if request.method == "HEAD" else len(answer.body)
        record.outcome = "answered"
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        writer.write(b"" if request.method == "HEAD" else answer.body)
        await writer.drain()
        return not waits

    async def _pass(
        self, head: bytes, request: HttpRequest, record: HttpRecord, action: Action | None, client: Streams, upstream: Streams
    ) -> bool:
        upstream[1].write(head)
        sending = asyncio.create_task(self._send_body(request, record, action, client[0], upstream[1]))
        try:
            continued = False
            while True:
                response_head = await self._response_head(sending, upstream[0])
                status, headers, closes = parse_response(response_head)
                if status >= 200:
                    break
                continued = True
                client[1].write(response_head)
            record.status = status
            if action == Cut("response"):
                raise _BodyCut
            client[1].write(response_head)
            framing: tuple[Framing, int] = (
                ("none", 0) if request.method == "HEAD" or status in {204, 304} else framing_of(headers, to_the_end=True)
            )
            async for block in body_blocks(upstream[0], *framing):
                client[1].write(_spoiled(block.raw, block.data, record.response_bytes, action, "response"))
                record.response_bytes += len(block.data)
                await client[1].drain()
            if not sending.done() and "expect" in request.headers and not continued:
                closes = True  # refused before the body: the client does not send it
            elif not sending.done():
                await asyncio.wait({sending})
            await client[1].drain()
            record.outcome = "passed"
            return not (closes or framing[0] == "end" or sending.cancelled() or (sending.done() and sending.exception()))
        finally:
            await _cancel(sending)

    async def _response_head(self, sending: asyncio.Task[None], reader: asyncio.StreamReader) -> bytes:
        receiving = asyncio.create_task(read_head(reader))
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and isinstance(sending.exception(), (_BodyCut, asyncio.IncompleteReadError)):
                sending.result()
            # A server may refuse in the middle of a body and close; what it said must still reach the client.
            head = await receiving
        finally:
            await _cancel(receiving)
        if head is None:
            raise ConnectionResetError("the server closed without an answer")
        return head

    async def _send_body(
        self,
        request: HttpRequest,
        record: HttpRecord,
        action: Action | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        limit = action.after_bytes if isinstance(action, Cut) and action.at == "body" else None
        async for block in body_blocks(reader, *framing_of(request.headers)):
            if limit is not None and record.request_bytes + len(block.data) >= limit:
                writer.write(block.data[: limit - record.request_bytes])
                await writer.drain()
                record.request_bytes = limit
                raise _BodyCut
            writer.write(_spoiled(block.raw, block.data, record.request_bytes, action, "request"))
            record.request_bytes += len(block.data)
            await writer.drain()
        if limit is not None:
            raise _BodyCut

    def _write_line(self, record: HttpRecord) -> None:
        if self._log_file is not None:
            with self._log_file.open("a") as log:
                log.write(json.dumps(asdict(record)) + "\n")


def _spoiled(raw: bytes, data: bytes, offset: int, action: Action | None, body: str) -> bytes:
    if not isinstance(action, Corrupt) or action.body != body or not offset <= action.offset < offset + len(data):
        return raw
    place = action.offset - offset
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
