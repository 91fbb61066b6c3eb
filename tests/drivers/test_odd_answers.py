"""Answers that no sound server gives: each is told as an error of the store, of which the others can be told, and nothing hangs."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import BinaryIO

import pytest

from stores.drivers.base import MiB, StoreConfig, StoreDriver, Upload
from stores.drivers.errors import Misconfigured, StoreError, Throttled, Unavailable
from stores.drivers.http_pool import MAX_BODY
from stores.drivers.s3 import S3Driver
from stores.drivers.swift import SwiftDriver
from tests.drivers.http_cases import Script, Scripted, scripted_server

pytestmark = pytest.mark.unit

KEY = "template/tmpl/2/201/a.qcow2"
FACTS = {"verifies": ["put:md5", "part:md5", "etag", "segment etag"], "etag_md5": True, "conditional_put": True}
WRITTEN = "Last-Modified: Tue, 04 Mar 2025 10:00:00 GMT"

Answers = Callable[[str, str], bytes]
"""Of a method and a path, the whole answer."""


def answer(*headers: str, status: int = 200, body: bytes = b"", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status} As It Is", *headers, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def saying(answers: Answers) -> Script:
    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        if server.read(reader):  # one for each connection, so that none is waited for whose length is odd
            method, path, _ = server.heads[-1][0].split()
            signed_in = answer(f"X-Storage-Url: {server.url}/v1/AUTH_x", "X-Auth-Token: token")
            stream.sendall(signed_in if path == "/auth/v1.0" else answers(method, path))

    return script


@contextmanager
def driver_of(kind: str, script: Script) -> Iterator[StoreDriver]:
    with scripted_server(script) as server:
        if kind == "S3":
            place = {
                "bucket": "images",
                "endpoint": server.url.removeprefix("http://"),
                "usehttps": "false",
                "maxerrorretry": "0",
            }
            url, details = S3Driver.clean("", {"accesskey": "a", "secretkey": "s", **place})
            driver: StoreDriver = S3Driver(StoreConfig(url, details, "s", "c", FACTS))
        else:
            url, details = SwiftDriver.clean(f"{server.url}/auth/v1.0", {"username": "u", "key": "k", "container": "c"})
            driver = SwiftDriver(StoreConfig(url, details, "s", "c", FACTS))
        try:
            yield driver
        finally:
            driver.close()


def read(driver: StoreDriver) -> None:
    with driver.open(KEY) as reader:
        reader.pread(0, 1)


USES: dict[str, Callable[[StoreDriver], object]] = {
    "check": lambda driver: driver.check(),
    "stat": lambda driver: driver.stat(KEY),
    "list": lambda driver: list(driver.list()),
    "read": read,
    "put": lambda driver: driver.put(KEY, b"x", metadata={}, token="t"),
    "begin": lambda driver: driver.begin_upload(KEY, size=2, part_size=1, metadata={}, token="t"),
    "delete": lambda driver: driver.delete(KEY),
    "pending": lambda driver: list(driver.pending_uploads()),
}

XML = '<?xml version="1.0"?><{0} xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated>{1}</{0}>'


def listing(entry: str) -> bytes:
    return XML.format("ListBucketResult", f"<Contents>{entry}</Contents>").encode()


ODD = {
    "no time": answer("ETag: e"),
    "no header": b"HTTP/1.1 200 OK\r\n\r\n",
    "time of no calendar": answer("Last-Modified: yesterday", "X-Timestamp: noon"),
    "endless time": answer("Last-Modified: 9" + "9" * 30, "X-Timestamp: 1e400"),
    "late time": answer("Last-Modified: Mon, 01 Jan 2024 00:00:00 +" + "9" * 30, "X-Timestamp: " + "9" * 30),
    "length of no number": answer(WRITTEN, "Content-Length: many", length=False),
    "negative length": answer(WRITTEN, "Content-Length: -5", length=False),
    "long length": answer(WRITTEN, "Content-Length: " + "9" * 5000, length=False),
    "empty page": answer(WRITTEN),
    "names": answer(WRITTEN, body=b'["a"]'),
    "an object": answer(WRITTEN, body=b'{"name": "a"}'),
    "number": answer(WRITTEN, body=b"1" * 5000),
    "entry without a size": answer(WRITTEN, body=b'[{"name": "a"}]'),
    "folders": answer(WRITTEN, body=b'[{"subdir": "a/"}]'),
    "entry of no time": answer(WRITTEN, body=b'[{"name": "a", "bytes": 1, "hash": "", "last_modified": "noon"}]'),
    "entry of no size": answer(WRITTEN, body=b'[{"name": "a", "bytes": "x", "last_modified": "2025-03-04T10:00:00"}]'),
    "deep": answer(WRITTEN, body=b"[" * 60_000),
    "broken text": answer(WRITTEN, body=b"\xff\xfe\xff"),
    "xml of nothing": answer(WRITTEN, body=XML.format("ListBucketResult", "").encode()),
    "xml without a size": answer(WRITTEN, body=listing("<Key>a</Key>")),
    "xml of no size": answer(
        WRITTEN, body=listing("<Key>a</Key><Size>x</Size><LastModified>2025-03-04T10:00:00Z</LastModified>")
    ),
    "xml of no time": answer(WRITTEN, body=listing("<Key>a</Key><Size>1</Size><LastModified>noon</LastModified>")),
    "xml of a late time": answer(WRITTEN, body=listing(f"<Key>a</Key><Size>1</Size><LastModified>{'9' * 30}</LastModified>")),
    "xml without a key": answer(WRITTEN, body=listing("<Size>1</Size>")),
    "xml of an upload": answer(WRITTEN, body=XML.format("ListMultipartUploadsResult", "<Upload><Key>a</Key></Upload>").encode()),
    "pause without end": answer("Retry-After: " + "9" * 400, status=503),
    "late pause": answer("Retry-After: Mon, 01 Jan 2024 00:00:00 +" + "9" * 30, status=503),
    "odd status": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    "no error": answer(status=404, body=b"<html>not here"),
    "redirect": answer("Location: http://[", status=302),
}


# The SDK does not close an answer whose headers it cannot read: the garbage collector does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["S3", "Swift"])
def test_odd_answer_is_told_as_an_error_of_the_store(kind: str, odd: str) -> None:
    said: list[str] = []
    head, _, body = ODD[odd].partition(b"\r\n\r\n")

    def as_it_is(method: str, _: str) -> bytes:
        return head + b"\r\n\r\n" + (b"" if method == "HEAD" else body)

    with driver_of(kind, saying(as_it_is)) as driver:
        for name, use in USES.items():
            try:
                use(driver)
            except StoreError:
                pass
            except Exception as error:
                said.append(f"{name}: {error!r}")
    gc.collect()
    assert said == []


@pytest.mark.parametrize(
    ("storage", "token"),
    [("http://[", "t"), ("http://h/a b", "t"), ("http://h:99999/v1", "t"), ("http://h/v1", "a\rb"), ("ftp://h/v1", "t")],
)
def test_odd_place_that_a_sign_in_names_is_told(storage: str, token: str) -> None:
    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        if server.read(reader):
            stream.sendall(answer(f"X-Storage-Url: {storage}", f"X-Auth-Token: {token}"))

    with driver_of("Swift", script) as driver, pytest.raises(Misconfigured):
        driver.stat(KEY)


@pytest.mark.parametrize("pause", ["9" * 400, "Mon, 01 Jan 2024 00:00:00 +" + "9" * 30, "soon"])
def test_pause_of_any_length_is_one(pause: str) -> None:
    said = answer(f"Retry-After: {pause}", status=429)
    with driver_of("Swift", saying(lambda *_: said)) as driver, pytest.raises(Throttled):
        driver.stat(KEY)


@pytest.mark.parametrize("kind", ["S3", "Swift"])
def test_listing_that_never_advances_is_given_up(kind: str) -> None:
    """A cache before the server ignores what it is asked to go on behind."""
    entry = {"name": KEY, "bytes": 1, "hash": "e", "last_modified": "2025-03-04T10:00:00"}
    page = f"<Key>{KEY}</Key><Size>1</Size><LastModified>2025-03-04T10:00:00Z</LastModified>"
    xml = listing(page).replace(b"<IsTruncated>false", b"<NextContinuationToken>t</NextContinuationToken><IsTruncated>true")
    said = answer(WRITTEN, body=xml if kind == "S3" else json.dumps([entry]).encode())
    with driver_of(kind, saying(lambda *_: said)) as driver:
        for use in (driver.list, driver.pending_uploads) if kind == "Swift" else (driver.list,):
            with pytest.raises(Unavailable):
                list(islice(use(), 10))


def test_parts_that_are_listed_over_and_over_are_given_up() -> None:
    part = "<Part><PartNumber>1</PartNumber><ETag>e</ETag><Size>1</Size></Part>"
    xml = XML.format("ListPartsResult", part).replace("<IsTruncated>false", "<IsTruncated>true").encode()
    asked: list[str] = []

    def answers(method: str, path: str) -> bytes:
        asked.append(path)
        return answer(WRITTEN, body=xml) if len(asked) < 10 else answer(status=403)

    with driver_of("S3", saying(answers)) as driver, pytest.raises(Unavailable):
        driver.list_parts(Upload(KEY, "u", 2, 1, "t"))


def test_write_without_an_etag_proves_nothing() -> None:
    """Something before the store said yes: an object of this size lies there since an earlier write."""
    earlier = answer(WRITTEN, 'ETag: "earlier"', "Content-Length: 1", length=False)
    with driver_of("S3", saying(lambda method, _: earlier if method == "HEAD" else answer())) as driver:
        assert driver.put(KEY, b"x", metadata={}, token="t").proof is None


def test_range_that_is_ignored_is_not_read_into_memory() -> None:
    head = answer(WRITTEN, 'ETag: "e"', "Content-Length: 9999999999999", length=False)

    def script(server: Scripted, stream: socket.socket, reader: BinaryIO) -> None:
        saying(lambda *_: head)(server, stream, reader)
        with suppress(OSError):
            for _ in range(2 * MAX_BODY // MiB if server.heads[-1][0].startswith("GET /v1") else 0):
                stream.sendall(bytes(MiB))
            server.bodies.append(b"all")

    with driver_of("Swift", script) as driver, pytest.raises(Misconfigured):
        read(driver)
