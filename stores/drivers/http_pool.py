"""Sends HTTP/1.1 requests over connections that all threads share, for a fraction of the CPU that the SDKs' transports take.

It knows sockets, TLS, proxies and framing, and nothing of stores: what an answer means, what is sent again and how often is its
callers' to say. No redirect is followed, and no environment variable has a say.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
import weakref
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from io import BufferedReader
from string import hexdigits
from typing import Any, Literal, Protocol, cast
from urllib.parse import SplitResult, unquote, urlsplit

import certifi
from urllib3.util.ssltransport import SSLTransport

from stores.drivers.base import MiB, PartData, PartSource
from stores.drivers.tcp_info import Observed
from stores.timing import ANSWER, SEND, is_sending, spending

ONE_SEGMENT = 64 * 1024
"""A body up to this is sent together with its head."""
SEND_BLOCK = MiB
"""What must be taken by the other side within the read timeout."""
CONTINUE_WAIT = 1.0
"""Seconds for an answer to "Expect: 100-continue"; a server may know nothing of it."""
ERROR_BODY = 64 * 1024
"""How much is read of what accompanies an error."""
MAX_BODY = 64 * MiB
"""No other answer that anybody asks for is longer; where a range is ignored, all of an object comes."""
MAX_LINE = 64 * 1024
MAX_HEADERS = 256
MAX_HEADS = 1000
"""So often a server may say that it has no answer yet."""
MAX_DIGITS = 15
_PORTS = {"http": 80, "https": 443}


class Stream(Protocol):
    """What plain sockets, encrypted ones, and those encrypted within encryption have in common."""

    def sendall(self, data: Any, /) -> object: ...
    def settimeout(self, value: float, /) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def makefile(self, mode: Literal["rb"], /) -> object: ...


class HttpError(Exception):
    """There is no answer; whether the server got the request is not known."""


class ConnectFailed(HttpError):
    """The server does not let us connect."""


class ConnectTimedOut(ConnectFailed):
    """The connection did not open in time."""


class ProxyFailed(ConnectFailed):
    """The proxy does not answer, or does not let us through."""


class Untrusted(ConnectFailed):
    """No encrypted connection to the server that the certificates vouch for."""


class BadAddress(ConnectFailed):
    """The address of the server or of the proxy is none."""


class TimedOut(HttpError):
    """The connection is open, and not a byte moved for the read timeout."""


class BrokenOff(HttpError):
    """The connection ended before the answer did, as kept ones do when the server closes them."""


class NotHttp(HttpError):
    """What came back is no HTTP."""


class TooLong(HttpError):
    """The answer is longer than what was asked for; it was not read to its end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read to its end, that of an error up to `ERROR_BODY`. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpPool:
    """Connections to any number of servers. Safe for threads and forks; nothing is opened before the first request."""

    def __init__(
        self,
        *,
        connect_timeout: float,
        read_timeout: float,
        ca_bundle: str = "",
        proxy: str = "",
        keepalive: bool = False,
        size: int = 32,
    ) -> None:
        """`size` is how many idle connections are kept for each server; more may be in use."""
        self._timeouts = (connect_timeout, read_timeout)
        self._ca_bundle = ca_bundle
        self._proxy = urlsplit(proxy) if proxy else None
        self._keepalive = keepalive
        self._size = size
        self._start_afresh()

    def _start_afresh(self) -> None:
        # Sockets and locks must not be shared with the process that we were forked from.
        self._lock = threading.Lock()
        self._idle: dict[str, list[_Connection]] = {}
        weakref.finalize(self, _close_all, self._idle).atexit = False  # a pool that nobody closed
        self._pid = os.getpid()

    def request(
        self,
        origin: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: PartData = b"",
        *,
        ask_first: bool = False,
    ) -> Answer:
        """Send a request to `origin`, as `https://host:port`; raises HttpError, or what a PartSource raised while it was read.

        `ask_first`: let the server refuse before a body is sent.
        """
        connection = self._take(origin)
        try:
            answer = connection.exchange(method, target, headers, body, ask_first=ask_first)
        except BrokenOff:
            # What else is idle broke with it, more likely than not.
            self._close_idle(origin)
            raise
        finally:
            self._give_back(origin, connection)
        return answer

    def close(self) -> None:
        """Close what is idle; used again, the pool opens new connections."""
        if self._pid == os.getpid():
            with self._lock:
                idle = dict(self._idle)
                self._idle.clear()
            _close_all(idle)

    # --- connections ---------------------------------------------------------------------------------------------------

    def _take(self, origin: str) -> _Connection:
        if self._pid != os.getpid():
            self._start_afresh()
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                # The last used first: what idles longest is what the server closes.
                connection = idle.pop() if idle else None
            if connection is None:
                return self._connect(origin)
            if not connection.is_stale():
                return connection
            connection.close()

    def _give_back(self, origin: str, connection: _Connection) -> None:
        if connection.reusable:
            with self._lock:
                idle = self._idle.setdefault(origin, [])
                if len(idle) < self._size:
                    idle.append(connection)
                    return
        connection.close()

    def _close_idle(self, origin: str) -> None:
        with self._lock:
            idle = {origin: self._idle.pop(origin, [])}
        _close_all(idle)

    def _connect(self, origin: str) -> _Connection:
        to = urlsplit(origin)
        _, read_timeout = self._timeouts
        stream: Stream | None = None
        failed: type[ConnectFailed] = ProxyFailed if self._proxy else ConnectFailed
        try:
            stream = self._open(self._proxy or to)
            if self._proxy and to.scheme == "https":
                self._tunnel(stream, self._proxy, to)
            failed = ConnectFailed
            if to.scheme == "https":
                stream = self._encrypted(stream, to)
            stream.settimeout(read_timeout)
        except (OSError, HttpError, ValueError) as error:
            if stream is not None:
                stream.close()
            if isinstance(error, ValueError) and not isinstance(error, ssl.SSLError):
                failed = BadAddress
            elif failed is ConnectFailed and isinstance(error, ssl.SSLError):
                failed = Untrusted
            elif failed is ConnectFailed and isinstance(error, TimeoutError):
                failed = ConnectTimedOut
            raise failed(f"{type(error).__name__} while connecting to {to.netloc}") from error
        return _Connection(stream, read_timeout, origin, self._proxy if to.scheme == "http" else None, observed=not self._proxy)

    def _open(self, to: SplitResult) -> Stream:
        """A connection to the first that we speak to, which may be a proxy."""
        connect_timeout, _ = self._timeouts
        if not to.hostname:
            raise ValueError("no host is named")
        opened = socket.create_connection((to.hostname, to.port or _PORTS[to.scheme]), connect_timeout)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._keepalive:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if to is self._proxy and to.scheme == "https":
            return self._encrypted(opened, to)
        return opened

    def _encrypted(self, stream: Stream, to: SplitResult) -> Stream:
        try:
            if isinstance(stream, ssl.SSLSocket):  # to a proxy: the ssl module cannot encrypt what is encrypted
                return SSLTransport(stream, self._tls, server_hostname=to.hostname)
            return self._tls.wrap_socket(cast("socket.socket", stream), server_hostname=to.hostname)
        except BaseException:
            stream.close()
            raise

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._ca_bundle or certifi.where())

    def _tunnel(self, stream: Stream, proxy: SplitResult, to: SplitResult) -> None:
        host = f"[{to.hostname}]" if ":" in (to.hostname or "") else to.hostname
        place = f"{host}:{to.port or _PORTS[to.scheme]}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}", *_authorization(proxy), "", ""]
        stream.sendall("\r\n".join(lines).encode())
        with cast("BufferedReader", stream.makefile("rb")) as reader:
            status, _ = _read_head(reader)
        if status != HTTPStatus.OK:
            raise ProxyFailed(f"The proxy answered {status}.")


