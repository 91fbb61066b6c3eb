"""Reads ranges of one object in a bucket, and notices when it is replaced meanwhile."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from stores.drivers.base import ObjectInfo, Reader
from stores.drivers.errors import AlreadyExists, Misconfigured, SourceChanged
from stores.drivers.s3_names import shown
from stores.drivers.s3_wire import Interrupted, etag_of

if TYPE_CHECKING:
    from stores.drivers.s3 import S3Driver

READ_ATTEMPTS = 4


class S3Reader(Reader):
    """Ranges of one object, all of the same version."""

    def __init__(self, driver: S3Driver, info: ObjectInfo) -> None:
        self.info = info
        self._driver = driver

    def pread(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        for _ in range(READ_ATTEMPTS - 1):
            with contextlib.suppress(Interrupted):
                return self._range(offset, length)
        return self._range(offset, length)

    def _range(self, offset: int, length: int) -> bytes:
        doing = f"read {shown(self.info.key)}"
        changed = f"{shown(self.info.key)} was replaced while it was read."
        condition = {"IfMatch": f'"{self.info.etag}"'} if self.info.etag else {}
        span = f"bytes={offset}-{offset + length - 1}"
        try:
            answer = self._driver.call("get_object", doing, Key=self._driver.full_key(self.info.key), Range=span, **condition)
        except AlreadyExists:
            raise SourceChanged(changed) from None
        told = answer.get("ContentLength")
        if etag_of(answer) != self.info.etag or told != length:
            answer["Body"].close()
            if etag_of(answer) != self.info.etag:
                raise SourceChanged(changed)
            raise Misconfigured(f"Could not {doing}: asked for {length} bytes, the server sends {told}.")
        return self._driver.body(answer, doing)

    def current_version(self) -> str:
        return self._driver.stat(self.info.key).version
