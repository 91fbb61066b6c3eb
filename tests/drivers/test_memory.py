"""The copier's memory does not grow with the size of a part: a real copy in a process of its own, to servers that keep nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stores.drivers.base import MiB
from stores.drivers.swift_segments import OPEN, STATE_HEADER

pytestmark = pytest.mark.unit

SMALL, LARGE = 24 * MiB, 256 * MiB
"""An object of ordinary parts, which shows what a copy takes anyway, and one of two parts that are 128 MiB each."""
FACTS = {"max_parts": 2, "verifies": ["put:crc32c", "part:crc32c", "etag", "segment etag"]}


class Sink(BaseHTTPRequestHandler):
    """Takes everything and keeps nothing; as much of S3 and Swift as an upload sees."""

    protocol_version = "HTTP/1.1"
    received: list[int]

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 01:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        host = self.headers["Host"]
        self._answer(200, X_Storage_Url=f"http://{host}/v1/AUTH_test", X_Auth_Token="token")

    def do_HEAD(self) -> None:
        large = self.path.endswith("large") and "/.cs-pending/" not in self.path
        size = LARGE if large else SMALL
        self._answer(200, Content_Length=str(size), ETag='"of something else"', **{STATE_HEADER: OPEN})

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        self.received.append(left)
        while left:
            left -= len(self.rfile.read(min(left, 256 * 1024)))
        self._answer(201 if self.path.startswith("/v1/") else 200, ETag=self.headers.get("ETag", '"an etag"'))

    def do_DELETE(self) -> None:
        self._answer(204)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        name = "InitiateMultipartUploadResult" if self.path.endswith("?uploads") else "CompleteMultipartUploadResult"
        self._answer(200, f"<{name}><UploadId>1</UploadId><ETag>etag</ETag></{name}>".encode())


@pytest.fixture
def sink() -> Iterator[ThreadingHTTPServer]:
    handler = type("OwnSink", (Sink,), {"received": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("target", ["S3", "Swift"])
def test_memory_does_not_grow_with_the_size_of_a_part(sink: ThreadingHTTPServer, tmp_path: Path, target: str) -> None:
    for name, size in (("small", SMALL), ("large", LARGE)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    host = f"127.0.0.1:{sink.server_address[1]}"
    url, details = {
        "S3": ("", {"bucket": "images", "endpoint": f"http://{host}", "accesskey": "ak", "secretkey": "sk"}),
        "Swift": (f"http://{host}/auth/v1.0", {"username": "user", "key": "key"}),
    }[target]
    arguments = [str(tmp_path), "small", "large", target, url, json.dumps(details), json.dumps(FACTS)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.drivers.copy_large", *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [size for size in sink.RequestHandlerClass.received if size > 32 * MiB] == [LARGE // 2] * 2
    assert int(done.stdout) < 48 * MiB