class _Connection:
    """One connection, with one request at a time."""

    def __init__(
        self, stream: Stream, read_timeout: float, origin: str, forwarder: SplitResult | None, *, observed: bool
    ) -> None:
        """`forwarder`: a proxy that is asked for whole URLs. `observed`: the other side is the server itself."""
        self.reusable = False
        self._stream = stream
        self._reader = cast("BufferedReader", stream.makefile("rb"))
        self._read_timeout = read_timeout
        self._observed = Observed(stream) if observed else None
        host = host_of(origin)
        self._before_target = f"http://{host}" if forwarder else ""
        self._fixed = [f"Host: {host}", "User-Agent: cloudstorage", *(_authorization(forwarder) if forwarder else ())]

    def close(self) -> None:
        with suppress(OSError):
            self._reader.close()
        with suppress(OSError):
            self._stream.close()

    def is_stale(self) -> bool:
        """An idle server has nothing to say: any byte, read with its last answer or not, or the end, means that it is over."""
        return _readable(self._stream, 0) or self._holds_more()

    def _holds_more(self) -> bool:
        """Whether more was read than the last answer; it would pass for the next one, of a request that nobody has seen."""
        self._stream.settimeout(0)
        try:
            return bool(self._reader.peek(1))
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        finally:
            self._stream.settimeout(self._read_timeout)

    def exchange(self, method: str, target: str, headers: Mapping[str, str], body: PartData, *, ask_first: bool) -> Answer:
        """One request and its answer; `reusable` tells whether another may follow."""
        self.reusable = False
        head = self._head(method, target, headers, len(body), ask_first=ask_first)
        try:
            early = self._send(head, body, ask_first=ask_first)
            with spending(ANSWER):
                status, received = early or self._final_head()
                return self._answer(method, status, received, all_sent=early is None)
        except _SourceFailed as failure:
            raise failure.error from None
        except TimeoutError as error:
            raise TimedOut("nothing moved within the timeout") from error
        except OSError as error:
            raise BrokenOff(type(error).__name__) from error
        finally:
            if self._observed is not None and is_sending():
                self._observed.tell()

    # --- sending -------------------------------------------------------------------------------------------------------

    def _head(self, method: str, target: str, headers: Mapping[str, str], size: int, *, ask_first: bool) -> bytes:
        lines = [f"{method} {self._before_target}{target} HTTP/1.1", *self._fixed]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if size or method in {"PUT", "POST"}:
            lines.append(f"Content-Length: {size}")
        if ask_first:
            lines.append("Expect: 100-continue")
        lines += ["", ""]
        head = "\r\n".join(lines)
        if not head.count("\n") == head.count("\r") == len(lines) - 1 or " " in target:
            raise ValueError("A header with a line break, or an address with a space, would be read as something else.")
        return head.encode()

    def _send(self, head: bytes, body: PartData, *, ask_first: bool) -> tuple[int, dict[str, str]] | None:
        """Send all, or until the server answers: then the head of its answer."""
        if not ask_first and not isinstance(body, PartSource) and len(body) <= ONE_SEGMENT:
            with spending(SEND):
                self._stream.sendall(head + body)
            return None
        with spending(SEND):
            self._stream.sendall(head)
        if ask_first:
            with spending(ANSWER):
                early = self._early_head(CONTINUE_WAIT)
            if early:
                return early
        for block in _blocks(body):
            if early := self._early_head(0):
                return early
            try:
                with spending(SEND, len(block)):
                    self._stream.sendall(block)
            except OSError as error:
                # Who refuses in the middle of a body may close at once: what was said is still here to be read.
                if isinstance(error, TimeoutError) and not self._speaks(0):
                    raise
                return self._final_head()
        return None

    def _early_head(self, seconds: float) -> tuple[int, dict[str, str]] | None:
        """The head of an answer that begins within this time; None where the server says nothing, or to continue."""
        if not self._speaks(seconds):
            return None
        status, headers = _read_head(self._reader)
        return (status, headers) if status >= HTTPStatus.OK else None

    def _speaks(self, seconds: float) -> bool:
        """Whether the server says something, or closes, within this time."""
        deadline = time.monotonic() + seconds
        while _readable(self._stream, max(0.0, deadline - time.monotonic())):
            self._stream.settimeout(0)
            try:
                self._reader.peek(1)
            except ssl.SSLWantReadError:
                continue  # TLS said something to itself
            except OSError:
                return True
            finally:
                self._stream.settimeout(self._read_timeout)
            return True
        return False

    # --- receiving -----------------------------------------------------------------------------------------------------

    def _final_head(self) -> tuple[int, dict[str, str]]:
        for _ in range(MAX_HEADS):
            status, headers = _read_head(self._reader)
            if status >= HTTPStatus.OK:
                return status, headers
        raise NotHttp("there is no end of heads without an answer")

    def _answer(self, method: str, status: int, headers: dict[str, str], *, all_sent: bool) -> Answer:
        if status < HTTPStatus.MULTIPLE_CHOICES and not all_sent:
            raise BrokenOff("a success was told before all was sent")
        body, whole = self._body(method, status, headers)
        self.reusable = all_sent and whole and "close" not in headers.get("connection", "").lower()
        return Answer(status, headers, body)

    def _body(self, method: str, status: int, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        """(content, whether the connection is at its end)."""
        if method == "HEAD" or status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return b"", True
        limit = MAX_BODY if status < HTTPStatus.MULTIPLE_CHOICES else ERROR_BODY
        content, all_of_it, told_its_end = self._framed(headers, limit)
        if limit == MAX_BODY and not all_of_it:
            raise TooLong(f"the answer is longer than {limit} bytes")
        return content, all_of_it and told_its_end

    def _framed(self, headers: Mapping[str, str], limit: int) -> tuple[bytes, bool, bool]:
        """(content up to `limit`, whether that is all, whether the answer told where it ends)."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return *self._chunks(limit), True
        if "content-length" not in headers or "transfer-encoding" in headers:
            content = self._reader.read(limit + 1)
            return content[:limit], len(content) <= limit, False
        size = _number(headers["content-length"], 10)
        if size > limit:
            return self._exactly(ERROR_BODY), False, True
        return self._exactly(size), True, True

    def _chunks(self, limit: int) -> tuple[bytes, bool]:
        content = bytearray()
        while size := _number(_line(self._reader).partition(";")[0].strip(), 16):
            if len(content) + size > limit:
                return bytes(content), False
            content += self._exactly(size)
            if _line(self._reader):
                raise NotHttp("a chunk is longer than it says")
        _read_fields(self._reader)
        return bytes(content), True

    def _exactly(self, size: int) -> bytes:
        content = self._reader.read(size)
        if len(content) != size:
            raise BrokenOff("the answer is incomplete")
        return content


def _close_all(idle: dict[str, list[_Connection]]) -> None:
    while idle:
        _, connections = idle.popitem()
        for connection in connections:
            connection.close()


class _SourceFailed(BaseException):
    """Carries what was raised while a body was read past what is made of a connection's own errors."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _blocks(body: PartData) -> Iterator[bytes | memoryview]:
    pieces = body.blocks() if isinstance(body, PartSource) else iter((body,))
    while True:
        try:
            piece = next(pieces)
        except StopIteration:
            return
        except BaseException as error:
            raise _SourceFailed(error) from error
        view = memoryview(piece)
        for start in range(0, len(view), SEND_BLOCK):
            yield view[start : start + SEND_BLOCK]


def _readable(stream: Stream, seconds: float) -> bool:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _read_head(reader: BufferedReader) -> tuple[int, dict[str, str]]:
    """(status, headers); raises NotHttp, or BrokenOff when nothing more comes."""
    version, _, rest = _line(reader).partition(" ")
    status = rest[:3]
    if version not in {"HTTP/1.1", "HTTP/1.0"} or len(status) != 3:
        raise NotHttp("the answer does not begin as HTTP does")
    headers = _read_fields(reader)
    if version == "HTTP/1.0":
        headers["connection"] = "close"
    return _number(status, 10), headers


def _read_fields(reader: BufferedReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = _line(reader)
        if not line:
            return headers
        name, colon, value = line.partition(":")
        if not colon or not name or name[-1] in " \t" or name[0] in " \t":
            raise NotHttp("a header is malformed")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raise NotHttp("there is no end of headers")


def _line(reader: BufferedReader) -> str:
    line = reader.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        if len(line) >= MAX_LINE:
            raise NotHttp("a line has no end")
        raise BrokenOff("the connection ended")
    # HTTP says Latin-1, of which S3 uses the ASCII part; Swift means UTF-8.
    return line.decode("utf-8", "replace").rstrip("\r\n")


def _number(text: str, base: int) -> int:
    # int() alone would take signs, spaces, underscores and digits of other scripts.
    if not text or len(text) > MAX_DIGITS or text.strip("0123456789" if base == 10 else hexdigits):
        raise NotHttp("a number is malformed")
    return int(text, base)


def host_of(origin: str) -> str:
    """The Host header for an origin."""
    parts = urlsplit(origin)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in {None, _PORTS[parts.scheme]} else f"{host}:{parts.port}"


def _authorization(proxy: SplitResult) -> list[str]:
    if proxy.username is None:
        return []
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return [f"Proxy-Authorization: Basic {b64encode(user.encode()).decode()}"]
