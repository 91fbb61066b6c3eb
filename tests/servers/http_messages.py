"""HTTP/1.1 messages on the wire: heads parsed, bodies in blocks, and every byte kept as it was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

BLOCK = 64 * 1024


@dataclass(frozen=True)
class HttpRequest:
    """A request as a rule sees it, before anything is passed on. Header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Block:
    """A piece of a body: `raw` as it was on the wire, `data` without chunk framing."""

    raw: bytes
    data: bytes


Framing = Literal["none", "length", "chunked", "end"]


async def read_head(reader: asyncio.StreamReader) -> bytes | None:
    """Start line and headers as sent; None at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


def parse_headers(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def parse_request(head: bytes) -> HttpRequest:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    return HttpRequest(method, target, parse_headers(lines))


def parse_response(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Status, headers, and whether the server closes the connection after it."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, status = first.split(" ", 2)[:2]
    headers = parse_headers(lines)
    connection = headers.get("connection", "").lower()
    return int(status), headers, connection == "close" or (version == "HTTP/1.0" and connection != "keep-alive")


def framing_of(headers: dict[str, str], *, to_the_end: bool = False) -> tuple[Framing, int]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return "chunked", 0
    if "content-length" in headers:
        return "length", int(headers["content-length"])
    return ("end", 0) if to_the_end else ("none", 0)


async def body_blocks(reader: asyncio.StreamReader, framing: Framing, length: int = 0) -> AsyncIterator[Block]:
    """The body in blocks of at most 64 KiB. IncompleteReadError when the connection ends before the body does."""
    if framing == "end":
        while data := await reader.read(BLOCK):
            yield Block(data, data)
        return
    if framing == "chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            yield Block(line, b"")
            size = int(line.partition(b";")[0], 16)
            if size == 0:
                break
            async for block in body_blocks(reader, "length", size):
                yield block
            yield Block(await reader.readexactly(2), b"")
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            yield Block(line, b"")
        yield Block(line, b"")
        return
    while length:
        data = await reader.read(min(BLOCK, length))
        if not data:
            raise asyncio.IncompleteReadError(b"", length)
        length -= len(data)
        yield Block(data, data)
