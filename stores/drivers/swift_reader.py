"""Reads ranges of one object in a container, and notices when it is replaced meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stores.drivers.base import ObjectInfo, Reader
from stores.drivers.errors import Corrupt, Misconfigured, NotFound, SourceChanged, Unavailable

if TYPE_CHECKING:
    from stores.drivers.swift import SwiftDriver


class SwiftReader(Reader):
    """Ranged GETs that insist on the entity tag seen when the object was opened."""

    def __init__(self, driver: SwiftDriver, name: str, info: ObjectInfo) -> None:
        self.info = info
        self._driver = driver
        self._name = name

    def pread(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if end <= offset:
            return b""
        headers = {"Range": f"bytes={offset}-{end - 1}", "If-Match": self.info.etag or "*"}
        response = self._driver.session.request(
            "GET", self._driver.container, self._name, headers=headers, allow=(404, 409, 412, 416)
        )
        if response.status in {412, 416}:
            raise SourceChanged(f"{self.info.key!r} was replaced while it was read.")
        if response.status == 404:
            raise NotFound(f"{self.info.key!r} was deleted while it was read.")
        if response.status == 409:
            raise Corrupt(f"{self.info.key!r} cannot be read: a segment is missing or is not what its manifest says.")
        if response.status != 206 and (offset, end) != (0, self.size):
            raise Misconfigured("The server or a proxy before it ignores ranges.", field="url")
        if len(response.body) != end - offset:
            raise Unavailable(f"The answer for {self.info.key!r} broke off.")
        return response.body

    def current_version(self) -> str:
        return self._driver.stat(self.info.key).version
