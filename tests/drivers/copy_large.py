"""Run as a process of its own by test_memory.py: copies an object of large parts and tells by how much its memory grew."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from stores.copier import Control, CopyEngine, FileToCopy, RecordedUpload
from stores.drivers import confined
from stores.drivers.base import DriverEnvironment, Part, StoreConfig, StoreDriver, Upload
from stores.drivers.nfs import NFSDriver
from stores.drivers.s3 import S3Driver
from stores.drivers.swift import SwiftDriver

DRIVERS: dict[str, type[StoreDriver]] = {"S3": S3Driver, "Swift": SwiftDriver, "NFS": NFSDriver}
ENVIRONMENT = DriverEnvironment(allow_plain_exports=True)


class Forgetful:
    """A journal for a copy that nobody resumes."""

    def recorded(self, target_key: str) -> RecordedUpload | None:
        return None

    def begun(self, file: FileToCopy, source_version: str, upload: Upload) -> None:
        pass

    def part_stored(self, target_key: str, part: Part, prefix_sha256: str) -> None:
        print(f"part {part.number} of {part.size} bytes", file=sys.stderr)

    def completing(self, target_key: str) -> None:
        pass

    def abandoned(self, target_key: str) -> None:
        pass


def peak() -> int:
    """The most bytes of memory that this process ever occupied."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def all_is_data(handle: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    yield start, end - start


def main(export: str, small: str, large: str, target: str, url: str, details: str, facts: str) -> None:
    confined.extents = all_is_data  # the file is sparse to be quick to make, and stands for one that is not
    source = NFSDriver(StoreConfig(f"nfs://localhost{export}", {}, "source", "cloud", {}, ENVIRONMENT))
    source.claim()
    driver_class = DRIVERS[target]
    clean_url, cleaned = driver_class.clean(url, json.loads(details))
    store = driver_class(StoreConfig(clean_url, cleaned, "target", "cloud", json.loads(facts), ENVIRONMENT))
    engine = CopyEngine()

    def copy(key: str) -> None:
        files = [FileToCopy(key, key)]
        engine.copy_item(source, store, files, metadata={}, token="1-1", journal=Forgetful(), control=Control())

    copy(small)
    before = peak()
    copy(large)
    print(peak() - before)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
