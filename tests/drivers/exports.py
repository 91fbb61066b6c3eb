"""Short ways to use an NFS driver in its tests."""

from __future__ import annotations

from stores.drivers.base import MiB, Upload
from stores.drivers.nfs import NFSDriver

KEY = "template/tmpl/2/201/disk.qcow2"


def put(driver: NFSDriver, key: str, data: bytes = b"content", **arguments: object):
    return driver.put(key, data, **{"metadata": {}, "token": "t", **arguments})  # type: ignore[arg-type]


def begin(driver: NFSDriver, key: str = KEY, token: str = "t") -> Upload:
    return driver.begin_upload(key, size=None, part_size=MiB, metadata={}, token=token)


def keys(driver: NFSDriver, prefix: str = "") -> list[str]:
    return [info.key for info in driver.list(prefix)]


def every_use(driver: NFSDriver, key: str = KEY) -> list:
    upload = Upload(key, "t.0123456789abcdef", None, MiB, "t")
    return [
        driver.check,
        lambda: driver.stat(key),
        lambda: driver.exists(key),
        lambda: driver.open(key),
        lambda: driver.delete(key),
        lambda: list(driver.list()),
        lambda: list(driver.list("nowhere/")),
        lambda: put(driver, key),
        lambda: begin(driver, key),
        lambda: driver.put_part(upload, 1, 0, b"x"),
        lambda: driver.list_parts(upload),
        lambda: driver.complete_upload(upload, []),
        lambda: driver.abort_upload(upload),
        lambda: list(driver.pending_uploads()),
        lambda: driver.purge_trash(older_than=0),
    ]
